"""The decoder as an ONNX graph, built node by node over its own weights; the export and the stepper share it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from myllm.config import GPTConfig
from myllm.model.gpt import GPT

OPSET, IR_VERSION = 21, 10
BLOCK_SIZE = 32  # quantized weights that share a scale


class Graph(ABC):
    """Nodes and weights of a decoder. Subclasses define the attentions, and how weights are stored.

    Methods that build a part of the graph take and return names of values; rows are (N, n_embd) unless said otherwise.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray[Any, Any]] = {}
        self.config = config
        self.as_rows = self.weight("as_rows", [-1, config.n_embd])
        self.scale = self.weight("scale", (config.n_embd // config.n_head) ** -0.5)

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output, by default of a new name; return the output's name."""
        output = output or f"{op}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def split(self, inputs: Sequence[str], parts: Sequence[str], **attributes: Any) -> Sequence[str]:
        """Split along the last axis unless `axis` is given, into outputs of the names `parts`; return them."""
        self.nodes.append(helper.make_node("Split", inputs, parts, **{"axis": -1, **attributes}))
        return parts

    def weight(self, name: str, value: Tensor | Sequence[int] | float) -> str:
        """Add a constant, without a copy of a contiguous tensor; return its name."""
        self.weights[name] = torch.as_tensor(value).detach().contiguous().numpy()
        return name

    def norm(self, x: str, module: Any, name: str) -> str:
        weight, bias = self.weight(f"{name}.weight", module.weight), self.weight(f"{name}.bias", module.bias)
        return self.add("LayerNormalization", x, weight, bias, epsilon=module.eps)

    def linear(self, x: str, module: nn.Linear, name: str) -> str:
        """Rows (N, in_features) -> rows (N, out_features)."""
        bias = [self.weight(f"{name}.bias", module.bias)] if module.bias is not None else []
        return self.add("Gemm", x, self.weight(f"{name}.weight", module.weight), *bias, transB=1)

    def transformer(self, x: str, decoder: GPT) -> str:
        """All blocks: rows of embedded tokens -> rows before the last norm."""
        for layer, block in enumerate(decoder.blocks):
            name = f"h.{layer}"
            x = self.add("Add", x, self.self_attention(self.norm(x, block.ln_1, f"{name}.ln_1"), block.attn, layer))
            normed = self.norm(x, block.ln_cross_attn, f"{name}.ln_cross_attn")
            x = self.add("Add", x, self.cross_attention(normed, block.crossattention, layer))
            widened = self.linear(self.norm(x, block.ln_2, f"{name}.ln_2"), block.mlp.c_fc, f"{name}.c_fc")
            activated = self.add("Gelu", widened, approximate=self.config.gelu)
            x = self.add("Add", x, self.linear(activated, block.mlp.c_proj, f"{name}.mlp.c_proj"))
        return x

    @abstractmethod
    def self_attention(self, x: str, module: Any, layer: int) -> str:
        """Normed rows -> rows to add to the residual stream."""

    @abstractmethod
    def cross_attention(self, x: str, module: Any, layer: int) -> str:
        """Normed rows -> rows to add to the residual stream."""


def make_model(
    graph: Graph, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[TensorProto],
) -> onnx.ModelProto:
    """Return the graph as a model; `initializers` hold its weights."""
    proto = helper.make_graph(graph.nodes, "decoder", inputs, outputs, initializer=initializers)
    imports = [helper.make_opsetid("", OPSET)]
    return helper.make_model(proto, opset_imports=imports, ir_version=IR_VERSION, producer_name="myllm")


def quantize_by_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round the weights of each output channel to signed whole numbers of 8 bits.

    weight (out_channels, ...) -> numbers of the same shape, float32; scales (out_channels,). The weight is about
    number * scale, at most half a scale off.
    """
    scales = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    return (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round(), scales


def quantize_by_block(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round every block of BLOCK_SIZE input weights to signed whole numbers of `bits` bits.

    weight (N, K) -> numbers (N, blocks, BLOCK_SIZE) float32, zeros beyond K; scales (N, blocks). The weight is about
    number * scale, at most half a scale off.
    """
    blocks = nn.functional.pad(weight, (0, -weight.shape[1] % BLOCK_SIZE)).unflatten(1, (-1, BLOCK_SIZE))
    scales = blocks.abs().amax(-1).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
    return (blocks / scales[..., None]).round(), scales
