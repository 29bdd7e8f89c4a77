"""The decoder on ONNX Runtime: a decoding step as one graph over the model's own weights, in fp32 or int8.

The graph is built in memory when the model is loaded, and ONNX Runtime reads the weights from torch's tensors. So there
is no file that could be damaged, or older than the checkpoint.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from myllm.config import GPTConfig
from myllm.decoding.arrays import Floats, Ints
from myllm.decoding.engine import Stepper
from myllm.export.onnx_graph import Graph, make_model, quantize_by_channel
from myllm.inference.onnx_sessions import Sessions, session_options
from myllm.model.gpt import GPT
from myllm.model.kv_cache import ImageKV
from myllm.model.vision_gpt2 import VisionGPT2

Precision = Literal["fp32", "int8"]


class _StepGraph(Graph):
    """One step of `GPT` over its own caches.

    Q is the number of new positions of an image, over all its captions; n the number of slots of its past, and S that
    of its image tokens. Activations have Q * B rows.

    Inputs: tokens (Q, B), positions (Q, 1), mask (B, 1, Q, n + Q), rows (N,), and for each block the keys and values of
    the past (n, B, n_head, head_dim) and of the image (B, n_head, S, head_dim).
    Outputs: logits (N, vocab_size) of the requested rows, and each block's new keys and values (Q * B, n_embd).

    Slots are the first axis of the past, so that it grows in place: a step writes its keys behind those that it reads.
    """

    def __init__(self, decoder: GPT, precision: Precision) -> None:
        super().__init__(decoder.config)
        self.precision = precision
        newest, past = (self.add("Shape", name, start=0, end=1) for name in ("tokens", "past_key.0"))
        head_dim = self.config.n_embd // self.config.n_head
        self.by_head = self.add("Concat", newest, self.weight("heads", [-1, self.config.n_head, head_dim]), axis=0)
        self.past_and_newest = self.add("Concat", past, newest, axis=0)
        transformer = decoder.transformer
        words = self.add("Gather", self.weight("wte", transformer.wte.weight), "tokens")
        positions = self.add("Gather", self.weight("wpe", transformer.wpe.weight), "positions")
        x = self.transformer(self.add("Reshape", self.add("Add", words, positions), self.as_rows), decoder)
        last = self.add("Gather", x, "rows")
        self.linear(self.norm(last, transformer.ln_f, "ln_f"), decoder.lm_head, "lm_head")
        self.nodes[-1].output[0] = "logits"

    def linear(self, x: str, module: nn.Linear, name: str) -> str:
        if self.precision == "fp32":
            return super().linear(x, module, name)
        numbers, scales = quantize_by_channel(module.weight.detach())
        # unsigned, with the zero at 128: sums of signed weights overflow on processors without VNNI
        weight = self.weight(f"{name}.weight", numbers.T.add(128).to(torch.uint8))
        zero = self.weight("zero", torch.tensor(128, dtype=torch.uint8))
        # a scale for each row of activations, so that captions stay independent
        peak = self.add("ReduceMax", self.add("Abs", x), self.weight("last_axis", [-1]))
        scaled = self.add("Mul", x, self.add("Div", self.weight("steps", 127.0), peak))
        # the cast rounds down
        rounded = self.add("Cast", self.add("Add", scaled, self.weight("offset", 128.5)), to=TensorProto.UINT8)
        product = self.add("Cast", self.add("MatMulInteger", rounded, weight, zero, zero), to=TensorProto.FLOAT)
        result = self.add("Mul", self.add("Mul", product, self.weight(f"{name}.scale", scales / 127)), peak)
        return result if module.bias is None else self.add("Add", result, self.weight(f"{name}.bias", module.bias))

    def split_heads(self, x: str) -> str:
        """(Q * B, n_embd) -> (Q, B, n_head, head_dim)."""
        return self.add("Reshape", x, self.by_head)

    def queries(self, x: str) -> str:
        """(Q * B, n_embd) -> (B, n_head, Q, head_dim), scaled."""
        return self.add("Transpose", self.add("Mul", self.split_heads(x), self.scale), perm=(1, 2, 0, 3))

    def merge_heads(self, x: str) -> str:
        """(B, n_head, Q, head_dim) -> (Q * B, n_embd)."""
        return self.add("Reshape", self.add("Transpose", x, perm=(2, 0, 1, 3)), self.as_rows)

    def self_attention(self, x: str, module: Any, layer: int) -> str:
        fused = self.linear(x, module.c_attn, f"h.{layer}.c_attn")
        parts = (f"query.{layer}", f"key.{layer}", f"value.{layer}")
        query, key, value = self.split([fused], parts, num_outputs=3)
        queries = self.queries(query)
        keys = f"past_key.{layer}", self.split_heads(key)
        values = f"past_value.{layer}", self.split_heads(value)
        # past and newest keys are read in place; only their scores are concatenated
        scores = [self.add("MatMul", queries, self.add("Transpose", part, perm=(1, 2, 3, 0))) for part in keys]
        masked = self.add("Add", self.add("Concat", *scores, axis=-1), "mask")
        weights = self.add("Softmax", masked, axis=-1)
        weights_of = self.split([weights, self.past_and_newest], (f"to_past.{layer}", f"to_newest.{layer}"))
        by_head = [self.add("Transpose", part, perm=(1, 2, 0, 3)) for part in values]
        attended = [self.add("MatMul", *pair) for pair in zip(weights_of, by_head, strict=True)]
        return self.linear(self.merge_heads(self.add("Add", *attended)), module.c_proj, f"h.{layer}.attn.c_proj")

    def cross_attention(self, x: str, module: Any, layer: int) -> str:
        queries = self.queries(self.linear(x, module.q_attn, f"h.{layer}.q_attn"))
        keys = self.add("Transpose", f"image_key.{layer}", perm=(0, 1, 3, 2))
        weights = self.add("Softmax", self.add("MatMul", queries, keys), axis=-1)
        attended = self.add("MatMul", weights, f"image_value.{layer}")
        return self.linear(self.merge_heads(attended), module.c_proj, f"h.{layer}.crossattention.c_proj")


def _parts(config: GPTConfig) -> list[str]:
    return [f"{part}.{layer}" for layer in range(config.n_layer) for part in ("key", "value")]


def _inputs_and_outputs(config: GPTConfig) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Return the names, types and shapes of a step's inputs, and of its outputs."""
    make, int64, real = helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
    heads, head_dim = config.n_head, config.n_embd // config.n_head
    inputs = [make("tokens", int64, ["Q", "B"]), make("positions", int64, ["Q", 1]), make("rows", int64, ["N"])]
    inputs.append(make("mask", real, ["B", 1, "Q", "n_and_Q"]))
    outputs = [make("logits", real, ["N", config.vocab_size])]
    for part in _parts(config):
        inputs.append(make(f"past_{part}", real, ["n", "B", heads, head_dim]))
        inputs.append(make(f"image_{part}", real, ["B", heads, "S", head_dim]))
        outputs.append(make(part, real, ["Q_times_B", config.n_embd]))
    return inputs, outputs


