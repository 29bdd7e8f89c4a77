import pytest
import torch
from measures.deletion import STEPS, draw_curves, is_content, judge_words, removal_order

from myllm.caption import Word
from myllm.checkpoints.native import Checkpoint
from myllm.data.scenes import draw_scene
from myllm.inference.captioner import Captioner

IMAGE = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def captioner(tiny_checkpoint: Checkpoint) -> Captioner:
    return Captioner(tiny_checkpoint, torch.device("cpu"))


def word(text: str, logprob: float | None = -1.0, tokens: slice = slice(0, 1)) -> Word:
    return Word(text, tokens, logprob, None)


def test_removal_order_removes_equal_parts_of_the_picture_highest_values_first() -> None:
    heat = torch.rand(64, 64, generator=torch.Generator().manual_seed(1))
    deleted, inserted = removal_order(IMAGE, heat)
    assert torch.equal(deleted[0], IMAGE) and deleted[-1].abs().max() == 0
    assert torch.equal(inserted[-1], IMAGE) and not torch.isclose(inserted[0], IMAGE).all(0).any()
    for step in range(STEPS + 1):
        removed = (deleted[step] == 0).all(0)
        assert int(removed.sum()) == 64 * 64 * step // STEPS
        assert torch.equal(removed, (inserted[step] == IMAGE).all(0))
        assert not removed.any() or removed.all() or heat[removed].min() >= heat[~removed].max()


@torch.inference_mode()
def test_draw_curves_equals_the_probabilities_computed_one_by_one(captioner: Captioner) -> None:
    heat = torch.rand(64, 64, generator=torch.Generator().manual_seed(2))
    tokens, judged = [20, 33, 41, 9], word("x", tokens=slice(1, 3))
    begin = captioner.tokenizer.token_to_id("<|endoftext|>")
    areas = []
    for pictures in removal_order(IMAGE, heat):
        probabilities = []
        for picture in pictures:
            probability = 1.0
            for index in (1, 2):
                logits = captioner.model(picture[None], torch.tensor([[[begin, *tokens[:index]]]]))[0, 0, -1]
                probability *= float(logits.softmax(-1)[tokens[index]])
            probabilities.append(probability)
        areas.append((sum(probabilities) - (probabilities[0] + probabilities[-1]) / 2) / STEPS)
    curves = draw_curves(captioner, IMAGE, tokens, judged, heat)
    assert (curves.deletion, curves.insertion) == pytest.approx(tuple(areas), rel=1e-3)


def test_is_content_accepts_words_but_not_function_words() -> None:
    assert all(is_content(word(text)) for text in ("dog", "Running", "über", "dog."))
    assert not any(is_content(word(text)) for text in ("The", "of", ".", "3", "x", "'s"))
    assert not is_content(word("dog", logprob=None))


def test_judge_words_adds_the_baselines_and_is_repeatable(captioner: Captioner) -> None:
    pictures = [draw_scene(0, "val", number)[0] for number in range(3)]
    captioner.decode = captioner.decode_options(regex="two blue cubes on grass", max_new_tokens=20)
    judged = list(judge_words(captioner, pictures, ["gradient"], words=2))
    assert len(judged) == 6 and all(set(curves) == {"gradient", "random", "centre"} for curves in judged)
    assert judged == list(judge_words(captioner, pictures, ["gradient"], words=2))
