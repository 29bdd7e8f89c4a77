"""Captioner: pictures in, captions with scores and attention out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from myllm.checkpoints import native
from myllm.config import DecodeConfig
from myllm.data.images import Preprocess, load_image
from myllm.data.tokenizer import decode_tokens, encode_captions, end_token
from myllm.decoding.search import Hypothesis, generate, one_by_one
from myllm.errors import ConfigError
from myllm.model.attention import split_heads
from myllm.model.kv_cache import ImageKV, SelfKV
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.runtime import autocast, choose_device

Picture = Path | str | bytes | Image.Image | Tensor
# what the tokenizer shows of a character whose bytes are not all there yet
TORN = "\ufffd"


@dataclass
class Caption:
    """One caption of a picture."""

    text: str
    score: float
    """Mean log-probability of its tokens, the end included."""
    tokens: list[int]
    """Without begin and end."""
    token_logprobs: list[float]
    """Of those of `tokens` that were chosen, not given as a prefix, and of the end where it was reached."""
    is_finished: bool
    """Whether it ended by itself, not at max_new_tokens."""
    alternatives: list[str] = field(default_factory=list)
    """The other beams' captions, best first."""
    look: Callable[["Caption"], Tensor] | None = field(default=None, repr=False)

    @cached_property
    def attention(self) -> Tensor:
        """(T, H, W): how much each of the T tokens looked at each place of the image grid, mean over blocks and heads.

        Computed when first asked for. Raises ConfigError where the caption was made without its picture at hand.
        """
        if self.look is None:
            raise ConfigError("this caption was made without its picture at hand; use Captioner.caption")
        return self.look(self)


