"""The description of the API: in OpenAPI's form for programs, and as the page /docs."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser
from jinja2 import Environment

from myllm.apps.caption_api import FIELD_TYPES, OPTION_TYPES
from myllm.config import DecodeConfig

DESCRIPTION = (
    "Captions for pictures. If the server has a key, send it as the header `Authorization: Bearer KEY`. "
    "Errors are JSON with a message in words."
)
TEMPLATE = Path(__file__).parent / "api_docs.html.jinja"
FIELD_TEXTS = {
    "image": "The picture: a file in a form; in JSON, text in base64, as it is or as a data URI.",
    "model": "Name of the captioner, see /v1/models; the first one by default.",
    "seed": "Random seed of do_sample.",
    "attention": "Whether the answer has a heat map for each word.",
    "stream": "Whether the answer is a stream of server-sent events, while the caption is written.",
}
JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}
ERROR = {
    "type": "object", "required": ["error"],
    "properties": {"error": {"type": "object", "properties": {
        name: {"type": "string"} for name in ("message", "type", "code")
    }}},
}
OLLAMA_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
STATUSES = {
    400: "The request, an option or the picture is wrong.", 401: "The key is missing or wrong.",
    404: "The model is unknown.", 408: "The request did not arrive in time.", 413: "The request is too large.",
    415: "The body is neither a form nor JSON.", 503: "The queue is full; try again later.",
    504: "There was no time for a caption; try again later.",
}
STREAMS = {
    "/v1/caption": "text/event-stream", "/v1/chat/completions": "text/event-stream",
    "/api/generate": "application/x-ndjson", "/api/chat": "application/x-ndjson",
}
MESSAGES = {
    "type": "array", "items": {"type": "object"},
    "description": "The newest message with a picture counts; text is not read.",
}
STREAM = {"type": "boolean", "description": FIELD_TEXTS["stream"]}
IMAGE = {"type": "string", "description": FIELD_TEXTS["image"]}
MODEL = {"type": "string", "description": FIELD_TEXTS["model"]}


def operation(path: str) -> dict[str, Any]:
    """Return the arguments of FastAPI's `add_api_route` that describe an endpoint."""
    bodies = _bodies()
    error = OLLAMA_ERROR if path.startswith("/api/") else ERROR
    statuses = STATUSES if path in bodies else {401: STATUSES[401], 503: "The server is stopping, or has no time."}
    if "{name" in path:
        statuses = {**statuses, 404: STATUSES[404]}
    responses: dict[int, Any] = {
        status: {"description": text, "content": {"application/json": {"schema": error}}}
        for status, text in statuses.items()
    }
    if path in STREAMS:
        responses[200] = {"description": "The answer.", "content": {"application/json": {}, STREAMS[path]: {}}}
    if path == "/metrics":
        responses[200] = {"description": "Figures.", "content": {"text/plain": {}}}
    if path == "/readyz":
        del responses[503]["content"]
    if "{name" in path:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        return {"responses": responses, "openapi_extra": {"parameters": [name]}}
    if path not in bodies:
        return {"responses": responses}
    content = {kind: {"schema": schema} for kind, schema in bodies[path].items()}
    return {"responses": responses, "openapi_extra": {"requestBody": {"required": True, "content": content}}}


def page(openapi: Mapping[str, Any]) -> str:
    """Return the page that describes the API; it needs no other address."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    return template.render(api=openapi)


@cache
def _bodies() -> dict[str, dict[str, Any]]:
    """Return the schemas of the bodies that are sent to each path, by media type."""
    properties = {name: _schema(kind) | {"description": text} for name, kind, text in _own_fields()}
    form, json = (
        {"type": "object", "required": ["image"], "properties": {"image": IMAGE | {"format": kind}, **properties}}
        for kind in ("binary", "byte")
    )
    pictures = {"type": "array", "items": {"type": "string"}, "description": "One picture in base64."}
    options = {"type": "object", "description": "temperature, top_p, seed, stop, num_predict, and decoding options."}
    chat = {
        "model": MODEL, "messages": MESSAGES, "stream": STREAM, "n": {"type": "integer"},
        "max_tokens": {"type": "integer"}, "temperature": {"type": "number"}, "logprobs": {"type": "boolean"},
    }
    common = {"model": MODEL, "stream": STREAM, "options": options}
    return {
        "/v1/caption": {"multipart/form-data": form, "application/json": json},
        "/v1/chat/completions": _json_body(chat, "messages"),
        "/api/generate": _json_body({"images": pictures, **common}),
        "/api/chat": _json_body({"messages": MESSAGES, **common}, "messages"),
        "/api/show": _json_body({"model": MODEL}),
    }


def _json_body(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"application/json": {"type": "object", "properties": properties, "required": list(required)}}


def _own_fields() -> list[tuple[str, Any, str]]:
    """Return name, type and meaning of each field of /v1/caption but the picture."""
    parsed = docstring_parser.parse_from_object(DecodeConfig)
    texts = {field.arg_name: " ".join((field.description or "").split()) for field in parsed.params} | FIELD_TEXTS
    return [(name, kind, texts.get(name, "")) for name, kind in {**FIELD_TYPES, **OPTION_TYPES}.items()]


def _schema(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of an option's type."""
    if get_origin(kind) in (Union, UnionType):
        return {"anyOf": [_schema(part) for part in get_args(kind)]}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _schema(get_args(kind)[0])}
    return {"type": JSON_TYPES[kind]}
