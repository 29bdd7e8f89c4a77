"""The model as the decoding engine sees it: torch computes its steps, on a GPU from recordings of them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from myllm.model.kv_cache import ImageKV, SelfKV
from myllm.model.vision_gpt2 import VisionGPT2

State = tuple[ImageKV, SelfKV]
Job = Callable[[], None]


class ModelStepper:
    """`VisionGPT2` step by step: it starts from keys and values of images."""

    def __init__(self, model: VisionGPT2, n_positions: int) -> None:
        """n_positions: the most tokens that a caption will have, begin and prefix included."""
        self.model, self.n_positions = model, n_positions

    def start(self, images: ImageKV) -> State:
        return images, self.model.decoder.new_cache(images.batch_size, self.n_positions)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        image, cache = state
        tokens = tokens.to(cache.keys.device)
        return self.model.decode(tokens, image, cache)[:, :, -1], state

    def reorder(self, state: State, rows: Tensor) -> State:
        image, cache = state
        rows, count = rows.to(cache.keys.device), image.batch_size
        if len(rows) < count:
            image = image.select(rows[:, 0] // (cache.keys.shape[1] // count))
        cache.select(rows.flatten())
        return image, cache


class RecordedStepper:
    """`VisionGPT2` on a GPU: a step is recorded once (a CUDA graph) and then played, its kernels started as one.

    A recording holds for its shapes and addresses. So captions stand in buffers for 1, 2, 4, ... images, where those
    that have ended leave their places idle until the others fit into half of them; every position is recorded anew.
    """

    def __init__(self, model: VisionGPT2) -> None:
        self.model = model
        self._free: dict[tuple[int, ...], list[_Buffers]] = {}

    def start(self, images: ImageKV) -> "_Running":
        return _Running(images, self.model.decoder.new_cache(images.batch_size, 1))

    def step(self, tokens: Tensor, state: "_Running") -> tuple[Tensor, "_Running"]:
        batch, captions, newest = tokens.shape
        position = state.cache.length
        self.model.decoder.check_fits(position + newest)
        tokens = tokens.to(state.cache.keys.device)
        if position == 0:  # what captions begin with is of any length, and read only once
            cache = self.model.decoder.new_cache(batch * captions, newest)
            return self.model.decode(tokens, state.image, cache)[:, :, -1], _Running(state.image, cache)
        if state.buffers is None or position == state.cache.keys.shape[3]:
            state = self.reorder(state, torch.arange(batch * captions).view(batch, captions))
        buffers = state.buffers
        assert buffers is not None
        buffers.tokens[:batch] = tokens
        if position not in buffers.steps:
            buffers.steps[position] = self._recorded(buffers)
        buffers.steps[position]()
        buffers.cache.length = position + 1
        return buffers.logits[:batch].clone(), state

    def reorder(self, state: "_Running", rows: Tensor) -> "_Running":
        length, count = state.cache.length, len(rows)
        pictures = (rows[:, 0] // state.captions).to(state.cache.keys.device)
        if length == 0:
            return replace(state, image=state.image.select(pictures))
        size = _power_of_two(count), rows.shape[1], state.image.layers[0][0].shape[2], _power_of_two(length + 1)
        earlier = state
        if state.buffers is None or state.buffers.size != size:
            free = self._free.setdefault(size, [])
            buffers = free.pop() if free else _Buffers(size, self.model, state.image)
            state = _Running(buffers.image, buffers.cache, buffers, free)
        elif torch.equal(rows.flatten(), torch.arange(rows.numel())):
            return state
        state.take(earlier, pictures, rows.flatten().to(pictures.device))
        return state

    def _recorded(self, buffers: "_Buffers") -> Job:
        position = buffers.cache.length

        def job() -> None:
            buffers.cache.length = position
            buffers.logits.copy_(self.model.decode(buffers.tokens, buffers.image, buffers.cache)[:, :, -1])

        return _played_on_gpu(job, buffers) if buffers.tokens.is_cuda else job


class _Buffers:
    """Room for (images, captions of each, image tokens, positions), and the steps recorded over it, by position."""

    def __init__(self, size: tuple[int, int, int, int], model: VisionGPT2, like: ImageKV) -> None:
        images, captions, image_tokens, positions = self.size = size
        heads, head_dim = like.layers[0][0].shape[1::2]
        shape = images, heads, image_tokens, head_dim
        # zeros: idle places are computed with, too
        self.image = ImageKV(tuple((key.new_zeros(shape), key.new_zeros(shape)) for key, _ in like.layers))
        self.cache = model.decoder.new_cache(images * captions, positions)
        self.cache.keys.zero_()
        self.cache.values.zero_()
        self.tokens = torch.zeros(images, captions, 1, dtype=torch.int64, device=self.cache.keys.device)
        self.logits = torch.empty(images, captions, model.config.text.vocab_size, device=self.tokens.device)
        self.steps: dict[int, Job] = {}
        self.pool: object = None


@dataclass
class _Running:
    """Captions being said: in the first places of buffers, which are free again once nothing holds this."""

    image: ImageKV
    cache: SelfKV
    buffers: _Buffers | None = None
    free: list[_Buffers] = field(default_factory=list)

    def __del__(self) -> None:
        if self.buffers is not None:
            self.free.append(self.buffers)

    @property
    def captions(self) -> int:
        """G, of each image."""
        return self.cache.keys.shape[1] // self.image.batch_size

    def take(self, earlier: "_Running", pictures: Tensor, rows: Tensor) -> None:
        """Put the images `pictures` (B,) and the captions `rows` (B * G,) of an earlier state into the first places."""
        length = earlier.cache.length
        for own, other in zip(self.image.layers, earlier.image.layers, strict=True):
            for mine, theirs in zip(own, other, strict=True):
                mine[: len(pictures)] = theirs.index_select(0, pictures)
        pairs = (self.cache.keys, earlier.cache.keys), (self.cache.values, earlier.cache.values)
        for mine, theirs in pairs:
            mine[:, : len(rows), :, :length] = theirs[:, :, :, :length].index_select(1, rows)
        self.cache.length = length


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _played_on_gpu(job: Job, buffers: _Buffers) -> Job:
    """What plays `job` again over the same memory; `job` itself, with a warning, where it can't be recorded."""
    # weights that autocast has cast and kept are thrown away with it, under the recording that would read them
    keeps_casts = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    torch.clear_autocast_cache()
    try:
        job()  # libraries set themselves up in the first call, which must not be recorded
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=buffers.pool):  # type: ignore[arg-type]
            job()
    except RuntimeError as error:
        warnings.warn(f"steps of decoding are not recorded on this GPU, so they are slower: {error}", stacklevel=2)
        return job
    finally:
        torch.set_autocast_cache_enabled(keeps_casts)
    buffers.pool = graph.pool()  # the next position's step may compute in the same memory
    return graph.replay
