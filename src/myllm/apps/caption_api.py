"""The server's own API: `POST /v1/caption`."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from myllm.apps.caption_options import FIELDS
from myllm.apps.caption_output import row_of
from myllm.apps.caption_service import CaptionRequest, CaptionService
from myllm.apps.connections import StreamedAnswer, begun, while_connected
from myllm.apps.http_errors import ApiError, as_api_error, bad_request
from myllm.apps.request_bodies import BodyReader, media_type, parse_form, parse_json, picture_of_text
from myllm.caption import Caption
from myllm.config import DecodeConfig, nearest
from myllm.errors import ConfigError
from myllm.option_checks import describe_type, has_type

FIELD_TYPES: Mapping[str, Any] = {"model": str | None, "seed": int | None, "attention": bool, "stream": bool}
"""Fields of a request besides `image` and decoding options."""
OPTION_TYPES: Mapping[str, Any] = {
    name: get_args(option.type)[0] if hasattr(option.type, "__metadata__") else option.type
    for name, option in DecodeConfig.__dataclass_fields__.items()
}


@dataclass(frozen=True)
class CaptionApi:
    """Answers requests for captions."""

    service: CaptionService
    bodies: BodyReader

    async def caption(self, request: Request) -> Response:
        """Caption one picture."""
        async with self.bodies.read(request) as body:
            picture, values = await _read_fields(request, body)
            attention, is_streamed = bool(values.pop("attention", False)), bool(values.pop("stream", False))
            wanted = CaptionRequest(picture, values.pop("model", None), values, values.pop("seed", None))
            model = self.service.model(wanted.model)
            if attention:
                self.service.check_attention(model)
            if is_streamed:
                events = await begun(request, self._events(wanted, attention))
                return StreamedAnswer(events, "text/event-stream")
            return JSONResponse(await while_connected(request, self._answer(wanted, attention)))

    async def _answer(self, wanted: CaptionRequest, attention: bool) -> dict[str, Any]:
        async with self.service.captioned(wanted) as caption:
            return await self._content(wanted, attention, caption)

    async def _events(self, wanted: CaptionRequest, attention: bool) -> AsyncGenerator[str]:
        is_begun = False
        try:
            async with aclosing(self.service.stream(wanted)) as parts:
                async for part in parts:
                    if isinstance(part, Caption):
                        yield event("caption", await self._content(wanted, attention, part))
                    else:
                        yield event("text", {"text": part})
                    is_begun = True
        except Exception as error:
            if not is_begun:
                raise
            yield event("error", as_api_error(error).as_json())

    async def _content(self, wanted: CaptionRequest, attention: bool, caption: Caption) -> dict[str, Any]:
        content = row_of("", caption, FIELDS)
        del content["image"]
        content["model"] = self.service.model(wanted.model).name
        if attention:
            maps = await self.service.word_maps(wanted, caption)
            content["attention"] = {"width": maps.width, "height": maps.height, "peak": maps.peak}
            for word, word_map in zip(content["words"], maps.maps, strict=True):
                word["map"] = word_map
        return content


def event(name: str, content: Mapping[str, Any]) -> str:
    """Return a server-sent event."""
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"


async def _read_fields(request: Request, body: bytes) -> tuple[bytes, dict[str, Any]]:
    """Return the picture of a request, and its other fields. Raises ApiError and ConfigError."""
    match media_type(request):
        case "multipart/form-data":
            form = await parse_form(request, body)
            if "image" in form.texts:
                raise bad_request("`image` is a text field; send it as a file, with curl as -F image=@dog.jpg")
            values = {name: _typed(name, texts) for name, texts in form.texts.items() if _is_known(name)}
            picture = form.image
        case "application/json":
            values = {name: value for name, value in parse_json(body).items() if name == "image" or _is_known(name)}
            text = values.pop("image", None)
            picture = None if text is None else picture_of_text(text)
        case other:
            message = f"Content-Type is {other[:100]!r}; expected multipart/form-data or application/json"
            raise ApiError(415, "bad_content_type", message)
    if not picture:
        raise bad_request("there is no picture; send it as the file `image` of a form, or as `image` of JSON in base64")
    for name, value in values.items():
        if name in FIELD_TYPES and not has_type(value, FIELD_TYPES[name]):
            raise ConfigError(f"{name} is {value!r:.100}; expected {describe_type(FIELD_TYPES[name])}")
    return picture, values


def _is_known(name: str) -> bool:
    """Return True. Raises ApiError for a name that is no field."""
    known = {**OPTION_TYPES, **FIELD_TYPES}
    if name not in known:
        message = f"unknown option {name[:100]!r}{nearest(name[:100], [*known, 'image'])}"
        raise ApiError(400, "bad_option", message)
    return True


def _typed(name: str, texts: list[str]) -> Any:
    """Return the value of a form's field by the option's type; one of a wrong type is returned as text."""
    kind = {**OPTION_TYPES, **FIELD_TYPES}[name]
    if get_origin(kind) is tuple:
        # words have no commas, so these separate them, as on the command line; a stop string may be a comma
        return texts if name == "stop_strings" else [word.strip() for text in texts for word in text.split(",")]
    if len(texts) > 1:
        raise ConfigError(f"{name} is given {len(texts)} times; expected one value")
    if has_type(texts[0], kind):
        return texts[0]
    try:
        return json.loads({"True": "true", "False": "false"}.get(texts[0], texts[0]))  # as Python writes them
    except (ValueError, RecursionError):
        return texts[0]
