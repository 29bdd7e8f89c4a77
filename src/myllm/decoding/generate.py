"""`generate`: the search that a configuration asks for, from beginning to end."""

from collections.abc import Sequence

from myllm.decoding.beam import Beams
from myllm.decoding.engine import Hypothesis, SearchRequest, SearchStrategy, run_search
from myllm.decoding.sampling import GreedyOrSampling
from myllm.metrics.cider import CiderD


def generate(search: SearchRequest) -> list[list[Hypothesis]]:
    """Captions of each image, best first: all beams', or num_return_sequences of them. Raises as `run_search`."""
    config = search.config
    chooser: SearchStrategy = Beams(search) if config.beams > 1 else GreedyOrSampling(search)
    for _ in run_search(search, chooser):
        pass
    found = chooser.found()
    if config.rank_by == "consensus":
        found = [by_consensus(hypotheses) for hypotheses in found]
    return [hypotheses[: config.num_return_sequences] for hypotheses in found]


def by_consensus(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """The one most like all others first: minimum Bayes risk (Kumar and Byrne 2004) under CIDEr-D of their tokens."""
    said = [[str(token) for token in one.tokens] for one in hypotheses]
    others = [[*said[:place], *said[place + 1 :]] for place in range(len(said))]
    # beside an empty second picture every n-gram weighs alike; among themselves, what all say would weigh nothing
    likeness = CiderD([said, []]).score(said, others)
    return [hypotheses[place] for place in sorted(range(len(said)), key=lambda place: -likeness[place])]
