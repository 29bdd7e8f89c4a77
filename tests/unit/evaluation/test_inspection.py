"""What is counted in captions, and the sentences about copies and repeated captions."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.data.records import Findings, Record
from myllm.evaluation.copy_groups import Copies
from myllm.evaluation.inspection import Inspection, inspect_records, scripts_of, spread, words_of


def record(name: str, *captions: str, split: str = "train") -> Record:
    return Record(name, Path(name), captions, split)


NO_COPIES = Copies((), (), 9, {})


def inspected(*records: Record, copies: Copies = NO_COPIES) -> Inspection:
    splits: dict[str, list[Record]] = {"train": [], "val": []}
    for entry in records:
        splits[entry.split or "train"].append(entry)
    tokens = [len(caption) for entry in records for caption in entry.captions]
    return inspect_records(splits, Findings(), copies, records, tokens, "letters")


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog's \"ball\" , wet .", ["a", "dog's", "ball", "wet"]),
        ("two-wheeled (red) bike!", ["two-wheeled", "red", "bike"]),
        ("कुत्ता दौड़ता है।", ["कुत्ता", "दौड़ता", "है"]),  # vowel signs are not letters to Python
        (". - $ ...", []),
    ],
)
def test_words_are_between_blanks_without_punctuation(caption: str, words: list[str]) -> None:
    assert words_of(caption) == words


@pytest.mark.parametrize(
    ("caption", "scripts"),
    [
        ("a dog, 5 times!", {"Latin"}), ("Собака and dog", {"Cyrillic", "Latin"}), ("一只狗", {"Chinese characters"}),
        ("犬がいる", {"Chinese characters", "Japanese"}), ("강아지", {"Korean"}), ("كلب", {"Arabic"}),
        ("ＤＯＧ", {"Latin"}),
        ("12 🐕", set()),
    ],
)
def test_scripts_are_those_of_the_letters(caption: str, scripts: set[str]) -> None:
    assert scripts_of(caption) == scripts


@given(st.lists(st.integers(0, 60), min_size=1))
def test_spread_is_numpys(lengths: list[int]) -> None:
    result = spread(lengths)
    assert (result.shortest, result.longest) == (min(lengths), max(lengths))
    assert result.median == np.median(lengths) and result.mean == pytest.approx(np.mean(lengths))
    assert result.percentile_95 == np.quantile(lengths, 0.95, method="inverted_cdf")


def test_vocabulary_counts_words_and_names_those_that_occur_once() -> None:
    inspection = inspected(record("1", "A dog", "a cat"), record("2", "a dog"))
    assert inspection.vocabulary == Counter({"a": 3, "dog": 2, "cat": 1})
    assert inspection.rare_words == ["cat"]
    assert inspection.as_json()["vocabulary"] == {"size": 3, "once": 1, "frequent": {"a": 3, "dog": 2, "cat": 1}}


def test_copies_in_two_splits_are_named_as_leaks_and_others_as_copies() -> None:
    records = [record("1", "a"), record("2", "b", split="val"), record("3", "c"), record("4", "d")]
    copies = Copies((), ((records[0], records[1]), (records[2], records[3])), 4, {})
    findings = "\n".join(inspected(*records, copies=copies).findings)
    assert "1 pair of pictures that look like copies (3 ~ 4)" in findings
    assert "1 pair of copies in two splits, which `myllm data split` would keep together (1 of train ~ 2 of val)" in (
        findings
    )


def test_broken_pictures_and_an_incomplete_search_are_findings() -> None:
    copies = Copies((), (), 0, {"1": "1: the file is empty"})
    assert inspected(record("1", "a"), record("2", "b"), copies=copies).findings == [
        "1 picture that cannot be read (1: the file is empty)",
        "copies were searched for by the bytes of all pictures, not by their looks",
    ]


def test_repeated_captions_are_findings() -> None:
    records = [record("1", "a dog", "a dog"), record("2", "a dog"), record("3", "a dog", "a cat", split="val")]
    assert inspected(*records).findings == [
        "1 picture with the same caption twice (1)", "1 caption of several pictures ('a dog' of 3)",
        "1 of 2 captions of val are word for word in train",
    ]


def test_lines_without_findings_say_so() -> None:
    assert inspected(record("1", "a"), record("2", "b")).lines()[-1] == "findings    nothing unusual"
