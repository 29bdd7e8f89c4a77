from dataclasses import replace

import pytest
import torch

from myllm.config import GPTConfig, LoraConfig, VisionConfig
from myllm.model.lora import add_adapters
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.training.stages import set_stage, set_train_mode, stage_of
from myllm.training_config import TrainConfig

PARTS = {"encoder.": "vision", "enc_to_dec_proj": "new", "crossattention": "new", "ln_cross_attn": "new"}


def run(pretrained: bool, frozen: bool = False) -> TrainConfig:
    config = TrainConfig()
    return replace(
        config,
        vision=replace(config.vision, pretrained=pretrained, frozen=frozen),
        text=replace(config.text, pretrained=pretrained),
    )


def trained_parts(model: VisionGPT2) -> set[str]:
    """Return which of new, text and vision train; each part must train as a whole or not at all."""
    states_of: dict[str, set[bool]] = {"new": set(), "text": set(), "vision": set()}
    for name, parameter in model.named_parameters():
        part = next((part for mark, part in PARTS.items() if mark in name), "text")
        states_of[part].add(parameter.requires_grad)
    assert all(len(states) == 1 for states in states_of.values()), states_of
    return {part for part, states in states_of.items() if True in states}


@pytest.mark.parametrize(
    ("stage", "parts"),
    [("new", {"new"}), ("text", {"new", "text"}), ("all", {"new", "text", "vision"}), ("new", {"new"})],
)
def test_set_stage_trains_the_pretrained_parts_of_the_stage(tiny_model, stage: str, parts: set[str]) -> None:
    model = tiny_model()
    set_stage(model, stage, run(pretrained=True))
    assert trained_parts(model) == parts


@pytest.mark.parametrize("stage", ["new", "text", "all"])
def test_set_stage_treats_parts_without_pretrained_weights_as_new(tiny_model, stage: str) -> None:
    model = tiny_model()
    set_stage(model, stage, run(pretrained=False))
    assert trained_parts(model) == {"new", "text", "vision"}


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("stage", ["new", "text", "all"])
def test_set_stage_never_trains_a_frozen_backbone(tiny_model, stage: str, pretrained: bool) -> None:
    model = tiny_model()
    set_stage(model, stage, run(pretrained, frozen=True))
    assert "vision" not in trained_parts(model)


def test_set_stage_treats_a_backbone_from_a_file_as_pretrained(tiny_model) -> None:
    model, config = tiny_model(), run(pretrained=False)
    set_stage(model, "new", replace(config, vision=replace(config.vision, weights="weights.safetensors")))
    assert "vision" not in trained_parts(model)


@pytest.mark.parametrize("stage", ["new", "text", "all"])
def test_set_stage_treats_a_base_as_pretrained(tiny_model, stage: str) -> None:
    model, expected = tiny_model(), tiny_model()
    set_stage(model, stage, replace(run(pretrained=False), base="captioner.pt"))
    set_stage(expected, stage, run(pretrained=True))
    assert trained_parts(model) == trained_parts(expected)


@pytest.mark.parametrize("stage", ["new", "text", "all"])
def test_set_stage_trains_only_adapters_if_there_are_any(tiny_model, stage: str) -> None:
    model, lora = tiny_model(), LoraConfig(rank=2, targets=("c_attn", "qkv"))
    base = {id(parameter) for parameter in model.parameters()}
    add_adapters(model, lora)
    set_stage(model, stage, replace(run(pretrained=False), base="captioner.pt", lora=lora))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 5 and not base & {id(parameter) for parameter in trained}


def test_set_train_mode_of_a_fixed_backbone_is_only_for_its_adapters(tiny_model) -> None:
    model, lora = tiny_model(), LoraConfig(rank=2, targets=("qkv",))
    add_adapters(model, lora)
    set_stage(model, "all", replace(run(pretrained=False), base="captioner.pt", lora=lora))
    set_train_mode(model)
    training = {name for name, module in model.encoder.named_modules() if module.training}
    assert training and all("attn.qkv" in name for name in training)


def test_set_stage_can_return_to_an_earlier_stage(tiny_model) -> None:
    model = tiny_model()
    for stage in ("new", "all", "new"):
        set_stage(model, stage, run(pretrained=True))
    assert trained_parts(model) == {"new"}


def test_stage_of_repeats_the_last_stage() -> None:
    config = TrainConfig(stages=("new", "text", "all"))
    assert [stage_of(epoch, config) for epoch in range(5)] == ["new", "text", "all", "all", "all"]


@pytest.mark.parametrize(("frozen", "moves"), [(True, False), (False, True)])
def test_set_train_mode_keeps_batch_statistics_of_a_frozen_backbone(tiny_model, frozen: bool, moves: bool) -> None:
    model = tiny_model()
    set_stage(model, "all", run(pretrained=False, frozen=frozen))
    set_train_mode(model)
    before = {name: value.clone() for name, value in model.encoder.named_buffers() if "running" in name}
    model(torch.randn(2, 3, 64, 64), torch.zeros(2, 1, 3, dtype=torch.int64))
    after = dict(model.encoder.named_buffers())
    assert before and any(not torch.equal(value, after[name]) for name, value in before.items()) == moves
    assert model.decoder.training


@pytest.mark.parametrize(("name", "layers", "first"), [
    ("resnet18", 2, "layer3"), ("tf_efficientnet_lite0", 3, "blocks.4"), ("convnext_atto", 1, "stages.3"),
    ("vit_tiny_patch16_224", 2, "blocks.10"), ("vit_tiny_patch16_224", 99, "cls_token"),
])
def test_vision_layers_trains_the_last_stages_or_blocks_and_what_follows(name: str, layers: int, first: str) -> None:
    text = GPTConfig(vocab_size=20, n_positions=8, n_layer=1, n_head=1, n_embd=8)
    config = TrainConfig(vision=VisionConfig(name, pretrained=False), text=text, mode="last", vision_layers=layers)
    model = VisionGPT2(config.captioner)
    set_stage(model, "all", config)
    names = list(dict(model.encoder.backbone.named_parameters()))
    trained = [name for name in names if model.encoder.backbone.get_parameter(name).requires_grad]
    assert trained == names[-len(trained):] and trained[0].startswith(first)


def test_layers_that_do_not_train_keep_their_batch_statistics() -> None:
    text = GPTConfig(vocab_size=20, n_positions=8, n_layer=1, n_head=1, n_embd=8)
    config = TrainConfig(vision=VisionConfig("resnet18", pretrained=False), text=text, mode="last", vision_layers=2)
    model = VisionGPT2(config.captioner)
    set_stage(model, "all", config)
    set_train_mode(model)
    buffers = dict(model.encoder.backbone.named_buffers())
    before = {name: value.clone() for name, value in buffers.items() if name.endswith("running_mean")}
    model(torch.randn(2, 3, 64, 64), torch.zeros(2, 1, 3, dtype=torch.int64))
    moved = [name for name, value in before.items() if not torch.equal(value, buffers[name])]
    assert moved == [name for name in before if name.startswith(("layer3", "layer4"))]
