"""Times all metrics but METEOR from strings to figures, ours beside pycocoevalcap with its Java tokenizer.

    python benchmarks/metrics.py [--data results.csv] [--pictures 5000] [--rounds 3]

Each side runs in a process of its own, in turns, so that its memory is its own and both see the same machine. Figures
of the two are compared picture by picture. Then CIDEr-D as a step of self-critical training would call it.
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

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from myllm.metrics.bootstrap import differences
from myllm.metrics.cider import CiderD
from myllm.metrics.score import score_captions, tokenized

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k" / "results.csv"


def captions_of(path: Path | None, pictures: int) -> tuple[list[str], list[list[str]]]:
    """A candidate, half of the time one of another picture, and five references of each picture."""
    references = read_references(path) if path else synthetic_references(pictures)
    while len(references) < pictures:
        references += references
    references = references[:pictures]
    rng = random.Random(0)
    near = [rng.choice(group).rpartition(" ")[0] for group in references]
    return [near[at] if at % 2 else near[at - 2] for at in range(pictures)], references


def synthetic_references(pictures: int, seed: int = 0) -> list[list[str]]:
    """Five captions of 6 to 16 words a picture, words as frequent as in language (Zipf, 3,000 of them)."""
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


def theirs(candidates: list[str], references: list[list[str]]) -> dict[str, list[float]]:
    tokenizer = PTBTokenizer()
    told = tokenizer.tokenize({at: [{"caption": one} for one in group] for at, group in enumerate(references)})
    said = tokenizer.tokenize({at: [{"caption": one}] for at, one in enumerate(candidates)})
    _, each = Bleu(4).compute_score(told, said, verbose=0)
    figures = {f"BLEU-{n}": list(map(float, values)) for n, values in enumerate(each, 1)}
    figures["ROUGE-L"] = Rouge().compute_score(told, said)[1].tolist()
    figures["CIDEr"] = figures["CIDEr-D"] = Cider().compute_score(told, said)[1].tolist()
    return figures


SIDES = {"ours": ours, "theirs": theirs}


def run_side(name: str, path: Path | None, pictures: int) -> None:
    """Print seconds, peak megabytes (the largest child, Java, too) and each picture's figures, as JSON."""
    candidates, references = captions_of(path, pictures)
    began = perf_counter()
    figures = SIDES[name](candidates, references)
    seconds = perf_counter() - began
    peak = [resource.getrusage(who).ru_maxrss / 1000 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"seconds": seconds, "megabytes": peak, "figures": figures}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FLICKR8K if FLICKR8K.is_file() else None, help="results.csv")
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=list(SIDES), help="run one side alone, for the other process")
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments.side, arguments.data, arguments.pictures)
        return
    told: dict[str, list[dict[str, object]]] = {name: [] for name in SIDES}
    for _ in range(arguments.rounds):
        for name, found in told.items():
            words = [sys.executable, __file__, "--side", name, "--pictures", str(arguments.pictures)]
            words += ["--data", str(arguments.data)] if arguments.data else []
            found.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    report(told, arguments.pictures)
    self_critical(arguments.data)
    bootstrap(arguments.data)


def report(told: dict[str, list], pictures: int) -> None:
    rounds = len(told["ours"])
    print(f"{pictures:,} pictures x 5 references, all metrics but METEOR, strings to figures, {rounds} rounds\n")
    print("| side | seconds: median (least to most) | peak memory, MB | of which Java, MB |\n|---|---|---|---|")
    for name, found in told.items():
        seconds = sorted(one["seconds"] for one in found)
        own, java = found[0]["megabytes"]
        spread = f"{median(seconds):.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f})"
        print(f"| {name} | {spread} | {own:.0f} | {java:.0f} |")
    ratios = sorted(them["seconds"] / us["seconds"] for us, them in zip(told["ours"], told["theirs"], strict=True))
    print(f"\nTimes as fast: {median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})\n")
    print("| metric | pictures | worst difference of a picture |\n|---|---|---|")
    mine, their = told["ours"][0]["figures"], told["theirs"][0]["figures"]
    for name in their:
        worst = max(abs(a - b) for a, b in zip(mine[name], their[name], strict=True))
        print(f"| {name} | {pictures:,} | {worst:.1e} |")


def bootstrap(path: Path | None) -> None:
    """The paired bootstrap of `myllm compare`, all figures but METEOR of two sets of captions."""
    candidates, references = captions_of(path, 1000)
    quick = ("BLEU", "ROUGE-L", "CIDEr", "hallucination")
    a = score_captions(candidates, references, quick).figures
    b = score_captions([group[1] for group in references], references, quick).figures
    began = perf_counter()
    found = differences(a, b)
    print(f"10,000 paired draws of 1,000 pictures, {len(found)} figures: {perf_counter() - began:.1f} s")


def self_critical(path: Path | None) -> None:
    candidates, references = captions_of(path, 1000)
    told = [tokenized(group) for group in references]
    scorer = CiderD(told)
    groups = [group for group in told[:32] for _ in range(5)]
    batch = tokenized(random.Random(number).choice(candidates) for number in range(len(groups)))
    steps = []
    for _ in range(70):
        began = perf_counter()
        scorer.score(batch, groups)
        steps.append(1000 * (perf_counter() - began))
    print(
        f"\nCIDEr-D of {len(batch)} captions of {len(groups) // 5} pictures, frequencies prepared: "
        f"{median(steps):.1f} ms ({min(steps):.1f} to {max(steps):.1f})"
    )


if __name__ == "__main__":
    main()
