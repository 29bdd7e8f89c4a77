"""Export to ONNX: the encoder and a decoding step as two files, in the layout of optimum's exports.

`inference/onnx_captioner.py`, transformers.js and the page of `export/web.py` read them; none of them needs torch.
"""

import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
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
from myllm.config import VERSION
from myllm.data.tokenizer import end_token
from myllm.decoding.retrieval import INDEX_NAME
from myllm.errors import ConfigError, reason
from myllm.export.onnx_graph import BLOCK_SIZE, OPSET, Graph, make_model, quantize_by_block, quantize_by_channel
from myllm.files import atomic_folder, write_json
from myllm.model.gpt import GPT
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.progress import Progress, no_progress

Precision = Literal["fp32", "int8", "int4"]
BITS = {"fp32": 32, "int8": 8, "int4": 4}
# transformers.js's names of precisions; a file name ends in "_" and that name, in nothing for fp32
DTYPES = {"fp32": "fp32", "int8": "int8", "int4": "q4"}
MAX_BYTES = 2**31 - 1  # limit of protobuf, the format of ONNX files
MIN_QUANTIZED_SIZE = 1024  # weights; quantizing a smaller tensor saves less than its scales and nodes take


def to_folder(
    checkpoint: Checkpoint, folder: Path, precision: Precision = "fp32", progress: Progress = no_progress
) -> None:
    """Write onnx/encoder_model*.onnx, onnx/decoder_model_merged*.onnx, the tokenizer and the configuration.

    An index of training pictures is written too, as arrays of numpy.

    encoder: pixel_values (B, 3, H, W) float32 -> last_hidden_state (B, 2 * n_layer * n_head * S, head_dim): the keys
    and values of B pictures for every decoder block, so that no decoding step computes them again.
    decoder: input_ids (N, T) int64, the newest T tokens of N / B captions of each picture; encoder_hidden_states, the
    encoder's output; past_key_values.I.key and .value (N, n_head, P, head_dim) of the P tokens before, none in the
    first step -> logits (N, T, vocab_size), present.I.key and .value (N, n_head, P + T, head_dim).
    precision: of the weights; with int4, embedding and convolutions have 8 bits. Quantized weights are stored behind
    DequantizeLinear nodes, which ONNX Runtime fuses with the multiplications.
    Raises ConfigError if ONNX has no operator for a part of the backbone, if the weights exceed the 2 GB of an ONNX
    file, or if `folder` exists.
    """
    model, decode, dtype = checkpoint.model, checkpoint.decode, DTYPES[precision]
    suffix = "" if dtype == "fp32" else f"_{dtype}"
    begin_tokens = [end_token(checkpoint.tokenizer), *encode_text(checkpoint.tokenizer, decode.prefix.rstrip())]
    progress("exporting", 0, 3)
    encoder = encoder_graph(model, precision)
    progress("exporting", 1, 3)
    decoder = decoder_graph(model, precision)
    progress("exporting", 2, 3)
    facts = config_files(checkpoint, {"model_type": "timm_wrapper", "architecture": model.config.vision.name})
    facts["config"] |= {
        "transformers.js_config": {"dtype": dtype},
        "myllm": {
            "version": VERSION, "precision": precision, "n_positions": model.config.text.n_positions,
            "given": begin_tokens, "preprocess": asdict(checkpoint.preprocess), "grid": model.encoder.grid,
            "captions": asdict(checkpoint.captions), "decode": asdict(decode),
            "calibration": checkpoint.calibration and checkpoint.calibration.as_json(),
        },
    }
    with atomic_folder(folder) as out:
        (out / "onnx").mkdir()
        onnx.save(encoder, out / "onnx" / f"encoder_model{suffix}.onnx")
        onnx.save(decoder, out / "onnx" / f"decoder_model_merged{suffix}.onnx")
        write_tokenizer(checkpoint.tokenizer, model.config.text.n_positions, out)
        if checkpoint.index is not None:
            np.savez(out / INDEX_NAME, allow_pickle=False, **checkpoint.index.as_arrays())
        for name, values in facts.items():
            write_json(values, out / f"{name}.json")


