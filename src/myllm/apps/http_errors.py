"""Errors as a client of the server gets them: a status, and JSON with the reason."""

from typing import Any

from myllm.apps.batching import QueueFull
from myllm.errors import CheckpointError, ConfigError, DataError, MyLLMError

RETRY_SECONDS = 1
INTERNAL_MESSAGE = "the server failed on this request; its log has the reason"


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        """code: short name for programs. message: the fault and its fix, for people."""
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def as_json(self) -> dict[str, Any]:
        """Return it in the form that clients of OpenAI's API read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "code": self.code}}


def bad_request(message: str) -> ApiError:
    """Return the error for a request of a wrong form."""
    return ApiError(400, "bad_request", message)


def queue_full() -> ApiError:
    """Return the error for a request that finds no place in the queue."""
    message = "the server has as many pictures in work as it may; try again later"
    return ApiError(503, "queue_full", message, {"Retry-After": str(RETRY_SECONDS)})


def as_api_error(error: BaseException) -> ApiError:
    """Return the answer to a request that raised `error`."""
    match error:
        case ApiError():
            return error
        case QueueFull():
            return queue_full()
        case TimeoutError():
            return ApiError(504, "timeout", "the server had no time to caption this picture; try again later")
        case ConfigError():
            return ApiError(400, "bad_option", str(error).replace("decode.", ""))
        case DataError():
            return ApiError(400, "bad_picture", str(error))
        case MyLLMError() if not isinstance(error, CheckpointError):
            return ApiError(500, "internal_error", str(error))
    return ApiError(500, "internal_error", INTERNAL_MESSAGE)
