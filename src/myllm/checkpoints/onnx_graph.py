"""Our decoder as an ONNX graph, node by node over its own weights, which may be rounded to 8 bits."""

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


class Graph:
    """Nodes and weights of a decoder; how its attentions get their keys and values is up to those who build on it."""

    def __init__(self, config: GPTConfig, bits: int = 32) -> None:
        """bits: of the matrices' weights, 32 or 8."""
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray[Any, Any]] = {}
        self.config, self.bits = config, bits
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
        if self.bits == 32:
            return self.add("Gemm", x, self.weight(f"{name}.weight", module.weight), *bias, transB=1)
        values, units = rounded_to_8_bits(module.weight.detach())
        weight = [self.weight(f"{name}.weight", values), self.weight(f"{name}.unit", units)]
        shape = {"K": module.in_features, "N": module.out_features, "bits": 8, "block_size": BLOCK}
        # level 4: what is multiplied is rounded to 8 bits too, by blocks of its row, so that no caption sees another
        level = {"accuracy_level": 4, "domain": MICROSOFT}
        return self.add("MatMulNBits", x, *weight, *(["", "", *bias] if bias else []), **shape, **level)

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

    def self_attention(self, x: str, module: Any, layer: int) -> str:
        """Rows (N, n_embd) -> rows (N, n_embd)."""
        raise NotImplementedError

    def cross_attention(self, x: str, module: Any, layer: int) -> str:
        """Rows (N, n_embd) -> rows (N, n_embd)."""
        raise NotImplementedError


def rounded_to_8_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> (N, blocks, BLOCK) uint8 with 128 for zero, and (N, blocks) float32: what one step of each block is."""
    blocks = nn.functional.pad(weight, (0, -weight.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    units = blocks.abs().amax(-1).clamp(min=1e-12) / 127
    return (blocks / units[..., None]).round().add(128).to(torch.uint8), units


def model_of(
    graph: Graph, ends: tuple[Sequence[onnx.ValueInfoProto], Sequence[onnx.ValueInfoProto]],
    constants: Sequence[TensorProto],
) -> onnx.ModelProto:  # fmt: skip
    """The graph as a model with inputs and outputs `ends`, and its weights as `constants` say."""
    proto = helper.make_graph(graph.nodes, "decoder", *ends, initializer=constants)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(proto, opset_imports=imports, ir_version=IR_VERSION, producer_name="myllm")
