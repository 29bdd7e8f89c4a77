"""The search over a toy language of few words, whose best sentences can be found by writing all of them out.

Every test runs with logits of numpy and of torch.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from myllm.config import DecodeConfig
from myllm.decoding.beam import Beams
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.engine import Hypothesis, SearchRequest, run_search
from myllm.decoding.retrieval import CaptionIndex, Neighbours
from myllm.decoding.sampling import GreedyOrSampling
from myllm.decoding.search import generate
from myllm.errors import MyLLMError

VOCAB, END = 5, 4
PIECES = [b"a", b"b", b"ab", b" ", b""]
LETTERS = Vocabulary(PIECES, lambda text: [3] * (text[0] == " ") + [PIECES.index(text.strip().encode())], END)
Sentence = tuple[int, ...]
LIBRARIES = {"numpy": np.asarray, "torch": torch.from_numpy}


@dataclass
class Toy:
    """A language in which a token depends on the two before it and on the image, so that a wrong reorder changes it."""

    table: NDArray[np.float32]
    """(B, VOCAB, VOCAB, VOCAB) logits by image, the token before the last, the last, the next."""
    steps: int = 0
    rows: int = 0
    released: list[Any] = field(default_factory=list)
    to_library: ClassVar[Callable[[NDArray[Any]], Any]] = np.asarray

    def start(self, images: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """For each caption, its image and the token before its last."""
        return images, np.full(len(images), END)

    def step(self, tokens: NDArray[np.int64], state: Any) -> tuple[Any, Any]:
        self.steps += 1
        self.rows += tokens[..., 0].size
        image, before = (values.reshape(tokens.shape[:2]) for values in state)
        return type(self).to_library(self.table[image, before, tokens[..., 0]]), (state[0], tokens.ravel())

    def reorder(self, state: Any, rows: NDArray[np.int64]) -> Any:
        # the search reorders the newest tokens itself; the ones before them are moved here
        return state[0][rows.ravel()], state[1][rows.ravel()]

    def release(self, state: Any) -> None:
        self.released.append(state)

    def logprobs(self, image: int, sentence: Sentence) -> list[float]:
        """Log-probability of each token by hand; `sentence` includes its end token if it has one."""
        before, last = (END, END, *sentence), (END, *sentence)
        return [
            float(log_softmax(self.table[image, first, second])[third])
            for first, second, third in zip(before, last, sentence, strict=False)
        ]

    def request(self, seeds: Sequence[int] = range(30), **decode: Any) -> SearchRequest:
        images = np.arange(len(self.table))
        config = DecodeConfig(**decode)
        return SearchRequest(
            self, images, len(images), END, config, vocabulary=LETTERS, blind=images[::-1], seeds=seeds[: len(images)]
        )

    def search(self, seeds: Sequence[int] = range(30), **decode: Any) -> list[list[Hypothesis]]:
        return generate(self.request(seeds, **decode))


@contextmanager
def logits_in(library: str) -> Iterator[None]:
    earlier, Toy.to_library = Toy.to_library, LIBRARIES[library]
    yield
    Toy.to_library = earlier


@pytest.fixture(scope="module", params=list(LIBRARIES), autouse=True)
def library(request: pytest.FixtureRequest) -> Iterator[None]:
    with logits_in(request.param):
        yield


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return np.log(weights / weights.sum())


def random_table(images: int, seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).standard_normal((images, VOCAB, VOCAB, VOCAB))).astype(np.float32)


def toys(images: int = 1) -> st.SearchStrategy[Toy]:
    """Languages from nearly certain to nearly uniform."""

    tables = st.builds(random_table, st.just(images), st.integers(0, 2**32), st.sampled_from([0.1, 1.0, 3.0]))
    return st.builds(Toy, tables)


def sentences(longest: int) -> list[Sentence]:
    """Every sentence of at most `longest` tokens: ended, or cut at that length."""
    words = [word for word in range(VOCAB) if word != END]
    ended = [(*start, END) for length in range(longest) for start in itertools.product(words, repeat=length)]
    return [*ended, *itertools.product(words, repeat=longest)]


def sentence_of(hypothesis: Hypothesis) -> Sentence:
    return (*hypothesis.tokens, END) if hypothesis.ended_by == "end" else tuple(hypothesis.tokens)


SEARCHES: list[dict[str, Any]] = [
    {},
    {"beams": 3},
    {"beams": 4, "length_penalty": 2.0, "early_stopping": "never"},
    {"beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    {"beams": 3, "rank_by": "consensus"},
    {"beams": 3, "force_words": ("ab",)},
    {"do_sample": True},
    {"do_sample": True, "num_return_sequences": 3, "temperature": 1.5},
    {"do_sample": True, "top_k": 2},
    {"do_sample": True, "top_p": 0.7},
    {"do_sample": True, "min_p": 0.2},
    {"do_sample": True, "typical_p": 0.6},
    {"contrastive_weight": 0.7},
    {"contrastive_weight": 0.7, "beams": 3},
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2, "beams": 2},
    {"min_new_tokens": 4},
    {"bad_words": ("b",)},
    {"only_words": ("a", "ab"), "beams": 2},
    {"regex": "(a|b) ab"},
    {"stop_strings": ("ab",), "beams": 2},
]


@pytest.mark.parametrize("options", SEARCHES, ids=str)
@settings(max_examples=30)
@given(toy=toys(images=3))
def test_numpy_and_torch_find_the_same_captions(options: dict[str, Any], toy: Toy) -> None:
    results = []
    for library in LIBRARIES:
        with logits_in(library):
            results.append(toy.search(max_new_tokens=6, **options))
    for first, second in zip(*map(itertools.chain.from_iterable, results), strict=True):
        assert (first.tokens, first.ended_by, first.missing) == (second.tokens, second.ended_by, second.missing)
        assert (first.rank, *first.logprobs) == pytest.approx((second.rank, *second.logprobs), abs=1e-5)


@given(toy=toys(images=2), length_penalty=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_beam_search_with_every_beam_kept_finds_the_best_sentences(toy: Toy, length_penalty: float) -> None:
    results = toy.search(beams=64, max_new_tokens=3, length_penalty=length_penalty)
    for image, hypotheses in enumerate(results):
        ranks = {
            sentence: math.fsum(toy.logprobs(image, sentence)) / len(sentence) ** length_penalty
            for sentence in sentences(3)
        }
        best = sorted(ranks.values(), reverse=True)[:64]
        assert [hypothesis.rank for hypothesis in hypotheses] == pytest.approx(best, abs=1e-4)
        assert [ranks[sentence_of(hypothesis)] for hypothesis in hypotheses] == pytest.approx(best, abs=1e-4)


@given(toy=toys(images=2), beams=st.integers(2, 7), longest=st.integers(1, 6), length_penalty=st.floats(0, 2))
def test_beams_are_all_different_and_best_first(toy: Toy, beams: int, longest: int, length_penalty: float) -> None:
    for hypotheses in toy.search(beams=beams, max_new_tokens=longest, length_penalty=length_penalty):
        assert len(set(map(sentence_of, hypotheses))) == len(hypotheses) >= min(beams, VOCAB)
        ranks = [hypothesis.rank for hypothesis in hypotheses]
        assert ranks == sorted(ranks, reverse=True)
        for hypothesis in hypotheses:
            length = len(sentence_of(hypothesis))
            assert hypothesis.rank == pytest.approx(sum(hypothesis.logprobs) / length**length_penalty, abs=1e-4)


@given(toy=toys(images=2), beams=st.integers(1, 4), longest=st.integers(1, 6))
def test_log_probabilities_are_the_models_and_the_score_is_their_mean(toy: Toy, beams: int, longest: int) -> None:
    for image, hypotheses in enumerate(toy.search(beams=beams, max_new_tokens=longest)):
        for hypothesis in hypotheses:
            expected = toy.logprobs(image, sentence_of(hypothesis))
            assert hypothesis.logprobs == pytest.approx(expected, abs=1e-4)
            assert hypothesis.score == pytest.approx(sum(expected) / len(expected), abs=1e-4)


@given(toy=toys(images=3), longest=st.integers(1, 8))
def test_greedy_search_takes_the_likeliest_token_each_time(toy: Toy, longest: int) -> None:
    for image, [hypothesis] in enumerate(toy.search(max_new_tokens=longest)):
        expected: Sentence = ()
        while len(expected) < longest and expected[-1:] != (END,):
            sentence = expected
            expected += (max(range(VOCAB), key=lambda token: toy.logprobs(image, (*sentence, token))[-1]),)
        assert sentence_of(hypothesis) == expected
        assert (hypothesis.ended_by == "end") == (expected[-1] == END)


@given(toy=toys(images=4), beams=st.integers(1, 4), length_penalty=st.sampled_from([0.0, 1.0, 2.0]))
def test_a_batch_finds_the_captions_of_each_image_alone(toy: Toy, beams: int, length_penalty: float) -> None:
    decode = {"beams": beams, "max_new_tokens": 6, "length_penalty": length_penalty}
    together = toy.search(**decode)
    alone = [Toy(table[None]).search(**decode)[0] for table in toy.table]
    assert [list(map(sentence_of, image)) for image in together] == [list(map(sentence_of, image)) for image in alone]


@given(toy=toys(images=2), beams=st.integers(1, 3), longest=st.integers(1, 5))
def test_no_caption_is_longer_than_max_new_tokens(toy: Toy, beams: int, longest: int) -> None:
    hypotheses = [*itertools.chain.from_iterable(toy.search(beams=beams, max_new_tokens=longest))]
    assert toy.steps <= longest
    assert all(len(sentence_of(hypothesis)) <= longest and END not in hypothesis.tokens for hypothesis in hypotheses)
    assert all(len(hypothesis.tokens) == longest for hypothesis in hypotheses if hypothesis.ended_by == "length")


@given(toy=toys(images=5), beams=st.sampled_from([1, 3]))
def test_finished_images_cost_no_steps(toy: Toy, beams: int) -> None:
    toy.search(beams=beams, max_new_tokens=8)
    needed = 0
    for table in toy.table:
        alone = Toy(table[None])
        alone.search(beams=beams, max_new_tokens=8)
        needed += alone.rows
    assert toy.rows == needed


@pytest.mark.parametrize("options", [{"beams": 4}, {"do_sample": True, "num_return_sequences": 4}])
def test_the_first_step_computes_one_caption_for_each_image(options: dict[str, Any]) -> None:
    toy = Toy(random_table(3, seed=0))
    toy.search(max_new_tokens=1, **options)
    assert toy.rows == 3


@given(toy=toys(images=3), beams=st.integers(2, 4), length_penalty=st.sampled_from([-1.0, 0.0, 1.0, 2.0]))
def test_early_stopping_never_finds_captions_as_good_as_true(toy: Toy, beams: int, length_penalty: float) -> None:
    decode = {"beams": beams, "max_new_tokens": 6, "length_penalty": length_penalty}
    early, never = (toy.search(**decode, early_stopping=value) for value in (True, "never"))
    for first, second in zip(early, never, strict=True):
        assert second[0].rank >= first[0].rank - 1e-5


@pytest.mark.parametrize("options", [{}, {"beams": 2}, {"do_sample": True}, {"beams": 2, "force_words": ("a",)}])
@pytest.mark.parametrize("fault", [math.nan, -math.inf])
def test_logits_that_are_nan_or_all_minus_infinity_name_the_token(fault: float, options: dict[str, Any]) -> None:
    table = np.zeros((1, VOCAB, VOCAB, VOCAB), np.float32)
    table[0, END, END, 2] = 99.0
    table[0, END, 2, 0 if math.isnan(fault) else slice(None)] = fault
    # both beams are ready to continue with token 2
    with pytest.raises(MyLLMError, match="logits for token 2 are NaN or all minus infinity"):
        Toy(table).search(**options)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_search_stops_when_all_captions_have_ended(beams: int) -> None:
    table = np.full((2, VOCAB, VOCAB, VOCAB), -20.0, np.float32)
    table[..., END] = 0.0
    toy = Toy(table)
    assert all(hypotheses[0].tokens == [] for hypotheses in toy.search(beams=beams, max_new_tokens=50))
    assert toy.steps <= 3


def test_fewer_captions_than_beams_are_the_first_of_all() -> None:
    toy = Toy(random_table(2, seed=0))
    few, all_beams = (toy.search(beams=4, max_new_tokens=5, num_return_sequences=count) for count in (2, None))
    assert few == [hypotheses[:2] for hypotheses in all_beams]


@given(toy=toys(images=2), weight=st.sampled_from([0.5, 1.0, 4.0]))
def test_contrast_chooses_what_only_the_picture_explains(toy: Toy, weight: float) -> None:
    config = DecodeConfig(max_new_tokens=1, contrastive_weight=weight)
    [[hypothesis]] = generate(SearchRequest(toy, np.array([0]), 1, END, config, blind=np.array([1])))
    logprobs, blind = map(log_softmax, toy.table[:, END, END])
    plausible = [token for token in range(VOCAB) if logprobs[token] >= logprobs.max() + math.log(0.1)]
    gains = {token: float((1 + weight) * logprobs[token] - weight * blind[token]) for token in plausible}
    chosen = sentence_of(hypothesis)[0]
    assert chosen in gains and gains[chosen] == pytest.approx(max(gains.values()), abs=1e-4)
    assert hypothesis.logprobs == pytest.approx([float(logprobs[chosen])], abs=1e-4)


@given(toy=toys(images=2), beams=st.sampled_from([1, 3]))
def test_a_caption_ends_with_the_first_stop_string(toy: Toy, beams: int) -> None:
    toy.table[..., END] -= 5.0
    for hypotheses in toy.search(beams=beams, max_new_tokens=8, stop_strings=("ba", "b b")):
        for hypothesis in hypotheses:
            text, before = (LETTERS.text(tokens).decode() for tokens in (hypothesis.tokens, hypothesis.tokens[:-1]))
            assert not any(stop in before for stop in ("ba", "b b"))
            assert (hypothesis.ended_by == "stop") == any(stop in text for stop in ("ba", "b b"))


def test_rules_that_allow_no_token_are_named_with_the_position() -> None:
    toy = Toy(np.zeros((2, VOCAB, VOCAB, VOCAB), np.float32))
    for [hypothesis] in toy.search(no_repeat_ngram_size=1, min_new_tokens=6, max_new_tokens=7):
        assert hypothesis.ended_by == "failed"
        assert "no_repeat_ngram_size 1, min_new_tokens 6: no token is allowed at position 5" in hypothesis.error


@pytest.mark.parametrize("options", [{}, {"beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_rules_that_allow_no_token_for_one_image_fail_only_that_image(options: dict[str, Any]) -> None:
    table = random_table(3, seed=1)
    table[1, ..., :3] = -math.inf  # image 1 knows only the blank and the end; the pattern wants a letter first
    decode = {**options, "regex": "[ab]+", "max_new_tokens": 6}
    results = Toy(table).search(**decode)
    assert [bool(hypotheses[0].error) for hypotheses in results] == [False, True, False]
    assert "regex '[ab]+': no token is allowed at position 1" in results[1][0].error
    alone = [Toy(table[[image]]).search(seeds=[image], **decode)[0] for image in (0, 2)]
    assert [sentence_of(results[image][0]) for image in (0, 2)] == [sentence_of(hypotheses[0]) for hypotheses in alone]


@pytest.mark.parametrize("kind", [Beams, GreedyOrSampling])
def test_a_search_that_is_given_up_releases_its_states(kind: Any) -> None:
    toy = Toy(random_table(2, seed=0))
    request = toy.request(beams=2 if kind is Beams else 1, contrastive_weight=0.5)
    steps = run_search(request, kind(request))
    next(steps)
    assert not toy.released
    steps.close()
    assert len(toy.released) == 2


def test_a_search_that_fails_releases_its_state() -> None:
    toy = Toy(np.full((1, VOCAB, VOCAB, VOCAB), np.nan, np.float32))
    with pytest.raises(MyLLMError):
        toy.search()
    assert len(toy.released) == 1


@pytest.mark.parametrize("decode", [{}, {"do_sample": True}, {"beams": 3}, {"contrastive_weight": 0.5}], ids=str)
def test_search_that_is_given_up_ends_without_changing_others(decode: dict[str, Any]) -> None:
    table = random_table(3, seed=1)
    table[..., END] = -50  # no caption ends by itself
    expected = Toy(table).search(max_new_tokens=9, **decode)
    toy, asked = Toy(table), list[int]()

    def is_given_up(image: int) -> bool:
        asked.append(image)
        return image == 1 and asked.count(1) > 4

    request = replace(toy.request(max_new_tokens=9, **decode), is_given_up=is_given_up)
    first, second, third = generate(request)
    assert [first, third] == [expected[0], expected[2]]
    assert second[0].error
    # the images of each step: three in the first five, two in the last four
    assert asked == [0, 1, 2] * 5 + [0, 2] * 4


@settings(max_examples=30)
@given(toy=toys(images=2), data=st.data())
def test_the_most_confident_of_all_finished_captions_is_the_best(toy: Toy, data: st.DataObject) -> None:
    values = dict[tuple[int, Sentence], float]()

    def confidence(image: int, found: Hypothesis) -> float:
        return values.setdefault((image, tuple(found.tokens)), data.draw(st.floats(0, 1)))

    options: dict[str, Any] = {"beams": 3, "max_new_tokens": 5}
    request = replace(toy.request(**options, rank_by="confidence"), confidence=confidence)
    for image, (hypotheses, likeliest) in enumerate(zip(generate(request), toy.search(**options), strict=True)):
        seen = {sentence: value for (index, sentence), value in values.items() if index == image}
        assert len(hypotheses) == len(likeliest) and {tuple(found.tokens) for found in likeliest} <= seen.keys()
        ranked = [seen[tuple(found.tokens)] for found in hypotheses]
        assert ranked == sorted(seen.values(), reverse=True)[: len(ranked)]


@settings(max_examples=30)
@given(toy=toys(images=2), weight=st.sampled_from([0.0, 100.0]))
def test_retrieval_chooses_among_all_finished_captions_by_score_and_agreement(toy: Toy, weight: float) -> None:
    found: list[list[tuple[int, ...]]] = []

    class Similar(Neighbours):
        def agreement(self, captions: Sequence[Sequence[int]]) -> list[float]:
            found.append([tuple(caption) for caption in captions])
            return [weight * (number == len(captions) - 1) for number in range(len(captions))]

    index = CaptionIndex.build(np.eye(2), [[[1]], [[2]]])
    options: dict[str, Any] = {"beams": 3, "max_new_tokens": 5}
    similar = [Similar(index, np.arange(2), np.ones(2) / 2)] * 2
    request = replace(toy.request(**options, rank_by="retrieval"), neighbours=similar)
    for image, (hypotheses, likeliest) in enumerate(zip(generate(request), toy.search(**options), strict=True)):
        assert len(hypotheses) == len(likeliest)
        assert found[image][: len(likeliest)] == [tuple(hypothesis.tokens) for hypothesis in likeliest]
        expected = found[image][-1] if weight else max(likeliest, key=lambda hypothesis: hypothesis.score).tokens
        assert hypotheses[0].tokens == list(expected)
