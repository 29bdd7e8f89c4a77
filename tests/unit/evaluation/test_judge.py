import pytest

from myllm.errors import DataError
from myllm.evaluation.judge import judge_captions
from myllm.metrics.score import score_captions

SAID = ["a red dog runs", "two cats sleep", "a man rides a bike", "a boat on the sea"]
TOLD = [[text, f"{text} here"] for text in SAID]


def test_right_captions_score_and_shuffled_ones_show_what_was_guessed() -> None:
    found = judge_captions(SAID, TOLD)
    assert found.figures["BLEU-4"].corpus == pytest.approx(1, abs=1e-6)
    assert found.figures["CIDEr-D_shuffled"].corpus < 0.2 * found.figures["CIDEr-D"].corpus
    gap = found.figures["CIDEr-D"].corpus - found.figures["CIDEr-D_shuffled"].corpus
    assert found.figures["grounding_gap"].corpus == pytest.approx(gap)


def test_captions_that_look_at_nothing_have_no_gap_worth_the_name() -> None:
    found = judge_captions(["a red dog runs"] * 4, TOLD)
    assert found.figures["grounding_gap"].corpus == 0


def test_the_blind_control_is_one_sentence_at_every_picture() -> None:
    found = judge_captions(SAID, TOLD, blind="two cats sleep")
    expected = score_captions(["two cats sleep"] * 4, TOLD).corpus["CIDEr-D"]
    assert found.figures["CIDEr-D_blind"].corpus == pytest.approx(expected)
    assert "CIDEr-D_blind" not in judge_captions(SAID, TOLD).figures


def test_every_figure_lies_in_its_interval_and_json_holds_both() -> None:
    found = judge_captions(SAID, TOLD)
    held = found.as_json()
    assert held["intervals"].keys() == found.figures.keys() <= held.keys()
    for name, (low, high) in found.intervals.items():
        assert low <= held[name] <= high, name
    assert held["people"]["CIDEr-D"].keys() == {"people", "captions"}
    assert held["protocol"]["pictures"] == 4 and held["protocol"]["references"] == 8
    assert "10,000 draws" in held["protocol"]["intervals"]


def test_lines_tell_each_figure_once_with_people_beside_it() -> None:
    lines = judge_captions(SAID, TOLD).lines()
    (cider,) = [line for line in lines if line.startswith("CIDEr")]
    assert cider.startswith("CIDEr-D") and "(" in cider
    assert "people" in lines[0] and "people" not in judge_captions(SAID, [[text] for text in SAID]).lines()[0]


def test_nothing_to_judge_is_told() -> None:
    with pytest.raises(DataError, match="no captions"):
        judge_captions([], [])
