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


def make_heat(height: int, width: int, row: int, column: int) -> torch.Tensor:
    heat = torch.zeros(height, width)
    heat[row, column] = 0.02  # maps sum to one, so that even a maximum can be small
    return heat


def make_word(text: str, logprob: float | None = -0.7) -> Word:
    return Word(text, slice(0, 1), logprob, None)


HEAT = make_heat(40, 60, 10, 10)[None]


def test_overlay_is_yellow_at_the_maximum_and_grey_where_there_is_no_heat() -> None:
    pixels = np.asarray(overlay(PICTURE, make_heat(40, 60, 10, 50))).astype(int)
    assert pixels.shape == (40, 60, 3)
    red, green, blue = pixels[10, 50]
    assert min(red, green) > 100 and blue < min(red, green) - 50
    cold = np.delete(pixels.reshape(-1, 3), 10 * 60 + 50, axis=0)
    assert (cold == cold[:, :1]).all()
    grey = np.delete(np.asarray(PICTURE.convert("L")).flatten(), 10 * 60 + 50)
    assert np.corrcoef(cold[:, 0], grey)[0, 1] > 0.999


def test_overlay_resizes_the_heat_to_the_picture() -> None:
    pixels = np.asarray(overlay(PICTURE, make_heat(4, 6, 1, 5))).astype(int)
    yellow = pixels[..., 0] - pixels[..., 2]
    assert pixels.shape == (40, 60, 3) and np.unravel_index(yellow.argmax(), yellow.shape)[1] >= 50
    assert yellow[:, :30].max() == 0


def test_overlay_of_an_empty_map_is_the_picture_in_grey() -> None:
    pixels = np.asarray(overlay(PICTURE, torch.zeros(40, 60)))
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("size", [(64, 64), (300, 90), (50, 900), (1, 1)])
def test_draw_words_has_a_panel_per_word_and_none_for_punctuation(size: tuple[int, int]) -> None:
    picture = PICTURE.resize(size)

    def height(*texts: str) -> int:
        return draw_words(picture, [make_word(text) for text in texts], HEAT, " ".join(texts)).height

    assert height() == height("a", "dog", ",", "a", "$cat$", ".") < height("a", "b", "c", "d", "e")


def test_draw_words_marks_words_of_a_required_prefix() -> None:
    required, chosen = (draw_words(PICTURE, [make_word("dog", logprob)], HEAT) for logprob in (None, -0.7))
    assert required.size == chosen.size and required.tobytes() != chosen.tobytes()


def test_make_word_maps_gives_each_word_its_attention_map(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    captioner = Captioner(tiny_checkpoint, torch.device("cpu"))
    PICTURE.save(tmp_path / "existing.png")
    records = [Record(name, tmp_path / name, ("a dog",)) for name in ("missing.png", "existing.png")]
    captions = [captioner.caption(PICTURE)] * 2
    word_maps = make_word_maps(captioner, records, captions)
    assert word_maps is not None and word_maps(0) == []
    words, expected_words = word_maps(1), captions[1].words
    assert [word.text for word in words] == [word.text for word in expected_words] != []
    for word, expected in zip(words, expected_words, strict=True):
        assert word.map is not None and word.map.shape == (40, 60)
        assert np.allclose(word.map, captions[1].attention[expected.tokens].mean(0).numpy(), atol=1e-6)
        assert word.confidence == expected.confidence is not None


def test_make_word_maps_of_an_export_is_none() -> None:
    assert make_word_maps(cast(CaptionerProtocol, object()), [], []) is None
