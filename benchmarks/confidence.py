"""Measure how reliable a captioner's confidence is on a split, compared with raw scores; print markdown tables."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from myllm.caption import Caption
from myllm.data.records import Record
from myllm.data.scenes import BOXES_FILE, Thing, read_things
from myllm.data.sources import read_records
from myllm.data.splits import split_records
from myllm.evaluation.calibration import (
    SHARES,
    ConfidenceReport,
    calibrate,
    cross_fitted,
    expected_calibration_error,
    measure_confidence,
    reliability,
    risk_coverage,
)
from myllm.evaluation.evaluate import caption_records
from myllm.evaluation.plots import CONFIDENCE_PLOTS, save_plots
from myllm.evaluation.scenes import named_groups
from myllm.inference.captioner import Captioner
from myllm.metrics.result import Floats
from myllm.metrics.score import score_captions

RAW: Mapping[str, Callable[[Caption], float]] = {
    "mean log-probability (`score`)": lambda caption: caption.score,
    "sum of log-probabilities": lambda caption: sum(caption.token_logprobs),
    "least likely token": lambda caption: min(caption.token_logprobs),
    "shortness": lambda caption: -len(caption.tokens),
    "words shared with the alternatives": lambda caption: _word_overlap(caption.text, caption.alternatives),
}

DEMO = Path(__file__).resolve().parents[1] / "runs/demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO, help="default: the demo's")
    parser.add_argument("--data", type=Path, default=DEMO / "scenes")
    parser.add_argument("--splits", nargs="+", default=["val"], help="the first one is used for calibration")
    parser.add_argument("--beams", type=int, help="default: the model's own")
    parser.add_argument("--other-beams", type=int, help="also judge captions of so many beams")
    parser.add_argument("--plots", type=Path, help="folder for reliability.png and coverage.png")
    arguments = parser.parse_args()
    if not arguments.model.exists() or not arguments.data.is_dir():
        print(f"left out: no {arguments.model} or {arguments.data}; run `myllm demo` or give --model and --data")
        return
    captioner = Captioner.load(arguments.model)
    records, findings = read_records(arguments.data, captioner.captions)
    parts, beams = split_records(records, findings), arguments.beams or captioner.decode.beams
    first, *others = (captioned(captioner, parts[split], split, beams) for split in arguments.splits)
    print_raw(first)
    calibration = calibrate(first.captions, references_of(first))
    judged = {f"{arguments.splits[0]}, cross-fitted": crossed(first, first)}
    for split, captioned_split in zip(arguments.splits[1:], others, strict=True):
        by_first = [replace(caption, calibration=calibration) for caption in captioned_split.captions]
        judged[f"{split}, by {arguments.splits[0]}"] = replace(captioned_split, captions=by_first)
    if arguments.other_beams:
        other = captioned(captioner, parts[arguments.splits[0]], arguments.splits[0], arguments.other_beams)
        judged[f"beams {arguments.other_beams}, by those of beams {beams}"] = crossed(other, first)
    print_trusts(judged)
    print_thresholds(judged[f"{arguments.splits[0]}, cross-fitted"])
    if (arguments.data / BOXES_FILE).is_file():
        print_things(judged, read_things(arguments.data))
    if arguments.plots:
        save_plots(CONFIDENCE_PLOTS, trust_of(next(iter(judged.values()))), arguments.plots)


@dataclass(frozen=True)
class Captioned:
    """Captions of a split, with their CIDEr-D."""

    records: Sequence[Record]
    captions: Sequence[Caption]
    cider: Floats
    """CIDEr-D of each caption: (N,)."""


def captioned(captioner: Captioner, records: Sequence[Record], split: str, beams: int) -> Captioned:
    split_captions = caption_records(captioner, records, captioner.decode_options(beams=beams))
    texts = [caption.text for caption in split_captions.captions]
    references = [record.captions for record in split_captions.records]
    cider = np.asarray(score_captions(texts, references, metrics=("CIDEr",)).per_image["CIDEr-D"])
    print(f"{split}: {len(texts):,} pictures, beams {beams}, CIDEr-D {cider.mean():.3f}\n")
    captions = [replace(caption, calibration=None) for caption in split_captions.captions]
    return Captioned(split_captions.records, captions, cider)


def references_of(judged: Captioned) -> list[Sequence[str]]:
    return [record.captions for record in judged.records]


def crossed(judged: Captioned, learned_from: Captioned) -> Captioned:
    """Return the captions with calibrations that were learned from captions of other pictures of the same split."""
    fitted = cross_fitted(learned_from.captions, references_of(learned_from))
    pairs = zip(judged.captions, fitted, strict=True)
    return replace(judged, captions=[replace(caption, calibration=other.calibration) for caption, other in pairs])


def trust_of(judged: Captioned) -> ConfidenceReport:
    return measure_confidence(judged.captions, references_of(judged), judged.cider)


def print_raw(judged: Captioned) -> None:
    print("| captions ordered by | best 10 % | best 20 % | best half | all |\n|---|---|---|---|---|")
    for name, raw in RAW.items():
        coverage = risk_coverage([raw(caption) for caption in judged.captions], judged.cider)
        print(f"| {name} | {' | '.join(f'{coverage[index]:.3f}' for index in (0, 1, 4, 9))} |")


def print_trusts(judged: Mapping[str, Captioned]) -> None:
    trusts = {name: trust_of(captioned_split) for name, captioned_split in judged.items()}
    shares = " | ".join(f"{share:.0%}" for share in SHARES)
    print(f"\n| CIDEr-D of the most confident | {shares} |\n|{'---|' * 11}")
    for name, trust in trusts.items():
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in trust.coverage)} |")
    print("\n| | half : all | words off by | captions off by |\n|---|---|---|---|")
    for name, trust in trusts.items():
        errors = (f"{expected_calibration_error(bins):.3f}" for bins in (trust.words, trust.captions))
        low, high = half_interval(judged[name])
        ratio = f"{trust.coverage[4] / trust.coverage[-1]:.2f} ({low:.2f} to {high:.2f})"
        print(f"| {name} | {ratio} | {' | '.join(errors)} |")
    for kind in ("words", "captions"):
        bins = getattr(next(iter(trusts.values())), kind)
        print(f"\n| {kind}: sure | {' | '.join(f'{part.confidence:.2f}' for part in bins)} |\n|{'---|' * 11}")
        print(f"| right | {' | '.join(f'{part.right:.2f}' for part in bins)} |")


def half_interval(judged: Captioned, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the more confident half's CIDEr-D divided by that of all, by the bootstrap."""
    sure = np.array([caption.confidence for caption in judged.captions])
    figures, generator = judged.cider, np.random.default_rng(0)
    ratios = []
    for _ in range(draws):
        chosen = generator.integers(0, len(sure), len(sure))
        coverage = risk_coverage(sure[chosen], figures[chosen])
        ratios.append(coverage[4] / coverage[-1])
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def print_thresholds(judged: Captioned) -> None:
    """Print how many captions are above a confidence, and their CIDEr-D."""
    sure = np.array([caption.confidence for caption in judged.captions])
    figures = judged.cider
    print("\n| confidence at least | captions kept | their CIDEr-D |\n|---|---|---|")
    for threshold in np.unique(np.quantile(sure, (0, 0.25, 0.5, 0.75, 0.9)).round(2)):
        is_kept = sure >= threshold
        print(f"| {threshold:.2f} | {is_kept.mean():.0%} | {figures[is_kept].mean():.3f} |")


