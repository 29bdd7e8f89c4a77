"""The decoder on ONNX Runtime: a decoding step as one graph over the model's own weights, in fp32 or int8.

The graph is built where the model is loaded, in memory: ONNX Runtime takes the weights from torch's tensors, so there
is no file to write, to keep in step with the checkpoint, or to find damaged.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from myllm.config import GPTConfig
from myllm.export.onnx_graph import BLOCK_SIZE, MICROSOFT_DOMAIN, Graph, make_model, quantize_by_block
from myllm.model.gpt import GPT
from myllm.model.kv_cache import ImageKV
from myllm.model.vision_gpt2 import VisionGPT2

Precision = Literal["fp32", "int8"]


class _StepGraph(Graph):
    """One step of `GPT` over its own caches.

    Q is the newest positions of all captions of an image, n the slots of its past, S its tokens; rows are Q * B. In:
    tokens (Q, B), places (Q, 1), mask (B, 1, Q, n + Q), rows (N,), and for each block the keys and values of the past
    (n, B, n_head, head_dim) and of the picture (B, n_head, S, head_dim).
    Out: logits (N, vocab_size) of the rows asked for, and each block's new keys and values (Q * B, n_embd).

    Slots stand first in the past, so it grows in place: what a step gives is written behind what it has read.
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
        places = self.add("Gather", self.weight("wpe", transformer.wpe.weight), "places")
        x = self.transformer(self.add("Reshape", self.add("Add", words, places), self.as_rows), decoder)
        asked = self.add("Gather", x, "rows")
        self.linear(self.norm(asked, transformer.ln_f, "ln_f"), decoder.lm_head, "lm_head")
        self.nodes[-1].output[0] = "logits"

    def linear(self, x: str, module: nn.Linear, name: str) -> str:
        if self.precision == "fp32":
            return super().linear(x, module, name)
        bias = [self.weight(f"{name}.bias", module.bias)] if module.bias is not None else []
        numbers, scales = quantize_by_block(module.weight.detach(), bits=8)
        weight = [self.weight(f"{name}.weight", numbers.add(128).to(torch.uint8)), self.weight(f"{name}.scale", scales)]
        shape = {"K": module.in_features, "N": module.out_features, "bits": 8, "block_size": BLOCK_SIZE}
        # level 4: what is multiplied is rounded to 8 bits too, by blocks of its row, so that no caption sees another
        level = {"accuracy_level": 4, "domain": MICROSOFT_DOMAIN}
        return self.add("MatMulNBits", x, *weight, *(["", "", *bias] if bias else []), **shape, **level)

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
        # past and newest are read where they are; only scores are put together
        scores = [self.add("MatMul", queries, self.add("Transpose", one, perm=(1, 2, 3, 0))) for one in keys]
        masked = self.add("Add", self.add("Concat", *scores, axis=-1), "mask")
        weights = self.add("Softmax", masked, axis=-1)
        parted = self.split([weights, self.past_and_newest], (f"to_past.{layer}", f"to_newest.{layer}"))
        across = [self.add("Transpose", one, perm=(1, 2, 0, 3)) for one in values]
        attended = [self.add("MatMul", *pair) for pair in zip(parted, across, strict=True)]
        return self.linear(self.merge_heads(self.add("Add", *attended)), module.c_proj, f"h.{layer}.attn.c_proj")

    def cross_attention(self, x: str, module: Any, layer: int) -> str:
        queries = self.queries(self.linear(x, module.q_attn, f"h.{layer}.q_attn"))
        keys = self.add("Transpose", f"image_key.{layer}", perm=(0, 1, 3, 2))
        weights = self.add("Softmax", self.add("MatMul", queries, keys), axis=-1)
        attended = self.add("MatMul", weights, f"image_value.{layer}")
        return self.linear(self.merge_heads(attended), module.c_proj, f"h.{layer}.crossattention.c_proj")


def _parts(config: GPTConfig) -> list[str]:
    return [f"{part}.{layer}" for layer in range(config.n_layer) for part in ("key", "value")]


