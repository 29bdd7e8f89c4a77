"""Sampling: what is drawn, how often, and that it depends on nothing but the seed."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from myllm.config import DecodeConfig
from myllm.decoding.arrays import IMPOSSIBLE, to_numpy
from myllm.decoding.engine import Hypothesis, SearchRequest
from myllm.decoding.sampling import draw, draw_seeds, draw_uniforms
from myllm.decoding.search import generate

VOCAB, END = 5, 4
Sentence = tuple[int, ...]
ToLibrary = Callable[[NDArray[Any]], Any]


@pytest.fixture(scope="module", params=[np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def to_library(request: pytest.FixtureRequest) -> ToLibrary:
    return request.param


class Bigrams:
    """A language in which a token depends on the one before it, and on the image."""

    def __init__(self, table: NDArray[np.float32], to_library: ToLibrary) -> None:
        """table: (B, VOCAB, VOCAB) logits by image, last token, next token."""
        self.table, self.to_library = table, to_library

    def start(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        return images

    def step(self, tokens: NDArray[np.int64], state: NDArray[np.int64]) -> tuple[Any, NDArray[np.int64]]:
        return self.to_library(self.table[state.reshape(tokens.shape[:2]), tokens[..., -1]]), state

    def reorder(self, state: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return state[rows.ravel()]

    def release(self, state: object) -> None:
        pass

    def sample(self, seeds: list[int], **decode: Any) -> list[list[Hypothesis]]:
        images, config = np.arange(len(self.table)), DecodeConfig(do_sample=True, **decode)
        return generate(SearchRequest(self, images, len(images), END, config, seeds=seeds))

    def logprobs(self, image: int, sentence: Sentence) -> list[float]:
        return [
            math.log(softmax(self.table[image, last])[token])
            for last, token in zip((END, *sentence), sentence, strict=False)
        ]


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def random_table(images: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((images, VOCAB, VOCAB)).astype(np.float32)


def sentence_of(hypothesis: Hypothesis) -> Sentence:
    return (*hypothesis.tokens, END) if hypothesis.ended_by == "end" else tuple(hypothesis.tokens)


@given(seed=st.integers(0, 2**62), captions=st.integers(1, 4), tokens=st.integers(1, 40))
def test_uniform_numbers_are_those_of_torchs_generator(seed: int, captions: int, tokens: int) -> None:
    expected = torch.rand(captions, tokens, generator=torch.Generator().manual_seed(seed))
    np.testing.assert_array_equal(draw_uniforms(seed, (captions, tokens)), expected.numpy())


@given(seed=st.integers(0, 2**62), counts=st.lists(st.integers(1, 40), max_size=3))
def test_seeds_are_those_of_torchs_generator_in_batches_of_any_size(seed: int, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    expected = [value for count in counts for value in torch.randint(2**62, (count,), generator=generator).tolist()]
    assert draw_seeds(seed, sum(counts)) == expected


def test_a_seed_draws_the_same_captions_again(to_library: ToLibrary) -> None:
    language = Bigrams(np.zeros((4, VOCAB, VOCAB), np.float32), to_library)
    first, again, other = (
        [sentence_of(hypothesis) for [hypothesis] in language.sample(seeds, max_new_tokens=8)]
        for seeds in ([0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7])
    )
    assert first == again != other


@pytest.mark.parametrize("samples", [1, 3])
def test_what_an_image_draws_does_not_depend_on_the_others(to_library: ToLibrary, samples: int) -> None:
    table, seeds = random_table(4, seed=0), [3, 1, 4, 1]
    options = {"max_new_tokens": 8, "num_return_sequences": samples}
    together = Bigrams(table, to_library).sample(seeds, **options)
    alone = [
        Bigrams(table[[image]], to_library).sample([seed], **options)[0] for image, seed in enumerate(seeds)
    ]
    assert [list(map(sentence_of, image)) for image in together] == [list(map(sentence_of, image)) for image in alone]


def test_log_probabilities_of_samples_are_those_without_temperature(to_library: ToLibrary) -> None:
    language = Bigrams(random_table(1, seed=0), to_library)
    [[hypothesis]] = language.sample([3], temperature=0.5, max_new_tokens=8)
    assert hypothesis.logprobs == pytest.approx(language.logprobs(0, sentence_of(hypothesis)), abs=1e-4)


def test_tokens_are_drawn_as_often_as_they_are_likely(to_library: ToLibrary) -> None:
    probabilities, count = np.array([0.0, 0.6, 0.3, 0.0, 0.1]), 50_000
    with np.errstate(divide="ignore"):
        scores = np.broadcast_to(np.log(probabilities), (count, 1, 5)).astype(np.float32)
    tokens = to_numpy(draw(to_library(scores), to_library(draw_uniforms(0, (count, 1)))))
    np.testing.assert_allclose(np.bincount(tokens.ravel(), minlength=5) / count, probabilities, rtol=0, atol=0.01)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_impossible_tokens_are_never_drawn(to_library: ToLibrary, uniform: float) -> None:
    scores = to_library(np.array([[[IMPOSSIBLE, 0.3, 0.1, IMPOSSIBLE]]], np.float32))
    [[token]] = draw(scores, to_library(np.array([[uniform]], np.float32))).tolist()
    assert token in (1, 2)


def sentence_probabilities(
    table: NDArray[np.float32], longest: int, temperature: float, top_k: int
) -> dict[Sentence, float]:
    """Probability of every sentence of at most `longest` tokens, worked out by hand."""

    def following(last: int) -> NDArray[np.float64]:
        weights = softmax(table[last] / temperature)
        kept = np.where(weights >= np.sort(weights)[-top_k], weights, 0.0)
        return kept / kept.sum()

    finished, unfinished = dict[Sentence, float](), {(): 1.0}
    for _ in range(longest):
        grown = {
            (*sentence, token): probability * float(chance)
            for sentence, probability in unfinished.items()
            for token, chance in enumerate(following((END, *sentence)[-1]))
        }
        finished |= {sentence: probability for sentence, probability in grown.items() if sentence[-1] == END}
        unfinished = {sentence: probability for sentence, probability in grown.items() if sentence[-1] != END}
    return finished | unfinished


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 5), (0.7, 5), (1.5, 3)])
def test_sentences_are_drawn_as_often_as_they_are_likely(
    to_library: ToLibrary, temperature: float, top_k: int
) -> None:
    table, images, samples = random_table(1, seed=5), 20, 1000
    options = {"temperature": temperature, "top_k": top_k % 5, "max_new_tokens": 3, "num_return_sequences": samples}
    language = Bigrams(np.tile(table, (images, 1, 1)), to_library)
    results = language.sample([*range(images)], **options)
    drawn = Counter(sentence_of(hypothesis) for hypotheses in results for hypothesis in hypotheses)
    expected, count = sentence_probabilities(table[0], 3, temperature, top_k), images * samples
    assert sum(expected.values()) == pytest.approx(1) and all(expected[sentence] for sentence in drawn)
    # rare sentences are counted together, as the chi-square distribution requires
    frequent = [sentence for sentence, probability in expected.items() if probability * count >= 5]
    pairs = [(drawn[sentence], expected[sentence] * count) for sentence in frequent]
    rest = (count - sum(number for number, _ in pairs), count - sum(number for _, number in pairs))
    statistic = sum((number - wanted) ** 2 / wanted for number, wanted in [*pairs, rest] if wanted > 1)
    assert statistic < len(pairs) + 4 * math.sqrt(2 * len(pairs))


@given(seed=st.integers(0, 2**32), samples=st.integers(1, 4), longest=st.integers(1, 6))
def test_samples_of_an_image_are_best_first(to_library: ToLibrary, seed: int, samples: int, longest: int) -> None:
    language = Bigrams(random_table(3, seed), to_library)
    for image, hypotheses in enumerate(
        language.sample([seed, 1, 2], num_return_sequences=samples, max_new_tokens=longest)
    ):
        assert len(hypotheses) == samples
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        for hypothesis in hypotheses:
            assert hypothesis.logprobs == pytest.approx(language.logprobs(image, sentence_of(hypothesis)), abs=1e-4)
