import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.metrics.cider import CiderD, cider

words = st.lists(st.sampled_from("abcdef"), max_size=9)
references = st.lists(st.lists(words, min_size=1, max_size=3), min_size=1, max_size=4)
corpora = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=4)


def brute_force(
    candidate: list[str], captions: list[list[str]], corpus: list[list[list[str]]], sigma: float = 6.0
) -> float:
    """Return CIDEr-D by equations 1 to 5 of the paper with its clipping and penalty, one n-gram after another."""

    def count(words: list[str], ngram: tuple[str, ...]) -> int:
        return sum(tuple(words[i : i + len(ngram)]) == ngram for i in range(len(words)))

    def weight(words: list[str], ngram: tuple[str, ...]) -> float:
        pictures = sum(any(count(caption, ngram) for caption in group) for group in corpus)
        return count(words, ngram) * (math.log(len(corpus)) - math.log(max(1, pictures)))

    total = 0.0
    for n in (1, 2, 3, 4):
        for caption in captions:
            candidate_ngrams = {tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1)}
            reference_ngrams = {tuple(caption[i : i + n]) for i in range(len(caption) - n + 1)}
            norms = math.hypot(*(weight(candidate, g) for g in candidate_ngrams))
            norms *= math.hypot(*(weight(caption, g) for g in reference_ngrams))
            dot = sum(min(weight(candidate, g), weight(caption, g)) * weight(caption, g) for g in candidate_ngrams)
            penalty = math.exp(-((len(candidate) - len(caption)) ** 2) / (2 * sigma**2))
            total += penalty * dot / norms if norms else 0
    return 10 * total / 4 / len(captions)


def test_a_perfect_caption_of_four_rare_words_scores_10() -> None:
    corpus = [[list("abcd")], [list("efgh")]]
    assert CiderD(corpus).score([list("abcd")], corpus[:1]) == pytest.approx([10])


def test_a_word_in_the_references_of_every_picture_scores_0() -> None:
    corpus = [[["the", "dog"]], [["the", "cat"]]]
    assert CiderD(corpus).score([["the"], ["dog"]], [corpus[0], corpus[0]]) == pytest.approx(
        [0, 10 / 4 * math.exp(-1 / 72)]
    )


@pytest.mark.parametrize("pictures", [2, 3, 9_170, 19_143])
def test_a_word_that_every_picture_has_weighs_exactly_0(pictures: int) -> None:
    # of the last two, logarithms of the standard library and of numpy differ in the last digit on some processors
    dog = [["dog"]]
    assert CiderD([dog] * pictures).score(dog, [dog]) == [0]


def test_saying_a_word_again_lowers_the_score() -> None:
    corpus = [[["red", "dog"]], [["blue", "cat"]]]
    once, twice = CiderD(corpus).score([["red", "dog"], ["red", "dog", "red", "dog"]], [corpus[0]] * 2)
    assert twice < once


def test_an_empty_candidate_scores_0() -> None:
    corpus = [[["a", "dog"]], [["a", "cat"]]]
    assert CiderD(corpus).score([[], []], corpus) == [0, 0]


def test_a_corpus_of_one_picture_scores_0() -> None:
    assert CiderD([[["a", "dog"]]]).score([["a", "dog"]], [[["a", "dog"]]]) == [0]


def test_a_candidate_without_references_raises() -> None:
    with pytest.raises(ValueError, match="2 candidates"):
        CiderD([[["a"]]]).score([["a"], ["b"]], [[["a"]]])


def test_a_pickled_scorer_scores_the_same() -> None:
    corpus = [[list("abc")], [list("ade")]]
    scorer = CiderD(corpus)
    candidates = [list("abx"), list("yde")]
    assert pickle.loads(pickle.dumps(scorer)).score(candidates, corpus) == scorer.score(candidates, corpus)


@given(references, corpora)
def test_scores_equal_the_formulas_for_any_corpus(
    corpus: list[list[list[str]]], pictures: list[tuple[list[str], list[list[str]]]]
) -> None:
    candidates, captions = map(list, zip(*pictures, strict=True))
    expected = [brute_force(words, group, corpus) for words, group in pictures]
    assert CiderD(corpus).score(candidates, captions) == pytest.approx(expected, abs=1e-9)


@given(references, st.lists(words, min_size=2, max_size=4))
def test_candidates_that_share_a_picture_score_independently(
    corpus: list[list[list[str]]], candidates: list[list[str]]
) -> None:
    scorer = CiderD(corpus)
    alone = [scorer.score([candidate], corpus[:1])[0] for candidate in candidates]
    assert scorer.score(candidates, [corpus[0]] * len(candidates)) == pytest.approx(alone)


@given(references, st.lists(words, max_size=3), st.lists(words, max_size=3))
def test_similarities_are_the_scores_with_each_reference_on_its_own(
    corpus: list[list[list[str]]], candidates: list[list[str]], captions: list[list[str]]
) -> None:
    scorer = CiderD(corpus)
    expected = [scorer.score([candidate], [[caption]])[0] for candidate in candidates for caption in captions]
    assert scorer.similarities(candidates, captions).flatten().tolist() == pytest.approx(expected)


def test_cider_takes_document_frequencies_from_the_references_that_it_scores() -> None:
    corpus = [[list("abc")], [list("ade")]]
    candidates = [list("abx"), list("yde")]
    per_image = CiderD(corpus).score(candidates, corpus)
    for name, figure in cider(candidates, corpus).items():
        assert figure.per_image.tolist() == per_image and figure.corpus == sum(per_image) / 2, name


def test_scores_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = [[["a", "red", word], ["a", word]] for word in ("dog", "cat", "dog", "boat", "man")]
    candidates = [["a", "red", "dog"], ["cat"], ["a", "dog"], ["red"], []]
    at_once = CiderD(corpus).score(candidates, corpus)
    monkeypatch.setattr("myllm.metrics.cider._BLOCK", 2)
    assert CiderD(corpus).score(candidates, corpus) == pytest.approx(at_once, abs=1e-12)
