"""Captioners for programs without torch: the encoder and a decoding step as ONNX files, laid out as optimum's exports.

What reads them is `checkpoints/onnx.py`, transformers.js, and the page of `checkpoints/web.py`.
"""

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from myllm.caption import encode_text
from myllm.checkpoints.hf_gpt2 import write_tokenizer
from myllm.checkpoints.hf_vision_encoder_decoder import config_files
from myllm.checkpoints.native import Checkpoint
from myllm.config import VERSION, GPTConfig
from myllm.data.tokenizer import end_token
from myllm.errors import ConfigError, reason
from myllm.export.onnx_graph import BLOCK, OPSET, Graph, model_of
from myllm.files import atomic_folder, write_json
from myllm.model.gpt import GPT
from myllm.model.vision_gpt2 import VisionGPT2

Progress = Callable[[int, int], None]
Precision = Literal["fp32", "int8", "int4"]
BITS = {"fp32": 32, "int8": 8, "int4": 4}
KINDS = {8: TensorProto.INT8, 4: TensorProto.INT4}
# transformers.js's words: of fp32 its files have the plain name, of all else with an underscore and the word behind it
DTYPES = {"fp32": "fp32", "int8": "int8", "int4": "q4"}
MAX_BYTES = 2**31 - 1  # of one file, by the library that writes it
MIN_QUANTIZED_SIZE = 1024  # numbers; what has fewer is not worth a scale of its own


def no_progress(done: int, total: int) -> None: ...


def to_folder(
    checkpoint: Checkpoint, folder: Path, precision: Precision = "fp32", progress: Progress = no_progress
) -> None:
    """Write onnx/encoder_model*.onnx, onnx/decoder_model_merged*.onnx, and the JSON files beside them.

    encoder: pixel_values (B, 3, H, W) float32 -> last_hidden_state (B, 2 * n_layer * n_head * S, head_dim), which holds
    the keys and values of the B pictures for every decoder block, so that no step computes them again.
    decoder: input_ids (N, T) int64, the newest tokens of N / B captions of each picture in turn; encoder_hidden_states,
    what the encoder gave; past_key_values.I.key and .value (N, n_head, P, head_dim) of what was said before, P = 0 at
    first -> logits (N, T, vocab_size), and present.I.key and .value (N, n_head, P + T, head_dim).
    precision: int8 and int4 round the weights of matrices (embedding and convolutions keep 8 bits in both). They are
    stored so, with a node that restores them: ONNX Runtime multiplies with them as they are, or restores them once.
    progress: called with how many of its parts are done, and of how many.
    Raises ConfigError where ONNX has no word for an operator of the backbone, and where `folder` is there already.
    """
    model, decode, dtype = checkpoint.model, checkpoint.decode, DTYPES[precision]
    suffix = "" if dtype == "fp32" else f"_{dtype}"
    given = [end_token(checkpoint.tokenizer), *encode_text(checkpoint.tokenizer, decode.prefix)]
    progress(0, 3)
    encoder = encoder_graph(model, precision)
    progress(1, 3)
    decoder = decoder_graph(model, precision)
    progress(2, 3)
    facts = config_files(checkpoint, {"model_type": "timm_wrapper", "architecture": model.config.vision.name})
    facts["config"] |= {
        "transformers.js_config": {"dtype": dtype},
        "myllm": {
            "version": VERSION, "precision": precision, "n_positions": model.config.text.n_positions,
            "given": given, "preprocess": asdict(checkpoint.preprocess),
            "captions": asdict(checkpoint.captions), "decode": asdict(decode),
            "calibration": checkpoint.calibration and checkpoint.calibration.as_json(),
        },
    }
    with atomic_folder(folder) as out:
        (out / "onnx").mkdir()
        onnx.save(encoder, out / "onnx" / f"encoder_model{suffix}.onnx")
        onnx.save(decoder, out / "onnx" / f"decoder_model_merged{suffix}.onnx")
        write_tokenizer(checkpoint.tokenizer, model.config.text.n_positions, out)
        for name, values in facts.items():
            write_json(values, out / f"{name}.json")


