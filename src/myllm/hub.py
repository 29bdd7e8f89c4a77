"""Repositories of a hub, captioners and data: their names, and the meaning of the hub's errors."""

import re
from pathlib import Path

from myllm.errors import reason

ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_id(source: str) -> bool:
    """Return whether this is a repository, user/name or user/name@revision, and cannot be a local path."""
    is_local = source.endswith((".pt", ".bin", ".safetensors")) or Path(source).exists() or Path(source).parent.is_dir()
    return ID.fullmatch(source) is not None and not is_local


def describe(error: Exception) -> str:
    """Return what went wrong on the hub and what to do."""
    from huggingface_hub import errors, get_token

    if isinstance(error, errors.LocalEntryNotFoundError):  # the hub failed, and then the cache lacked a file
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if isinstance(error, errors.GatedRepoError):
        return "it is gated: accept its terms on its page, and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub does not know it, or it is private: check the name, or set HF_TOKEN"
    response = error.response if isinstance(error, errors.HfHubHTTPError) else None
    status = 0 if response is None else response.status_code
    if status in (401, 403) and not get_token():
        return "the hub requires a login: set HF_TOKEN"
    if status == 403:
        return "HF_TOKEN does not permit this; use a token with write access"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the hub has no such revision of it; leave @revision out for the newest"
    if status:
        return f"the hub answered {status}; try again later"
    if isinstance(error, ValueError):
        return reason(error)
    return f"the hub could not be reached, and it is not in the cache ({reason(error)})"
