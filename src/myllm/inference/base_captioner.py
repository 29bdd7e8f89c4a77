"""What all captioners do, whatever computes their model: options, batches, seeds and streams. No torch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from threading import Lock
from types import EllipsisType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from PIL import Image
from tokenizers import Tokenizer

from myllm.batched import batched
from myllm.caption import Calibration, Caption, Follower
from myllm.config import DecodeConfig
from myllm.data.records import quantity
from myllm.decoding.engine import SearchRequest
from myllm.decoding.retrieval import CaptionIndex
from myllm.errors import ConfigError
from myllm.files import Picture, StoredImage
from myllm.inference.generate import generate_captions, make_vocabulary, require_index, stream_text
from myllm.option_checks import has_type

T = TypeVar("T")
# the name of an adapter, None for no adapter; ... for the one that `Captioner.use_adapter` chose
AdapterName = str | None | EllipsisType


class Once(Generic[T]):
    """A value that is made at the first call, by one thread; other threads wait and get the same value."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, Lock()

    def __call__(self) -> T:
        with self._lock:
            if not hasattr(self, "_value"):
                self._value = self._make()
        return self._value


class VariantProtocol(Protocol):
    """What depends on a captioner's adapter."""

    @property
    def adapter(self) -> str | None: ...
    @property
    def decode(self) -> DecodeConfig: ...
    @property
    def calibration(self) -> Calibration | None: ...
    @property
    def n_positions(self) -> int: ...
    @property
    def index(self) -> CaptionIndex | None: ...


Pixels = TypeVar("Pixels")  # a preprocessed picture
Generator = TypeVar("Generator")  # a source of random seeds
Variant = TypeVar("Variant", bound=VariantProtocol)
PictureOf: TypeAlias = Picture | str | bytes | Image.Image | Pixels


