"""Groups of beams and required words, over a toy language whose sentences can all be written out.

Every test runs with logits of numpy and of torch.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from myllm.config import DecodeConfig
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.engine import Hypothesis, SearchRequest
from myllm.decoding.search import generate

END, WORDS = 4, [b" x", b" y", b" z", b" w", b""]
SPELLING = {b"x": [0], b"y z": [1, 2], b"w": [3]}
VOCABULARY = Vocabulary(WORDS, lambda text: SPELLING[text.strip().encode()], END)
Sentence = tuple[int, ...]


class Bigrams:
    """A language in which a token depends on the one before it and its position; its state is each caption so far."""

    to_library: ClassVar[Callable[[NDArray[Any]], Any]]

    def __init__(self, seed: int, scale: float) -> None:
        # (position, the token before, the next): without the position, sentences of the same pairs would tie
        table = scale * np.random.default_rng(seed).standard_normal((9, len(WORDS), len(WORDS)))
        self.table = table.astype(np.float32)

    def start(self, images: int) -> NDArray[np.int64]:
        return np.zeros((images, 0), np.int64)

    def step(self, tokens: NDArray[np.int64], state: NDArray[np.int64]) -> tuple[Any, NDArray[np.int64]]:
        state = np.concatenate([state, tokens.reshape(-1, tokens.shape[-1])], axis=1)
        logits = self.table[state.shape[1] - 1, state[:, -1]].reshape(*tokens.shape[:2], -1)
        return type(self).to_library(logits), state

    def reorder(self, state: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return state[rows.ravel()]

    def release(self, state: object) -> None:
        pass

    def search(self, images: int = 1, **decode: Any) -> list[list[Hypothesis]]:
        return generate(SearchRequest(self, images, images, END, DecodeConfig(**decode), vocabulary=VOCABULARY))

    def logprobs(self, position: int, last: int) -> list[float]:
        logits = self.table[position, last].astype(np.float64)
        return list(logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())

    def logprob(self, sentence: Sentence) -> float:
        pairs = enumerate(itertools.pairwise((END, *sentence)))
        return math.fsum(self.logprobs(position, last)[token] for position, (last, token) in pairs)


LANGUAGES = st.builds(Bigrams, st.integers(0, 2**32), st.sampled_from([0.3, 1.0, 3.0]))


@pytest.fixture(scope="module", params=[np.asarray, torch.from_numpy], ids=["numpy", "torch"], autouse=True)
def library(request: pytest.FixtureRequest) -> Iterator[None]:
    Bigrams.to_library = request.param
    yield


def sentence_of(hypothesis: Hypothesis) -> Sentence:
    return (*hypothesis.tokens, END) if hypothesis.ended_by == "end" else tuple(hypothesis.tokens)


def diverse_beam_search(toy: Bigrams, groups: int, width: int, penalty: float, longest: int) -> Counter[Sentence]:
    """Diverse beam search written out with lists: the sentences of all groups, ranked by plain log-probability.

    A group whose search is over says nothing, so that later groups are not penalized for it.
    """
    unfinished: list[list[tuple[float, Sentence]]] = [[(0.0, ())] for _ in range(groups)]
    ended: list[list[tuple[float, Sentence]]] = [[] for _ in range(groups)]
    for position in range(longest):
        used: Counter[int] = Counter()
        for group in range(groups):
            grown = sorted(
                (
                    (total + logprob - penalty * used[token], (*sentence, token))
                    for total, sentence in unfinished[group]
                    for token, logprob in enumerate(toy.logprobs(position, (END, *sentence)[-1]))
                ),
                reverse=True,
            )[: 2 * width]
            first = [candidate for candidate in grown[:width] if candidate[1][-1] == END]
            ended[group] = sorted([*ended[group], *first], reverse=True)[:width]
            unfinished[group] = [candidate for candidate in grown if candidate[1][-1] != END][:width]
            best = max((total for total, _ in unfinished[group]), default=-math.inf)
            if len(ended[group]) == width and ended[group][-1][0] >= best:
                unfinished[group] = []
            used.update(sentence[-1] for _, sentence in unfinished[group])
    together = [sorted([*ended[group], *unfinished[group]], reverse=True)[:width] for group in range(groups)]
    return Counter(sentence for group in together for _, sentence in group)


@given(
    toy=LANGUAGES,
    groups=st.integers(2, 3),
    width=st.integers(1, 3),
    penalty=st.sampled_from([0.1, 0.7, 5.0]),
    end=st.sampled_from([-50.0, 0.0, 2.0]),
)
def test_beam_groups_are_diverse_beam_search(
    toy: Bigrams, groups: int, width: int, penalty: float, end: float
) -> None:
    toy.table[..., END] += end  # never, sometimes, often: groups finish at different times
    [hypotheses] = toy.search(
        beams=groups * width, num_beam_groups=groups, diversity_penalty=penalty, length_penalty=0.0, max_new_tokens=4
    )
    assert Counter(map(sentence_of, hypotheses)) == diverse_beam_search(toy, groups, width, penalty, 4)


def test_a_beam_group_whose_search_is_over_does_not_penalize_later_groups() -> None:
    toy = Bigrams(0, 0.0)
    toy.table[0, END] = [1.0, 0.5, -9.0, -9.0, -9.0]  # the first group begins with 0, the second with 1
    toy.table[1, 0] = [-9.0, -9.0, -9.0, 0.0, 5.0]  # the first ends; its next best token is 3
    toy.table[1:, 1:] = [-9.0, -9.0, 0.0, 0.3, -9.0]  # which the second finds likeliest from here on
    [hypotheses] = toy.search(
        beams=2, num_beam_groups=2, diversity_penalty=1.0, max_new_tokens=3, length_penalty=0.0, early_stopping=True
    )
    assert {sentence_of(hypothesis) for hypothesis in hypotheses} == {(0, END), (1, 3, 3)}


@given(toy=LANGUAGES)
def test_beam_groups_of_one_beam_under_a_large_penalty_begin_differently(toy: Bigrams) -> None:
    [hypotheses] = toy.search(beams=4, num_beam_groups=4, diversity_penalty=50.0, max_new_tokens=4, min_new_tokens=1)
    assert len({hypothesis.tokens[0] for hypothesis in hypotheses}) == 4


@given(toy=LANGUAGES, images=st.integers(1, 3))
def test_beam_groups_of_a_batch_are_those_of_each_image_alone(toy: Bigrams, images: int) -> None:
    decode = {"beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "max_new_tokens": 5}
    assert toy.search(images, **decode) == toy.search(1, **decode) * images


def has_required_words(sentence: Sentence) -> bool:
    """Whether it contains both x and y z."""
    return 0 in sentence and any(pair == (1, 2) for pair in itertools.pairwise(sentence))


@pytest.mark.slow
@given(toy=LANGUAGES, length_penalty=st.sampled_from([0.0, 1.0]))
def test_force_words_with_every_beam_kept_finds_the_best_sentence_that_has_them(
    toy: Bigrams, length_penalty: float
) -> None:
    [hypotheses] = toy.search(
        beams=400, force_words=("x", "y z"), max_new_tokens=5, length_penalty=length_penalty, early_stopping="never"
    )
    words = range(END)
    ended = [(*start, END) for length in range(5) for start in itertools.product(words, repeat=length)]
    everything = filter(has_required_words, [*ended, *itertools.product(words, repeat=5)])
    best = max(toy.logprob(sentence) / len(sentence) ** length_penalty for sentence in everything)
    assert has_required_words(sentence_of(hypotheses[0])) and not hypotheses[0].missing
    assert hypotheses[0].rank == pytest.approx(best, abs=1e-4)


@given(toy=LANGUAGES, beams=st.integers(2, 5), images=st.integers(1, 2))
def test_force_words_are_all_used_by_few_beams_if_there_is_room(toy: Bigrams, beams: int, images: int) -> None:
    for hypotheses in toy.search(images, beams=beams, force_words=("x", "y z", "w"), max_new_tokens=8):
        best = hypotheses[0]
        assert has_required_words(sentence_of(best)) and 3 in best.tokens and best.missing == ()
        assert all(hypothesis.ended_by != "end" or not hypothesis.missing for hypothesis in hypotheses)


def test_force_words_without_room_are_reported_as_missing() -> None:
    [hypotheses] = Bigrams(0, 1.0).search(beams=3, force_words=("x", "y z"), max_new_tokens=2)
    missing = [len(hypothesis.missing) for hypothesis in hypotheses]
    assert missing == sorted(missing) and missing[0] == 1 and hypotheses[0].ended_by == "length"


@given(toy=LANGUAGES)
def test_force_words_that_would_come_anyway_change_nothing(toy: Bigrams) -> None:
    toy.table[..., 0] = 9.0
    toy.table[:, 0, END] = 12.0
    plain, forced = (toy.search(beams=3, max_new_tokens=5, **words) for words in ({}, {"force_words": ("x",)}))
    assert sentence_of(forced[0][0]) == sentence_of(plain[0][0]) == (0, END)


def test_a_beam_for_which_the_rules_allow_no_token_is_dropped() -> None:
    toy = Bigrams(3, 0.0)  # all words are equally likely, so both beginnings are kept
    [hypotheses] = toy.search(beams=3, regex="( x| y y y y)", min_new_tokens=3, max_new_tokens=6)
    assert list(map(sentence_of, hypotheses)) == [(1, 1, 1, 1, END)]


def test_an_image_for_which_the_rules_allow_no_token_names_them() -> None:
    [[hypothesis]] = Bigrams(3, 1.0).search(beams=2, no_repeat_ngram_size=1, min_new_tokens=5, max_new_tokens=6)
    assert hypothesis.ended_by == "failed"
    assert "no_repeat_ngram_size 1, min_new_tokens 5: no token is allowed at position 5" in hypothesis.error


def test_consensus_of_the_single_caption_that_the_rules_allow_is_that_caption() -> None:
    [hypotheses] = Bigrams(3, 1.0).search(beams=3, regex=" x y", rank_by="consensus", max_new_tokens=6)
    assert list(map(sentence_of, hypotheses)) == [(0, 1, END)]