class ModelStepper:
    """`VisionGPT2` as the decoding engine sees it. State: keys and values of the images, and of the captions so far."""

    def __init__(self, model: VisionGPT2) -> None:
        self.model = model

    def start(self, image: ImageKV, captions: int, n_positions: int) -> tuple[ImageKV, SelfKV]:
        """The state of so many captions of at most `n_positions` tokens, with nothing said yet."""
        return image, self.model.decoder.new_cache(captions, n_positions)

    def step(self, tokens: Tensor, state: tuple[ImageKV, SelfKV]) -> tuple[Tensor, tuple[ImageKV, SelfKV]]:
        image, cache = state
        tokens = tokens.to(image.layers[0][0].device)
        return self.model.decode(tokens, image, cache)[:, :, -1], state

    def reorder(self, state: tuple[ImageKV, SelfKV], rows: Tensor) -> tuple[ImageKV, SelfKV]:
        image, cache = state
        rows = rows.to(cache.keys.device)
        count = image.layers[0][0].shape[0]
        beams = cache.keys.shape[1] // count
        if len(rows) < count * beams:  # those of images that have ended leave
            image = image.select(rows[::beams] // beams)
        cache.select(rows)
        return image, cache


Search = tuple[ModelStepper, tuple[ImageKV, SelfKV], int, int, DecodeConfig, list[int]]


def start_search(model: VisionGPT2, tokenizer: Tokenizer, image: ImageKV, decode: DecodeConfig) -> Search:
    """What the engine begins with: stepper, state, number of images, end token, options, and what captions begin with.

    Raises ConfigError where the prefix leaves no room for a word.
    """
    batch, context = image.layers[0][0].shape[0], model.config.text.n_positions
    prefix = encode_captions(tokenizer, [decode.prefix], context + 2)[0][1:-1] if decode.prefix else []
    room = context - len(prefix)
    if room < 1:
        raise ConfigError(
            f"decode.prefix {decode.prefix[:30]!r}... fills the model's context of {context} tokens; shorten it"
        )
    decode = replace(
        decode, max_new_tokens=min(decode.max_new_tokens, room), min_new_tokens=min(decode.min_new_tokens, room)
    )
    stepper = ModelStepper(model)
    state = stepper.start(image, batch * decode.beams, len(prefix) + decode.max_new_tokens)
    return stepper, state, batch, end_token(tokenizer), decode, prefix


@torch.inference_mode()
def write_captions(
    model: VisionGPT2,
    tokenizer: Tokenizer,
    image: ImageKV,
    decode: DecodeConfig,
    generator: torch.Generator | None = None,
) -> list[Caption]:
    """One caption for each image of `image`; the model is used as it is, so put it into eval mode before."""
    found = generate(*start_search(model, tokenizer, image, decode), generator)
    return [_caption(hypotheses, tokenizer) for hypotheses in found]


def _caption(hypotheses: Sequence[Hypothesis], tokenizer: Tokenizer) -> Caption:
    best = hypotheses[0]
    texts = [decode_tokens(tokenizer, one.tokens).strip() for one in hypotheses]
    return Caption(texts[0], best.score, best.tokens, best.logprobs, best.is_finished, texts[1:])


class Captioner:
    """A model with its tokenizer and preprocessing, ready to caption."""

    def __init__(self, checkpoint: native.Checkpoint, device: torch.device, precision: str = "fp32") -> None:
        self.model = checkpoint.model.to(device).eval()
        self.tokenizer = checkpoint.tokenizer
        self.decode = checkpoint.decode
        self.provenance = checkpoint.provenance
        self.captions = checkpoint.captions
        self.device = device
        self.precision = precision
        self._preprocess = Preprocess(checkpoint.preprocess)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", precision: str = "auto") -> "Captioner":
        """Open a captioner.pt, or a run folder with one.

        precision: auto and fp32 are exact; bf16 computes in it. Raises CheckpointError or ConfigError.
        """
        if precision not in ("auto", "fp32", "bf16"):
            raise ConfigError(f"precision {precision!r}: expected auto, fp32 or bf16")
        return cls(native.load(Path(path)), choose_device(device), "fp32" if precision == "auto" else precision)

    def preprocess(self, image: Picture) -> Tensor:
        """(3, H, W) float32. A tensor of that shape is taken as preprocessed already. Raises DataError."""
        if isinstance(image, Tensor):
            expected = (3, *self._preprocess.size)
            if tuple(image.shape) != expected:
                raise ConfigError(f"an image tensor of shape {tuple(image.shape)}; this model expects {expected}")
            return image.float()
        return self._preprocess(load_image(image))

    def caption(self, image: Picture, *, generator: torch.Generator | None = None, **decode: Any) -> Caption:
        """Caption one picture; `decode` overrides the model's decoding defaults, e.g. beams=4.

        Raises DataError where the picture can't be read and ConfigError for an unknown option.
        """
        return self.caption_batch([image], generator=generator, **decode)[0]

    def caption_batch(
        self,
        images: Iterable[Picture],
        *,
        batch_size: int = 32,
        generator: torch.Generator | None = None,
        **decode: Any,
    ) -> list[Caption]:
        """One caption for each picture, in their order. As `caption`, but many at once."""
        options = self.decode_options(**decode)
        captions: list[Caption] = []
        for batch in in_batches(images, batch_size):
            tensors = torch.stack([self.preprocess(picture) for picture in batch])
            captions += self.caption_tensors(tensors, options, generator)
        return captions

    def decode_options(self, **decode: Any) -> DecodeConfig:
        """The model's decoding defaults with some of them replaced. Raises ConfigError for an unknown name."""
        unknown = sorted(decode.keys() - self.decode.__dataclass_fields__.keys())
        if unknown:
            known = ", ".join(self.decode.__dataclass_fields__)
            raise ConfigError(f"unknown decoding option {unknown[0]!r}; known are {known}")
        return replace(self.decode, **decode)

    def stream(self, image: Picture, *, generator: torch.Generator | None = None, **decode: Any) -> Iterator[str]:
        """The caption of one picture in pieces as they are found, never half a character; together they are its text.

        Raises as `caption`, and ConfigError with beams, whose best is known only at the end.
        """
        options = self.decode_options(**decode)
        if options.beams > 1:
            raise ConfigError(f"decode.beams {options.beams}: the best beam is known only at the end; stream with one")
        with torch.inference_mode(), autocast(self.precision, self.device):
            kv = self.model.encode(self.preprocess(image)[None].to(self.device))
        search = start_search(self.model, self.tokenizer, kv, options)
        *_, end, _, prefix = search
        steps, tokens, told = one_by_one(*search, generator), list(prefix), ""
        while True:
            # between the pieces the caller's own code runs, in its own modes
            with torch.inference_mode(), autocast(self.precision, self.device):
                step = next(steps, None)
            ended = step is None or step[0][1] == end
            if step is not None and not ended:
                tokens.append(step[0][1])
            text = decode_tokens(self.tokenizer, tokens).strip()
            if len(text) > len(told) and (ended or not text.endswith(TORN)):
                yield text[len(told) :]
                told = text
            if ended:
                return

    @torch.inference_mode()
    def caption_tensors(
        self, images: Tensor, decode: DecodeConfig, generator: torch.Generator | None = None
    ) -> list[Caption]:
        """images: (B, 3, H, W) float32, preprocessed -> a caption for each."""
        with autocast(self.precision, self.device):
            image = self.model.encode(images.to(self.device))
            captions = write_captions(self.model, self.tokenizer, image, decode, generator)
        for picture, caption in zip(images, captions, strict=True):
            caption.look = lambda one, picture=picture: self._attention(picture, one.tokens)
        return captions

    @torch.inference_mode()
    def _attention(self, image: Tensor, tokens: Sequence[int]) -> Tensor:
        """(3, H, W) and T tokens -> (T, rows, columns) of the image grid; what was fed to say a token looked for it."""
        rows, columns = self.model.encoder.grid
        kv = self.model.encode(image[None].to(self.device))
        fed = torch.tensor(
            [[[end_token(self.tokenizer), *tokens][: len(tokens)]]], dtype=torch.int64, device=self.device
        )
        weights: list[Tensor] = []

        def record(module: Any, inputs: tuple[Tensor, tuple[Tensor, Tensor]]) -> None:
            x, (key, _) = inputs
            query = split_heads(module.q_attn(x), module.n_head)
            weights.append((query @ key.mT / key.shape[-1] ** 0.5).softmax(-1).mean(1)[0])

        hooks = [block.crossattention.register_forward_pre_hook(record) for block in self.model.decoder.blocks]
        try:
            self.model.decode(fed, kv)
        finally:
            for hook in hooks:
                hook.remove()
        # prefix tokens (class, registers) are no place in the picture
        return torch.stack(weights).mean(0)[:, -rows * columns :].unflatten(1, (rows, columns)).float().cpu()


def in_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
