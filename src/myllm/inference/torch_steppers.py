"""Steppers that compute with torch: the model itself, and on a GPU recordings of its steps; searches over a model."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from myllm.config import DecodeConfig
from myllm.decoding.arrays import Array, Ints
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.engine import SearchRequest, Stepper
from myllm.decoding.retrieval import CaptionIndex
from myllm.inference.generate import find_neighbours, fit_prefix
from myllm.model.kv_cache import ImageKV, SelfKV
from myllm.model.vision_gpt2 import VisionGPT2

State = tuple[ImageKV, SelfKV]
Job = Callable[[], None]


def as_array(logits: Tensor) -> Array:
    """Logits in float32: on a CPU as numpy, which searches faster there than torch, else unchanged on their device."""
    logits = logits.float()
    return logits.detach().numpy() if logits.device.type == "cpu" else logits


def make_search(
    model: VisionGPT2, vocabulary: Vocabulary, image: ImageKV, decode: DecodeConfig, seeds: Sequence[int] = (),
    stepper: Stepper | None = None, index: CaptionIndex | None = None,
) -> SearchRequest:
    """Return the request for captions of encoded images.

    seeds: one for each image, needed by `do_sample`. stepper: computes the steps; the model itself by default.
    index: captions of training pictures, needed by `rank_by` retrieval and used by confidence.
    Raises ConfigError if the prefix leaves no room for a word, or the index is needed and missing.
    """
    batch = image.batch_size
    decode, prefix = fit_prefix(vocabulary, decode, model.config.text.n_positions)
    blind = None
    if decode.contrastive_weight:
        grey = torch.zeros(1, 3, *model.encoder.preprocess.image_size, device=image.device)
        blind = model.encode(grey).select(torch.zeros(batch, dtype=torch.int64, device=grey.device))
    stepper = stepper or ModelStepper(model, 1 + len(prefix) + decode.max_new_tokens)
    neighbours = find_neighbours(decode, index, lambda: image.means().cpu().numpy())
    return SearchRequest(stepper, image, batch, vocabulary.end, decode, prefix, vocabulary, blind, seeds, neighbours)


class ModelStepper(Stepper):
    """`VisionGPT2` step by step, from the keys and values of images."""

    def __init__(self, model: VisionGPT2, n_positions: int) -> None:
        """n_positions: maximum length of a caption in tokens, begin token and prefix included."""
        self.model, self.n_positions = model, n_positions

    def start(self, images: ImageKV) -> State:
        return images, self.model.decoder.new_cache(images.batch_size, self.n_positions)

    def step(self, tokens: Ints, state: State) -> tuple[Array, State]:
        image, cache = state
        newest = torch.from_numpy(tokens).to(cache.keys.device)
        return as_array(self.model.decode(newest, image, cache)[:, :, -1]), state

    def reorder(self, state: State, rows: Ints) -> State:
        image, cache = state
        captions = torch.from_numpy(rows).to(cache.keys.device)
        count = image.batch_size
        if len(rows) < count:
            image = image.select(captions[:, 0] // (cache.keys.shape[1] // count))
        cache.select(captions.flatten())
        return image, cache


class RecordedStepper(Stepper):
    """`VisionGPT2` on a GPU: each step is recorded once (a CUDA graph) and replayed, its kernels started as one.

    A recording is valid for its shapes and addresses. So captions are held in buffers for 1, 2, 4, ... images; the
    places of finished images stay idle until the others fit into half of them, and each position has its own recording.
    """

    def __init__(self, model: VisionGPT2) -> None:
        self.model = model
        # buffers that no search uses, by their size
        self.free: dict[tuple[int, ...], list[_Buffers]] = {}

    def start(self, images: ImageKV) -> "_Running":
        return _Running(images, self.model.decoder.new_cache(images.batch_size, 1))

    def step(self, tokens: Ints, state: "_Running") -> tuple[Array, "_Running"]:
        batch, captions, positions = tokens.shape
        length = state.cache.length
        self.model.decoder.check_fits(length + positions)
        newest = torch.from_numpy(tokens).to(state.cache.keys.device)
        if length == 0:  # begin token and prefix have any length, and are read only once
            cache = self.model.decoder.new_cache(batch * captions, positions)
            return as_array(self.model.decode(newest, state.image, cache)[:, :, -1]), _Running(state.image, cache)
        if state.buffers is None or length == state.cache.keys.shape[3]:
            state = self.reorder(state, np.arange(batch * captions).reshape(batch, captions))
        buffers = state.buffers
        assert buffers is not None
        buffers.tokens[:batch] = newest
        if length not in buffers.steps:
            buffers.steps[length] = self._record(buffers)
        buffers.steps[length]()
        buffers.cache.length = length + 1
        return as_array(buffers.logits[:batch].clone()), state

    def reorder(self, state: "_Running", rows: Ints) -> "_Running":
        length, device = state.cache.length, state.cache.keys.device
        images = torch.from_numpy(rows[:, 0] // state.captions).to(device)
        if length == 0:
            return replace(state, image=state.image.select(images))
        image_tokens = state.image.layers[0][0].shape[2]
        size = _power_of_two(len(rows)), rows.shape[1], image_tokens, _power_of_two(length + 1)
        captions = torch.from_numpy(rows.flatten()).to(device)
        if state.buffers is not None and state.buffers.size == size:
            if not np.array_equal(rows.flatten(), np.arange(rows.size)):
                state.take(state, images, captions)
            return state
        free = self.free.setdefault(size, [])
        buffers = free.pop() if free else _Buffers(size, self.model, state.image)
        larger = _Running(buffers.image, buffers.cache, buffers)
        larger.take(state, images, captions)
        self.release(state)
        return larger

    def release(self, state: "_Running") -> None:
        """Make the buffers of a search available to the next one."""
        if state.buffers is not None:
            self.free[state.buffers.size].append(state.buffers)

    def _record(self, buffers: "_Buffers") -> Job:
        length = buffers.cache.length

        def job() -> None:
            buffers.cache.length = length
            buffers.logits.copy_(self.model.decode(buffers.tokens, buffers.image, buffers.cache)[:, :, -1])

        return _record_on_gpu(job, buffers) if buffers.tokens.is_cuda else job


class _Buffers:
    """Memory for (images, captions of each, image tokens, positions), and the steps recorded over it, by position."""

    def __init__(self, size: tuple[int, int, int, int], model: VisionGPT2, like: ImageKV) -> None:
        images, captions, image_tokens, positions = self.size = size
        heads, head_dim = like.layers[0][0].shape[1::2]
        shape = images, heads, image_tokens, head_dim
        # zeros, because idle places are computed too
        self.image = ImageKV(tuple((key.new_zeros(shape), key.new_zeros(shape)) for key, _ in like.layers))
        self.cache = model.decoder.new_cache(images * captions, positions)
        self.cache.keys.zero_()
        self.cache.values.zero_()
        self.tokens = torch.zeros(images, captions, 1, dtype=torch.int64, device=self.cache.keys.device)
        self.logits = torch.empty(images, captions, model.config.text.vocab_size, device=self.tokens.device)
        self.steps: dict[int, Job] = {}
        self.pool: Any = None


@dataclass(frozen=True)
class _Running:
    """Unfinished captions, in the first places of buffers if there are any."""

    image: ImageKV
    cache: SelfKV
    buffers: _Buffers | None = None

    @property
    def captions(self) -> int:
        """Captions of each image."""
        return self.cache.keys.shape[1] // self.image.batch_size

    def take(self, source: "_Running", images: Tensor, captions: Tensor) -> None:
        """Copy images (B,) and captions (B * G,) of another state into the first places of this one's buffers."""
        length = source.cache.length
        for target_layer, source_layer in zip(self.image.layers, source.image.layers, strict=True):
            for target, values in zip(target_layer, source_layer, strict=True):
                target[: len(images)] = values.index_select(0, images)
        for target, values in ((self.cache.keys, source.cache.keys), (self.cache.values, source.cache.values)):
            target[:, : len(captions), :, :length] = values[:, :, :, :length].index_select(1, captions)
        self.cache.length = length


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _record_on_gpu(job: Job, buffers: _Buffers) -> Job:
    """Return a function that replays `job` over the same memory; `job` itself, with a warning, if recording fails."""
    # autocast's cache is off, because weights in it would be freed with it while the recording still reads them
    keeps_casts = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    torch.clear_autocast_cache()
    try:
        job()  # libraries initialize in the first call, which must not be recorded
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=buffers.pool):
            job()
    except RuntimeError as error:
        warnings.warn(f"steps of decoding are not recorded on this GPU, so they are slower: {error}", stacklevel=2)
        return job
    finally:
        torch.set_autocast_cache_enabled(keeps_casts)
    buffers.pool = graph.pool()  # the next position's step may compute in the same memory
    return graph.replay
