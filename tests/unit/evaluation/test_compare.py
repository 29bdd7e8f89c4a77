from pathlib import Path

from myllm.data.records import Record
from myllm.evaluation.compare import compare

TEXTS = [f"a {colour} {thing} on the {ground}" for colour in ("red", "blue", "black", "green")
         for thing in ("dog", "cat", "ball", "boat") for ground in ("grass", "sand", "sea")]
RECORDS = [Record(Path(f"{number}.png"), (text, f"{text} today")) for number, text in enumerate(TEXTS)]
WORSE = [text if number % 3 else "a dog" for number, text in enumerate(TEXTS)]


def test_the_better_one_is_named_whichever_side_it_stands_on() -> None:
    found = compare(("good", TEXTS), ("bad", WORSE), RECORDS, "val")
    assert found.differences["CIDEr-D"].difference < 0 and found.sentence().startswith("A's CIDEr-D is")
    turned = compare(("bad", WORSE), ("good", TEXTS), RECORDS, "val")
    assert turned.sentence().startswith("B's CIDEr-D is")
    assert "higher on 16 of the pictures" in found.sentence() and "higher on 16 of the pictures" in turned.sentence()


def test_equal_captions_are_never_called_different() -> None:
    found = compare(("one", TEXTS), ("two", list(TEXTS)), RECORDS, "val")
    assert "may be chance" in found.sentence() and found.differences["CIDEr-D"].p == 1


def test_json_holds_both_sides_and_the_sentence() -> None:
    held = compare(("good", TEXTS), ("bad", WORSE), RECORDS, "val").as_json()
    assert held["a"]["name"] == "good" and held["b"]["CIDEr-D"] < held["a"]["CIDEr-D"]
    difference = held["differences"]["CIDEr-D"]
    assert difference["a"] == held["a"]["CIDEr-D"] and difference["interval"][1] < 0
    assert held["sentence"].endswith("pictures.")


def test_lines_show_each_figure_once() -> None:
    lines = compare(("good", TEXTS), ("bad", WORSE), RECORDS, "val").lines()
    assert [line.split()[0] for line in lines if line.startswith("CIDEr")] == ["CIDEr-D", "CIDEr-D_shuffled"]