def _session(graph: _StepGraph, threads: int) -> onnxruntime.InferenceSession:
    options = session_options(threads)
    options.enable_mem_pattern = False  # one would be kept for each length and batch size
    constants, shared = [], {}
    for name, array in graph.weights.items():
        if array.nbytes <= 1024:
            constants.append(numpy_helper.from_array(array, name))
            continue
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        # ONNX asks for a file's name, but no file is opened: the session gets the memory itself
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="memory")
        shared[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        constants.append(tensor)
    options.add_external_initializers(list(shared), list(shared.values()))
    proto = make_model(graph, *_inputs_and_outputs(graph.config), constants)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class StepState:
    """G unfinished captions of each of B images."""

    image: tuple[Floats, ...]
    """Keys and values of the images, (B, n_head, S, head_dim), in turn for each block."""
    past: Floats
    """(2 * n_layer, room, B, n_head, head_dim): keys and values of each block; the first n of `room` slots are used."""
    mask: Floats
    """(B, G, n): 0 for slots that hold a caption's own past, -inf for those of others."""
    length: int
    """Tokens of each caption."""
    is_lone: bool
    """Whether the search began with one picture."""


class OnnxStepper(Stepper):
    """`VisionGPT2` step by step, computed by ONNX Runtime on the CPU.

    Beam search does not copy the cache: slots stay where they were written, and the mask says which captions see them.
    """

    def __init__(self, model: VisionGPT2, precision: Precision = "fp32", threads: int | None = None) -> None:
        """precision: int8 rounds the decoder's weights and what they multiply.

        threads: by default, torch's number, and all cores for a picture by itself.
        """
        self.decoder, self.config = model.decoder, model.config.text
        self._sessions = Sessions(partial(_session, _StepGraph(model.decoder, precision)), threads)

    def start(self, images: ImageKV) -> StepState:
        parts = tuple(part.float().contiguous().numpy() for layer in images.layers for part in layer)
        batch, heads, _, head_dim = parts[0].shape
        past = np.empty((len(parts), 0, batch, heads, head_dim), np.float32)
        return StepState(parts, past, np.zeros((batch, 1, 0), np.float32), 0, batch == 1)

    def step(self, tokens: Ints, state: StepState) -> tuple[Floats, StepState]:
        batch, captions, newest = tokens.shape
        used = state.mask.shape[-1]
        needed, length = used + captions * newest, state.length + newest
        self.decoder.check_fits(length)
        past = _with_room(state.past, used, needed)
        mask = _mask_with_newest(state.mask, newest)
        positions = np.tile(np.arange(state.length, length), captions)[:, None]
        # row (caption, position, image) of the last position of each image's captions
        rows = (np.arange(captions) * newest + newest - 1) * batch + np.arange(batch)[:, None]
        logits = np.empty((batch, captions, self.config.vocab_size), np.float32)
        by_position = np.ascontiguousarray(tokens.reshape(batch, -1).T)
        with self._sessions.session(state.is_lone) as session:
            binding = session.io_binding()
            inputs = {"tokens": by_position, "positions": positions, "rows": rows.ravel(), "mask": mask[:, None]}
            for name, array in inputs.items():
                _bind(binding.bind_input, name, array.shape, array.ctypes.data, array.dtype.type)
            _bind(binding.bind_output, "logits", (batch * captions, self.config.vocab_size), logits.ctypes.data)
            address, block_bytes, slot_bytes = past.ctypes.data, *past.strides[:2]
            slots, written = (used, *past.shape[2:]), ((needed - used) * batch, self.config.n_embd)
            for index, (image, part) in enumerate(zip(state.image, _parts(self.config), strict=True)):
                block = address + index * block_bytes
                _bind(binding.bind_input, f"past_{part}", slots, block)
                _bind(binding.bind_input, f"image_{part}", image.shape, image.ctypes.data)
                _bind(binding.bind_output, part, written, block + used * slot_bytes)
            session.run_with_iobinding(binding)
        newest_mask = mask.reshape(batch, captions, newest, needed)[:, :, -1]
        return logits, replace(state, past=past, mask=newest_mask, length=length)

    def reorder(self, state: StepState, rows: Ints) -> StepState:
        batch, captions, slots = state.mask.shape
        state = replace(state, mask=state.mask.reshape(batch * captions, slots)[rows])
        images = rows[:, 0] // captions
        if not np.array_equal(images, np.arange(batch)):
            kept = tuple(part[images] for part in state.image)
            state = replace(state, image=kept, past=state.past.take(images, axis=2))
        return _without_dead_slots(state)


def _bind(bind: Any, name: str, shape: tuple[int, ...], address: int, dtype: Any = np.float32) -> None:
    bind(name, "cpu", 0, dtype, shape, address)


def _with_room(past: Floats, used: int, needed: int) -> Floats:
    """Return the cache with room for `needed` slots, the first `used` unchanged; it doubles, so that copies are few."""
    if needed <= past.shape[1]:
        return past
    larger = np.empty((past.shape[0], max(needed, 2 * past.shape[1], 16), *past.shape[2:]), np.float32)
    larger[:, :used] = past[:, :used]
    return larger


def _mask_with_newest(mask: Floats, newest: int) -> Floats:
    """(B, G, n) of the past -> (B, G * newest, n + G * newest) of each newest position: a caption sees only itself."""
    batch, captions, _ = mask.shape
    caption, position = np.divmod(np.arange(captions * newest), newest)
    is_visible = (caption[:, None] == caption) & (position[:, None] >= position)
    among_newest = np.where(is_visible, np.float32(0), np.float32(-np.inf))
    among_newest = np.broadcast_to(among_newest, (batch, *among_newest.shape))
    return np.concatenate([mask.repeat(newest, axis=1), among_newest], axis=-1)


def _without_dead_slots(state: StepState) -> StepState:
    """Return the same state without the slots that no caption sees any more, if they are more than half of all.

    Every image keeps as many slots as the one that needs most; the mask hides those that it does not need.
    """
    alive = (state.mask == 0).any(axis=1)
    kept = int(alive.sum(axis=-1).max())
    if alive.shape[1] < 2 * kept + 16:
        return state
    slots = np.argsort(~alive, axis=-1, kind="stable")[:, :kept]
    past = np.ascontiguousarray(state.past[:, slots.T, np.arange(len(slots))])
    return replace(state, past=past, mask=np.take_along_axis(state.mask, slots[:, None], axis=-1))
