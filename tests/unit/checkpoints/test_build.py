import pytest
import torch

from myllm.checkpoints.build import build_model, is_finite
from myllm.config import CaptionerConfig, GPTConfig, VisionConfig
from myllm.errors import CheckpointError
from myllm.model.vision_gpt2 import VisionGPT2

TEXT = GPTConfig(vocab_size=40, n_positions=8, n_layer=2, n_head=2, n_embd=16)


def captioner(backbone: str) -> VisionGPT2:
    torch.manual_seed(0)
    return VisionGPT2(CaptionerConfig(VisionConfig(backbone, pretrained=False), TEXT, "last")).eval()


# running means, places computed from a grid, tables of relative places, rotary places: what no weight replaces
@pytest.mark.parametrize(
    "backbone",
    ["vit_mini_conv8_64", "test_efficientnet", "test_vit2", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"],
)
@torch.inference_mode()
def test_a_model_built_around_tensors_computes_what_one_that_copies_them_does(backbone: str) -> None:
    one = captioner(backbone)
    two = build_model(one.config, one.state_dict())
    picture = torch.randn(1, 3, *one.encoder.preprocess.image_size)
    assert torch.equal(two(picture, torch.tensor([[[1, 2, 3]]])), one(picture, torch.tensor([[[1, 2, 3]]])))
    assert two.decoder.transformer.wte.weight.data_ptr() == one.decoder.transformer.wte.weight.data_ptr()  # no copy


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decoder.transformer.h.1.ln_1.bias", "its weights lack the tensor decoder.transformer.h.1.ln_1.bias"),
        ("encoder.backbone.norm.bias", "its weights lack the tensor encoder.backbone.norm.bias"),
    ],
)
def test_a_missing_tensor_is_named(name: str, message: str) -> None:
    model = captioner("test_vit")
    state = {key: value for key, value in model.state_dict().items() if key != name}
    with pytest.raises(CheckpointError, match=message):
        build_model(model.config, state)


def test_a_tensor_too_many_and_one_of_another_shape_are_named() -> None:
    model = captioner("test_vit")
    with pytest.raises(CheckpointError, match="its configuration declares no tensor decoder.extra"):
        build_model(model.config, model.state_dict() | {"decoder.extra": torch.ones(1)})
    name = "decoder.transformer.wpe.weight"
    with pytest.raises(CheckpointError, match=rf"{name} has shape \(9, 16\), its configuration declares \(8, 16\)"):
        build_model(model.config, model.state_dict() | {name: torch.ones(9, 16)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_become_float32(dtype: torch.dtype) -> None:
    model = captioner("test_vit")
    built = build_model(model.config, {name: value.to(dtype) for name, value in model.state_dict().items()})
    assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, -2.0], True), ([3e38, 3e38], True), ([1.0, float("nan")], False), ([float("inf"), -float("inf")], False)],
)
def test_finite_numbers_are_told_from_others(values: list[float], expected: bool) -> None:
    assert is_finite(torch.tensor(values)) is expected
