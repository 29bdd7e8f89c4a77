import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.errors import DataError
from myllm.metrics.meteor import meteor
from myllm.metrics.meteor_align import Match, align, count_chunks
from myllm.metrics.meteor_data import English, missing_data, read_paraphrases
from myllm.metrics.meteor_normalize import normalize
from myllm.metrics.result import MetricResult

words = st.lists(st.sampled_from(["a", "the", "dog", "dogs", "running", "ran", "man", "person", "zorb"]), max_size=9)


@cache
def english() -> English:
    return English()


def figure(*pictures: tuple[str, list[str]]) -> MetricResult:
    candidates = [candidate.split() for candidate, _ in pictures]
    return meteor(candidates, [[reference.split() for reference in references] for _, references in pictures])["METEOR"]


def matches(candidate: str, reference: str) -> list[Match]:
    return align(candidate.split(), reference.split(), english(), {})


def f_mean(precision: float, recall: float) -> float:
    return 1 / (0.15 / precision + 0.85 / recall)


# One call for all of them: each reads the table of paraphrases.
CLOSED_FORMS = {
    "the same caption": ("a dog runs on grass", "a dog runs on grass", 1),
    "the same words in another order": ("grass dog", "dog grass", 1 - 0.6),
    "nothing in common": ("a cat", "two dogs", 0),
    "no candidate": ("", "a dog", 0),
    "no reference": ("a dog", "", 0),
    "neither": ("", "", 0),
    "half of the reference": ("dog", "dog tree", f_mean(1, 1 / 2) * (1 - 0.6)),
    "twice the reference": ("dog tree", "dog", f_mean(1 / 2, 1) * (1 - 0.6 * (1 / 1) ** 0.2)),
    "two chunks of four words": ("red dog green tree", "green tree red dog", 1 - 0.6 * (2 / 4) ** 0.2),
    "function words weigh a third of content words": ("the zorb", "the dog", f_mean(1 / 4, 1 / 4) * (1 - 0.6)),
    "a stem": ("zorbs", "zorb", 0.6),
    "a synonym": ("sofa", "couch", 0.8),
    "a paraphrase": ("a picture", "an image", 0.6),
    "a word with two ways to match, outside of a chunk": ("dogs", "dog", 0),
    "a word with two ways to match, in a chunk": ("red dogs run", "red dog run", (1 + 0.6 + 1) / 3),
}


def test_scores_equal_closed_forms() -> None:
    scores = figure(*((candidate, [reference]) for candidate, reference, _ in CLOSED_FORMS.values())).per_image
    expected = {name: score for name, (_, _, score) in CLOSED_FORMS.items()}
    assert dict(zip(CLOSED_FORMS, scores.tolist(), strict=True)) == pytest.approx(expected)


def test_a_picture_has_the_score_of_its_best_reference() -> None:
    best, first, second = figure(
        ("a dog runs", ["a cat", "a dog sits"]), ("a dog runs", ["a cat"]), ("a dog runs", ["a dog sits"])
    ).per_image
    assert first < second == best


@pytest.mark.slow
def test_corpus_score_uses_summed_counts_of_the_best_references() -> None:
    # "dog" of "dog tree" twice over: precision 2/2, recall 2/4, 2 chunks of 2 words. The whole one counts for no chunk.
    several = figure(("dog", ["dog tree"]), ("zorb", ["cat", "zorb tree"]), ("big house", ["big house"]))
    assert several.of([0, 1]) == pytest.approx(f_mean(1, 2 / 4) * (1 - 0.6))
    assert several.corpus == pytest.approx(f_mean(1, 4 / 6) * (1 - 0.6 * (2 / 4) ** 0.2))
    assert several.corpus != pytest.approx(several.per_image.mean())


def test_sums_of_one_picture_give_its_score_along_any_axes() -> None:
    several = figure(("a dog runs", ["a dog sits"]), ("", ["a"]), ("a cat", ["a cat"]), ("zorb", ["a tree"]))
    np.testing.assert_array_equal(several.of_sums(several.sums), several.per_image)
    twice = np.stack([several.sums, several.sums])
    np.testing.assert_array_equal(several.of_sums(twice), np.stack([several.per_image] * 2))


@given(words, words)
def test_no_word_is_in_two_matches(candidate: list[str], reference: list[str]) -> None:
    chosen = align(candidate, reference, english(), {})
    starts, candidate_starts = [match.start for match in chosen], [match.candidate_start for match in chosen]
    assert starts == sorted(set(starts))
    assert len(set(candidate_starts)) == len(candidate_starts)


@given(words.filter(bool))
def test_a_caption_is_one_chunk_of_itself(caption: list[str]) -> None:
    chosen = align(caption, caption, english(), {})
    assert [match.start for match in chosen] == [match.candidate_start for match in chosen] == [*range(len(caption))]
    assert count_chunks(chosen) == 1


def test_of_equal_words_those_that_make_fewer_chunks_are_matched() -> None:
    assert [match.candidate_start for match in matches("the cat saw the dog", "the dog")] == [3, 4]


def test_a_phrase_is_matched_with_its_paraphrase() -> None:
    table = {"a lot of": ["many"]}
    matched = align(["a", "lot", "of", "dogs"], ["many", "dogs"], english(), table)
    assert [(match.start, match.length, match.candidate_start, match.candidate_length) for match in matched] == [
        (0, 1, 0, 3),
        (1, 1, 3, 1),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A t-shirt", "a t shirt"),
        ("dog 's", "dog ' s"),
        ("dog's", "dog 's"),
        ("do n't", "do n 't"),
        ("1,000 dogs, cats", "1,000 dogs , cats"),
        ("the u.s. team", "the us team"),
        ("a dog.", "a dog ."),
        ("a dog. it", "a dog. it"),
        ("Mr. Smith", "mr. smith"),
        ("No. 5 No. Five", "no. 5 no . five"),
        ("wait...what", "wait ... what"),
        ("-lrb- ``x''", '-lrb- " x "'),
        ("“x” – y", '" x " - y'),
        ("", ""),
    ],
)
def test_normalize_splits_captions_as_the_jar_does(text: str, expected: str) -> None:
    assert normalize(text, english().abbreviations) == expected.split()


@pytest.mark.parametrize(("word", "other"), [("men", "man"), ("geese", "goose"), ("tries", "attempt")])
def test_words_share_synonyms_by_their_bases(word: str, other: str) -> None:
    assert english().synsets(word) & english().synsets(other)


@pytest.mark.slow
def test_only_paraphrases_among_the_phrases_are_read() -> None:
    table = read_paraphrases(["a picture", "an image", "zorb"], 3)
    assert table["a picture"] == ["an image"]
    assert set(table) <= {"a picture", "an image"}


def test_nothing_is_missing_if_the_packages_are_installed() -> None:
    assert missing_data() is None


@pytest.mark.parametrize("package", ["pycocoevalcap", "snowballstemmer"])
def test_missing_packages_are_named_and_required(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert (line := missing_data()) is not None
    assert package in line
    assert "-m pip install pycocoevalcap 'snowballstemmer<3'" in line
    with pytest.raises(DataError, match="METEOR cannot be computed"):
        meteor([["a"]], [[["a"]]])


def test_a_newer_stemmer_with_other_stems_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "snowballstemmer-3.1.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: snowballstemmer\nVersion: 3.1.1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert "snowballstemmer 3.1.1 gives other stems" in str(missing_data())
