import numpy as np
import pytest
import torch

from myllm.checkpoints.native import Checkpoint
from myllm.config import VisionConfig
from myllm.inference.onnx_encoder import OnnxEncoder
from myllm.inference.onnx_sessions import Sessions
from myllm.inference.onnx_stepper import OnnxStepper
from myllm.model.vision import ImageEncoder


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three cores, of which torch uses two."""
    monkeypatch.setattr("myllm.inference.onnx_sessions.count_cores", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def test_sessions_give_a_lone_picture_all_cores_and_others_the_threads_of_torch() -> None:
    made: list[int] = []

    def make(threads: int) -> int:
        made.append(threads)
        return threads

    sessions = Sessions(make)
    with sessions.session(is_lone=True) as first, sessions.session(is_lone=True) as second:
        assert (first, second) == (3, 2)
    with pytest.raises(KeyError), sessions.session(is_lone=True):
        raise KeyError
    with sessions.session(is_lone=True) as again, sessions.session(is_lone=False) as several:
        assert (again, several, made) == (3, 2, [3, 2])
    with Sessions(make, threads=1).session(is_lone=True) as fixed:
        assert fixed == 1


def test_an_encoder_computes_the_same_with_any_number_of_threads_and_pictures() -> None:
    encoder = ImageEncoder(VisionConfig("test_efficientnet", pretrained=False, image_size=64)).eval()
    onnx, images = OnnxEncoder(encoder), torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        (together,), (lone,) = onnx(images), onnx(images[:1])
    assert sorted(onnx._sessions._made) == [2, 3]
    assert len(together) == 5 and torch.equal(lone, together[:1])


def test_a_search_that_began_with_several_pictures_leaves_the_other_cores_alone(tiny_checkpoint: Checkpoint) -> None:
    model = tiny_checkpoint.model.eval()
    stepper = OnnxStepper(model)
    with torch.inference_mode():
        image = model.encode(torch.randn(2, 3, *model.encoder.preprocess.image_size))
        tokens = np.zeros((2, 1, 1), np.int64)
        together, state = stepper.step(tokens, stepper.start(image))
        stepper.step(tokens[:1], stepper.reorder(state, np.array([[0]])))
        assert list(stepper._sessions._made) == [2]
        lone, _ = stepper.step(tokens[:1], stepper.start(image.select(torch.tensor([0]))))
    assert list(stepper._sessions._made) == [2, 3]
    np.testing.assert_allclose(lone, together[:1], rtol=0, atol=1e-5)
