"""Low-rank adapters: what they compute, and which layers get one."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from myllm.config import LoraConfig
from myllm.errors import ConfigError
from myllm.model.lora import LoraLinear, LowRank, adapted_layers, add_adapters, linear_layers, with_adapters
from myllm.model.vision_gpt2 import VisionGPT2

IMAGES, TOKENS = torch.randn(2, 3, 64, 64), torch.randint(0, 61, (2, 3, 5))
BLOCK = ("attn.c_attn", "attn.c_proj", "crossattention.q_attn", "crossattention.c_attn", "crossattention.c_proj",
         "mlp.c_fc", "mlp.c_proj")


@pytest.fixture
def model(tiny_model: Callable[..., VisionGPT2]) -> VisionGPT2:
    return tiny_model()


def model_with_adapters(model: VisionGPT2, **options: object) -> VisionGPT2:
    """Adapters of rank 4 by default; B is random, so that they change the output."""
    add_adapters(model, LoraConfig(**({"rank": 4} | options)))  # type: ignore[arg-type]
    for _, layer in adapted_layers(model):
        nn.init.normal_(layer.lora_B.weight, std=0.2)
    return model


def low_rank(model: VisionGPT2) -> dict[str, LowRank]:
    return {
        name: LowRank(layer.lora_A.weight.detach(), layer.lora_B.weight.detach(), layer.scale)
        for name, layer in adapted_layers(model)
    }


@torch.no_grad()
def test_lora_linear_equals_the_papers_formula() -> None:
    layer = nn.Linear(6, 5)
    adapted = LoraLinear(layer, LoraConfig(rank=2, alpha=3.0))
    nn.init.normal_(adapted.lora_B.weight)
    x = torch.randn(4, 7, 6)
    whole = layer.weight + 3.0 / 2 * torch.einsum("or,ri->oi", adapted.lora_B.weight, adapted.lora_A.weight)
    torch.testing.assert_close(adapted(x), torch.einsum("oi,bti->bto", whole, x) + layer.bias)
    assert adapted.weight is layer.weight and adapted.bias is layer.bias


@torch.no_grad()
def test_add_adapters_changes_no_output_before_training(model: VisionGPT2) -> None:
    before = model(IMAGES, TOKENS)
    add_adapters(model, LoraConfig(rank=4, targets=("*",)))
    assert torch.equal(model(IMAGES, TOKENS), before)


def test_add_adapters_keeps_the_names_and_tensors_of_the_model(model: VisionGPT2) -> None:
    before = model.state_dict()
    after = model_with_adapters(model, targets=("crossattention.c_attn",)).state_dict()
    assert all(after[name].data_ptr() == value.data_ptr() for name, value in before.items())
    of_block = "decoder.transformer.h.{}.crossattention.c_attn.lora_{}.weight"
    assert {name: tuple(after[name].shape) for name in after.keys() - before.keys()} == {
        of_block.format(block, part): shape for block in (0, 1) for part, shape in (("A", (4, 32)), ("B", (64, 4)))
    }


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (LoraConfig().targets, {f"decoder.transformer.h.{block}.{name}" for block in (0, 1) for name in BLOCK}),
        (("q_attn",), {f"decoder.transformer.h.{block}.crossattention.q_attn" for block in (0, 1)}),
        (("h.1.attn.*",), {"decoder.transformer.h.1.attn.c_attn", "decoder.transformer.h.1.attn.c_proj"}),
        (("encoder.*qkv", "enc_to_dec_proj"), {"encoder.backbone.blocks.0.attn.qkv", "enc_to_dec_proj"}),
    ],
)
def test_add_adapters_matches_the_last_parts_of_layer_names(
    model: VisionGPT2, targets: tuple[str, ...], expected: set[str]
) -> None:
    add_adapters(model, LoraConfig(rank=1, targets=targets))
    assert {name for name, _ in adapted_layers(model)} == expected


def test_add_adapters_star_matches_every_linear_layer_but_the_head(model: VisionGPT2) -> None:
    everything = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    add_adapters(model, LoraConfig(rank=1, targets=("*",)))
    assert {name for name, _ in adapted_layers(model)} == everything - {"decoder.lm_head"}
    assert not linear_layers(model).keys() & {name for name, _ in adapted_layers(model)}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("c_atn", "'c_atn', which matches no linear layer of this model; did you mean c_attn"),
        ("lm_head", "'lm_head', which matches no linear layer of this model: lm_head shares the token embedding"),
        ("wte", "Their names end in c_attn, c_fc, c_proj, enc_to_dec_proj, fc1"),
    ],
)
def test_add_adapters_refuses_a_pattern_without_match_and_lists_the_layers(
    model: VisionGPT2, target: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        add_adapters(model, LoraConfig(rank=1, targets=("c_attn", target)))
    assert not list(adapted_layers(model))


def test_add_adapters_is_repeatable_by_seed(tiny_model: Callable[..., VisionGPT2]) -> None:
    def random_weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        add_adapters(model := tiny_model(), LoraConfig(rank=2))
        return [layer.lora_A.weight for _, layer in adapted_layers(model)]

    assert all(map(torch.equal, random_weights(1), random_weights(1)))
    assert not any(map(torch.equal, random_weights(1), random_weights(2)))


@torch.no_grad()
def test_lora_dropout_acts_only_on_the_adapter_and_only_in_training(model: VisionGPT2) -> None:
    [layer, *_] = (layer for _, layer in adapted_layers(model_with_adapters(model, dropout=0.5)))
    x = torch.randn(3, layer.in_features)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    nn.init.zeros_(layer.lora_B.weight)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@torch.no_grad()
def test_with_adapters_adds_them_to_a_copy_that_shares_the_other_tensors(tiny_model: Callable[..., VisionGPT2]) -> None:
    trained, base = model_with_adapters(tiny_model(), targets=("c_attn",)), tiny_model()
    expected, before = trained(IMAGES, TOKENS), base(IMAGES, TOKENS)
    adapted = with_adapters(base, low_rank(trained))
    torch.testing.assert_close(adapted(IMAGES, TOKENS), expected, atol=1e-5, rtol=1e-4)
    assert (expected - before).abs().max() > 0.01
    assert torch.equal(base(IMAGES, TOKENS), before)
    shared = {parameter.data_ptr() for parameter in base.parameters()}
    changed = {name for name, parameter in adapted.named_parameters() if parameter.data_ptr() not in shared}
    assert changed == {f"{name}.weight" for name, _ in adapted_layers(trained)}
    assert adapted.decoder.lm_head.weight is adapted.decoder.transformer.wte.weight
