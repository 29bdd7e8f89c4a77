"""Each rule over a handful of words, held against a version that says what it means and is in no hurry."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from myllm.config import DecodeConfig
from myllm.decoding import rules
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.rules import ALWAYS, NEVER, SAMPLING, Said, apply_rules, nothing_left

END = 4
PROBABILITIES = st.lists(st.integers(1, 1000), min_size=5, max_size=9, unique=True).map(
    lambda weights: [weight / sum(weights) for weight in weights]
)


def allowed(probabilities: Sequence[float], told: Sequence[int] = (END,), **decode: object) -> set[int]:
    """The tokens that may come next."""
    config = DecodeConfig(**({"do_sample": True} | decode))  # type: ignore[arg-type]
    scores = apply_rules(torch.tensor([probabilities]).log(), Said(torch.tensor([told]), END), config)
    return set((scores[0] > NEVER).nonzero()[:, 0].tolist())


def by_likelihood(probabilities: Sequence[float]) -> list[int]:
    return sorted(range(len(probabilities)), key=lambda token: -probabilities[token])


@given(probabilities=PROBABILITIES, top_p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_holds_it(probabilities: list[float], top_p: float) -> None:
    order = by_likelihood(probabilities)
    held = list(itertools.accumulate(probabilities[token] for token in order))
    if min(abs(share - top_p) for share in held) > 1e-6:
        needed = next(count for count, share in enumerate(held, start=1) if share >= top_p or count == len(held))
        assert allowed(probabilities, top_p=top_p) == set(order[:needed])


@given(probabilities=PROBABILITIES, top_k=st.integers(1, 12))
def test_top_k_keeps_the_k_likeliest(probabilities: list[float], top_k: int) -> None:
    assert allowed(probabilities, top_k=top_k) == set(by_likelihood(probabilities)[:top_k])


@given(probabilities=PROBABILITIES, min_p=st.floats(0.01, 0.99))
def test_min_p_keeps_what_is_nearly_as_likely_as_the_likeliest(probabilities: list[float], min_p: float) -> None:
    near = {token for token, chance in enumerate(probabilities) if abs(chance - min_p * max(probabilities)) < 1e-6}
    expected = {token for token, chance in enumerate(probabilities) if chance >= min_p * max(probabilities)}
    assert allowed(probabilities, min_p=min_p) - near == expected - near


@given(probabilities=PROBABILITIES, typical_p=st.floats(0.01, 0.99))
def test_typical_p_keeps_what_is_least_strange(probabilities: list[float], typical_p: float) -> None:
    entropy = -sum(chance * math.log(chance) for chance in probabilities)
    order = sorted(range(len(probabilities)), key=lambda token: abs(-math.log(probabilities[token]) - entropy))
    held = list(itertools.accumulate(probabilities[token] for token in order))
    found = allowed(probabilities, typical_p=typical_p)
    if min(abs(share - typical_p) for share in held) > 1e-5 and order[0] in found:
        needed = next(count for count, share in enumerate(held, start=1) if share >= typical_p or count == len(held))
        assert found >= set(order[:needed]) and len(found) - needed <= 1  # two may be strange alike


@given(told=st.lists(st.integers(0, 3), max_size=12), size=st.integers(1, 4))
def test_no_ngram_comes_twice(told: list[int], size: int) -> None:
    told = [END, *told]
    before = {tuple(told[at : at + size]) for at in range(len(told) - size + 1)}
    expected = {token for token in range(6) if (*told[len(told) - size + 1 :], token) not in before}
    assert allowed([1 / 6] * 6, told, do_sample=False, no_repeat_ngram_size=size) == expected


@given(said=st.integers(0, 6), least=st.integers(1, 6))
def test_there_is_no_end_before_the_least_length(said: int, least: int) -> None:
    found = allowed([0.2] * 5, [END, *[0] * said], do_sample=False, min_new_tokens=least)
    assert found == ({0, 1, 2, 3} if said < least else {0, 1, 2, 3, END})


def test_what_was_said_loses_and_the_rest_does_not() -> None:
    scores, told = torch.tensor([[2.0, -1.0, 0.5, -3.0, 1.0]]), torch.tensor([[END, 1, 1]])
    found = apply_rules(scores, Said(told, END), DecodeConfig(repetition_penalty=2.0))
    assert found.tolist() == [[2.0, -2.0, 0.5, -3.0, 0.5]]
    assert scores.tolist() == [[2.0, -1.0, 0.5, -3.0, 1.0]]


@pytest.mark.parametrize("name", [*ALWAYS, *SAMPLING])
def test_a_rule_is_an_option_and_leaves_its_scores_alone(name: str) -> None:
    values = {
        "top_k": 2, "no_repeat_ngram_size": 2, "min_new_tokens": 5, "temperature": 2.0, "repetition_penalty": 2.0,
        "bad_words": ("cat",), "only_words": ("a", "dog"), "force_words": ("dog",), "regex": "(a| )*",
    }
    beams = 2 if name == "force_words" else 1
    config = DecodeConfig(do_sample=name in SAMPLING, beams=beams, **{name: values.get(name, 0.5)})  # type: ignore[arg-type]
    scores, told = torch.tensor([[2.0, -1.0, 0.5, -3.0, 1.0]]), torch.tensor([[END, 1, 2, 1]])
    before = scores.clone()
    words = Vocabulary([b" cat", b"a", b" ", b" dog", b""], lambda text: [3], END)
    assert not torch.equal(apply_rules(scores, Said(told, END, 1, words), config), before)
    assert torch.equal(scores, before)


def test_the_documents_example_is_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs/decoding.md").read_text(encoding="utf-8")
    namespace = dict(vars(rules))
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], namespace)
    monkeypatch.setitem(rules.ALWAYS, "beams", namespace["no_echo"])  # an option that is there stands in for its own
    assert allowed([0.2] * 5, [END, 2, 3], do_sample=False, beams=2) == {0, 1, 2, END}


def test_every_rule_is_an_option_and_told_on_its_page() -> None:
    page = (Path(__file__).parents[3] / "docs/decoding.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| [^|]+ \|$", page.partition("## Rules")[2].partition("##")[0], re.MULTILINE) == [
        *ALWAYS, *SAMPLING
    ]
    assert {*ALWAYS, *SAMPLING} <= {field.name for field in fields(DecodeConfig)}


def test_rules_that_are_not_set_change_nothing() -> None:
    scores: Tensor = torch.randn(3, 5)
    assert apply_rules(scores, Said(torch.zeros(3, 1, dtype=torch.int64), END), DecodeConfig()) is scores


def test_rules_that_leave_nothing_name_themselves() -> None:
    config = DecodeConfig(no_repeat_ngram_size=1, min_new_tokens=9)
    assert not allowed([0.2] * 5, [END, 0, 1, 2, 3], do_sample=False, no_repeat_ngram_size=1, min_new_tokens=9)
    told = str(nothing_left(config, 4))
    assert "no_repeat_ngram_size 1, min_new_tokens 9 leave nothing that may come as token 5" in told
