"""Captioner: pictures in, captions with scores and heat maps out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from types import EllipsisType

import torch
from torch import Tensor

from myllm.attribution.maps import MAX_SIDE, PreparedImage, prepare_image, project_to_image
from myllm.attribution.methods import DEFAULT_METHOD, PIXEL_METHODS, attribution_maps
from myllm.attribution.receptive_field import receptive_field_shift
from myllm.caption import Caption, encode_text
from myllm.checkpoints import formats, lora, native
from myllm.config import CaptionsConfig, DecodeConfig
from myllm.data.images import Preprocess, load_image
from myllm.data.tokenizer import end_token
from myllm.decoding.engine import SearchRequest
from myllm.device import autocast, choose_device
from myllm.errors import ConfigError
from myllm.inference.base_captioner import AdapterName, BaseCaptioner, Once, PictureOf
from myllm.inference.generate import generate_captions
from myllm.inference.torch_steppers import make_search
from myllm.inference.variants import Variant, make_variant
from myllm.model.kv_cache import ImageKV
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import weights_hash

Picture = PictureOf[Tensor]


class Captioner(BaseCaptioner[Tensor, torch.Generator, Variant]):
    """A model with its tokenizer and preprocessing, ready to caption. Threads may share it.

    Where a method has the argument `adapter`, it is the name of a loaded adapter, or None for no adapter. By default it
    is the adapter that `use_adapter` chose.
    """

    def __init__(
        self, checkpoint: native.Checkpoint, device: torch.device, precision: str = "fp32",
        adapters: Mapping[str, lora.Adapter] | None = None,
    ) -> None:
        """Take a checkpoint in memory; its model moves to `device`. See `load` for files."""
        checkpoint.model.to(device).eval()
        super().__init__(checkpoint.tokenizer)
        self.adapters, self.device, self.precision = adapters or {}, device, precision
        self._preprocess = Preprocess(checkpoint.preprocess)
        self._shift = Once(partial(receptive_field_shift, checkpoint.model.encoder))
        # each is made when it is first used
        self._variants = {
            name: Once(partial(make_variant, name, checkpoint, self.adapters, device, precision))
            for name in (None, *self.adapters)
        }
        self._in_use = self._variant(None)
        # a GPU computes one thing at a time, and other threads must not use it while a step is recorded
        self._gpu = Lock() if device.type == "cuda" else nullcontext()

    @classmethod
    def load(
        cls, path: str | Path, device: str = "auto", precision: str = "auto",
        adapters: Mapping[str, str | Path] | None = None,
    ) -> "Captioner":
        """Open a captioner: captioner.pt, a folder that has one or its safetensors, a vision-encoder-decoder folder of
        transformers, an adapter, or a hub repository with any of these (user/name or user/name@revision).

        device: auto, cpu or cuda.
        precision: auto and fp32 are exact; bf16 computes in bfloat16, on a CPU only the encoder; int8 rounds the
        decoder's weights (CPU only).
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
    def captions(self) -> CaptionsConfig:
        """How captions were read in training."""
        return self.checkpoint.captions

    @property
    def decode(self) -> DecodeConfig:
        """Decoding defaults of later calls that name no adapter; can be assigned."""
        return self.checkpoint.decode

    @decode.setter
    def decode(self, decode: DecodeConfig) -> None:
        self._in_use = replace(self._in_use, checkpoint=replace(self.checkpoint, decode=decode))

    def use_adapter(self, name: str | None) -> None:
        """Use an adapter and its decoding defaults in later calls that name no adapter; None removes it.

        Calls that have already begun in other threads are not changed. Raises ConfigError for an unknown name.
        """
        self._in_use = self._variant(name)

    def _variant(self, adapter: AdapterName) -> Variant:
        if isinstance(adapter, EllipsisType):
            return self._in_use
        if adapter not in self._variants:
            known = ", ".join(self.adapters) or "none, as none were given to Captioner.load"
            raise ConfigError(f"adapter {adapter!r} is unknown; known are {known}")
        return self._variants[adapter]()

    def preprocess(self, image: Picture) -> Tensor:
        """Return a picture as the model's input; see `BaseCaptioner.preprocess`."""
        if not isinstance(image, Tensor):
            return torch.from_numpy(self._preprocess(self._preprocess.load(image)))
        expected = (3, *self._preprocess.size)
        if tuple(image.shape) != expected:
            raise ConfigError(f"an image tensor of shape {tuple(image.shape)}; this model expects {expected}")
        return image.float()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # on a CPU, bf16 pays only in the encoder
        is_bf16 = self.precision == "bf16" and self.device.type != "cpu"
        with self._gpu, torch.inference_mode(), autocast("bf16" if is_bf16 else "fp32", self.device):
            yield

    def _encode(self, variant: Variant, images: Tensor | Sequence[Tensor]) -> ImageKV:
        images = images if isinstance(images, Tensor) else torch.stack(list(images))
        model = variant.checkpoint.model
        with autocast("bf16" if self.precision == "bf16" else "fp32", self.device):
            return model.image_kv(model.image_tokens(variant.encoder()(images.to(self.device))))

    def _request(
        self, variant: Variant, encoded: ImageKV, rows: Sequence[int], decode: DecodeConfig, seeds: Sequence[int]
    ) -> SearchRequest:
        if len(rows) < encoded.batch_size:
            encoded = encoded.select(torch.tensor(rows, device=self.device))
        model, stepper = variant.checkpoint.model, variant.stepper()
        return make_search(model, self._vocabulary(), encoded, decode, seeds, stepper, variant.index)

    def _draw_seeds(self, count: int, generator: torch.Generator | None) -> list[int]:
        device = None if generator is None else generator.device
        return torch.randint(2**62, (count,), generator=generator, device=device).tolist()

    def _attention_of(self, picture: Picture, variant: Variant) -> Callable[[Caption], Tensor]:
        return partial(self.attention_maps, picture, adapter=variant.adapter)

    def blind_caption(self, decode: DecodeConfig) -> Caption:
        """Return the caption for image tokens that are all zeros: the decoder's sentence without a picture."""
        variant = self._in_use
        model = variant.checkpoint.model
        image = torch.zeros(1, 3, *self._preprocess.size, device=self.device)
        with self._computing():
            tokens = model.image_tokens(model.encoder(image))
            zeros = model.image_kv(tuple(torch.zeros_like(token) for token in tokens))
            return generate_captions(self._request(variant, zeros, [0], decode, [0]), self.tokenizer)[0]

    def weights_hash(self) -> str:
        """Return a hash of the weights; those of an adapter in use are included."""
        return weights_hash(self.model)

    def attention_maps(
        self, image: Picture, caption: Caption | str, *, method: str | None = None, block: int | None = None,
        longest: int | None = MAX_SIDE, adapter: AdapterName = ...,
    ) -> Tensor:
        """Return heat maps (T, H, W) in the picture's coordinates, one for each token: where the model looks for it.

        caption: a caption, or the text of one.
        method, block: see `attribution_maps`.
        longest: limit in pixels for the longer of H and W; None for the picture's own size.

        Raises DataError if the picture cannot be read, ConfigError for an unknown method or block.
        """
        model = self._variant(adapter).checkpoint.model
        prepared = (
            PreparedImage.from_tensor(self.preprocess(image)) if isinstance(image, Tensor)
            else prepare_image(load_image(image), self._preprocess)
        )
        tokens = encode_text(self.tokenizer, caption) if isinstance(caption, str) else caption.tokens
        sequence = torch.tensor([end_token(self.tokenizer), *tokens], device=self.device)
        with self._gpu:
            maps = attribution_maps(model, prepared.tensor.to(self.device), sequence, method, block)
        shift = (0.0, 0.0) if (method or DEFAULT_METHOD) in PIXEL_METHODS else self._shift()
        return project_to_image(maps, prepared, longest, shift)
