"""Groups of beams and required words, over a toy language whose sentences can all be written out."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from myllm.config import DecodeConfig
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.engine import Hypothesis, SearchRequest
from myllm.decoding.generate import generate
from myllm.errors import ConfigError

END, WORDS = 4, [b" x", b" y", b" z", b" w", b""]
SPELLING = {b"x": [0], b"y z": [1, 2], b"w": [3]}
VOCABULARY = Vocabulary(WORDS, lambda text: SPELLING[text.strip().encode()], END)
Sentence = tuple[int, ...]


class Bigrams:
    """A language in which a token depends on the one before it and its place; its state is what each caption said."""

    def __init__(self, seed: int, scale: float) -> None:
        # (place, the token before, the next): without the place, sentences of the same pairs would be equally likely
        self.table = scale * torch.randn(9, len(WORDS), len(WORDS), generator=torch.Generator().manual_seed(seed))

    def start(self, images: int) -> Tensor:
        return torch.zeros(images, 0, dtype=torch.int64)

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.cat([state, tokens.flatten(0, 1)], dim=1)
        return self.table[state.shape[1] - 1, state[:, -1]].unflatten(0, tokens.shape[:2]), state

    def reorder(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[rows.flatten()]

    def search(self, images: int = 1, **decode: object) -> list[list[Hypothesis]]:
        config = DecodeConfig(**decode)  # type: ignore[arg-type]
        return generate(SearchRequest(self, images, images, END, config, vocabulary=VOCABULARY))

    def logprob(self, sentence: Sentence) -> float:
        told = self.table.double().log_softmax(-1)
        return math.fsum(float(told[place, *pair]) for place, pair in enumerate(itertools.pairwise((END, *sentence))))


LANGUAGES = st.builds(Bigrams, st.integers(0, 2**32), st.sampled_from([0.3, 1.0, 3.0]))


def said(hypothesis: Hypothesis) -> Sentence:
    return (*hypothesis.tokens, END) if hypothesis.ended_by == "end" else tuple(hypothesis.tokens)


def diverse(toy: Bigrams, groups: int, width: int, penalty: float, longest: int) -> list[list[Sentence]]:
    """Diverse beam search written out with lists: the open beams of each group after `longest` steps, none ending."""
    beams: list[list[tuple[float, Sentence]]] = [[(0.0, ())] for _ in range(groups)]
    told = toy.table.double()
    told[..., END] = -math.inf
    told = told.log_softmax(-1)
    for place in range(longest):
        taken: Counter[int] = Counter()
        for group in range(groups):
            grown = [
                (total + float(told[place, (END, *one)[-1], token]) - penalty * taken[token], (*one, token))
                for total, one in beams[group] for token in range(END)
            ]
            beams[group] = sorted(grown, reverse=True)[:width]
            taken.update(one[-1] for _, one in beams[group])
    return [[one for _, one in sorted(group, reverse=True)] for group in beams]


@given(toy=LANGUAGES, groups=st.integers(2, 3), width=st.integers(1, 3), penalty=st.sampled_from([0.1, 0.7, 5.0]))
def test_groups_are_diverse_beam_search(toy: Bigrams, groups: int, width: int, penalty: float) -> None:
    decode = {"beams": groups * width, "num_beam_groups": groups, "diversity_penalty": penalty, "length_penalty": 0.0}
    toy.table[..., END] = -math.inf
    [found] = toy.search(max_new_tokens=4, **decode)
    expected = Counter(one for group in diverse(toy, groups, width, penalty, 4) for one in group)
    assert Counter(tuple(one.tokens) for one in found) == expected


@given(toy=LANGUAGES)
def test_groups_of_one_beam_under_a_large_penalty_begin_differently(toy: Bigrams) -> None:
    [found] = toy.search(beams=4, num_beam_groups=4, diversity_penalty=50.0, max_new_tokens=4, min_new_tokens=1)
    assert len({one.tokens[0] for one in found}) == 4


@given(toy=LANGUAGES, images=st.integers(1, 3))
def test_groups_of_a_batch_are_those_of_each_image_alone(toy: Bigrams, images: int) -> None:
    decode = {"beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "max_new_tokens": 5}
    assert toy.search(images, **decode) == toy.search(1, **decode) * images


def holds(sentence: Sentence) -> bool:
    """Whether it says both x and y z."""
    return 0 in sentence and any(pair == (1, 2) for pair in itertools.pairwise(sentence))


@given(toy=LANGUAGES, length_penalty=st.sampled_from([0.0, 1.0]))
def test_with_every_beam_kept_the_best_sentence_with_the_required_words_is_found(
    toy: Bigrams, length_penalty: float
) -> None:
    [found] = toy.search(
        beams=400, force_words=("x", "y z"), max_new_tokens=5, length_penalty=length_penalty, early_stopping="never"
    )
    words = range(END)
    ended = [(*one, END) for length in range(5) for one in itertools.product(words, repeat=length)]
    everything = [one for one in [*ended, *itertools.product(words, repeat=5)] if holds(one)]
    best = max(toy.logprob(one) / len(one) ** length_penalty for one in everything)
    assert holds(said(found[0])) and not found[0].missing
    assert found[0].rank == pytest.approx(best, abs=1e-4)


@given(toy=LANGUAGES, beams=st.integers(2, 5), images=st.integers(1, 2))
def test_few_beams_say_every_required_word_where_there_is_room(toy: Bigrams, beams: int, images: int) -> None:
    for found in toy.search(images, beams=beams, force_words=("x", "y z", "w"), max_new_tokens=8):
        assert holds(said(found[0])) and 3 in found[0].tokens and found[0].missing == ()
        assert all(one.ended_by != "end" or not one.missing for one in found)


def test_required_words_without_room_are_told_as_missing() -> None:
    [found] = Bigrams(0, 1.0).search(beams=3, force_words=("x", "y z"), max_new_tokens=2)
    assert all(one.missing for one in found) and found[0].ended_by == "length"
    assert [len(one.missing) for one in found] == sorted(len(one.missing) for one in found)
    assert len(found[0].missing) == 1


@given(toy=LANGUAGES)
def test_words_that_would_be_said_anyway_change_nothing(toy: Bigrams) -> None:
    toy.table[..., 0] = 9.0
    toy.table[:, 0, END] = 12.0
    plain, forced = (toy.search(beams=3, max_new_tokens=5, **words) for words in ({}, {"force_words": ("x",)}))
    assert said(forced[0][0]) == said(plain[0][0]) == (0, END)


def test_a_beam_with_nothing_left_dies_alone() -> None:
    toy = Bigrams(3, 0.0)  # all words alike, so both beginnings are kept
    [found] = toy.search(beams=3, regex="( x| y y y y)", min_new_tokens=3, max_new_tokens=6)
    assert [said(one) for one in found] == [(1, 1, 1, 1, END)]


def test_an_image_with_nothing_left_names_the_rules() -> None:
    with pytest.raises(ConfigError, match="no_repeat_ngram_size 1, min_new_tokens 5 leave nothing .* token 5"):
        Bigrams(3, 1.0).search(beams=2, no_repeat_ngram_size=1, min_new_tokens=5, max_new_tokens=6)
