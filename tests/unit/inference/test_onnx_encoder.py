import pytest
import torch

from myllm.checkpoints.native import Checkpoint
from myllm.config import VisionConfig
from myllm.inference.onnx_encoder import OnnxEncoder
from myllm.model.vision import ImageEncoder


@pytest.mark.parametrize(("name", "depth"), [("test_efficientnet", None), ("vit_mini_conv8_64", 2)])
def test_onnx_encoder_returns_the_features_of_torch(name: str, depth: int | None) -> None:
    encoder = ImageEncoder(VisionConfig(name, pretrained=False, image_size=64), depth).eval()
    onnx = OnnxEncoder(encoder)
    with torch.inference_mode():
        for count in (3, 1):
            images = torch.randn(count, 3, 64, 64)
            results, expected = onnx(images), encoder(images)
            assert None not in onnx._sessions.values() and len(results) == len(expected) == (depth or 1)
            for result, values in zip(results, expected, strict=True):
                torch.testing.assert_close(result, values, rtol=0, atol=1e-5 * float(values.abs().max()))


def test_onnx_encoder_gives_a_lone_picture_all_cores_and_others_the_threads_of_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("myllm.inference.onnx_encoder.count_cores", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    encoder = ImageEncoder(VisionConfig("test_efficientnet", pretrained=False, image_size=64)).eval()
    onnx, images = OnnxEncoder(encoder), torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        (together,) = onnx(images)
        assert list(onnx._sessions) == [2]
        (lone,) = onnx(images[:1])
        assert list(onnx._sessions) == [2, 3]
        with onnx._lone:  # held by another thread
            (second,) = onnx(images[:1])
    assert torch.equal(lone, together[:1]) and torch.equal(second, lone) and len(together) == 5
    assert not onnx._lone.locked()


def test_onnx_encoder_is_torch_if_the_backbone_cannot_be_traced(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no counterpart")

    monkeypatch.setattr("torch.onnx.export", refuse)
    encoder, images = tiny_checkpoint.model.encoder, torch.randn(2, 3, 64, 64)
    assert torch.equal(OnnxEncoder(encoder)(images)[0], encoder(images)[0])
