"""The engine over a toy language of few words, whose best sentences can be found by writing all of them out."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from myllm.config import DecodeConfig
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.engine import Hypothesis, SearchRequest
from myllm.decoding.generate import by_consensus, generate
from myllm.decoding.rules import NEVER
from myllm.decoding.sampling import draw
from myllm.errors import ConfigError, MyLLMError
from myllm.metrics.cider import CiderD

VOCAB, END = 5, 4
LETTERS = Vocabulary([b"a", b"b", b"ab", b" ", b""], lambda text: [], END)
Sentence = tuple[int, ...]


@dataclass
class Toy:
    """What comes next depends on the last two tokens of the row, and on the image: a wrong reorder changes it."""

    table: Tensor
    """(B, VOCAB, VOCAB, VOCAB) logits: image, the token before the last, the last, the next."""
    steps: int = 0
    rows: int = 0

    def start(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of each caption, its image and the token before its last."""
        return images, torch.full((len(images),), END)

    def step(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        self.steps += 1
        self.rows += tokens[..., 0].numel()
        image, before = (values.view(tokens.shape[:2]) for values in state)
        return self.table[image, before, tokens[..., 0]], (state[0], tokens.flatten())

    def reorder(self, state: tuple[Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        # the newest tokens come reordered from the search itself, the ones before them are moved here
        return state[0][rows.flatten()], state[1][rows.flatten()]

    def logprobs(self, image: int, sentence: Sentence) -> list[float]:
        """Of each token, by hand; `sentence` holds its end where it has one."""
        told = self.table[image].double().log_softmax(-1)
        before, last = (END, END, *sentence), (END, *sentence)
        return [float(told[three]) for three in zip(before, last, sentence, strict=False)]

    def search(self, seeds: Sequence[int] = range(9), **decode: object) -> list[list[Hypothesis]]:
        config = DecodeConfig(**decode)  # type: ignore[arg-type]
        images = torch.arange(len(self.table))
        own = seeds[: len(images)]
        return generate(SearchRequest(self, images, len(images), END, config, vocabulary=LETTERS, seeds=own))


def toys(images: int = 1) -> st.SearchStrategy[Toy]:
    """Languages of any temper, from nearly sure to nearly uniform."""

    def make(seed: int, scale: float) -> Toy:
        return Toy(scale * torch.randn(images, *(VOCAB,) * 3, generator=torch.Generator().manual_seed(seed)))

    return st.builds(make, st.integers(0, 2**32), st.sampled_from([0.1, 1.0, 3.0]))


def sentences(longest: int) -> list[Sentence]:
    """Every sentence that can be told in `longest` tokens: ended, or cut at that length."""
    words = [word for word in range(VOCAB) if word != END]
    ended = [(*told, END) for length in range(longest) for told in itertools.product(words, repeat=length)]
    return [*ended, *itertools.product(words, repeat=longest)]


def said(hypothesis: Hypothesis) -> Sentence:
    return (*hypothesis.tokens, END) if hypothesis.ended_by == "end" else tuple(hypothesis.tokens)


@given(toy=toys(images=2), length_penalty=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_with_every_beam_kept_the_best_sentences_are_found(toy: Toy, length_penalty: float) -> None:
    found = toy.search(beams=64, max_new_tokens=3, length_penalty=length_penalty)
    for image, hypotheses in enumerate(found):
        ranks = {one: math.fsum(toy.logprobs(image, one)) / len(one) ** length_penalty for one in sentences(3)}
        best = sorted(ranks.values(), reverse=True)[:64]
        assert [one.rank for one in hypotheses] == pytest.approx(best, abs=1e-4)
        assert [ranks[said(one)] for one in hypotheses] == pytest.approx(best, abs=1e-4)


@given(toy=toys(images=2), beams=st.integers(2, 7), longest=st.integers(1, 6), length_penalty=st.floats(0, 2))
def test_beams_are_all_different_and_best_first(toy: Toy, beams: int, longest: int, length_penalty: float) -> None:
    for hypotheses in toy.search(beams=beams, max_new_tokens=longest, length_penalty=length_penalty):
        assert len({said(one) for one in hypotheses}) == len(hypotheses) >= min(beams, VOCAB)
        ranks = [one.rank for one in hypotheses]
        assert ranks == sorted(ranks, reverse=True)
        for one in hypotheses:
            assert one.rank == pytest.approx(sum(one.logprobs) / len(said(one)) ** length_penalty, abs=1e-4)


@given(toy=toys(images=2), beams=st.integers(1, 4), longest=st.integers(1, 6))
def test_log_probabilities_are_the_models_and_the_score_is_their_mean(toy: Toy, beams: int, longest: int) -> None:
    for image, hypotheses in enumerate(toy.search(beams=beams, max_new_tokens=longest)):
        for one in hypotheses:
            expected = toy.logprobs(image, said(one))
            assert one.logprobs == pytest.approx(expected, abs=1e-4)
            assert one.score == pytest.approx(sum(expected) / len(expected), abs=1e-4)


@given(toy=toys(images=3), longest=st.integers(1, 8))
def test_greedy_takes_the_likeliest_token_each_time(toy: Toy, longest: int) -> None:
    for image, [found] in enumerate(toy.search(max_new_tokens=longest)):
        told: Sentence = ()
        while len(told) < longest and told[-1:] != (END,):
            told += (max(range(VOCAB), key=lambda token: toy.logprobs(image, (*told, token))[-1]),)
        assert said(found) == told
        assert (found.ended_by == "end") == (told[-1] == END)


@given(toy=toys(images=4), beams=st.integers(1, 4), length_penalty=st.sampled_from([0.0, 1.0, 2.0]))
def test_a_batch_finds_what_each_image_finds_alone(toy: Toy, beams: int, length_penalty: float) -> None:
    decode = {"beams": beams, "max_new_tokens": 6, "length_penalty": length_penalty}
    together = toy.search(**decode)
    alone = [Toy(table[None]).search(**decode)[0] for table in toy.table]
    assert [[said(one) for one in hypotheses] for hypotheses in together] == [
        [said(one) for one in hypotheses] for hypotheses in alone
    ]


@given(toy=toys(images=2), beams=st.integers(1, 3), longest=st.integers(1, 5))
def test_no_caption_is_longer_than_max_new_tokens(toy: Toy, beams: int, longest: int) -> None:
    found = [one for hypotheses in toy.search(beams=beams, max_new_tokens=longest) for one in hypotheses]
    assert toy.steps <= longest
    assert all(len(said(one)) <= longest and END not in one.tokens for one in found)
    assert all(len(one.tokens) == longest for one in found if one.ended_by == "length")


@given(toy=toys(images=5), beams=st.sampled_from([1, 3]))
def test_what_has_ended_is_not_computed_on(toy: Toy, beams: int) -> None:
    toy.search(beams=beams, max_new_tokens=8)
    needed = 0
    for table in toy.table:
        alone = Toy(table[None])
        alone.search(beams=beams, max_new_tokens=8)
        needed += alone.rows
    assert toy.rows == needed


@given(toy=toys(images=3), beams=st.integers(2, 4), length_penalty=st.sampled_from([-1.0, 0.0, 1.0, 2.0]))
def test_never_stopping_early_misses_nothing_that_true_finds(toy: Toy, beams: int, length_penalty: float) -> None:
    decode = {"beams": beams, "max_new_tokens": 6, "length_penalty": length_penalty}
    early, never = (toy.search(**decode, early_stopping=value) for value in (True, "never"))
    for first, second in zip(early, never, strict=True):
        assert second[0].rank >= first[0].rank - 1e-5


def test_scores_that_are_no_numbers_name_the_token() -> None:
    table = torch.zeros(1, *(VOCAB,) * 3)
    table[0, END, END, 2] = 9.0
    table[0, END, 2] = float("nan")
    for beams in (1, 2):
        with pytest.raises(MyLLMError, match="scores of token 2 are no numbers"):
            Toy(table).search(beams=beams)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_search_stops_when_all_is_said(beams: int) -> None:
    table = torch.full((2, *(VOCAB,) * 3), -20.0)
    table[..., END] = 0.0
    toy = Toy(table)
    assert all(hypotheses[0].tokens == [] for hypotheses in toy.search(beams=beams, max_new_tokens=50))
    assert toy.steps <= 3


def test_a_seed_draws_the_same_again() -> None:
    toy, decode = Toy(torch.zeros(4, *(VOCAB,) * 3)), {"do_sample": True, "max_new_tokens": 8}
    first, again, other = (
        [said(one) for [one] in toy.search(seeds, **decode)] for seeds in (range(4), range(4), range(4, 8))
    )
    assert first == again != other


@pytest.mark.parametrize("many", [1, 3])
def test_what_a_picture_draws_does_not_depend_on_the_others(many: int) -> None:
    toy = Toy(torch.randn(4, *(VOCAB,) * 3))
    decode = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": many}
    together = [[said(one) for one in found] for found in toy.search([3, 1, 4, 1], **decode)]
    alone = [Toy(table[None]).search([seed], **decode)[0] for table, seed in zip(toy.table, [3, 1, 4, 1], strict=True)]
    assert together == [[said(one) for one in found] for found in alone]


def test_sampled_log_probabilities_are_those_of_the_untempered_model() -> None:
    toy = Toy(torch.randn(1, *(VOCAB,) * 3, generator=torch.Generator().manual_seed(0)))
    [[found]] = toy.search(do_sample=True, temperature=0.5, max_new_tokens=8)
    assert found.logprobs == pytest.approx(toy.logprobs(0, said(found)), abs=1e-4)


def test_tokens_come_as_often_as_they_are_likely() -> None:
    probabilities = torch.tensor([0.0, 0.6, 0.3, 0.0, 0.1])
    luck = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    found = draw(probabilities.log().expand(50_000, -1), luck).bincount(minlength=5) / 50_000
    torch.testing.assert_close(found, probabilities, rtol=0, atol=0.01)


@pytest.mark.parametrize("luck", [0.0, 1 - 2**-24])
def test_what_is_impossible_is_never_drawn(luck: float) -> None:
    scores = torch.tensor([[NEVER, 0.3, 0.1, NEVER]])
    assert draw(scores, torch.tensor([luck])).item() in (1, 2)


def chances(toy: Toy, longest: int, temperature: float, top_k: int) -> dict[Sentence, float]:
    """Of every sentence, worked out by hand."""

    def next_ones(sentence: Sentence) -> list[float]:
        before, last = (END, END, *sentence)[-2:]
        weights = [math.exp(float(score) / temperature) for score in toy.table[0, before, last]]
        least = sorted(weights)[-top_k]
        kept = [weight if weight >= least else 0.0 for weight in weights]
        return [weight / sum(kept) for weight in kept]

    found = {}
    for sentence in sentences(longest):
        steps = [next_ones(sentence[:place])[token] for place, token in enumerate(sentence)]
        found[sentence] = math.prod(steps)
    return found


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 5), (0.7, 5), (1.5, 3)])
def test_sentences_come_as_often_as_they_are_likely(temperature: float, top_k: int) -> None:
    toy, count = Toy(torch.randn(1, *(VOCAB,) * 3, generator=torch.Generator().manual_seed(5))), 20_000
    options = {"temperature": temperature, "top_k": top_k % 5, "max_new_tokens": 3, "num_return_sequences": count}
    [found] = toy.search(do_sample=True, **options)
    seen, expected = Counter(map(said, found)), chances(toy, 3, temperature, top_k)
    assert sum(expected.values()) == pytest.approx(1) and all(expected[one] for one in seen)
    # rare sentences together, as the chi-square distribution asks for
    often = [one for one, chance in expected.items() if chance * count >= 5]
    pairs = [(seen[one], expected[one] * count) for one in often]
    rest = (count - sum(number for number, _ in pairs), count - sum(number for _, number in pairs))
    statistic = sum((number - wanted) ** 2 / wanted for number, wanted in [*pairs, rest] if wanted > 1)
    assert statistic < len(pairs) + 4 * math.sqrt(2 * len(pairs))


@given(toy=toys(images=3), many=st.integers(1, 4), longest=st.integers(1, 6))
def test_samples_of_an_image_are_many_and_best_first(toy: Toy, many: int, longest: int) -> None:
    for image, found in enumerate(toy.search(do_sample=True, num_return_sequences=many, max_new_tokens=longest)):
        assert len(found) == many
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        for one in found:
            assert one.logprobs == pytest.approx(toy.logprobs(image, said(one)), abs=1e-4)


def test_the_first_beams_alone_are_given_where_fewer_are_asked_for() -> None:
    toy = Toy(torch.randn(2, *(VOCAB,) * 3, generator=torch.Generator().manual_seed(0)))
    few, all_beams = (toy.search(beams=4, max_new_tokens=5, num_return_sequences=many) for many in (2, None))
    assert few == [found[:2] for found in all_beams]


@given(told=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=3, max_size=6))
def test_consensus_puts_first_what_is_most_like_the_others(told: list[list[int]]) -> None:
    words = [[f"w{token}" for token in tokens] for tokens in told]
    alike = CiderD([words, []])
    likeness = [
        sum(alike.score([one], [[other]])[0] for at, other in enumerate(words) if at != place)
        for place, one in enumerate(words)
    ]
    ranked = by_consensus([Hypothesis(tokens) for tokens in told])
    found = [likeness[told.index(one.tokens)] for one in ranked]
    assert found == pytest.approx(sorted(likeness, reverse=True), abs=1e-6)


