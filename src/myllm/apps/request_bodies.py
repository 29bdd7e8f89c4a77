"""Bodies of requests, read within limits of size and time: JSON, forms, and pictures in them."""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from myllm.apps.http_errors import ApiError, bad_request, queue_full

MAX_FIELDS = 1000
DATA_URI = re.compile(r"data:[^,]{0,200}?;base64,", re.IGNORECASE)


class BodyReader:
    """Reads bodies of at most `max_bytes`, within `timeout` seconds each; holds at most `max_total` bytes at once."""

    def __init__(self, max_bytes: int, timeout: float, max_total: int, is_full: Callable[[], bool]) -> None:
        """is_full: returns whether the queue has no place, so that reading would be in vain."""
        self.max_bytes, self.timeout, self.max_total, self.is_full = max_bytes, timeout, max_total, is_full
        self.held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body. Raises ApiError if it is too large or too slow, and if the server has too much to do."""
        if self.is_full():
            raise queue_full()
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            self._refuse_size()
        with self.counted() as count:
            yield await self._receive(request, count)

    @contextmanager
    def counted(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that counts bytes as held until the block ends. It raises ApiError if they are too many."""
        size = 0

        def count(added: int) -> None:
            nonlocal size
            size += added
            self.held += added
            if self.held > self.max_total:
                raise queue_full()

        try:
            yield count
        finally:
            self.held -= size

    async def _receive(self, request: Request, count: Callable[[int], None]) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self.timeout):
                async for part in request.stream():
                    body += part
                    if len(body) > self.max_bytes:
                        self._refuse_size()
                    count(len(part))
        except TimeoutError:
            message = f"the request did not arrive within {self.timeout:g} seconds"
            raise ApiError(408, "slow_body", message, {"Connection": "close"}) from None
        except ClientDisconnect:
            raise bad_request("the connection ended before the request was complete") from None
        return bytes(body)

    def _refuse_size(self) -> NoReturn:
        message = f"the request is larger than this server's limit of {self.max_bytes:,} bytes"
        raise ApiError(413, "too_large", message)


@dataclass(frozen=True)
class Form:
    """A form: its text fields, each possibly given several times, and the file `image`."""

    texts: Mapping[str, list[str]]
    image: bytes | None


def media_type(request: Request) -> str:
    """Return the type of the body, without parameters such as the boundary."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def parse_form(request: Request, body: bytes) -> Form:
    """Return the form in a body. Raises ApiError."""

    async def parts() -> AsyncIterator[bytes]:
        yield body

    try:
        parser: Any = _FormInMemory(request.headers, parts(), max_files=1, max_fields=MAX_FIELDS)  # type: ignore[arg-type]
        form = await parser.parse()
    except MultiPartException as error:
        raise bad_request(f"the form cannot be read: {error.message}") from None
    texts, image = dict[str, list[str]](), None
    for name, value in form.multi_items():
        if isinstance(value, str):
            texts.setdefault(name, []).append(value)
        elif name == "image":
            image = await value.read()
        else:
            raise bad_request(f"the form has a file {name[:50]!r}; expected one of the name 'image'")
    return Form(texts, image)


def parse_json(body: bytes) -> dict[str, Any]:
    """Return the object in a body. Raises ApiError."""
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
        _check_characters(content)
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise bad_request(f"a text has {half!r}, half of a surrogate pair, which is not a character") from None
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise bad_request(f"the body is a JSON {type(content).__name__}; expected an object of names and values")
    return content


def picture_of_text(text: Any) -> bytes:
    """Return the picture in a text: base64, as it is or as a data URI. Raises ApiError."""
    if not isinstance(text, str):
        raise bad_request(f"a picture is {type(text).__name__}; expected text in base64")
    match = DATA_URI.match(text)
    if match is None and text[:5].lower() == "data:":
        raise bad_request("a picture's data URI is not in base64; expected data:image/jpeg;base64,...")
    encoded = text[match.end() if match else 0 :]
    try:
        content = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise bad_request("a picture is not valid base64") from None
    if not content:
        raise bad_request("a picture is empty")
    return content


class _FormInMemory(MultiPartParser):
    spool_max_size = 2**31  # the body is in memory already; a copy on disk would only cost time
    # whatever charset the header names: some of Python's codecs fail, return half characters, or take minutes
    _charset: Any = property(lambda self: "utf-8", lambda self, charset: None)


def _check_characters(value: Any) -> None:
    """Raise UnicodeEncodeError for a text with half of a surrogate pair, such as JSON's "\\ud800"."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_characters(item)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
