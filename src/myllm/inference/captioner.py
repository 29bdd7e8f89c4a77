"""Captioner: pictures in, captions with scores and attention out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from myllm.attribution.maps import LONGEST, PreparedImage, prepare_image, project_to_image
from myllm.attribution.methods import DEFAULT, OF_PIXELS, attribution_maps
from myllm.attribution.receptive_field import receptive_field_shift
from myllm.batched import batched
from myllm.caption import Caption, encode_text
from myllm.checkpoints import formats, lora, native
from myllm.config import DecodeConfig
from myllm.data.images import Preprocess, load_image
from myllm.data.tokenizer import end_token
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.engine import SearchRequest, Stepper
from myllm.device import autocast, choose_device
from myllm.errors import ConfigError
from myllm.inference.generate import (
    check_streamable,
    generate_captions,
    make_vocabulary,
    override_options,
    stream_text,
)
from myllm.inference.onnx_stepper import OnnxStepper
from myllm.inference.torch_steppers import RecordedStepper, make_search
from myllm.model.kv_cache import ImageKV
from myllm.model.lora import merge
from myllm.model.weight_files import weights_hash

Picture = Path | str | bytes | Image.Image | Tensor


class Captioner:
    """A model with its tokenizer and preprocessing, ready to caption."""

    def __init__(
        self,
        checkpoint: native.Checkpoint,
        device: torch.device,
        precision: str = "fp32",
        adapters: Mapping[str, lora.Adapter] | None = None,
    ) -> None:
        self.model = checkpoint.model.to(device).eval()
        self.tokenizer = checkpoint.tokenizer
        self.adapters = adapters or {}
        self._base = checkpoint
        self._base_weights: dict[str, torch.nn.Parameter] = {}
        self._take_options(checkpoint)
        self.device = device
        self.precision = precision
        self._preprocess = Preprocess(checkpoint.preprocess)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        precision: str = "auto",
        adapters: Mapping[str, str | Path] | None = None,
    ) -> "Captioner":
        """Open captioner.pt, a folder that holds one or its safetensors, a vision-encoder-decoder of transformers, an
        adapter, or a repository on a hub with any of these, as user/name or user/name@revision.

        adapters: folders of adapters that were trained on this captioner, by names for `use_adapter`.
        precision: auto and fp32 are exact; bf16 computes in it; int8 rounds the decoder's weights, on a CPU alone.
        Raises CheckpointError or ConfigError.
        """
        if precision not in ("auto", "fp32", "bf16", "int8"):
            raise ConfigError(f"precision {precision!r}: expected auto, fp32, bf16 or int8")
        chosen = choose_device(device)
        if precision == "int8" and chosen.type != "cpu":
            raise ConfigError("precision int8 is the CPU's; take bf16 on a GPU, or device cpu")
        checkpoint = formats.load(path)
        opened = formats.load_adapters(adapters or {}, checkpoint, str(path))
        return cls(checkpoint, chosen, "fp32" if precision == "auto" else precision, opened)

    def use_adapter(self, name: str | None) -> None:
        """Caption with one of `adapters` and its decoding defaults from here on; None: as the captioner itself again.

        Raises ConfigError for an unknown name.
        """
        if name is not None and name not in self.adapters:
            known = ", ".join(self.adapters) or "none, as none were given to Captioner.load"
            raise ConfigError(f"adapter {name!r} is unknown; known are {known}")
        for layer, weight in self._base_weights.items():
            self.model.get_submodule(layer).weight = weight
        self._base_weights = {}
        self.__dict__.pop("_stepper", None)  # it holds the weights that were in use
        if name is None:
            self._take_options(self._base)
        else:
            self._base_weights = merge(self.model, self.adapters[name].layers)
            self._take_options(lora.with_options(self.adapters[name], self._base))

    def _take_options(self, checkpoint: native.Checkpoint) -> None:
        self.decode, self.captions = checkpoint.decode, checkpoint.captions
        self.provenance, self.calibration = checkpoint.provenance, checkpoint.calibration

    def preprocess(self, image: Picture) -> Tensor:
        """(3, H, W) float32. A tensor of that shape is taken as preprocessed already. Raises DataError."""
        return self._prepare(image).tensor

    def _prepare(self, image: Picture) -> PreparedImage:
        if not isinstance(image, Tensor):
            return prepare_image(load_image(image), self._preprocess)
        expected = (3, *self._preprocess.size)
        if tuple(image.shape) != expected:
            raise ConfigError(f"an image tensor of shape {tuple(image.shape)}; this model expects {expected}")
        return PreparedImage.whole(image.float())

    def caption(self, image: Picture, *, generator: torch.Generator | None = None, **decode: Any) -> Caption:
        """Caption one picture; `decode` overrides the model's decoding defaults, e.g. beams=4.

        Raises DataError where the picture can't be read and ConfigError for an unknown option.
        """
        [caption] = self.caption_batch([image], generator=generator, **decode)
        if caption.error:
            raise ConfigError(caption.error)
        return caption

    def caption_batch(
        self,
        images: Iterable[Picture],
        *,
        each: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int = 32,
        generator: torch.Generator | None = None,
        **decode: Any,
    ) -> list[Caption]:
        """One caption for each picture, in their order, as `caption` would find it alone; many at once.

        each: options of each picture, where they differ, over those of `decode`.
        """
        shared = self.decode_options(**decode)
        options = None if each is None else [self.decode_options(**{**decode, **own}) for own in each]
        captions: list[Caption] = []
        for batch in batched(images, batch_size):
            shown, first = [self._prepare(picture) for picture in batch], len(captions)
            own = [shared] * len(batch) if options is None else options[first : first + len(batch)]
            if len(own) < len(batch):
                raise ConfigError(f"caption_batch: options of {len(options or ())} pictures for more than as many")
            captions += self.caption_tensors([one.tensor for one in shown], own, generator)
            for caption, one in zip(captions[first:], shown, strict=True):
                caption.compute_attention = partial(self.attention_maps, one)
        return captions

    def decode_options(self, **decode: Any) -> DecodeConfig:
        """The model's decoding defaults with some of them replaced. Raises ConfigError for an unknown name."""
        return override_options(self.decode, self.model.config.text.n_positions, decode)

    def stream(self, image: Picture, *, generator: torch.Generator | None = None, **decode: Any) -> Iterator[str]:
        """The caption of one picture in pieces as they are found, never half a character; together they are its text.

        Raises as `caption`, and ConfigError with beams, whose best is known only at the end.
        """
        options = self.decode_options(**decode)
        check_streamable(options)
        with self._modes():
            kv = self.model.encode(self.preprocess(image)[None].to(self.device))
            search = self._search(kv, options, draw_seeds(1, generator))
        return stream_text(search, self.tokenizer, self._modes)

    @contextmanager
    def _modes(self) -> Iterator[None]:
        with torch.inference_mode(), self._autocast():
            yield

    def _autocast(self) -> AbstractContextManager[None]:
        return autocast("bf16" if self.precision == "bf16" else "fp32", self.device)

    def _search(self, image: ImageKV, decode: DecodeConfig, seeds: Sequence[int]) -> SearchRequest:
        return make_search(self.model, self._vocabulary, image, decode, seeds, self._stepper)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        """Made for the first caption: weights that came without a tokenizer still compute logits."""
        return make_vocabulary(self.tokenizer)

    @cached_property
    def _stepper(self) -> Stepper | None:
        """What computes the steps, faster than the model itself; None where that does. Made for the first caption."""
        if self.device.type == "cuda":
            return RecordedStepper(self.model)
        if self.precision in ("fp32", "int8"):
            return OnnxStepper(self.model, "int8" if self.precision == "int8" else "fp32")
        return None

    @torch.inference_mode()
    def caption_tensors(
        self,
        images: Tensor | Sequence[Tensor],
        decode: DecodeConfig | Sequence[DecodeConfig],
        generator: torch.Generator | None = None,
    ) -> list[Caption]:
        """images: (B, 3, H, W) float32, preprocessed -> a caption for each, by options for all or of each."""
        images = images if isinstance(images, Tensor) else torch.stack(list(images))
        options = [decode] * len(images) if isinstance(decode, DecodeConfig) else decode
        seeds = draw_seeds(len(images), generator)
        captions: dict[int, Caption] = {}
        with self._autocast():
            image = self.model.encode(images.to(self.device))
            for alike in dict.fromkeys(options):
                rows = [row for row, own in enumerate(options) if own == alike]
                own = image if len(rows) == len(images) else image.select(torch.tensor(rows, device=self.device))
                search = self._search(own, alike, [seeds[row] for row in rows])
                captions |= zip(rows, generate_captions(search, self.tokenizer), strict=True)
        for row, caption in captions.items():
            caption.calibration = self.calibration
            caption.compute_attention = partial(self.attention_maps, PreparedImage.whole(images[row]))
        return [captions[row] for row in range(len(images))]

    @torch.inference_mode()
    def blind_caption(self, decode: DecodeConfig) -> Caption:
        """What it says where all image tokens are zeros: the language alone, which needs no picture."""
        image = torch.zeros(1, 3, *self._preprocess.size, device=self.device)
        with self._autocast():
            tokens = self.model.image_tokens(self.model.encoder(image))
            nothing = self.model.image_kv(tuple(torch.zeros_like(token) for token in tokens))
            return generate_captions(self._search(nothing, decode, [0]), self.tokenizer)[0]

    def weights_hash(self) -> str:
        """The same for the same weights, an adapter in use included."""
        return weights_hash(self.model)

    def attention_maps(
        self,
        image: Picture | PreparedImage,
        caption: Caption | str,
        *,
        method: str | None = None,
        block: int | None = None,
        longest: int | None = LONGEST,
    ) -> Tensor:
        """(T, H, W), in the picture's own coordinates: what was looked at to say each of the T tokens of a caption.

        method, block: as of `attribution_maps`. longest: pixels of the longer of H and W at most; None: as the picture.
        Raises DataError where the picture can't be read and ConfigError for an unknown method or block.
        """
        shown = image if isinstance(image, PreparedImage) else self._prepare(image)
        tokens = encode_text(self.tokenizer, caption) if isinstance(caption, str) else caption.tokens
        told = torch.tensor([end_token(self.tokenizer), *tokens], device=self.device)
        maps = attribution_maps(self.model, shown.tensor.to(self.device), told, method, block)
        # what was found on the picture itself lies where it was found
        shift = (0.0, 0.0) if (method or DEFAULT) in OF_PIXELS else receptive_field_shift(self.model.encoder)
        return project_to_image(maps, shown, longest, shift)


def draw_seeds(count: int, generator: torch.Generator | None) -> list[int]:
    """Draw a seed for each picture, so that its samples do not depend on the pictures beside it."""
    device = None if generator is None else generator.device
    return torch.randint(2**62, (count,), generator=generator, device=device).tolist()
