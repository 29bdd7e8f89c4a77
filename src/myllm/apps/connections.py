"""Connections: clients that leave before they have their answer, answers in pieces, and limits of the HTTP server."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from myllm.apps.http_errors import ApiError, bad_request

T = TypeVar("T")


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`; if the client leaves before, cancel it and raise ApiError, which nobody reads.

    The body of the request must have been read.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_wait_until_left(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "client_left", "the client left")
    finally:
        left.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _wait_until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class StreamedAnswer(StreamingResponse):
    """An answer in pieces. If the client leaves, the iterator is closed."""

    def __init__(self, pieces: AsyncGenerator[str], media_type: str) -> None:
        # no proxy may hold the pieces back
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(pieces, media_type=media_type, headers=headers)
        self.pieces: Any = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.pieces):
            await super().__call__(scope, receive, send)


async def begun(request: Request, pieces: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """Wait for the first piece, so that an error before it gets its own status; return the iterator of all pieces."""
    first = await while_connected(request, anext(pieces))

    async def resumed() -> AsyncGenerator[T]:
        async with aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return resumed()


class BoundedConnection(H11Protocol):
    """A connection that is closed if it asks for nothing, or sends a request too slowly; refused if there are too many.

    The body of a request, while it is being answered, has other limits.
    """

    max_connections = 1000
    idle_seconds = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            message = "too many connections; try again later"
            self._end_with(503, "Service Unavailable", ApiError(503, "too_many_connections", message))
        else:
            self._close_if_idle(previous=self)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP."""
        self._end_with(400, "Bad Request", bad_request(msg))

    def _end_with(self, status: int, reason: str, error: ApiError) -> None:
        body = json.dumps(error.as_json()).encode()
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.transport.write(f"{head}Retry-After: 1\r\nConnection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def _close_if_idle(self, previous: object) -> None:
        """Close the connection if it is idle, with the cycle of the `previous` check; else check again later."""
        if self.transport.is_closing():
            return
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if self.cycle is previous and not is_answering:
            self.transport.abort()
        else:
            self.loop.call_later(self.idle_seconds, self._close_if_idle, self if is_answering else self.cycle)
