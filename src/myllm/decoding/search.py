"""`generate`: the search that a configuration asks for, from beginning to end."""

from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np

from myllm.decoding.beam import Beams
from myllm.decoding.engine import Hypothesis, SearchRequest, SearchStrategy, run_search
from myllm.decoding.retrieval import Neighbours
from myllm.decoding.sampling import GreedyOrSampling
from myllm.metrics.cider import CiderD


def generate(
    request: SearchRequest, after_step: Callable[[SearchStrategy], object] = lambda strategy: None
) -> list[list[Hypothesis]]:
    """Return the captions of each image, best first: those of all beams, or num_return_sequences.

    after_step: called after each step, with the strategy, which has the captions so far.
    An image for which the rules allow no token has a single hypothesis with `error`. Raises as `run_search`.
    """
    config = request.config
    strategy: SearchStrategy = Beams(request) if config.beams > 1 else GreedyOrSampling(request)
    with closing(run_search(request, strategy)) as steps:
        for _ in steps:
            after_step(strategy)
    results = strategy.results()
    if config.rank_by == "consensus":
        results = [by_consensus(hypotheses) for hypotheses in results]
    if config.rank_by == "retrieval":
        results = [by_agreement(*pair) for pair in zip(results, request.neighbours, strict=True)]
    if config.rank_by == "confidence":
        assert request.confidence is not None
        confidence = request.confidence
        values = [[confidence(image, hypothesis) for hypothesis in group] for image, group in enumerate(results)]
        results = list(map(by_value, results, values))
    return [hypotheses[: config.num_return_sequences or strategy.captions] for hypotheses in results]


def by_agreement(hypotheses: Sequence[Hypothesis], neighbours: Neighbours) -> list[Hypothesis]:
    """Sort by score and agreement with the captions of neighbours."""
    agreement = neighbours.agreement([hypothesis.tokens for hypothesis in hypotheses])
    pairs = zip(hypotheses, agreement, strict=True)
    return by_value(hypotheses, [hypothesis.score + value for hypothesis, value in pairs])


def by_value(hypotheses: Sequence[Hypothesis], values: Sequence[float]) -> list[Hypothesis]:
    """Sort by these values, the highest first; captions that lack a required word come last."""
    pairs = sorted(zip(hypotheses, values, strict=True), key=lambda pair: (len(pair[0].missing), -pair[1]))
    return [hypothesis for hypothesis, _ in pairs]


def by_consensus(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Sort by likeness to all others: minimum Bayes risk (Kumar and Byrne 2004) under CIDEr-D of the tokens."""
    if len(hypotheses) < 2:
        return list(hypotheses)
    captions = [[str(token) for token in hypothesis.tokens] for hypothesis in hypotheses]
    # an empty second document gives all n-grams the same weight; without it, those in every caption would weigh nothing
    similarities = CiderD([captions, []]).similarities(captions, captions)
    likeness = similarities.sum(1) - similarities.diagonal()
    return [hypotheses[index] for index in np.argsort(-likeness, kind="stable")]
