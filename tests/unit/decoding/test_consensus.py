"""Consensus: the hypothesis that is most like the others comes first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.decoding.engine import Hypothesis
from myllm.decoding.search import by_consensus
from myllm.metrics.cider import CiderD

CAPTIONS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=3, max_size=6)


@given(captions=CAPTIONS)
def test_consensus_ranks_the_caption_most_similar_to_the_others_first(captions: list[list[int]]) -> None:
    words = [[f"w{token}" for token in tokens] for tokens in captions]
    metric = CiderD([words, []])
    likeness = [
        sum(metric.score([caption], [[other]])[0] for index, other in enumerate(words) if index != number)
        for number, caption in enumerate(words)
    ]
    ranked = by_consensus([Hypothesis(tokens) for tokens in captions])
    found = [likeness[captions.index(hypothesis.tokens)] for hypothesis in ranked]
    assert found == pytest.approx(sorted(likeness, reverse=True), abs=1e-6)


@pytest.mark.parametrize("captions", [[], [[1, 2]], [[]], [[1], [2]]])
def test_consensus_of_fewer_than_three_keeps_their_order(captions: list[list[int]]) -> None:
    assert [hypothesis.tokens for hypothesis in by_consensus([Hypothesis(tokens) for tokens in captions])] == captions
