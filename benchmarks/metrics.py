"""Time all metrics but METEOR from strings to figures, ours and pycocoevalcap's with its Java tokenizer.

    python benchmarks/metrics.py [--data results.csv] [--pictures 5000] [--rounds 3]

The two run in turns, each in a separate process, so that memory is measured separately. Their figures are compared
picture by picture. Then: CIDEr-D as a step of self-critical training calls it, the time of a comparison, and by
simulation how often intervals and p-values are wrong for few pictures.
"""

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from myllm.metrics.bootstrap import differences, intervals
from myllm.metrics.cider import CiderD
from myllm.metrics.result import mean_of
from myllm.metrics.score import score_captions, tokenized

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k" / "results.csv"


def captions_of(path: Path | None, pictures: int) -> tuple[list[str], list[list[str]]]:
    """Return a candidate, half of the time one of another picture, and five references for each picture."""
    references = read_references(path) if path else synthetic_references(pictures)
    while len(references) < pictures:
        references += references
    references = references[:pictures]
    rng = random.Random(0)
    near = [rng.choice(group).rpartition(" ")[0] for group in references]
    return [near[index] if index % 2 else near[index - 2] for index in range(pictures)], references


def synthetic_references(pictures: int, seed: int = 0) -> list[list[str]]:
    """Return five captions of 6 to 16 words for each picture, with the word frequencies of language (Zipf's law)."""
    rng = random.Random(seed)
    vocabulary = [f"word{number}" for number in range(3000)]
    weights = [1 / rank for rank in range(1, 3001)]
    return [
        [" ".join(rng.choices(vocabulary, weights, k=rng.randint(6, 16))) for _ in range(5)] for _ in range(pictures)
    ]


def read_references(path: Path) -> list[list[str]]:
    captions: defaultdict[str, list[str]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for image, _, caption in list(csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE))[1:]:
            captions[image].append(caption.strip())
    return list(captions.values())


def ours(candidates: list[str], references: list[list[str]]) -> dict[str, list[float]]:
    figures = score_captions(candidates, references, ("BLEU", "ROUGE-L", "CIDEr")).per_image
    return {name: values.tolist() for name, values in figures.items()}


def pycocoevalcap(candidates: list[str], references: list[list[str]]) -> dict[str, list[float]]:
    tokenizer = PTBTokenizer()
    right = tokenizer.tokenize({index: [{"caption": text} for text in group] for index, group in enumerate(references)})
    given = tokenizer.tokenize({index: [{"caption": text}] for index, text in enumerate(candidates)})
    _, per_image = Bleu(4).compute_score(right, given, verbose=0)
    figures = {f"BLEU-{n}": list(map(float, values)) for n, values in enumerate(per_image, 1)}
    figures["ROUGE-L"] = Rouge().compute_score(right, given)[1].tolist()
    figures["CIDEr"] = figures["CIDEr-D"] = Cider().compute_score(right, given)[1].tolist()
    return figures


SIDES = {"ours": ours, "pycocoevalcap": pycocoevalcap}


def run_side(name: str, path: Path | None, pictures: int) -> None:
    """Print seconds, peak megabytes (the largest child, Java, too) and each picture's figures, as JSON."""
    candidates, references = captions_of(path, pictures)
    start = perf_counter()
    figures = SIDES[name](candidates, references)
    seconds = perf_counter() - start
    peak = [resource.getrusage(who).ru_maxrss / 1000 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"seconds": seconds, "megabytes": peak, "figures": figures}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FLICKR8K if FLICKR8K.is_file() else None, help="results.csv")
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=list(SIDES), help="run only this one, in a separate process")
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments.side, arguments.data, arguments.pictures)
        return
    runs: dict[str, list[dict]] = {name: [] for name in SIDES}
    for _ in range(arguments.rounds):
        for name, results in runs.items():
            command = [sys.executable, __file__, "--side", name, "--pictures", str(arguments.pictures)]
            command += ["--data", str(arguments.data)] if arguments.data else []
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    report(runs, arguments.pictures)
    self_critical(arguments.data)
    comparison(arguments.data)
    simulate(arguments.data)


