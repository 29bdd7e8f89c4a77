"""Ollama's API: generate and chat with a picture, and what clients ask about models."""

import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from myllm.apps.caption_service import CaptionRequest, CaptionService, ServedModel, picture_of
from myllm.apps.connections import StreamedAnswer, begun, while_connected
from myllm.apps.foreign_options import (
    own_options,
    refuse_unsupported,
    sampling_options,
    signed_seed,
    whole_numbers,
    without_stops,
)
from myllm.apps.http_errors import as_api_error, bad_request
from myllm.apps.request_bodies import BodyReader, parse_json, picture_of_text
from myllm.caption import Caption
from myllm.config import VERSION

UNSUPPORTED = ("frequency_penalty", "presence_penalty", "mirostat")
DONE_REASONS = {"end": "stop", "stop": "stop", "length": "length"}
DETAILS = {"parent_model": "", "format": "myllm", "family": "myllm", "families": ["myllm"]}


@dataclass(frozen=True)
class _Form:
    """How an address writes text: `response` of generate, `message` of chat."""

    is_chat: bool

    def text(self, text: str) -> dict[str, Any]:
        """Return the part of an answer that holds text."""
        return {"message": {"role": "assistant", "content": text}} if self.is_chat else {"response": text}


@dataclass(frozen=True)
class OllamaApi:
    """Answers requests in Ollama's form. What prompts say is not read, only the newest picture."""

    service: CaptionService
    bodies: BodyReader

    async def version(self, request: Request) -> Response:
        """Return the version of MyLLM."""
        return JSONResponse({"version": VERSION})

    async def tags(self, request: Request) -> Response:
        """List the models."""
        return JSONResponse({"models": [_model_facts(model) for model in self.service.models]})

    async def show(self, request: Request) -> Response:
        """Describe a model."""
        async with self.bodies.read(request) as body:
            fields = parse_json(body)
        model = self.service.model(fields.get("model") or fields.get("name"))
        facts = _model_facts(model)
        details = {name: facts[name] for name in ("modified_at", "details")}
        return JSONResponse({**details, "capabilities": ["completion", "vision"], "model_info": {}, "template": ""})

    async def generate(self, request: Request) -> Response:
        """Caption the only picture of `images`."""
        return await self._answer(request, _Form(is_chat=False))

    async def chat(self, request: Request) -> Response:
        """Caption the picture of the newest message that has one."""
        return await self._answer(request, _Form(is_chat=True))

    async def _answer(self, request: Request, form: _Form) -> Response:
        begin = time.monotonic_ns()
        async with self.bodies.read(request) as body:
            fields = parse_json(body)
            model = self.service.model(fields.get("model"))
            images = _images_of_chat(fields.get("messages")) if form.is_chat else fields.get("images") or []
            if not images and not fields.get("messages" if form.is_chat else "prompt"):
                # clients ask so for a model to be loaded
                return JSONResponse({**_head(model), **form.text(""), "done": True, "done_reason": "load"})
            if not isinstance(images, list):
                raise bad_request("images must be a list of pictures in base64")
            caption_request, stops = self._read(fields, model, picture_of_text(picture_of(images)))
            if fields.get("stream") is None or fields["stream"]:
                lines = self._lines(caption_request, model, form, stops)
                return StreamedAnswer(await begun(request, lines), "application/x-ndjson")
            caption = await while_connected(request, self.service.caption(caption_request))
        text = without_stops(caption.text, stops)
        return JSONResponse({**_head(model), **form.text(text), **_end(caption, begin)})

    def _read(self, fields: Mapping[str, Any], model: ServedModel, picture: bytes) -> tuple[CaptionRequest, list[str]]:
        """Return the request for captions, and the stop strings. Raises ApiError and ConfigError."""
        if fields.get("format"):
            raise bad_request("format is not supported: captions are plain text; leave it out")
        if not isinstance(values := fields.get("options") or {}, dict):
            raise bad_request("options must be an object of names and values")
        values = whole_numbers(values)
        refuse_unsupported(values, UNSUPPORTED)
        options = {**own_options(values), **sampling_options(values)}
        if (count := values.get("num_predict")) is not None and count not in (-1, -2):  # both: no limit
            options["max_new_tokens"] = self.service.allowed_tokens(model, "num_predict", count)
        if (penalty := values.get("repeat_penalty")) is not None:
            options["repetition_penalty"] = penalty
        stops = values.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        if stops:
            options["stop_strings"] = stops
        return CaptionRequest(picture, model.name, options, signed_seed(values.get("seed"))), stops

    async def _lines(
        self, caption_request: CaptionRequest, model: ServedModel, form: _Form, stops: list[str]
    ) -> AsyncGenerator[str]:
        begin, is_begun, sent = time.monotonic_ns(), False, ""
        try:
            async with aclosing(self.service.stream(caption_request)) as parts:
                async for part in parts:
                    is_begun = True
                    if isinstance(part, Caption):
                        if rest := without_stops(part.text, stops)[len(sent) :]:
                            yield _line({**_head(model), **form.text(rest), "done": False})
                        yield _line({**_head(model), **form.text(""), **_end(part, begin)})
                    elif not stops:  # the beginning of a stop string must not be sent, and is known only at the end
                        yield _line({**_head(model), **form.text(part), "done": False})
                        sent += part
        except Exception as error:
            if not is_begun:
                raise
            yield _line({"error": as_api_error(error).message})


def _images_of_chat(messages: Any) -> Any:
    """Return the pictures of the newest message that has any."""
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("images"):
            return message["images"]
    return []


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content) + "\n"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _head(model: ServedModel) -> dict[str, Any]:
    return {"model": model.name, "created_at": _time(time.time())}


def _end(caption: Caption, begin: int) -> dict[str, Any]:
    """Return how the answer ended, with the numbers that clients print; durations are in nanoseconds."""
    total = time.monotonic_ns() - begin
    return {
        "done": True, "done_reason": DONE_REASONS[caption.ended_by], "context": [], "total_duration": total,
        "load_duration": 0, "prompt_eval_count": 0, "prompt_eval_duration": 0,
        "eval_count": len(caption.token_logprobs), "eval_duration": total,
    }


def _model_facts(model: ServedModel) -> dict[str, Any]:
    details = {**DETAILS, "parameter_size": "", "quantization_level": ""}
    return {
        "name": model.name, "model": model.name, "modified_at": _time(model.created), "size": model.bytes,
        "digest": model.digest, "details": details,
    }