class _PictureToKeysAndValues(nn.Module):
    def __init__(self, model: VisionGPT2) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        parts = [part for layer in self.model.encode(pixel_values).layers for part in layer]
        return torch.stack(parts, dim=1).flatten(1, 3)


def encoder_graph(model: VisionGPT2, precision: Precision) -> onnx.ModelProto:
    """The backbone and what makes keys and values of its tokens, by torch's own exporter. Raises ConfigError."""
    name, size = model.config.vision.name, model.encoder.preprocess.image_size
    _check_size([value for key, value in model.state_dict().items() if key.startswith("encoder.")], "another backbone")
    picture = torch.zeros(2, 3, *size)  # torch takes one picture for a size that never changes
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                _PictureToKeysAndValues(model).eval(), (picture,), input_names=["pixel_values"],
                output_names=["last_hidden_state"], dynamic_shapes=({0: torch.export.Dim("B")},),
                opset_version=OPSET, dynamo=True, verbose=False,
            )
    except Exception as error:  # tracing someone else's model can fail in any way
        raise ConfigError(f"vision.name {name} can't be written as ONNX: {_cause(error)}") from error
    assert program is not None
    proto = program.model_proto
    if precision != "fp32":
        quantize_weights(proto, BITS[precision])
    return proto


def quantize_weights(proto: onnx.ModelProto, bits: int) -> None:
    """Matrices of a graph in so many bits, by blocks, and its convolutions in 8, by channel; the rest stays."""
    graph = proto.graph
    constants = {one.name: one for one in graph.initializer}
    nodes, found = list[onnx.NodeProto](), dict[str, list[TensorProto]]()
    for node in graph.node:
        weight = constants.get(node.input[1]) if node.op_type in ("MatMul", "Conv") else None
        is_matrix = weight is not None and len(weight.dims) == 2
        if (
            weight is not None
            and (is_matrix or node.op_type == "Conv")
            and math.prod(weight.dims) >= MIN_QUANTIZED_SIZE
        ):
            name = weight.name
            if name not in found:
                value = torch.from_numpy(numpy_helper.to_array(weight).copy())
                parts = rounded(value, bits) if is_matrix else quantize_by_channel(value)
                names = [f"{name}_rounded", f"{name}_unit"]
                found[name] = [numpy_helper.from_array(*pair) for pair in zip(parts, names, strict=True)]
                block_size = BLOCK if is_matrix else 0  # 0: a channel has one unit
                restored = [f"{name}_restored"]
                nodes.append(helper.make_node("DequantizeLinear", names, restored, axis=0, block_size=block_size))
            node.input[1] = f"{name}_restored"
        nodes.append(node)
    still_read = {name for node in nodes for name in node.input}
    others = [one for name, one in constants.items() if name in still_read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*others, *(one for parts in found.values() for one in parts)])


