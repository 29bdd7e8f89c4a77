"""Captions for the server's APIs: which model, which options, within which limits. Knows the queue, but not HTTP."""

import asyncio
import base64
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from myllm.apps.batching import Batcher, Job
from myllm.apps.http_errors import ApiError, bad_request
from myllm.caption import Caption, CaptionerProtocol
from myllm.config import DecodeConfig
from myllm.data.images import picture_pixels
from myllm.decoding.sampling import draw_seeds
from myllm.errors import ConfigError, DataError
from myllm.files import ImageBytes
from myllm.inference.onnx_captioner import OnnxCaptioner
from myllm.option_checks import MAX_SEED, has_type

NAME = "image"  # of the picture, in messages
MAX_OPTION_TEXT = 10_000
"""Maximum number of characters of a request's words, expressions and other texts together."""
MAX_LENGTHS: Mapping[str, tuple[int, str]] = {
    "force_words": (16, "phrases"), "stop_strings": (16, "phrases"), "regex": (1000, "characters"),
}
"""Maximum lengths of options: a search takes time for each phrase in every step, and the time to prepare a regular
expression grows with the square of its length."""
MAP_SIDE = 32
"""Maximum longer side of a word's heat map, in cells."""


@dataclass(frozen=True)
class ServedModel:
    """A captioner, by the name that requests give."""

    name: str
    captioner: CaptionerProtocol
    path: Path
    created: int
    """Seconds since 1970 at which the server opened it."""
    digest: str
    """Hash of its weights."""

    @property
    def bytes(self) -> int:
        """Size of its files."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files if file.is_file())

    @property
    def has_attention(self) -> bool:
        """Whether it has heat maps."""
        return not isinstance(self.captioner, OnnxCaptioner)


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    pixels: int
    captions: int
    """Beams or samples."""
    tokens: int | None
    """Length of a caption; None for the model's own limit."""
    seconds: float
    """Time for a caption, waiting included."""


@dataclass(frozen=True)
class CaptionRequest:
    """What a client asks for."""

    picture: bytes = field(repr=False)
    model: str | None = None
    """Name of the model; None for the first one."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Decoding options that replace the model's own."""
    seed: int | None = None
    """Random seed of `do_sample`; drawn if None."""


@dataclass(frozen=True)
class WordMaps:
    """Where the captioner looked for each word of a caption."""

    width: int
    height: int
    peak: float
    """The greatest weight in any map, where 1 is the weight of each cell of an even map."""
    maps: list[str]
    """For each word, base64 of height * width bytes, row by row: 255 is `peak`."""


