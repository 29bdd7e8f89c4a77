"""Each rule over a handful of words, compared with a version that says plainly what it means.

Every test runs with scores of numpy and of torch.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from myllm.config import DecodeConfig
from myllm.decoding import rules
from myllm.decoding.arrays import IMPOSSIBLE, Array, to_numpy
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.history import History
from myllm.decoding.rules import ALWAYS, SAMPLING, apply_rules, no_token_message

END = 4
PAGE = Path(__file__).parents[3] / "docs/decoding.md"
PROBABILITIES = st.lists(st.integers(1, 1000), min_size=5, max_size=9, unique=True).map(
    lambda weights: [weight / sum(weights) for weight in weights]
)
WORDS = Vocabulary([b" cat", b"a", b" ", b" dog", b""], lambda text: [3], END)


class Library:
    to_array: Callable[[NDArray[Any]], Array]


@pytest.fixture(scope="module", params=[np.asarray, torch.from_numpy], ids=["numpy", "torch"], autouse=True)
def library(request: pytest.FixtureRequest) -> Iterator[None]:
    Library.to_array = staticmethod(request.param)
    yield


def history(tokens: Sequence[int], vocabulary: Vocabulary | None = None) -> History:
    """One caption of these tokens, the begin token first."""
    return History(
        np.zeros(1, np.int64), np.array([[tokens]]), np.zeros((1, 1, len(tokens) - 1), np.float32), END, vocabulary
    )


def scores_after(scores: Sequence[float], tokens: Sequence[int], config: DecodeConfig) -> NDArray[np.float32]:
    array = Library.to_array(np.array([[scores]], np.float32))
    return to_numpy(apply_rules(array, history(tokens, WORDS), config))[0, 0]


def allowed(probabilities: Sequence[float], tokens: Sequence[int] = (END,), **decode: Any) -> set[int]:
    """The tokens that may come next."""
    config = DecodeConfig(**({"do_sample": True} | decode))
    scores = scores_after([math.log(probability) for probability in probabilities], tokens, config)
    return set(np.flatnonzero(scores > IMPOSSIBLE).tolist())


def by_likelihood(probabilities: Sequence[float]) -> list[int]:
    return sorted(range(len(probabilities)), key=lambda token: -probabilities[token])


@given(probabilities=PROBABILITIES, top_p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_it(probabilities: list[float], top_p: float) -> None:
    order = by_likelihood(probabilities)
    reached = list(itertools.accumulate(probabilities[token] for token in order))
    if min(abs(share - top_p) for share in reached) > 1e-6:
        needed = 1 + min(sum(share < top_p for share in reached), len(reached) - 1)
        assert allowed(probabilities, top_p=top_p) == set(order[:needed])


@given(probabilities=PROBABILITIES, top_k=st.integers(1, 12))
def test_top_k_keeps_the_k_likeliest(probabilities: list[float], top_k: int) -> None:
    assert allowed(probabilities, top_k=top_k) == set(by_likelihood(probabilities)[:top_k])


@given(probabilities=PROBABILITIES, min_p=st.floats(0.01, 0.99))
def test_min_p_keeps_tokens_nearly_as_likely_as_the_likeliest(probabilities: list[float], min_p: float) -> None:
    near = {token for token, chance in enumerate(probabilities) if abs(chance - min_p * max(probabilities)) < 1e-6}
    expected = {token for token, chance in enumerate(probabilities) if chance >= min_p * max(probabilities)}
    assert allowed(probabilities, min_p=min_p) - near == expected - near


@given(probabilities=PROBABILITIES, typical_p=st.floats(0.01, 0.99))
def test_typical_p_keeps_the_tokens_with_surprise_nearest_to_the_entropy(
    probabilities: list[float], typical_p: float
) -> None:
    entropy = -sum(chance * math.log(chance) for chance in probabilities)
    order = sorted(range(len(probabilities)), key=lambda token: abs(-math.log(probabilities[token]) - entropy))
    reached = list(itertools.accumulate(probabilities[token] for token in order))
    found = allowed(probabilities, typical_p=typical_p)
    if min(abs(share - typical_p) for share in reached) > 1e-5 and order[0] in found:
        needed = 1 + min(sum(share < typical_p for share in reached), len(reached) - 1)
        assert found >= set(order[:needed]) and len(found) - needed <= 1  # two may be equally surprising


@given(tokens=st.lists(st.integers(0, 3), max_size=12), size=st.integers(1, 4))
def test_no_repeat_ngram_size_allows_no_ngram_twice(tokens: list[int], size: int) -> None:
    tokens = [END, *tokens]
    before = {tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)}
    expected = {token for token in range(6) if (*tokens[len(tokens) - size + 1 :], token) not in before}
    assert allowed([1 / 6] * 6, tokens, do_sample=False, no_repeat_ngram_size=size) == expected


@given(length=st.integers(0, 6), least=st.integers(1, 6))
def test_min_new_tokens_allows_no_end_before_that_length(length: int, least: int) -> None:
    tokens = allowed([0.2] * 5, [END, *[0] * length], do_sample=False, min_new_tokens=least)
    assert tokens == ({0, 1, 2, 3} if length < least else {0, 1, 2, 3, END})


def test_repetition_penalty_lowers_tokens_used_before_and_no_others() -> None:
    scores = scores_after([2.0, -1.0, 0.5, -3.0, 1.0], [END, 1, 1], DecodeConfig(repetition_penalty=2.0))
    assert scores.tolist() == [2.0, -2.0, 0.5, -3.0, 0.5]


VALUES: dict[str, Any] = {
    "top_k": 2, "no_repeat_ngram_size": 2, "min_new_tokens": 5, "temperature": 2.0, "repetition_penalty": 2.0,
    "bad_words": ("cat",), "only_words": ("a", "dog"), "force_words": ("dog",), "regex": "(a| )*",
}


def with_rule(name: str) -> DecodeConfig:
    beams = 2 if name == "force_words" else 1
    return DecodeConfig(do_sample=name in SAMPLING, beams=beams, **{name: VALUES.get(name, 0.5)})


@pytest.mark.parametrize("name", [*ALWAYS, *SAMPLING])
def test_a_rule_returns_other_scores_and_leaves_its_argument_alone(name: str) -> None:
    before = np.array([[[2.0, -1.0, 0.5, -3.0, 1.0]]], np.float32)
    scores = Library.to_array(before.copy())
    changed = to_numpy(apply_rules(scores, history([END, 1, 2, 1], WORDS), with_rule(name)))
    assert changed.dtype == np.float32 and not np.array_equal(changed, before)
    np.testing.assert_array_equal(to_numpy(scores), before)


@pytest.mark.parametrize("name", ["bad_words", "only_words", "force_words", "regex"])
def test_options_about_words_forbid_rows_of_the_embedding_without_a_token(name: str) -> None:
    scores = scores_after([0.0] * 8, [END, 1, 2], with_rule(name))
    assert (scores[5:] == IMPOSSIBLE).all() and (scores[:5] > IMPOSSIBLE).any()


@pytest.mark.parametrize("name", ["bad_words", "only_words", "force_words", "regex"])
def test_rules_about_words_read_captions_with_rows_that_have_no_token(name: str) -> None:
    scores = scores_after([0.0] * 8, [END, 1, 7, 2], with_rule(name))
    assert scores.shape == (8,)


@pytest.mark.parametrize("name", [name for name in [*ALWAYS, *SAMPLING] if name not in VALUES or "words" not in name])
def test_a_rule_treats_the_captions_of_a_batch_separately(name: str) -> None:
    random = np.random.default_rng(0)
    scores, tokens = random.standard_normal((2, 3, 5)).astype(np.float32), random.integers(0, 4, (2, 3, 4))
    tokens[..., 0] = END
    together = to_numpy(apply_rules(
        Library.to_array(scores),
        History(np.arange(2), tokens, np.zeros((2, 3, 3), np.float32), END, WORDS), with_rule(name),
    ))
    for image, caption in itertools.product(range(2), range(3)):
        alone = scores_after(scores[image, caption].tolist(), tokens[image, caption].tolist(), with_rule(name))
        np.testing.assert_allclose(together[image, caption], alone, rtol=1e-6)


def test_the_rule_in_the_documents_works(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = dict(vars(rules))
    exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0], namespace)
    monkeypatch.setitem(rules.ALWAYS, "beams", namespace["no_echo"])  # under the name of an option that exists
    assert allowed([0.2] * 5, [END, 2, 3], do_sample=False, beams=2) == {0, 1, 2, END}


def test_every_rule_is_an_option_and_is_documented() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Rules")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w+)` \| [^|]+ \|$", table, re.MULTILINE) == [*ALWAYS, *SAMPLING]
    assert {*ALWAYS, *SAMPLING} <= {field.name for field in fields(DecodeConfig)}


def test_rules_that_are_not_set_change_nothing() -> None:
    scores = Library.to_array(np.zeros((1, 1, 5), np.float32))
    assert apply_rules(scores, history([END]), DecodeConfig()) is scores


def test_rules_that_allow_no_token_are_named() -> None:
    config = DecodeConfig(no_repeat_ngram_size=1, min_new_tokens=9)
    assert not allowed([0.2] * 5, [END, 0, 1, 2, 3], do_sample=False, no_repeat_ngram_size=1, min_new_tokens=9)
    message = no_token_message(config, 4)
    assert "no_repeat_ngram_size 1, min_new_tokens 9: no token is allowed at position 5" in message
