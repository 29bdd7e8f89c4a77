"""Times our metrics beside pycocoevalcap's Python scorers, and CIDEr-D as a training step would call it.

    python benchmarks/metrics.py [--data results.csv] [--pictures 1000] [--rounds 7]

Scorers take turns in one process, so that both sides see the same machine; each sees words already parted.
"""

import argparse
import csv
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from myllm.metrics.cider import CiderD
from myllm.metrics.score import METRICS
from myllm.metrics.tokenize import simple_tokenize


def synthetic_references(pictures: int, seed: int = 0) -> list[list[str]]:
    """Five captions of 6 to 16 words a picture, words as frequent as in language (Zipf, 3,000 of them)."""
    rng = random.Random(seed)
    vocabulary = [f"word{number}" for number in range(3000)]
    weights = [1 / rank for rank in range(1, 3001)]
    return [
        [" ".join(rng.choices(vocabulary, weights, k=rng.randint(6, 16))) for _ in range(5)]
        for _ in range(pictures)
    ]


def read_references(path: Path, pictures: int) -> list[list[str]]:
    captions: defaultdict[str, list[str]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for image, _, caption in list(csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE))[1:]:
            captions[image].append(" ".join(simple_tokenize(caption)))
    return list(captions.values())[:pictures]


def milliseconds(job: Callable[[], object]) -> float:
    start = perf_counter()
    job()
    return 1000 * (perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="results.csv to take captions from (default: synthetic ones)"
    )
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    references = (
        read_references(arguments.data, arguments.pictures)
        if arguments.data
        else synthetic_references(arguments.pictures)
    )
    # The first reference without its last word: most n-grams match, as with a good model's captions.
    candidates = [captions[0].rpartition(" ")[0] for captions in references]
    candidate_words = [caption.split() for caption in candidates]
    reference_words = [[caption.split() for caption in captions] for captions in references]
    their_references = dict(enumerate(references))
    their_candidates = {number: [caption] for number, caption in enumerate(candidates)}
    theirs: dict[str, Callable[[], object]] = {
        "BLEU": lambda: Bleu(4).compute_score(their_references, their_candidates, verbose=0),
        "ROUGE-L": lambda: Rouge().compute_score(their_references, their_candidates),
        "CIDEr-D": lambda: Cider().compute_score(their_references, their_candidates),
    }

    print(f"{len(references)} pictures, {sum(map(len, references))} references, {arguments.rounds} rounds\n")
    print("| metric | ours, ms | pycocoevalcap, ms | times as fast: median (least to most) |")
    print("|---|---|---|---|")
    for name, their_job in theirs.items():
        pairs = [
            (
                milliseconds(lambda name=name: METRICS[name](candidate_words, reference_words)),
                milliseconds(their_job),
            )
            for _ in range(arguments.rounds)
        ]
        ratios = sorted(them / us for us, them in pairs)
        us, them = (median(side) for side in zip(*pairs, strict=True))
        print(
            f"| {name} | {us:.0f} | {them:.0f} | {median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) |"
        )

    scorer = CiderD(reference_words)
    groups = [captions for captions in reference_words[:32] for _ in range(5)]
    batch = [random.Random(number).choice(candidate_words) for number in range(len(groups))]
    steps = sorted(milliseconds(lambda: scorer.score(batch, groups)) for _ in range(10 * arguments.rounds))
    print(
        f"\nCIDEr-D of {len(batch)} candidates for {len(groups) // 5} pictures, frequencies prepared: "
        f"{median(steps):.1f} ms ({steps[0]:.1f} to {steps[-1]:.1f})"
    )


if __name__ == "__main__":
    main()
