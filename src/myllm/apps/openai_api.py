"""OpenAI's API: chat completions with a picture, and the list of models."""

import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from myllm.apps.caption_service import CaptionRequest, CaptionService, ServedModel, picture_of
from myllm.apps.connections import StreamedAnswer, begun, while_connected
from myllm.apps.foreign_options import (
    own_options,
    refuse_unsupported,
    sampling_options,
    several_captions,
    signed_seed,
    whole_numbers,
    without_stops,
)
from myllm.apps.http_errors import as_api_error, bad_request
from myllm.apps.remote_pictures import RemotePictures
from myllm.apps.request_bodies import BodyReader, parse_json, picture_of_text
from myllm.caption import Caption
from myllm.errors import ConfigError
from myllm.option_checks import has_type

UNSUPPORTED = ("frequency_penalty", "presence_penalty", "logit_bias", "top_logprobs")
FINISH_REASONS = {"end": "stop", "stop": "stop", "length": "length"}


@dataclass(frozen=True)
class _Completion:
    """A request for a chat completion."""

    wanted: CaptionRequest
    model: str
    count: int
    """Number of captions."""
    stops: Sequence[str]
    has_logprobs: bool
    has_usage: bool
    """Whether a stream ends with the number of tokens."""

    def head(self, kind: str) -> dict[str, Any]:
        """Return what is common to all parts of an answer."""
        number = f"chatcmpl-{secrets.token_hex(12)}"
        return {"id": number, "object": kind, "created": int(time.time()), "model": self.model}

    def choices(self, caption: Caption) -> list[tuple[str, str]]:
        """Return the text of each caption, and why it ended."""
        texts = [caption.text, *caption.alternatives]
        endings = [caption.ended_by, *(ended_by for ended_by, _ in caption.alternative_endings)]
        pairs = list(zip(texts, endings, strict=True))[: self.count]
        return [(without_stops(text, self.stops), FINISH_REASONS[ended_by]) for text, ended_by in pairs]

    def usage(self, caption: Caption) -> dict[str, int]:
        """Return the number of tokens of the captions; a captioner reads no prompt."""
        counts = [len(caption.token_logprobs), *(count for _, count in caption.alternative_endings)]
        count = sum(counts[: self.count])
        return {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count}


