"""Our decoder as an ONNX graph, node by node over its own weights."""

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
MICROSOFT = "com.microsoft"  # where ONNX Runtime keeps operators that ONNX has not
BLOCK = 32  # weights that are rounded on one scale


class Graph(ABC):
    """Nodes and weights of a decoder. Those who build on it say how its attentions get their keys and values, and how
    weights are rounded where they are.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray[Any, Any]] = {}
        self.config = config
        self.as_rows = self.weight("as_rows", [-1, config.n_embd])
        self.scale = self.weight("scale", (config.n_embd // config.n_head) ** -0.5)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node with one result; returns that one's name."""
        result = f"{op}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [result], **attributes))
        return result

    def split(self, inputs: Sequence[str], parts: Sequence[str], **attributes: Any) -> Sequence[str]:
        """Cut the last axis, or another, into `parts`; returns their names."""
        self.nodes.append(helper.make_node("Split", inputs, parts, **{"axis": -1, **attributes}))
        return parts

    def weight(self, name: str, value: Tensor | Sequence[int] | float) -> str:
        """A constant; a tensor's memory is shared, not copied."""
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
        """All blocks: rows (N, n_embd) of embedded tokens -> rows before the last norm."""
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
        """Rows (N, n_embd) -> rows (N, n_embd)."""

    @abstractmethod
    def cross_attention(self, x: str, module: Any, layer: int) -> str:
        """Rows (N, n_embd) -> rows (N, n_embd)."""


def model_of(
    graph: Graph, ends: tuple[Sequence[onnx.ValueInfoProto], Sequence[onnx.ValueInfoProto]],
    constants: Sequence[TensorProto],
) -> onnx.ModelProto:
    """The graph as a model with inputs and outputs `ends`, and its weights as `constants` say."""
    proto = helper.make_graph(graph.nodes, "decoder", *ends, initializer=constants)
    versions = {"": OPSET, MICROSOFT: 1}
    imports = [helper.make_opsetid(domain, versions[domain]) for domain in {node.domain for node in graph.nodes}]
    return helper.make_model(proto, opset_imports=imports, ir_version=IR_VERSION, producer_name="myllm")