class BaseCaptioner(ABC, Generic[Pixels, Generator, Variant]):
    """Base class of `Captioner` and `OnnxCaptioner`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        # made for the first caption, because weights without a tokenizer can be opened to compute logits
        self._vocabulary = Once(partial(make_vocabulary, tokenizer))

    def caption(
        self, image: PictureOf[Pixels], *, generator: Generator | None = None, adapter: AdapterName = ..., **decode: Any
    ) -> Caption:
        """Caption one picture; `decode` replaces decoding defaults, for example beams=4.

        generator: source of the seeds of `do_sample`.

        Raises DataError if the picture cannot be read, ConfigError for an unknown or wrong option and for rules that
        allow no token.
        """
        [caption] = self.caption_batch([image], generator=generator, adapter=adapter, **decode)
        if caption.error:
            raise ConfigError(caption.error)
        return caption

    def caption_batch(
        self, images: Iterable[PictureOf[Pixels]], *, each: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int = 32, generator: Generator | None = None, adapter: AdapterName = ..., **decode: Any,
    ) -> list[Caption]:
        """Caption pictures, `batch_size` at once. Returns a caption for each, equal to the result of `caption`, with
        `error` if the rules allow no token.

        each: further decoding options, one mapping for each picture; they take precedence over `decode`.

        Captions of a `Captioner` keep a reference to their picture, for `caption.attention`: to a path, bytes, or an
        item of a list, but not to decoded pictures from an iterator, as these would fill the memory.

        Raises as `caption` does, and ConfigError if `each` and `images` differ in length or `batch_size` is not a whole
        number above 0.
        """
        if not has_type(batch_size, int) or batch_size < 1:
            raise ConfigError(f"caption_batch: batch_size is {batch_size!r:.100}; expected a whole number above 0")
        variant = self._variant(adapter)
        options: Iterator[DecodeConfig] = repeat(_replace_options(variant, decode))
        if each is not None:
            images = list(images)
            if len(each) != len(images):
                raise ConfigError(
                    f"caption_batch: each has options for {quantity(len(each), 'picture')}; there are {len(images)}"
                )
            options = iter([_replace_options(variant, {**decode, **changes}) for changes in each])
        is_kept = isinstance(images, Sequence) or hasattr(images, "shape")
        captions = list[Caption]()
        for batch in batched(images, batch_size):
            pixels, seeds = [self.preprocess(picture) for picture in batch], self._draw_seeds(len(batch), generator)
            results = self.caption_tensors(pixels, list(islice(options, len(batch))), seeds, variant.adapter)
            for picture, caption in zip(batch, results, strict=True):
                if is_kept or isinstance(picture, Path | StoredImage | str | bytes):
                    caption.compute_attention = self._attention_of(picture, variant)
            captions += results
        return captions

    def stream(
        self, image: PictureOf[Pixels], *, generator: Generator | None = None, adapter: AdapterName = ..., **decode: Any
    ) -> Iterator[str]:
        """Caption one picture and yield the text in pieces, as soon as they are decoded; none ends inside a character.

        Raises at the call, as `caption` does, and ConfigError for beams or several captions, whose best is known only
        at the end.
        """
        variant = self._variant(adapter)
        options = _replace_options(variant, decode)
        if options.beams > 1 or (options.num_return_sequences or 1) > 1:
            raise ConfigError(
                "stream: the best of several captions is known only at the end; take beams 1 and num_return_sequences "
                "1, or `caption`"
            )
        pixels, seeds = self.preprocess(image), self._draw_seeds(1, generator)
        with self._computing():
            request = self._request(variant, self._encode(variant, [pixels]), [0], options, seeds)
        return stream_text(request, self.tokenizer, self._computing)

    def decode_options(self, *, adapter: AdapterName = ..., **decode: Any) -> DecodeConfig:
        """Return the decoding defaults with some replaced. Raises ConfigError for an unknown name or a wrong value."""
        return _replace_options(self._variant(adapter), decode)

    @property
    def context(self) -> int:
        """Maximum length of a caption in tokens, begin token and prefix included."""
        return self._variant(...).n_positions

    def caption_tensors(
        self, images: Sequence[Pixels], decode: DecodeConfig | Sequence[DecodeConfig],
        seeds: Sequence[int] | None = None, adapter: AdapterName = ..., followers: Sequence[Follower] | None = None,
    ) -> list[Caption]:
        """Caption preprocessed images (B, 3, H, W) float32, with options for all or for each.

        seeds: a random seed for each image; drawn by default. In fp32, a captioner and its export sample the same
        captions from the same seeds. followers: who follows the decoding of each image.

        The captions have no `attention`, as the images are not kept; `Captioner.attention_maps` computes it.
        """
        variant = self._variant(adapter)
        options = [decode] * len(images) if isinstance(decode, DecodeConfig) else decode
        seeds = self._draw_seeds(len(images), None) if seeds is None else seeds
        captions: dict[int, Caption] = {}
        with self._computing():
            encoded = self._encode(variant, images)
            for distinct in dict.fromkeys(options):
                rows = [row for row, row_options in enumerate(options) if row_options == distinct]
                request = self._request(variant, encoded, rows, distinct, [seeds[row] for row in rows])
                following = None if followers is None else [followers[row] for row in rows]
                results = generate_captions(request, self.tokenizer, following, variant.calibration)
                captions |= zip(rows, results, strict=True)
        return [captions[row] for row in range(len(images))]

    @abstractmethod
    def preprocess(self, image: PictureOf[Pixels]) -> Pixels:
        """Return a picture as the model takes it, (3, H, W) float32; an array of that shape is already preprocessed.

        Raises DataError if the picture cannot be read, ConfigError for an array of another shape.
        """

    @abstractmethod
    def _variant(self, adapter: AdapterName) -> Variant: ...

    @abstractmethod
    def _encode(self, variant: Variant, images: Sequence[Pixels]) -> Any:
        """Return the decoder's input for preprocessed images."""

    @abstractmethod
    def _request(
        self, variant: Variant, encoded: Any, rows: Sequence[int], decode: DecodeConfig, seeds: Sequence[int]
    ) -> SearchRequest:
        """Return the request for captions of some of the encoded images; seeds: one for each of `rows`."""

    @abstractmethod
    def _draw_seeds(self, count: int, generator: Generator | None) -> list[int]:
        """Draw a seed for each picture, so that its samples do not depend on the other pictures of the batch."""

    def _attention_of(self, picture: PictureOf[Pixels], variant: Variant) -> Callable[[Caption], Any] | None:
        """Return what computes the heat maps of the picture's caption, if anything does."""
        return None

    def _computing(self) -> AbstractContextManager[object]:
        """Return the context in which images are encoded and each step is computed."""
        return nullcontext()


def _replace_options(variant: VariantProtocol, changes: Mapping[str, Any]) -> DecodeConfig:
    if unknown := sorted(changes.keys() - DecodeConfig.__dataclass_fields__.keys()):
        known = ", ".join(DecodeConfig.__dataclass_fields__)
        raise ConfigError(f"unknown decoding option {unknown[0]!r}; known are {known}")
    options, context = replace(variant.decode, **changes), variant.n_positions
    if "max_new_tokens" in changes and options.max_new_tokens > context:
        raise ConfigError(
            f"decode.max_new_tokens {options.max_new_tokens} is more than the model's context of {context} tokens"
        )
    if options.rank_by == "retrieval":
        require_index(variant.index)
    return options