def report(runs: dict[str, list[dict]], pictures: int) -> None:
    rounds = len(runs["ours"])
    print(f"{pictures:,} pictures x 5 references, all metrics but METEOR, strings to figures, {rounds} rounds\n")
    print("| program | seconds: median (min to max) | peak memory, MB | of which Java, MB |\n|---|---|---|---|")
    for name, results in runs.items():
        seconds = sorted(result["seconds"] for result in results)
        python_peak, java_peak = results[0]["megabytes"]
        spread = f"{median(seconds):.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f})"
        print(f"| {name} | {spread} | {python_peak:.0f} | {java_peak:.0f} |")
    pairs = zip(runs["ours"], runs["pycocoevalcap"], strict=True)
    ratios = sorted(other["seconds"] / own["seconds"] for own, other in pairs)
    print(f"\nTimes as fast: {median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})\n")
    print("| metric | pictures | largest difference of a picture |\n|---|---|---|")
    figures, expected = (runs[name][0]["figures"] for name in SIDES)
    for name in expected:
        worst = max(abs(a - b) for a, b in zip(figures[name], expected[name], strict=True))
        print(f"| {name} | {pictures:,} | {worst:.1e} |")


def comparison(path: Path | None) -> None:
    """Time intervals and tests of `myllm compare`, all figures but METEOR of two sets of captions."""
    candidates, references = captions_of(path, 1000)
    quick = ("BLEU", "ROUGE-L", "CIDEr", "hallucination")
    a = score_captions(candidates, references, quick).figures
    b = score_captions([group[1] for group in references], references, quick).figures
    start = perf_counter()
    compared = differences(a, b)
    print(f"10,000 draws and 10,000 swaps of 1,000 pictures, {len(compared)} figures: {perf_counter() - start:.1f} s")


def simulate(path: Path | None, repeats: int = 1000) -> None:
    """Draw pictures on which two captioners are equally good; count p < 0.05 and intervals without the true mean."""
    _, references = captions_of(path, 3000)
    scorer = CiderD([tokenized(group) for group in references])
    others = [tokenized(group[2:]) for group in references]
    a, b = (np.array(scorer.score(tokenized(group[index] for group in references), others)) for index in range(2))
    rng = np.random.default_rng(0)
    print("\n| pictures | p below 0.05 if nothing differs | 95 % interval of CIDEr-D holds the truth |\n|---|---|---|")
    for pictures in (5, 10, 30, 100, 300):
        significant = covered = 0
        for repeat in range(repeats):
            chosen = rng.integers(len(a), size=pictures)
            swap = rng.random(pictures) < 0.5
            first, second = np.where(swap, b[chosen], a[chosen]), np.where(swap, a[chosen], b[chosen])
            result = differences({"x": mean_of(first)}, {"x": mean_of(second)}, draws=500, seed=repeat)["x"]
            significant += result.p is not None and result.p < 0.05
            low, high = intervals({"x": mean_of(a[chosen])}, draws=500, seed=repeat)["x"]
            covered += low <= a.mean() <= high
        print(f"| {pictures} | {significant / repeats:.1%} | {covered / repeats:.1%} |", flush=True)


def self_critical(path: Path | None) -> None:
    candidates, references = captions_of(path, 1000)
    words = [tokenized(group) for group in references]
    scorer = CiderD(words)
    groups = [group for group in words[:32] for _ in range(5)]
    batch = tokenized(random.Random(number).choice(candidates) for number in range(len(groups)))
    steps = []
    for _ in range(70):
        start = perf_counter()
        scorer.score(batch, groups)
        steps.append(1000 * (perf_counter() - start))
    print(
        f"\nCIDEr-D of {len(batch)} captions of {len(groups) // 5} pictures, frequencies prepared: "
        f"{median(steps):.1f} ms ({min(steps):.1f} to {max(steps):.1f})"
    )


if __name__ == "__main__":
    main()