class CaptionService:
    """Captions pictures by several models, through one queue."""

    def __init__(self, models: Sequence[ServedModel], batcher: Batcher, limits: Limits, threads: int) -> None:
        """threads: number of threads that decode pictures."""
        self.models, self.batcher, self.limits = list(models), batcher, limits
        self.decoders = ThreadPoolExecutor(threads, "decode")

    def model(self, name: str | None) -> ServedModel:
        """Return the model of this name, or the first one. Raises ApiError."""
        for model in self.models:
            if name in (None, model.name, f"{model.name}:latest"):  # Ollama's names have a tag
                return model
        known = ", ".join(model.name for model in self.models)
        raise ApiError(404, "unknown_model", f"model {str(name)[:100]!r} is not served; known are {known}")

    def allowed_tokens(self, model: ServedModel, name: str, count: Any) -> int:
        """Return a client's maximum length of a caption, lowered to what is possible. Raises ConfigError.

        Programs written for large models ask for hundreds of tokens, and do not mean that they need them.
        """
        if not has_type(count, int) or count < 1:
            raise ConfigError(f"{name} is {count!r:.100}; expected a whole number above 0")
        return min(count, model.captioner.context, self.limits.tokens or count)

    async def caption(self, request: CaptionRequest) -> Caption:
        """Return the caption. Raises ApiError, MyLLMError, QueueFull, and TimeoutError."""
        async with self.captioned(request) as caption:
            return caption

    @asynccontextmanager
    async def captioned(self, request: CaptionRequest) -> AsyncIterator[Caption]:
        """Yield the caption. The request keeps its place in the queue until the block ends. Raises as `caption` does.

        The limit of time holds for the whole block.
        """
        async with asyncio.timeout(self.limits.seconds), aclosing(self._follow(request, is_shown=False)) as parts:
            async for part in parts:
                if isinstance(part, Caption):
                    yield part
                    return
        raise AssertionError("the last part is the caption")

    def stream(self, request: CaptionRequest) -> AsyncGenerator[str | Caption]:
        """Yield the pieces of the text as they are decoded, and then the caption. Raises as `caption` does."""
        return self._follow(request, is_shown=True)

    async def word_maps(self, request: CaptionRequest, caption: Caption) -> WordMaps:
        """Return the heat maps of a caption's words. Raises ApiError if the model has none."""
        model = self.model(request.model)
        self.check_attention(model)
        async with asyncio.timeout(self.limits.seconds):
            return await self._in_thread(partial(_word_maps, model.captioner, request.picture, caption))

    def check_attention(self, model: ServedModel) -> None:
        """Raise ApiError if the model has no heat maps."""
        if not model.has_attention:
            message = f"attention: model {model.name!r} is an ONNX export, which has no heat maps"
            raise ApiError(400, "bad_option", message)

    def close(self) -> None:
        """Finish all captions, then end the threads."""
        self.batcher.close()
        self.decoders.shutdown(cancel_futures=True)

    async def _follow(self, request: CaptionRequest, is_shown: bool) -> AsyncGenerator[str | Caption]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.seconds
        texts = asyncio.Queue[str | None]()
        model, sent = self.model(request.model), ""
        decode, seed = self._decode_options(model, request.options), _drawn_seed(request.seed)
        with self.batcher.place():
            async with asyncio.timeout_at(deadline):
                pixels = await self._in_thread(partial(self._preprocess, model, request.picture))

            def show(text: str) -> None:
                loop.call_soon_threadsafe(texts.put_nowait, text)

            job = Job(model.captioner, pixels, decode, seed, show if is_shown else None)
            future = asyncio.wrap_future(self.batcher.submit(job))
            future.add_done_callback(lambda done: texts.put_nowait(None))
            try:
                while True:
                    async with asyncio.timeout_at(deadline):
                        text = await texts.get()
                    if text is None:
                        break
                    if len(text) > len(sent):
                        yield text[len(sent) :]
                        sent = text
                caption = future.result()
                if caption.error:
                    raise ConfigError(caption.error)
                if is_shown and len(caption.text) > len(sent):
                    yield caption.text[len(sent) :]
                yield caption
            finally:
                future.cancel()

    async def _in_thread(self, compute: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.decoders, compute)

    def _preprocess(self, model: ServedModel, picture: bytes) -> Any:
        image = ImageBytes(NAME, picture)
        pixels = picture_pixels(image)
        if pixels > self.limits.pixels:
            raise DataError(f"{NAME}: its {pixels:,} pixels are above this server's limit of {self.limits.pixels:,}")
        return model.captioner.preprocess(image)

    def _decode_options(self, model: ServedModel, options: Mapping[str, Any]) -> DecodeConfig:
        """Return the model's decoding options with some replaced. Raises ConfigError."""
        if len(str(options)) > MAX_OPTION_TEXT:
            raise ConfigError(f"the options have more than {MAX_OPTION_TEXT:,} characters")
        decode = model.captioner.decode_options(**options)
        for name, maximum in (
            ("beams", self.limits.captions), ("num_return_sequences", self.limits.captions),
            ("max_new_tokens", self.limits.tokens),
        ):
            value = getattr(decode, name)
            if maximum is not None and value is not None and value > maximum:
                raise ConfigError(f"{name} is {value}; this server allows at most {maximum}")
        for name, (maximum, unit) in MAX_LENGTHS.items():
            length = len(getattr(decode, name))
            if name in options and length > maximum:
                raise ConfigError(f"{name} has {length:,} {unit}; this server allows at most {maximum:,}")
        return decode


def _drawn_seed(seed: int | None) -> int:
    """Return the picture's seed: that of `Captioner.caption` with a generator of this seed. Raises ConfigError."""
    if seed is None:
        return random.getrandbits(62)
    if not has_type(seed, int) or not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed is {seed!r:.100}; expected a whole number from 0 to {MAX_SEED}")
    return draw_seeds(seed, 1)[0]


def _word_maps(captioner: Any, picture: bytes, caption: Caption) -> WordMaps:
    maps = captioner.attention_maps(ImageBytes(NAME, picture), caption, longest=MAP_SIDE).numpy()
    height, width = maps.shape[1:]
    words = [maps[word.tokens].mean(0) * height * width for word in caption.words]
    peak = max((float(word.max()) for word in words), default=0.0)
    cells = [np.rint(word * (255 / (peak or 1.0))).astype(np.uint8) for word in words]
    return WordMaps(width, height, peak, [base64.b64encode(word.tobytes()).decode() for word in cells])


def picture_of(texts: Sequence[Any]) -> Any:
    """Return the only picture of a request. Raises ApiError for none or several."""
    if len(texts) != 1:
        raise bad_request(f"the request has {len(texts) or 'no'} pictures; expected one")
    return texts[0]