@given(toy=toys(images=2), weight=st.sampled_from([0.5, 1.0, 4.0]))
def test_contrast_says_what_the_picture_alone_explains(toy: Toy, weight: float) -> None:
    config = DecodeConfig(max_new_tokens=1, contrastive_weight=weight)
    [[found]] = generate(SearchRequest(toy, torch.tensor([0]), 1, END, config, blind=torch.tensor([1])))
    seen, blind = toy.table[:, END, END].double().log_softmax(-1)
    plausible = [token for token in range(VOCAB) if seen[token] >= seen.max() + math.log(0.1)]
    gains = {token: float((1 + weight) * seen[token] - weight * blind[token]) for token in plausible}
    chosen = said(found)[0]
    assert chosen in gains and gains[chosen] == pytest.approx(max(gains.values()), abs=1e-4)
    assert found.logprobs == pytest.approx([float(seen[chosen])], abs=1e-4)


@given(toy=toys(images=2), beams=st.sampled_from([1, 3]))
def test_a_caption_ends_with_the_first_stop_string(toy: Toy, beams: int) -> None:
    toy.table[..., END] -= 5.0
    for found in toy.search(beams=beams, max_new_tokens=8, stop_strings=("ba", "b b")):
        for one in found:
            text, before = (LETTERS.text(tokens).decode() for tokens in (one.tokens, one.tokens[:-1]))
            assert not any(stop in before for stop in ("ba", "b b"))
            assert (one.ended_by == "stop") == any(stop in text for stop in ("ba", "b b"))


def test_nothing_to_say_names_the_rules_and_the_token() -> None:
    toy = Toy(torch.zeros(2, *(VOCAB,) * 3))
    with pytest.raises(ConfigError, match="no_repeat_ngram_size 1, min_new_tokens 6 leave nothing .* token 5; loosen"):
        toy.search(no_repeat_ngram_size=1, min_new_tokens=6, max_new_tokens=7)


def test_scores_that_are_all_minus_infinity_end_in_an_error() -> None:
    for beams in (1, 2):
        with pytest.raises(MyLLMError, match="scores of token 1 are no numbers, or all of them minus infinity"):
            Toy(torch.full((1, *(VOCAB,) * 3), float("-inf"))).search(beams=beams)
