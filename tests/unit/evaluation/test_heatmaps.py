from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from myllm.caption import CaptionerProtocol, Word
from myllm.checkpoints.native import Checkpoint
from myllm.data.records import Record
from myllm.evaluation.heatmaps import draw_words, make_word_maps, overlay
from myllm.inference.captioner import Captioner

PICTURE = Image.effect_noise((60, 40), 90).convert("RGB")


def hot(height: int, width: int, row: int, column: int) -> torch.Tensor:
    heat = torch.zeros(height, width)
    heat[row, column] = 0.02  # maps sum to one, so that even a peak may be small
    return heat


def word(text: str, logprob: float | None = -0.7) -> Word:
    return Word(text, slice(0, 1), logprob, None)


HEAT = hot(40, 60, 10, 10)[None]


def test_the_hottest_place_is_yellow_and_cold_ones_keep_the_picture_in_grey() -> None:
    pixels = np.asarray(overlay(PICTURE, hot(40, 60, 10, 50))).astype(int)
    assert pixels.shape == (40, 60, 3)
    red, green, blue = pixels[10, 50]
    assert min(red, green) > 100 and blue < min(red, green) - 50
    cold = np.delete(pixels.reshape(-1, 3), 10 * 60 + 50, axis=0)
    assert (cold == cold[:, :1]).all()
    grey = np.delete(np.asarray(PICTURE.convert("L")).flatten(), 10 * 60 + 50)
    assert np.corrcoef(cold[:, 0], grey)[0, 1] > 0.999


def test_heat_of_another_size_is_fitted_to_the_picture() -> None:
    pixels = np.asarray(overlay(PICTURE, hot(4, 6, 1, 5))).astype(int)
    yellow = pixels[..., 0] - pixels[..., 2]
    assert pixels.shape == (40, 60, 3) and np.unravel_index(yellow.argmax(), yellow.shape)[1] >= 50
    assert yellow[:, :30].max() == 0


def test_a_map_of_nothing_is_the_picture_in_grey() -> None:
    pixels = np.asarray(overlay(PICTURE, torch.zeros(40, 60)))
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("size", [(64, 64), (300, 90), (50, 900), (1, 1)])
def test_each_word_has_a_panel_and_punctuation_has_none(size: tuple[int, int]) -> None:
    picture = PICTURE.resize(size)

    def height(*texts: str) -> int:
        return draw_words(picture, [word(text) for text in texts], HEAT, " ".join(texts)).height

    assert height() == height("a", "dog", ",", "a", "$cat$", ".") < height("a", "b", "c", "d", "e")


def test_given_words_say_so() -> None:
    given, said = (draw_words(PICTURE, [word("dog", logprob)], HEAT) for logprob in (None, -0.7))
    assert given.size == said.size and given.tobytes() != said.tobytes()


def test_a_report_is_told_what_was_looked_at_for_each_word(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    captioner = Captioner(tiny_checkpoint, torch.device("cpu"))
    PICTURE.save(tmp_path / "there.png")
    records = [Record(tmp_path / name, ("a dog",)) for name in ("gone.png", "there.png")]
    captions = [captioner.caption(PICTURE)] * 2
    look = make_word_maps(captioner, records, captions)
    assert look is not None and look(0) == []
    words, own = look(1), captions[1].words
    assert [word.text for word in words] == [word.text for word in own] != []
    for found, expected in zip(words, own, strict=True):
        assert found.map is not None and found.map.shape == (40, 60)
        assert np.allclose(found.map, captions[1].attention[expected.tokens].mean(0).numpy(), atol=1e-6)
        assert found.confidence == expected.confidence is not None


def test_what_cannot_tell_has_no_maps() -> None:
    assert make_word_maps(cast(CaptionerProtocol, object()), [], []) is None
