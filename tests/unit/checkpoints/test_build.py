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


# buffers that no weight replaces: running means, position grids, tables of relative positions, rotary positions
@pytest.mark.parametrize(
    "backbone",
    ["vit_mini_conv8_64", "test_efficientnet", "test_vit2", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"],
)
@torch.inference_mode()
def test_build_model_computes_the_same_as_the_model_of_the_tensors(backbone: str) -> None:
    model = captioner(backbone)
    built = build_model(model.config, model.state_dict())
    picture = torch.randn(1, 3, *model.encoder.preprocess.image_size)
    assert torch.equal(built(picture, torch.tensor([[[1, 2, 3]]])), model(picture, torch.tensor([[[1, 2, 3]]])))
    assert built.decoder.transformer.wte.weight.data_ptr() == model.decoder.transformer.wte.weight.data_ptr()  # no copy


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decoder.transformer.h.1.ln_1.bias", "its weights lack the tensor decoder.transformer.h.1.ln_1.bias"),
        ("encoder.backbone.norm.bias", "its weights lack the tensor encoder.backbone.norm.bias"),
    ],
)
def test_build_model_names_a_missing_tensor(name: str, message: str) -> None:
    model = captioner("test_vit")
    state = {key: value for key, value in model.state_dict().items() if key != name}
    with pytest.raises(CheckpointError, match=message):
        build_model(model.config, state)


def test_build_model_names_extra_and_misshapen_tensors() -> None:
    model = captioner("test_vit")
    with pytest.raises(CheckpointError, match="its configuration declares no tensor decoder.extra"):
        build_model(model.config, model.state_dict() | {"decoder.extra": torch.ones(1)})
    name = "decoder.transformer.wpe.weight"
    with pytest.raises(CheckpointError, match=rf"{name} has shape \(9, 16\), its configuration declares \(8, 16\)"):
        build_model(model.config, model.state_dict() | {name: torch.ones(9, 16)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_build_model_converts_other_precisions_to_float32(dtype: torch.dtype) -> None:
    model = captioner("test_vit")
    built = build_model(model.config, {name: value.to(dtype) for name, value in model.state_dict().items()})
    assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, -2.0], True), ([3e38, 3e38], True), ([1.0, float("nan")], False), ([float("inf"), -float("inf")], False)],
)
def test_is_finite_detects_nan_and_infinity(values: list[float], expected: bool) -> None:
    assert is_finite(torch.tensor(values)) is expected
