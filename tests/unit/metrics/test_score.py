import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.errors import ConfigError, DataError
from myllm.metrics.hallucination import LOWER_IS_BETTER
from myllm.metrics.result import mean_of
from myllm.metrics.score import (
    METRICS,
    Metric,
    absent,
    evenly_spaced,
    has_words_without_blanks,
    human_agreement,
    score_captions,
    shuffled,
    tokenized,
)

captions = st.lists(st.sampled_from(["a", "dog", "cat", "runs", "red"]), max_size=7).map(" ".join)
corpora = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=3)), min_size=1, max_size=5)
Corpus = list[tuple[str, list[str]]]
QUICK = ("BLEU", "ROUGE-L", "CIDEr")  # METEOR reads its tables for each call
NAMES = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "CIDEr-D"]


def columns(corpus: Corpus) -> tuple[list[str], list[list[str]]]:
    return [candidate for candidate, _ in corpus], [references for _, references in corpus]


@pytest.mark.meteor
def test_scores_have_all_figures_and_the_protocol() -> None:
    scores = score_captions(["A dog.", "A cat."], [["a dog", "the dog"], ["a cat"]])
    assert list(scores.corpus) == list(scores.per_image)
    assert {*NAMES, "METEOR", *LOWER_IS_BETTER} == scores.corpus.keys()
    assert scores.protocol == {"tokenizer": "PTB 3.4.1", "pictures": 2, "references": 3}


def test_case_and_punctuation_cost_nothing() -> None:
    scores = score_captions(["A red dog runs!"], [["a red dog runs ."]])
    assert scores.corpus["BLEU-4"] == pytest.approx(1)
    assert scores.corpus["ROUGE-L"] == pytest.approx(1)


@pytest.mark.parametrize("candidate", ["", " . "])
def test_a_caption_without_words_scores_0(candidate: str) -> None:
    scores = score_captions([candidate, "a cat"], [["a red dog runs"], ["a cat"]], QUICK)
    assert {name: each[0] for name, each in scores.per_image.items()} == dict.fromkeys(NAMES, 0.0)


def test_a_metric_is_one_function_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "words", Metric(lambda candidates, references: {"words": mean_of([2.0])}, ("words",)))
    assert score_captions(["a dog"], [["a cat"]]).corpus["words"] == 2


def test_a_metric_without_its_data_is_absent_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("myllm.metrics.score.missing_data", lambda: "pip install pycocoevalcap")
    assert "METEOR" not in score_captions(["a dog"], [["a cat"]]).corpus
    assert absent() == {"METEOR": "pip install pycocoevalcap"}


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a", "b"], [["a"]], "2 candidate captions but references of 1 picture"),
        ([], [], "no captions"),
        (["a", "b"], [["a"], []], "picture 2 of 2 has no reference"),
        (["a dog"], ["a dog"], "picture 1 of 1 has a string"),
    ],
)
def test_errors_name_what_was_found(candidates: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_captions(candidates, references)


@given(corpora, st.integers(0, 99))
def test_permuting_pictures_permutes_their_scores(corpus: Corpus, seed: int) -> None:
    order = random.Random(seed).sample(range(len(corpus)), len(corpus))
    scores = score_captions(*columns(corpus), QUICK)
    permuted = score_captions(*columns([corpus[i] for i in order]), QUICK)
    assert permuted.corpus == pytest.approx(scores.corpus)
    for name in NAMES:
        assert permuted.per_image[name] == pytest.approx([scores.per_image[name][i] for i in order])


@given(corpora)
def test_the_order_of_references_does_not_matter(corpus: Corpus) -> None:
    scores = score_captions(*columns(corpus), QUICK)
    again = score_captions(*columns([(candidate, captions[::-1]) for candidate, captions in corpus]), QUICK)
    for name in NAMES:
        assert again.per_image[name] == pytest.approx(scores.per_image[name])


@given(corpora)
def test_fractions_stay_within_0_and_1_and_cider_within_0_and_10(corpus: Corpus) -> None:
    for name, each in score_captions(*columns(corpus), QUICK).per_image.items():
        assert all(0 <= score <= (10 if name.startswith("CIDEr") else 1) * (1 + 1e-9) for score in each)


def test_human_agreement_is_perfect_for_equal_references_and_lower_for_a_wrong_caption() -> None:
    references = [tokenized([text] * 3) for text in ("a red dog runs", "two cats sleep here")]
    agreed = human_agreement(tokenized(["a red dog runs", "a red dog runs"]), references)
    assert agreed["CIDEr-D"] == pytest.approx((10, 5))
    assert agreed["ROUGE-L"] == pytest.approx((1, 0.5))


def test_human_agreement_scores_a_reference_only_with_the_others() -> None:
    # BLEU-1 by hand, each reference scored with the other two: one of two words matches, one of two, none
    agreed = human_agreement([["a", "b"]], [[["a", "x"], ["a", "y"], ["p", "q"]]], ("BLEU",))
    people, caption = agreed["BLEU-1"]
    assert people == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert caption == pytest.approx(1 / 2)


def test_human_agreement_is_empty_if_pictures_have_one_reference() -> None:
    assert human_agreement([["a"]], [[["a"]]]) == {}


@given(st.integers(2, 50), st.integers(0, 9))
def test_shuffled_leaves_no_caption_with_its_picture(count: int, seed: int) -> None:
    moved = shuffled(list(range(count)), seed)
    assert sorted(moved) == list(range(count))
    assert all(source != index for index, source in enumerate(moved))


@given(st.integers(1, 300), st.integers(1, 300))
def test_evenly_spaced_indices_cover_the_whole_range(total: int, count: int) -> None:
    chosen = evenly_spaced(total, count)
    assert len(chosen) == min(total, count) and chosen[0] == 0
    steps = np.diff([*chosen, total])
    assert steps.min() >= 1 and steps.max() - steps.min() <= 1


def test_human_agreement_uses_evenly_spaced_pictures_if_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("myllm.metrics.score.MAX_PICTURES", 5)
    # people agree only about the last 3 of 8 pictures, so the first 5 would give 0
    references = [[["a"], ["b"]]] * 5 + [[["c"], ["c"]]] * 3
    people, _ = human_agreement([["x"]] * 8, references, ("ROUGE-L",))["ROUGE-L"]
    assert people == pytest.approx(1 / 5)  # pictures 0, 1, 3, 4 and 6


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (["CIDEr-D", "BLEU-4"], ["BLEU-4", "CIDEr-D"]),
        (["cider-d"], ["CIDEr-D"]),
        (["BLEU"], ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]),
        (["CHAIRi", "ROUGE-L"], ["ROUGE-L", "CHAIRi"]),
    ],
)
def test_chosen_metrics_are_computed_and_no_others(chosen: list[str], names: list[str]) -> None:
    assert list(score_captions(["a dog"], [["a cat"]], chosen).corpus) == names


def test_an_unknown_metric_is_refused_with_a_near_name() -> None:
    with pytest.raises(ConfigError, match=r"'BLEU-5' is unknown; did you mean BLEU-4.*known are BLEU, "):
        score_captions(["a dog"], [["a cat"]], ["BLEU-5"])


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["一只狗在草地上"], True),
        (["犬が走る", "a dog"], False),
        (["สุนัขวิ่ง"], True),
        (["a dog"], False),
        (["كلب يجري"], False),
    ],
)
def test_writing_without_blanks_is_recognised(captions: list[str], expected: bool) -> None:
    assert has_words_without_blanks(captions) is expected
