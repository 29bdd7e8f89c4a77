"""Captioner: pictures in, captions with scores and heat maps out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from types import EllipsisType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from myllm.attribution.maps import MAX_SIDE, PreparedImage, prepare_image, project_to_image
from myllm.attribution.methods import DEFAULT_METHOD, PIXEL_METHODS, attribution_maps
from myllm.attribution.receptive_field import receptive_field_shift
from myllm.batched import batched
from myllm.caption import Calibration, Caption, encode_text
from myllm.checkpoints import formats, lora, native
from myllm.config import CaptionsConfig, DecodeConfig
from myllm.data.images import Preprocess, load_image
from myllm.data.tokenizer import decode_tokens, end_token
from myllm.decoding.engine import SearchRequest, run_search
from myllm.decoding.sampling import GreedyOrSampling
from myllm.device import autocast, choose_device
from myllm.errors import ConfigError
from myllm.inference.generate import draw_seeds, generate_captions, make_search, make_vocabulary
from myllm.inference.variants import Once, Variant, Variants
from myllm.model.kv_cache import ImageKV
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import weights_hash

Picture = Path | str | bytes | Image.Image | Tensor
# the name of an adapter, None for no adapter; ... for the one that `use_adapter` chose
AdapterName = str | None | EllipsisType

# how the tokenizer decodes the bytes of an incomplete character
INCOMPLETE = "\ufffd"


class Captioner:
    """A model with its tokenizer and preprocessing, ready to caption. Threads may share it.

    adapter, in its methods: the name of one of the adapters that it was loaded with, None for no adapter; by default
    the one that `use_adapter` chose.
    """

    def __init__(
        self,
        checkpoint: native.Checkpoint,
        device: torch.device,
        precision: str = "fp32",
        adapters: Mapping[str, lora.Adapter] | None = None,
    ) -> None:
        """Take a checkpoint in memory; its model moves to `device`. See `load` for files."""
        checkpoint.model.to(device).eval()
        self.tokenizer = checkpoint.tokenizer
        self.adapters = adapters or {}
        self.device = device
        self.precision = precision
        self._preprocess = Preprocess(checkpoint.preprocess)
        # weights that came without a tokenizer can still compute logits, so this waits for the first caption
        self._vocabulary = Once(partial(make_vocabulary, self.tokenizer))
        self._shift = Once(partial(receptive_field_shift, checkpoint.model.encoder))
        self._variants = Variants(checkpoint, self.adapters, device, precision)
        self._in_use = self._variants.get(None)
        # a GPU computes one thing at a time, and other threads must not use it while a step is recorded
        self._gpu = Lock() if device.type == "cuda" else nullcontext()

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        precision: str = "auto",
        adapters: Mapping[str, str | Path] | None = None,
    ) -> "Captioner":
        """Open a captioner: captioner.pt, a folder that has one or its safetensors, a vision-encoder-decoder folder of
        transformers, an adapter, or a hub repository with any of these (user/name or user/name@revision).

        device: auto, cpu or cuda.
        precision: auto and fp32 are exact; bf16 computes in bfloat16; int8 rounds the decoder's weights (CPU only).
        adapters: name -> folder of an adapter that was trained on this captioner.

        Raises CheckpointError for a path that cannot be opened, ConfigError for an option that does not fit.
        """
        if precision not in ("auto", "fp32", "bf16", "int8"):
            raise ConfigError(f"precision {precision!r}: expected auto, fp32, bf16 or int8")
        chosen = choose_device(device)
        if precision == "int8" and chosen.type != "cpu":
            raise ConfigError("precision int8 runs only on a CPU; take bf16 on a GPU, or device cpu")
        checkpoint = formats.load(path)
        opened = formats.load_adapters(adapters or {}, checkpoint, str(path))
        return cls(checkpoint, chosen, "fp32" if precision == "auto" else precision, opened)

    @property
    def checkpoint(self) -> native.Checkpoint:
        """The checkpoint in use, with the adapter that `use_adapter` chose: model, options, provenance, calibration."""
        return self._in_use.checkpoint

    @property
    def model(self) -> VisionGPT2:
        """The model in use."""
        return self.checkpoint.model

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights came from."""
        return self.checkpoint.provenance

    @property
    def calibration(self) -> Calibration | None:
        """What turns log-probabilities into confidence; None if the captioner was never calibrated."""
        return self.checkpoint.calibration

    @property
    def captions(self) -> CaptionsConfig:
        """How captions were read in training."""
        return self.checkpoint.captions

    @property
    def decode(self) -> DecodeConfig:
        """Decoding defaults of later calls without `adapter`; may be set."""
        return self.checkpoint.decode

    @decode.setter
    def decode(self, decode: DecodeConfig) -> None:
        self._in_use = replace(self._in_use, checkpoint=replace(self.checkpoint, decode=decode))

    def use_adapter(self, name: str | None) -> None:
        """Choose the adapter, with its decoding defaults, of later calls without `adapter`; None for no adapter.

        Calls that other threads have begun keep theirs. Raises ConfigError for an unknown name.
        """
        self._in_use = self._variants.get(name)

    def _variant(self, adapter: AdapterName) -> Variant:
        return self._in_use if isinstance(adapter, EllipsisType) else self._variants.get(adapter)

    def preprocess(self, image: Picture) -> Tensor:
        """Return a picture as the model takes it, (3, H, W) float32; a tensor of that shape is already preprocessed.

        Raises DataError if the picture cannot be read, ConfigError for a tensor of another shape.
        """
        return self._prepare(image).tensor

    def _prepare(self, image: Picture) -> PreparedImage:
        if not isinstance(image, Tensor):
            return prepare_image(load_image(image), self._preprocess)
        expected = (3, *self._preprocess.size)
        if tuple(image.shape) != expected:
            raise ConfigError(f"an image tensor of shape {tuple(image.shape)}; this model expects {expected}")
        return PreparedImage.from_tensor(image.float())

    def caption(
        self, image: Picture, *, generator: torch.Generator | None = None, adapter: AdapterName = ..., **decode: Any
    ) -> Caption:
        """Caption one picture; `decode` replaces decoding defaults, for example beams=4.

        generator: source of the seeds of `do_sample`.

        Raises DataError if the picture cannot be read, ConfigError for an unknown or wrong option.
        """
        return self.caption_batch([image], generator=generator, adapter=adapter, **decode)[0]

    def caption_batch(
        self,
        images: Iterable[Picture],
        *,
        each: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int = 32,
        generator: torch.Generator | None = None,
        adapter: AdapterName = ...,
        **decode: Any,
    ) -> list[Caption]:
        """Caption pictures, `batch_size` at once. Returns a caption for each, equal to the result of `caption`.

        each: further decoding options, one mapping for each picture; they take precedence over `decode`.

        Captions keep a reference to their picture, for `caption.attention`: to a path, bytes, or an item of a list, but
        not to decoded pictures from an iterator, as these would fill the memory.

        Raises as `caption` does, and ConfigError if `each` and `images` differ in length.
        """
        variant = self._variant(adapter)
        shared = self._options(variant, decode)
        options: list[DecodeConfig] | None = None
        if each is not None:
            images = list(images)
            if len(each) != len(images):
                raise ConfigError(f"caption_batch: each has options for {len(each)} pictures; there are {len(images)}")
            options = [self._options(variant, {**decode, **changes}) for changes in each]
        is_kept = isinstance(images, Sequence | Tensor)
        captions: list[Caption] = []
        for batch in batched(images, batch_size):
            first = len(captions)
            batch_options = shared if options is None else options[first : first + len(batch)]
            tensors = [self.preprocess(picture) for picture in batch]
            captions += self.caption_tensors(tensors, batch_options, generator, variant.adapter)
            for picture, caption in zip(batch, captions[first:], strict=True):
                if is_kept or isinstance(picture, Path | str | bytes):
                    caption.compute_attention = partial(self.attention_maps, picture, adapter=variant.adapter)
        return captions

    def decode_options(self, *, adapter: AdapterName = ..., **decode: Any) -> DecodeConfig:
        """Return the decoding defaults with some replaced. Raises ConfigError for an unknown name or a wrong value."""
        return self._options(self._variant(adapter), decode)

    def _options(self, variant: Variant, decode: Mapping[str, Any]) -> DecodeConfig:
        defaults = variant.checkpoint.decode
        unknown = sorted(decode.keys() - defaults.__dataclass_fields__.keys())
        if unknown:
            known = ", ".join(defaults.__dataclass_fields__)
            raise ConfigError(f"unknown decoding option {unknown[0]!r}; known are {known}")
        options = replace(defaults, **decode)
        context = variant.checkpoint.model.config.text.n_positions
        if "max_new_tokens" in decode and options.max_new_tokens > context:
            raise ConfigError(
                f"decode.max_new_tokens {options.max_new_tokens} is more than the model's context of {context} tokens"
            )
        return options

    def stream(
        self, image: Picture, *, generator: torch.Generator | None = None, adapter: AdapterName = ..., **decode: Any
    ) -> Iterator[str]:
        """Caption one picture and yield the text in pieces, as soon as they are decoded; none ends inside a character.

        Raises at the call, as `caption` does, and ConfigError for beams or several captions, whose best is known only
        at the end.
        """
        variant = self._variant(adapter)
        options = self._options(variant, decode)
        if options.beams > 1 or (options.num_return_sequences or 1) > 1:
            raise ConfigError(
                "stream: the best of several captions is known only at the end; "
                "take beams 1 and num_return_sequences 1, or `caption`"
            )
        tensor = self.preprocess(image)
        with self._computing():
            kv = variant.checkpoint.model.encode(tensor[None].to(self.device))
            search = self._search(variant, kv, options, draw_seeds(1, generator))
        return self._pieces(search)

    def _pieces(self, search: SearchRequest) -> Iterator[str]:
        strategy = GreedyOrSampling(search)
        steps, yielded, is_open = run_search(search, strategy), "", True
        while is_open:
            with self._computing():  # not around `yield`: there the caller's code runs
                is_open = next(steps, self) is None
            [[hypothesis]] = strategy.found()
            text = decode_tokens(self.tokenizer, hypothesis.tokens).strip()
            if len(text) > len(yielded) and not (is_open and text.endswith(INCOMPLETE)):
                yield text[len(yielded) :]
                yielded = text

    @contextmanager
    def _computing(self) -> Iterator[None]:
        precision = "bf16" if self.precision == "bf16" else "fp32"
        with self._gpu, torch.inference_mode(), autocast(precision, self.device):
            yield

    def _search(self, variant: Variant, image: ImageKV, decode: DecodeConfig, seeds: Sequence[int]) -> SearchRequest:
        return make_search(variant.checkpoint.model, self._vocabulary(), image, decode, seeds, variant.stepper())

    def caption_tensors(
        self,
        images: Tensor | Sequence[Tensor],
        decode: DecodeConfig | Sequence[DecodeConfig],
        generator: torch.Generator | None = None,
        adapter: AdapterName = ...,
    ) -> list[Caption]:
        """Caption preprocessed images (B, 3, H, W) float32, with options for all or for each.

        The captions have no `attention`, as the images are not kept; `attention_maps` computes it.
        """
        variant = self._variant(adapter)
        images = images if isinstance(images, Tensor) else torch.stack(list(images))
        options = [decode] * len(images) if isinstance(decode, DecodeConfig) else decode
        seeds = draw_seeds(len(images), generator)
        captions: dict[int, Caption] = {}
        with self._computing():
            kv = variant.checkpoint.model.encode(images.to(self.device))
            for distinct in dict.fromkeys(options):
                rows = [row for row, row_options in enumerate(options) if row_options == distinct]
                selected = kv if len(rows) == len(images) else kv.select(torch.tensor(rows, device=self.device))
                search = self._search(variant, selected, distinct, [seeds[row] for row in rows])
                captions |= zip(rows, generate_captions(search, self.tokenizer), strict=True)
        for caption in captions.values():
            caption.calibration = variant.checkpoint.calibration
        return [captions[row] for row in range(len(images))]

    def blind_caption(self, decode: DecodeConfig) -> Caption:
        """Return the caption for image tokens that are all zeros: what the language model says without a picture."""
        variant = self._in_use
        model = variant.checkpoint.model
        image = torch.zeros(1, 3, *self._preprocess.size, device=self.device)
        with self._computing():
            tokens = model.image_tokens(model.encoder(image))
            zeros = model.image_kv(tuple(torch.zeros_like(token) for token in tokens))
            return generate_captions(self._search(variant, zeros, decode, [0]), self.tokenizer)[0]

    def weights_hash(self) -> str:
        """Return a hash of the weights, an adapter in use included."""
        return weights_hash(self.model)

    def attention_maps(
        self,
        image: Picture,
        caption: Caption | str,
        *,
        method: str | None = None,
        block: int | None = None,
        longest: int | None = MAX_SIDE,
        adapter: AdapterName = ...,
    ) -> Tensor:
        """Return heat maps (T, H, W) in the picture's coordinates: where the model looks for each token of a caption.

        caption: a caption, or the text of one.
        method, block: see `attribution_maps`.
        longest: limit in pixels for the longer of H and W; None for the picture's own size.

        Raises DataError if the picture cannot be read, ConfigError for an unknown method or block.
        """
        model = self._variant(adapter).checkpoint.model
        prepared = self._prepare(image)
        tokens = encode_text(self.tokenizer, caption) if isinstance(caption, str) else caption.tokens
        sequence = torch.tensor([end_token(self.tokenizer), *tokens], device=self.device)
        with self._gpu:
            maps = attribution_maps(model, prepared.tensor.to(self.device), sequence, method, block)
        shift = (0.0, 0.0) if (method or DEFAULT_METHOD) in PIXEL_METHODS else self._shift()
        return project_to_image(maps, prepared, longest, shift)