class _KeyValueEncoder(nn.Module):
    """The encoder as `to_folder` describes it."""

    def __init__(self, model: VisionGPT2) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        keys_and_values = [part for layer in self.model.encode(pixel_values).layers for part in layer]
        return torch.stack(keys_and_values, dim=1).flatten(1, 3)


def encoder_graph(model: VisionGPT2, precision: Precision) -> onnx.ModelProto:
    """Return the encoder that `to_folder` describes, traced by torch's exporter. Raises ConfigError."""
    weights = [value for key, value in model.state_dict().items() if key.startswith("encoder.")]
    _check_size(weights, "take another backbone")
    size = model.encoder.preprocess.image_size
    proto = trace(_KeyValueEncoder(model).eval(), size, ["last_hidden_state"], model.config.vision.name)
    if precision != "fp32":
        quantize_weights(proto, BITS[precision])
    return proto


def trace(encoder: nn.Module, size: tuple[int, int], output_names: Sequence[str], name: str) -> onnx.ModelProto:
    """Return a module that reads pixel_values (B, 3, *size), traced by torch's exporter; B may change.

    Raises ConfigError, with the backbone's `name`, if the module cannot be written as ONNX.
    """
    images = torch.zeros(2, 3, *size)  # two, because torch fixes a dimension of size 1
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                encoder, (images,), input_names=["pixel_values"], output_names=[*output_names],
                dynamic_shapes=({0: torch.export.Dim("B")},), opset_version=OPSET, dynamo=True, verbose=False,
            )
    except Exception as error:  # tracing a third-party model can raise anything
        raise ConfigError(f"vision.name {name} can't be written as ONNX: {_cause(error)}") from error
    assert program is not None
    return program.model_proto


def quantize_weights(proto: onnx.ModelProto, bits: int) -> None:
    """Quantize a graph's matrices to `bits` bits by block and its convolutions to 8 bits by channel, in place."""
    graph = proto.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    nodes, quantized = list[onnx.NodeProto](), dict[str, list[TensorProto]]()
    for node in graph.node:
        weight = initializers.get(node.input[1]) if node.op_type in ("MatMul", "Conv") else None
        is_matrix = weight is not None and len(weight.dims) == 2
        is_quantizable = is_matrix or node.op_type == "Conv"
        if weight is not None and is_quantizable and math.prod(weight.dims) >= MIN_QUANTIZED_SIZE:
            node.input[1] = output = f"{weight.name}_dequantized"
            if output not in quantized:
                value = torch.from_numpy(numpy_helper.to_array(weight).copy())
                parts = quantize_matrix(value, bits) if is_matrix else _channels(value)
                names = [f"{weight.name}_quantized", f"{weight.name}_scale"]
                quantized[output] = [numpy_helper.from_array(*pair) for pair in zip(parts, names, strict=True)]
                block_size = BLOCK_SIZE if is_matrix else 0  # 0: one scale for a channel
                nodes.append(helper.make_node("DequantizeLinear", names, [output], axis=0, block_size=block_size))
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    unchanged = [tensor for name, tensor in initializers.items() if name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*unchanged, *chain.from_iterable(quantized.values())])