def print_things(judged: Mapping[str, Captioned], things: Mapping[str, Sequence[Thing]]) -> None:
    """Print the calibration error of nouns: whether such a thing was drawn, and whether in that colour."""
    print("\n| named things | | drawn | noun off by | drawn in that colour | noun off by |\n|---|---|---|---|---|---|")
    for name, captioned_split in judged.items():
        rows = []
        for caption, record in zip(captioned_split.captions, captioned_split.records, strict=True):
            drawn = [(thing.colour, thing.kind) for thing in things[record.name]]
            for colour, noun in pairwise(caption.words):
                for _, *named in named_groups(f"a {colour.text} {noun.text}"):
                    is_drawn = named[1] in [kind for _, kind in drawn]
                    rows.append((noun.confidence, is_drawn, tuple(named) in drawn))
        sure, *right = np.array(rows, dtype=float).T
        cells = [f"{hits.mean():.1%} | {expected_calibration_error(reliability(sure, hits)):.3f}" for hits in right]
        print(f"| {name} | {len(rows):,} | {' | '.join(cells)} |")


def _word_overlap(text: str, others: Sequence[str]) -> float:
    """Return the mean share of words in common."""
    words = set(text.split())
    shares = [len(words & set(o.split())) / len(words | set(o.split())) for o in others if o or text]
    return sum(shares) / max(1, len(shares))


if __name__ == "__main__":
    main()