def rounded(weight: Tensor, bits: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(K, N) -> (K, N) in whole numbers of so many bits, and (K / BLOCK, N) float32: what one step of each block is."""
    most = 2 ** (bits - 1) - 1
    padded = nn.functional.pad(weight, (0, 0, 0, -len(weight) % BLOCK))
    units = padded.unflatten(0, (-1, BLOCK)).abs().amax(1).clamp(min=1e-12) / most
    values = (weight / units.repeat_interleave(BLOCK, 0)[: len(weight)]).round().to(torch.int8)
    return values.numpy().astype(helper.tensor_dtype_to_np_dtype(KINDS[bits])), units.numpy()


def quantize_by_channel(weight: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(channels out, ...) -> int8 of the same shape, and (channels out,) float32: what one step of each is."""
    units = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    return (weight / units.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8).numpy(), units.numpy()


class _DecoderGraph(Graph):
    """A decoding step as `to_folder` says it; rows are N * T."""

    def __init__(self, decoder: GPT, precision: Precision) -> None:
        super().__init__(decoder.config)
        self.bits, config = BITS[precision], decoder.config
        captions, newest = (self.add("Shape", "input_ids", start=axis, end=axis + 1) for axis in (0, 1))
        past = self.add("Shape", "past_key_values.0.key", start=2, end=3)
        pictures = self.add("Shape", "encoder_hidden_states", start=0, end=1)
        heads = self.weight("heads", [config.n_head, config.n_embd // config.n_head])
        any_number = self.weight("any_number", [-1])
        self.of_captions = self.add("Concat", captions, newest, heads, axis=0)
        # the captions of one picture are just more queries over the same keys
        self.of_pictures = self.add("Concat", pictures, any_number, heads, axis=0)
        zero, one = self.weight("zero", torch.tensor(0)), self.weight("one", torch.tensor(1))
        length = self.add("Squeeze", self.add("Add", past, newest))
        places = self.add("Range", self.add("Squeeze", past), length, one)
        is_later = self.add(
            "Greater", self.add("Range", zero, length, one), self.add("Unsqueeze", places, self.weight("last", [-1]))
        )
        hidden, seen = self.weight("hidden", torch.tensor(-torch.inf)), self.weight("seen", torch.tensor(0.0))
        self.mask = self.add("Where", is_later, hidden, seen)
        self._split_picture()
        placed = self.add("Gather", self.weight("wpe", decoder.transformer.wpe.weight), places)
        embedded = self.add("Add", self._embedded(decoder), placed)
        x = self.transformer(self.add("Reshape", embedded, self.as_rows), decoder)
        logits = self.linear(self.norm(x, decoder.transformer.ln_f, "ln_f"), decoder.lm_head, "wte")
        shape = self.add("Concat", captions, newest, any_number, axis=0)
        self.nodes.append(helper.make_node("Reshape", [logits, shape], ["logits"]))

    def linear(self, x: str, module: nn.Linear, name: str) -> str:
        if self.bits == 32:
            return super().linear(x, module, name)
        stored = self.stored(f"{name}.weight", module.weight)
        product = self.add("MatMul", x, self.add("DequantizeLinear", *stored, axis=0, block_size=BLOCK))
        if module.bias is None:
            return product
        return self.add("Add", product, self.weight(f"{name}.bias", module.bias))

    def stored(self, name: str, weight: Tensor) -> tuple[str, str]:
        """The names of a matrix (out, in), turned and rounded, and of its blocks' units."""
        if name not in self.weights:
            # fewer bits than 8 for the table that names the words cost more than they save
            bits = 8 if name == "wte.weight" else self.bits
            self.weights[name], self.weights[f"{name}_unit"] = rounded(weight.detach().T, bits)
        return name, f"{name}_unit"

    def _embedded(self, decoder: GPT) -> str:
        """Rows of the table that the head multiplies with, too: it is stored once."""
        table = decoder.transformer.wte.weight
        if self.bits == 32:
            return self.add("Gather", self.weight("wte.weight", table), "input_ids")
        # turned where it is loaded: ONNX Runtime multiplies with rounded weights only where nothing else reads them
        turned = [self.add("Transpose", one, perm=(1, 0)) for one in self.stored("wte.weight", table)]
        rows = [self.add("Gather", one, "input_ids") for one in turned]
        return self.add("DequantizeLinear", *rows, axis=2, block_size=BLOCK)

    def _split_picture(self) -> None:
        """image_key.I and image_value.I (B, n_head, S, head_dim) of what the encoder gave."""
        config = self.config
        shape = [0, 2 * config.n_layer, config.n_head, -1, config.n_embd // config.n_head]
        whole = self.add("Reshape", "encoder_hidden_states", self.weight("of_blocks", shape))
        names = [f"{part}.{layer}" for layer in range(config.n_layer) for part in ("image_key", "image_value")]
        parts = [f"{name}.part" for name in names]
        self.split([whole], parts, axis=1, num_outputs=len(parts))
        for part, name in zip(parts, names, strict=True):
            self.nodes.append(helper.make_node("Squeeze", [part, self.weight("block", [1])], [name]))

    def heads_of(self, x: str, shape: str) -> str:
        """Rows -> (N, n_head, T, head_dim), or all captions of each picture in its (B, n_head, Q, head_dim)."""
        return self.add("Transpose", self.add("Reshape", x, shape), perm=(0, 2, 1, 3))

    def attended(self, query: str, key: str, value: str, mask: str | None = None) -> str:
        """(.., Q, head_dim) over (.., K, head_dim) -> rows."""
        scaled = self.add("Mul", query, self.scale)
        scores = self.add("MatMul", scaled, self.add("Transpose", key, perm=(0, 1, 3, 2)))
        weights = self.add("Softmax", self.add("Add", scores, mask) if mask else scores, axis=-1)
        merged = self.add("Transpose", self.add("MatMul", weights, value), perm=(0, 2, 1, 3))
        return self.add("Reshape", merged, self.as_rows)

    def self_attention(self, x: str, module: Any, layer: int) -> str:
        parts = (f"query.{layer}", f"key.{layer}", f"value.{layer}")
        self.split([self.linear(x, module.c_attn, f"h.{layer}.c_attn")], parts, num_outputs=3)
        query, *newest = (self.heads_of(part, self.of_captions) for part in parts)
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        for one, name in zip(newest, present, strict=True):
            past = name.replace("present", "past_key_values")
            self.nodes.append(helper.make_node("Concat", [past, one], [name], axis=2))
        attended = self.attended(query, present[0], present[1], self.mask)
        return self.linear(attended, module.c_proj, f"h.{layer}.attn.c_proj")

    def cross_attention(self, x: str, module: Any, layer: int) -> str:
        query = self.heads_of(self.linear(x, module.q_attn, f"h.{layer}.q_attn"), self.of_pictures)
        attended = self.attended(query, f"image_key.{layer}", f"image_value.{layer}")
        return self.linear(attended, module.c_proj, f"h.{layer}.crossattention.c_proj")


def decoder_graph(model: VisionGPT2, precision: Precision) -> onnx.ModelProto:
    """A decoding step with its cache. Raises ConfigError where it is too large for one file."""
    graph = _DecoderGraph(model.decoder, precision)
    _check_size(list(graph.weights.values()), "--precision int8")
    constants = [numpy_helper.from_array(value, name) for name, value in graph.weights.items()]
    return model_of(graph, _described(model.config.text), constants)


def _described(config: GPTConfig) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    make, real = helper.make_tensor_value_info, TensorProto.FLOAT
    head_dim = config.n_embd // config.n_head
    inputs = [make("input_ids", TensorProto.INT64, ["N", "T"])]
    inputs.append(make("encoder_hidden_states", real, ["B", "keys_and_values", head_dim]))
    outputs = [make("logits", real, ["N", "T", config.vocab_size])]
    for part in (f"{layer}.{kind}" for layer in range(config.n_layer) for kind in ("key", "value")):
        inputs.append(make(f"past_key_values.{part}", real, ["N", config.n_head, "P", head_dim]))
        outputs.append(make(f"present.{part}", real, ["N", config.n_head, "P_and_T", head_dim]))
    return inputs, outputs


def _check_size(weights: Sequence[Any], way_out: str) -> None:
    size = sum(weight.nbytes for weight in weights)
    if size > MAX_BYTES:
        raise ConfigError(
            f"{size / 1e9:.1f} GB of weights do not fit into one ONNX file, which holds 2; take {way_out}"
        )


def _cause(error: BaseException) -> str:
    """The operator that stands in the way, where the exporter names one, and what was wrong with it."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    told = "\n".join(map(str, chain))
    operator = re.search(r"OpOverload\(op='([\w.]+)'|target=torch\.ops\.([\w.]+)", told)
    found = f"its operator {operator[1] or operator[2]} has no form there: " if operator else ""
    return f"{found}{reason(chain[-1])}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the exporter neither warns of how it is written itself nor asks for things that it does without."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
