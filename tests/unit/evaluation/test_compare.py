import re
from pathlib import Path

import pytest

from myllm.data.records import Record
from myllm.evaluation.compare import Comparison, compare

TEXTS = [f"a {colour} {thing} on the {ground}" for colour in ("red", "blue", "black", "green")
         for thing in ("dog", "cat", "ball", "boat") for ground in ("grass", "sand", "sea")]
RECORDS = [Record(f"{number}.png", Path(f"{number}.png"), (text, f"{text} today")) for number, text in enumerate(TEXTS)]
WORSE = [text if number % 3 else "a dog" for number, text in enumerate(TEXTS)]
QUICK = ("CIDEr-D", "BLEU-4")


def test_sentence_names_the_better_captioner_on_either_side() -> None:
    comparison = compare(("good", TEXTS), ("bad", WORSE), RECORDS, "val", QUICK)
    assert comparison.differences["CIDEr-D"].difference < 0 and comparison.sentence().startswith("A's CIDEr-D is")
    exchanged = compare(("bad", WORSE), ("good", TEXTS), RECORDS, "val", QUICK)
    assert exchanged.sentence().startswith("B's CIDEr-D is")
    for side in (comparison, exchanged):
        assert "higher on 16 of the pictures" in side.sentence()
        low, high = map(float, re.findall(r"95 % interval (\S+) to (\S+),", side.sentence())[0])
        assert 0 < low < abs(side.differences["CIDEr-D"].difference) < high


def test_equal_captions_are_never_called_different() -> None:
    comparison = compare(("one", TEXTS), ("two", list(TEXTS)), RECORDS, "val", QUICK)
    assert "may be chance" in comparison.sentence() and comparison.differences["CIDEr-D"].p == 1


def test_json_has_both_sides_and_the_sentence() -> None:
    entries = compare(("good", TEXTS), ("bad", WORSE), RECORDS, "val").as_json()
    assert entries["a"]["name"] == "good" and entries["b"]["CIDEr-D"] < entries["a"]["CIDEr-D"]
    difference = entries["differences"]["CIDEr-D"]
    assert difference["a"] == entries["a"]["CIDEr-D"] and difference["interval"][1] < 0
    assert entries["sentence"].startswith("A's CIDEr-D is")


def test_lines_show_each_figure_once() -> None:
    lines = compare(("good", TEXTS), ("bad", WORSE), RECORDS, "val").lines()
    assert [line.split()[0] for line in lines if line.startswith("CIDEr-")] == ["CIDEr-D", "CIDEr-D_shuffled"]
    assert len([line for line in lines if line.startswith("counts_wrong") and "name no numbers" in line]) == 1


def few(count: int) -> Comparison:
    return compare(("good", TEXTS[:count]), ("bad", ["a dog"] * count), RECORDS[:count], "val", QUICK)


@pytest.mark.parametrize("count", [2, 9])
def test_fewer_than_ten_pictures_prove_nothing(count: int) -> None:
    comparison = few(count)
    assert comparison.sentence().endswith("with fewer than 10 pictures nothing can be said about chance.")
    assert comparison.differences["CIDEr-D"].p is None and comparison.as_json()["differences"]["BLEU-4"]["p"] is None


def test_fewer_than_a_hundred_pictures_are_cautioned() -> None:
    assert few(20).sentence().endswith("With fewer than 100 pictures, repeat this on more.")


def test_compare_notes_how_each_side_was_made_and_what_both_share() -> None:
    protocols = {"data": "ab", "model": "x"}, {"data": "ab", "model": "y"}
    comparison = compare(("good", TEXTS), ("bad", WORSE), RECORDS, "val", QUICK, protocols)
    assert [side.judgement.protocol["model"] for side in (comparison.a, comparison.b)] == ["x", "y"]
    assert comparison.protocol["data"] == "ab" and "model" not in comparison.protocol