@dataclass(frozen=True)
class OpenAIApi:
    """Answers requests in OpenAI's form. What the messages say is not read, only the newest picture."""

    service: CaptionService
    bodies: BodyReader
    remote: RemotePictures

    async def models(self, request: Request) -> Response:
        """List the models, and what requests may ask for."""
        limits, models = self.service.limits, list(map(self._facts, self.service.models))
        allowed = {"bytes": self.bodies.max_bytes, "pixels": limits.pixels, "captions": limits.captions}
        return JSONResponse({"object": "list", "data": models, "limits": allowed})

    async def model(self, request: Request) -> Response:
        """Describe a model."""
        return JSONResponse(self._facts(self.service.model(request.path_params["name"])))

    async def completion(self, request: Request) -> Response:
        """Answer with captions of the picture in the newest message that has one."""
        async with self.bodies.read(request) as body:
            given = whole_numbers(parse_json(body))
            with self.bodies.counted() as count:
                picture = await while_connected(request, self._picture(given.get("messages"), count))
                completion = self._read(given, picture)
                if given.get("stream"):
                    return StreamedAnswer(await begun(request, self._chunks(completion)), "text/event-stream")
                caption = await while_connected(request, self.service.caption(completion.wanted))
        choices = [
            {
                "index": index, "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": _logprobs(caption) if completion.has_logprobs and not index else None,
                "finish_reason": finish_reason,
            }
            for index, (text, finish_reason) in enumerate(completion.choices(caption))
        ]
        usage = completion.usage(caption)
        return JSONResponse({**completion.head("chat.completion"), "choices": choices, "usage": usage})

    def _facts(self, model: ServedModel) -> dict[str, Any]:
        context = model.captioner.context
        return {
            "id": model.name, "object": "model", "created": model.created, "owned_by": "myllm",
            "has_attention": model.has_attention, "decode": asdict(model.captioner.decode),
            "max_new_tokens": min(context, self.service.limits.tokens or context),
        }

    async def _picture(self, messages: Any, count: Callable[[int], None]) -> bytes:
        """Return the newest picture. count: called with the number of bytes that are downloaded."""
        if not isinstance(messages, list):
            raise bad_request("messages is missing or is no list")
        for message in reversed(messages):
            parts = message.get("content") if isinstance(message, dict) else None
            urls = [
                part.get("image_url") for part in (parts if isinstance(parts, list) else [])
                if isinstance(part, dict) and part.get("type") == "image_url"
            ]
            if urls:
                url = picture_of(urls)
                url = url.get("url") if isinstance(url, dict) else url
                if isinstance(url, str) and url[:8].lower().startswith(("http://", "https://")):
                    with self.service.batcher.place():
                        return await self.remote.download(url, count)
                return picture_of_text(url)
        return picture_of([])

    def _read(self, given: dict[str, Any], picture: bytes) -> _Completion:
        """Return what is asked for. Raises ApiError and ConfigError."""
        model, count = self.service.model(given.get("model")), 1 if given.get("n") is None else given["n"]
        refuse_unsupported(given, UNSUPPORTED)
        if given.get("response_format") not in (None, {"type": "text"}):
            raise bad_request("response_format is not supported: captions are plain text; leave it out")
        if not has_type(count, int) or count < 1:
            raise ConfigError(f"n is {count!r:.100}; expected a whole number above 0")
        if count > self.service.limits.captions:
            raise ConfigError(f"n is {count}; this server allows at most {self.service.limits.captions}")
        stops = given.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        options = {**own_options(given), **sampling_options(given)}
        if stops:
            options["stop_strings"] = stops
        for name in ("max_tokens", "max_completion_tokens"):
            if given.get(name) is not None:
                options["max_new_tokens"] = self.service.allowed_tokens(model, name, given[name])
        if count > 1:
            options = several_captions(options, count, model.captioner.decode)
        wanted = CaptionRequest(picture, model.name, options, signed_seed(given.get("seed")))
        stream_options = given.get("stream_options")
        has_usage = isinstance(stream_options, dict) and bool(stream_options.get("include_usage"))
        return _Completion(wanted, model.name, count, stops, bool(given.get("logprobs")), has_usage)

    async def _chunks(self, completion: _Completion) -> AsyncGenerator[str]:
        head, is_begun, sent = completion.head("chat.completion.chunk"), False, ""
        try:
            async with aclosing(self.service.stream(completion.wanted)) as parts:
                async for part in parts:
                    if not is_begun:
                        for index in range(completion.count):
                            yield _chunk(head, index, {"role": "assistant", "content": ""})
                        is_begun = True
                    if isinstance(part, str):
                        # the beginning of a stop string must not be sent, and is known only at the end
                        if completion.count == 1 and not completion.stops:
                            yield _chunk(head, 0, {"content": part})
                            sent += part
                        continue
                    for index, (text, finish_reason) in enumerate(completion.choices(part)):
                        logprobs = _logprobs(part) if completion.has_logprobs and not index else None
                        if text[len(sent) :] or logprobs:
                            yield _chunk(head, index, {"content": text[len(sent) :]}, logprobs=logprobs)
                        yield _chunk(head, index, {}, finish_reason)
                    if completion.has_usage:
                        yield _data({**head, "choices": [], "usage": completion.usage(part)})
            yield "data: [DONE]\n\n"
        except Exception as error:
            if not is_begun:
                raise
            yield _data(as_api_error(error).as_json())


def _data(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _chunk(
    head: dict[str, Any], index: int, delta: dict[str, Any], finish_reason: str | None = None, logprobs: Any = None
) -> str:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return _data({**head, "choices": [choice]})


def _logprobs(caption: Caption) -> dict[str, Any]:
    """Return the tokens of the best caption; those of a prefix have no log-probability, and are left out."""
    first = caption.prefix_length
    pairs = zip(caption.pieces[first:], caption.token_logprobs, strict=False)
    content = [
        {"token": piece.decode(errors="replace"), "logprob": logprob, "bytes": list(piece), "top_logprobs": []}
        for piece, logprob in pairs
    ]
    return {"content": content, "refusal": None}