def quantize_matrix(weight: Tensor, bits: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(K, N) -> whole numbers (K, N) of `bits` bits; scales (K / BLOCK_SIZE, N) float32, for DequantizeLinear."""
    numbers, scales = quantize_by_block(weight.T, bits)
    integers = numbers.flatten(1)[:, : len(weight)].T.to(torch.int8).numpy()
    element_type = TensorProto.INT8 if bits == 8 else TensorProto.INT4
    return integers.astype(helper.tensor_dtype_to_np_dtype(element_type)), scales.T.numpy()


def _channels(weight: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(out_channels, ...) -> int8 of the same shape; scales (out_channels,) float32, for DequantizeLinear."""
    numbers, scales = quantize_by_channel(weight)
    return numbers.to(torch.int8).numpy(), scales.numpy()


class _DecoderGraph(Graph):
    """The decoder as `to_folder` describes it; rows are its N * T positions."""

    def __init__(self, decoder: GPT, precision: Precision) -> None:
        super().__init__(decoder.config)
        self.bits, config = BITS[precision], decoder.config
        captions, newest = (self.add("Shape", "input_ids", start=axis, end=axis + 1) for axis in (0, 1))
        past = self.add("Shape", "past_key_values.0.key", start=2, end=3)
        images = self.add("Shape", "encoder_hidden_states", start=0, end=1)
        heads = self.weight("heads", [config.n_head, config.n_embd // config.n_head])
        any_number = self.weight("any_number", [-1])
        self.by_caption = self.add("Concat", captions, newest, heads, axis=0)
        # in cross-attention the captions of a picture are further queries over the same keys
        self.by_image = self.add("Concat", images, any_number, heads, axis=0)
        zero, one = self.weight("zero", torch.tensor(0)), self.weight("one", torch.tensor(1))
        length = self.add("Squeeze", self.add("Add", past, newest))
        positions = self.add("Range", self.add("Squeeze", past), length, one)
        column = self.add("Unsqueeze", positions, self.weight("last", [-1]))
        is_later = self.add("Greater", self.add("Range", zero, length, one), column)
        hidden, visible = self.weight("hidden", torch.tensor(-torch.inf)), self.weight("visible", torch.tensor(0.0))
        self.mask = self.add("Where", is_later, hidden, visible)
        self._split_image()
        position_embedding = self.add("Gather", self.weight("wpe", decoder.transformer.wpe.weight), positions)
        embedded = self.add("Add", self._token_embedding(decoder), position_embedding)
        x = self.transformer(self.add("Reshape", embedded, self.as_rows), decoder)
        logits = self.linear(self.norm(x, decoder.transformer.ln_f, "ln_f"), decoder.lm_head, "wte")
        shape = self.add("Concat", captions, newest, any_number, axis=0)
        self.add("Reshape", logits, shape, output="logits")

    def linear(self, x: str, module: nn.Linear, name: str) -> str:
        if self.bits == 32:
            return super().linear(x, module, name)
        quantized = self.quantized_weight(f"{name}.weight", module.weight)
        product = self.add("MatMul", x, self.add("DequantizeLinear", *quantized, axis=0, block_size=BLOCK_SIZE))
        return product if module.bias is None else self.add("Add", product, self.weight(f"{name}.bias", module.bias))

    def quantized_weight(self, name: str, weight: Tensor) -> tuple[str, str]:
        """Add a matrix (out, in), transposed and quantized, and its scales; return their names."""
        if name not in self.weights:
            # below 8 bits the embedding, which is the head too, costs more captions than it saves bytes
            bits = 8 if name == "wte.weight" else self.bits
            self.weights[name], self.weights[f"{name}_scale"] = quantize_matrix(weight.detach().T, bits)
        return name, f"{name}_scale"

    def _token_embedding(self, decoder: GPT) -> str:
        """Return the embedding of `input_ids` (N, T, n_embd), from the matrix that the head uses too."""
        weight = decoder.transformer.wte.weight
        if self.bits == 32:
            return self.add("Gather", self.weight("wte.weight", weight), "input_ids")
        # ONNX Runtime fuses quantized weights into a multiplication only if no other DequantizeLinear reads them
        transposed = [self.add("Transpose", name, perm=(1, 0)) for name in self.quantized_weight("wte.weight", weight)]
        rows = [self.add("Gather", name, "input_ids") for name in transposed]
        return self.add("DequantizeLinear", *rows, axis=2, block_size=BLOCK_SIZE)

    def _split_image(self) -> None:
        """Add image_key.I and image_value.I (B, n_head, S, head_dim), the parts of `encoder_hidden_states`."""
        config = self.config
        shape = [0, 2 * config.n_layer, config.n_head, -1, config.n_embd // config.n_head]
        stacked = self.add("Reshape", "encoder_hidden_states", self.weight("of_blocks", shape))
        names = [f"{kind}.{layer}" for layer in range(config.n_layer) for kind in ("image_key", "image_value")]
        parts = self.split([stacked], [f"{name}.part" for name in names], axis=1, num_outputs=len(names))
        for part, name in zip(parts, names, strict=True):
            self.add("Squeeze", part, self.weight("block", [1]), output=name)

    def split_heads(self, x: str, shape: str) -> str:
        """Rows -> (N, n_head, T, head_dim) by caption, or (B, n_head, N / B * T, head_dim) by image."""
        return self.add("Transpose", self.add("Reshape", x, shape), perm=(0, 2, 1, 3))

    def attend(self, query: str, key: str, value: str, mask: str | None = None) -> str:
        """Queries (.., Q, head_dim) over keys and values (.., K, head_dim) -> rows."""
        scaled = self.add("Mul", query, self.scale)
        scores = self.add("MatMul", scaled, self.add("Transpose", key, perm=(0, 1, 3, 2)))
        weights = self.add("Softmax", self.add("Add", scores, mask) if mask else scores, axis=-1)
        merged = self.add("Transpose", self.add("MatMul", weights, value), perm=(0, 2, 1, 3))
        return self.add("Reshape", merged, self.as_rows)

    def self_attention(self, x: str, module: Any, layer: int) -> str:
        parts = (f"query.{layer}", f"key.{layer}", f"value.{layer}")
        self.split([self.linear(x, module.c_attn, f"h.{layer}.c_attn")], parts, num_outputs=3)
        query, *newest = (self.split_heads(part, self.by_caption) for part in parts)
        key, value = (
            self.add("Concat", f"past_key_values.{layer}.{kind}", part, axis=2, output=f"present.{layer}.{kind}")
            for kind, part in zip(("key", "value"), newest, strict=True)
        )
        return self.linear(self.attend(query, key, value, self.mask), module.c_proj, f"h.{layer}.attn.c_proj")

    def cross_attention(self, x: str, module: Any, layer: int) -> str:
        query = self.split_heads(self.linear(x, module.q_attn, f"h.{layer}.q_attn"), self.by_image)
        context = self.attend(query, f"image_key.{layer}", f"image_value.{layer}")
        return self.linear(context, module.c_proj, f"h.{layer}.crossattention.c_proj")


def decoder_graph(model: VisionGPT2, precision: Precision) -> onnx.ModelProto:
    """Return the decoding step that `to_folder` describes. Raises ConfigError if it is too large for one file."""
    graph, config = _DecoderGraph(model.decoder, precision), model.config.text
    _check_size(list(graph.weights.values()), "take a lower --precision or a smaller decoder")
    initializers = [numpy_helper.from_array(value, name) for name, value in graph.weights.items()]
    make, float32 = helper.make_tensor_value_info, TensorProto.FLOAT
    head_dim = config.n_embd // config.n_head
    inputs = [make("input_ids", TensorProto.INT64, ["N", "T"])]
    inputs.append(make("encoder_hidden_states", float32, ["B", "keys_and_values", head_dim]))
    outputs = [make("logits", float32, ["N", "T", config.vocab_size])]
    for part in (f"{layer}.{kind}" for layer in range(config.n_layer) for kind in ("key", "value")):
        inputs.append(make(f"past_key_values.{part}", float32, ["N", config.n_head, "P", head_dim]))
        outputs.append(make(f"present.{part}", float32, ["N", config.n_head, "P_and_T", head_dim]))
    return make_model(graph, inputs, outputs, initializers)


def _check_size(weights: Sequence[Any], fix: str) -> None:
    size = sum(weight.nbytes for weight in weights)
    if size > MAX_BYTES:
        raise ConfigError(f"{size / 1e9:.1f} GB of weights do not fit into one ONNX file, which holds 2 GB; {fix}")


def _cause(error: BaseException) -> str:
    """Return the first cause of an exporter's error, and the operator at fault if the exporter names it."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    messages = "\n".join(map(str, causes))
    operator = re.search(r"OpOverload\(op='([\w.]+)'|target=torch\.ops\.([\w.]+)", messages)
    subject = f"its operator {operator[1] or operator[2]} has no counterpart there: " if operator else ""
    return f"{subject}{reason(causes[-1])}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about its own code and about optional packages."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
