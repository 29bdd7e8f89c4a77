"""Followers get the text of their picture while it is decoded, and end its search, whatever computes the model."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from myllm.caption import CaptionerProtocol, Follower
from myllm.checkpoints.native import Checkpoint
from myllm.data.scenes import draw_scene
from myllm.export import onnx_export
from myllm.inference.captioner import Captioner
from myllm.inference.onnx_captioner import OnnxCaptioner

PICTURES = [draw_scene(0, "val", number)[0] for number in range(4)]


@pytest.fixture(scope="module", params=["torch", "onnx"])
def captioner(
    request: pytest.FixtureRequest, tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> CaptionerProtocol:
    if request.param == "torch":
        return Captioner(tiny_checkpoint, torch.device("cpu"))
    folder = tmp_path_factory.mktemp("export") / "onnx"
    onnx_export.to_folder(tiny_checkpoint, folder)
    return OnnxCaptioner.load(folder, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 7])
def test_follower_is_shown_growing_texts_that_end_with_the_caption(captioner: CaptionerProtocol, length: int) -> None:
    images = [captioner.preprocess(picture) for picture in PICTURES]
    texts: list[list[str]] = [[] for _ in images]
    # every second picture is followed without its text
    followers = [
        Follower(lambda: False, texts[index].append if index % 2 else None) for index in range(len(images))
    ]
    decode = captioner.decode_options(max_new_tokens=length, only_words=("a", "red", "ball"))
    captions = captioner.caption_tensors(images, decode, followers=followers)
    assert [caption.tokens for caption in captions] == [
        caption.tokens for caption in captioner.caption_tensors(images, decode)
    ]
    for index, caption in enumerate(captions):
        shown = texts[index]
        assert shown[-1:] == [caption.text] * (index % 2)
        assert all(longer.startswith(text) for text, longer in pairwise(shown))


def test_followers_of_beams_are_shown_nothing(captioner: CaptionerProtocol) -> None:
    texts = list[str]()
    image = captioner.preprocess(PICTURES[0])
    decode = captioner.decode_options(beams=2)
    captioner.caption_tensors([image], decode, followers=[Follower(lambda: False, texts.append)])
    assert texts == []


@pytest.mark.parametrize("beams", [1, 3])
def test_follower_who_leaves_ends_only_his_caption(captioner: CaptionerProtocol, beams: int) -> None:
    images = [captioner.preprocess(picture) for picture in PICTURES]
    decode = captioner.decode_options(beams=beams)
    steps = np.zeros(len(images), int)

    def follower(index: int) -> Follower:
        def has_left() -> bool:
            steps[index] += 1
            return index == 2

        return Follower(has_left)

    captions = captioner.caption_tensors(images, decode, followers=list(map(follower, range(len(images)))))
    expected = captioner.caption_tensors(images, decode)
    assert [caption.tokens for index, caption in enumerate(captions) if index != 2] == [
        caption.tokens for index, caption in enumerate(expected) if index != 2
    ]
    assert captions[2].error and steps[2] == 1
