from typing import Any

import pytest
import torch
from torch import Tensor

from myllm.checkpoints.native import Checkpoint
from myllm.config import VisionConfig
from myllm.inference.onnx_encoder import OnnxEncoder
from myllm.model.vision import ImageEncoder


@pytest.mark.parametrize(("name", "depth", "more"), [
    ("test_efficientnet", None, {}), ("test_efficientnet", None, {"mirrored": True, "feature_maps": 4}),
    ("vit_mini_conv8_64", 2, {}), ("vit_mini_conv8_64", 2, {"mirrored": True}),
])
def test_onnx_encoder_returns_the_features_of_torch(name: str, depth: int | None, more: dict[str, Any]) -> None:
    encoder = ImageEncoder(VisionConfig(name, pretrained=False, image_size=64, **more), depth).eval()
    onnx = OnnxEncoder(encoder)
    with torch.inference_mode():
        for count in (3, 1):
            images = torch.randn(count, 3, 64, 64)
            results, expected = onnx(images), encoder(images)
            assert onnx._make_session(1) is not None and len(results) == len(expected) == (depth or 1)
            for result, values in zip(results, expected, strict=True):
                torch.testing.assert_close(result, values, rtol=0, atol=1e-5 * float(values.abs().max()))


def test_onnx_encoder_is_torch_if_the_backbone_has_no_form_in_onnx_and_prints_nothing(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder, images = tiny_checkpoint.model.encoder, torch.randn(2, 3, 64, 64)
    tokens = encoder._tokens

    def without_counterpart(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(part + torch.special.bessel_j0(part) for part in tokens(images))

    monkeypatch.setattr(encoder, "_tokens", without_counterpart)
    assert torch.equal(OnnxEncoder(encoder)(images)[0], encoder(images)[0])
    assert capfd.readouterr() == ("", "")