def _described(config: GPTConfig) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Inputs and outputs of a step, by name, type and shape."""
    make, whole, real = helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
    heads, head_dim = config.n_head, config.n_embd // config.n_head
    inputs = [make("tokens", whole, ["Q", "B"]), make("places", whole, ["Q", 1]), make("rows", whole, ["N"])]
    inputs.append(make("mask", real, ["B", 1, "Q", "n_and_Q"]))
    outputs = [make("logits", real, ["N", config.vocab_size])]
    for part in _parts(config):
        inputs.append(make(f"past_{part}", real, ["n", "B", heads, head_dim]))
        inputs.append(make(f"image_{part}", real, ["B", heads, "S", head_dim]))
        outputs.append(make(part, real, ["Q_times_B", config.n_embd]))
    return inputs, outputs


def _session(graph: _StepGraph, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False  # one would be kept for each length and batch size
    # its threads would else keep the cores busy for a while after a step, and torch's wait for them
    options.add_session_config_entry("session.force_spinning_stop", "1")
    constants, shared = [], {}
    for name, array in graph.weights.items():
        if array.nbytes <= 1024:
            constants.append(numpy_helper.from_array(array, name))
            continue
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        # ONNX asks for a file's name; it is never opened, for the session is handed the memory
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="memory")
        shared[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        constants.append(tensor)
    options.add_external_initializers(list(shared), list(shared.values()))
    proto = make_model(graph, *_described(graph.config), constants)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class StepState:
    """G captions of each of B images, as far as they are."""

    image: tuple[Tensor, ...]
    """Keys and values of the picture, (B, n_head, S, head_dim), in turn for each block."""
    past: Tensor
    """(2 * n_layer, room, B, n_head, head_dim): keys and values of each block; the first n of `room` slots are used."""
    mask: Tensor
    """(B, G, n): 0 where a caption goes on from the slot, -inf where that is of another."""
    length: int
    """Tokens of each caption."""


class OnnxStepper:
    """`VisionGPT2` as the decoding engine sees it, its steps computed by ONNX Runtime on the CPU.

    Beams move no cache: every caption's slots stay where they were written, and the mask says whose past they are.
    """

    def __init__(self, model: VisionGPT2, precision: Precision = "fp32", threads: int | None = None) -> None:
        """precision: int8 rounds the decoder's weights, and what they multiply. threads: torch's own by default."""
        self.decoder, self.config = model.decoder, model.config.text
        self._session = _session(_StepGraph(model.decoder, precision), threads or torch.get_num_threads())

    def start(self, images: ImageKV) -> StepState:
        """One caption for each image, with nothing said yet."""
        parts = tuple(part.float().contiguous() for layer in images.layers for part in layer)
        batch, heads, _, head_dim = parts[0].shape
        past = parts[0].new_empty(len(parts), 0, batch, heads, head_dim)
        return StepState(parts, past, past.new_zeros(batch, 1, 0), 0)

    def step(self, tokens: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        """The newest tokens (B, G, T) -> logits of those after them (B, G, vocab_size), and the state after."""
        batch, captions, newest = tokens.shape
        used = state.mask.shape[-1]
        ends, length = used + captions * newest, state.length + newest
        self.decoder.check_fits(length)
        past = _with_room(state.past, used, ends)
        mask = _extended(state.mask, newest)
        places = torch.arange(state.length, length).repeat(captions)[:, None]
        # row (caption, position, image) of the last position of each image's captions
        rows = (torch.arange(captions) * newest + newest - 1) * batch + torch.arange(batch)[:, None]
        logits = torch.empty(batch, captions, self.config.vocab_size)
        told = tokens.flatten(1).T.contiguous()
        binding = self._session.io_binding()
        for name, value in {"tokens": told, "places": places, "rows": rows.flatten(), "mask": mask[:, None]}.items():
            _bind(binding.bind_input, name, tuple(value.shape), value.data_ptr(), value.dtype)
        _bind(binding.bind_output, "logits", (batch * captions, self.config.vocab_size), logits.data_ptr())
        of_block, of_slot = (stride * past.element_size() for stride in past.stride()[:2])
        slots, written = (used, *past.shape[2:]), ((ends - used) * batch, self.config.n_embd)
        for index, (image, part) in enumerate(zip(state.image, _parts(self.config), strict=True)):
            address = past.data_ptr() + index * of_block
            _bind(binding.bind_input, f"past_{part}", slots, address)
            _bind(binding.bind_input, f"image_{part}", tuple(image.shape), image.data_ptr())
            _bind(binding.bind_output, part, written, address + used * of_slot)
        self._session.run_with_iobinding(binding)
        return logits, StepState(state.image, past, mask.unflatten(1, (captions, newest))[:, :, -1], length)

    def reorder(self, state: StepState, rows: Tensor) -> StepState:
        """New caption (i, j) goes on from caption rows[i, j] of the old ones counted in a row; rows (B', G')."""
        batch, captions, _ = state.mask.shape
        state = replace(state, mask=state.mask.flatten(0, 1)[rows])
        images = rows[:, 0] // captions
        if not torch.equal(images, torch.arange(batch)):
            kept = tuple(part.index_select(0, images) for part in state.image)
            state = replace(state, image=kept, past=state.past.index_select(2, images))
        return _without_dead_slots(state)


def _bind(bind: Any, name: str, shape: tuple[int, ...], address: int, dtype: torch.dtype = torch.float32) -> None:
    bind(name, "cpu", 0, np.float32 if dtype is torch.float32 else np.int64, shape, address)


def _with_room(past: Tensor, used: int, needed: int) -> Tensor:
    """The cache with room for `needed` slots, its first `used` as they were; room doubles, so copies stay few."""
    if needed <= past.shape[1]:
        return past
    larger = past.new_empty(past.shape[0], max(needed, 2 * past.shape[1], 16), *past.shape[2:])
    larger[:, :used] = past[:, :used]
    return larger


def _extended(mask: Tensor, newest: int) -> Tensor:
    """(B, G, n) of what is past -> (B, G * newest, n + G * newest) of each newest position: a caption sees its own."""
    batch, captions, _ = mask.shape
    among = torch.kron(torch.eye(captions), torch.ones(newest, newest).tril()).log()  # 1 and 0 -> 0 and -inf
    past = mask[:, :, None].expand(-1, -1, newest, -1).flatten(1, 2)
    return torch.cat([past, among.expand(batch, -1, -1)], dim=-1)


def _without_dead_slots(state: StepState) -> StepState:
    """The same past without slots that no caption goes on from any more, where these have become the greater part.

    Images keep as many slots as the one that needs most; those beyond its own stay hidden from it.
    """
    alive = (state.mask == 0).any(1)
    kept = int(alive.sum(-1).max())
    if alive.shape[1] < 2 * kept + 16:
        return state
    slots = alive.int().argsort(dim=-1, descending=True, stable=True)[:, :kept]
    past = state.past[:, slots.T, torch.arange(len(slots))]
    return replace(state, past=past, mask=state.mask.gather(2, slots[:, None].expand(-1, state.mask.shape[1], -1)))
