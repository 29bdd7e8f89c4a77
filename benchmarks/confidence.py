"""What a captioner's confidence is worth on a split: raw scores compared, calibration cross-fitted, as markdown."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from myllm.caption import Caption
from myllm.data.records import Record, read_records
from myllm.data.scenes import BOXES_FILE, Thing, read_things
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
from myllm.evaluation.plots import plot_confidence
from myllm.evaluation.scenes import named_groups
from myllm.inference.captioner import Captioner
from myllm.metrics.result import Floats
from myllm.metrics.score import score_captions

RAW: Mapping[str, Callable[[Caption], float]] = {
    "mean log-probability (`score`)": lambda one: one.score,
    "sum of log-probabilities": lambda one: sum(one.token_logprobs),
    "least likely token": lambda one: min(one.token_logprobs),
    "shortness": lambda one: -len(one.tokens),
    "words shared with the alternatives": lambda one: _likeness(one.text, one.alternatives),
}

DEMO = Path(__file__).resolve().parents[1] / "runs/demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO, help="the demo's by default")
    parser.add_argument("--data", type=Path, default=DEMO / "scenes")
    parser.add_argument("--splits", nargs="+", default=["val"], help="the first one is calibrated on")
    parser.add_argument("--beams", type=int, help="the model's own where not given")
    parser.add_argument("--other-beams", type=int, help="judge these captions by the calibration of the others, too")
    parser.add_argument("--plots", type=Path, help="folder for reliability.png and coverage.png")
    arguments = parser.parse_args()
    if not arguments.model.exists() or not arguments.data.is_dir():
        print(f"left out: no {arguments.model} or {arguments.data}; run `myllm demo` or give --model and --data")
        return
    captioner = Captioner.load(arguments.model)
    records, findings = read_records(arguments.data, captioner.captions)
    parts, beams = split_records(records, arguments.data, findings), arguments.beams or captioner.decode.beams
    first, *others = (captioned(captioner, parts[split], split, beams) for split in arguments.splits)
    print_raw(first)
    calibration = calibrate(first.captions, references_of(first))
    judged = {f"{arguments.splits[0]}, cross-fitted": crossed(first, first)}
    for split, one in zip(arguments.splits[1:], others, strict=True):
        by_first = [replace(caption, calibration=calibration) for caption in one.captions]
        judged[f"{split}, by {arguments.splits[0]}"] = replace(one, captions=by_first)
    if arguments.other_beams:
        other = captioned(captioner, parts[arguments.splits[0]], arguments.splits[0], arguments.other_beams)
        judged[f"beams {arguments.other_beams}, by those of beams {beams}"] = crossed(other, first)
    print_trusts(judged)
    print_thresholds(judged[f"{arguments.splits[0]}, cross-fitted"])
    if (arguments.data / BOXES_FILE).is_file():
        print_things(judged, read_things(arguments.data))
    if arguments.plots:
        plot_confidence(trust_of(next(iter(judged.values()))), arguments.plots)


@dataclass(frozen=True)
class Captioned:
    """Captions of a split."""

    records: Sequence[Record]
    captions: Sequence[Caption]
    cider: Floats
    """(N,): CIDEr-D of each."""


def captioned(captioner: Captioner, records: Sequence[Record], split: str, beams: int) -> Captioned:
    said = caption_records(captioner, records, captioner.decode_options(beams=beams))
    texts, references = [one.text for one in said.captions], [record.captions for record in said.records]
    cider = np.asarray(score_captions(texts, references, metrics=("CIDEr",)).per_image["CIDEr-D"])
    print(f"{split}: {len(texts):,} pictures, beams {beams}, CIDEr-D {cider.mean():.3f}\n")
    return Captioned(said.records, [replace(one, calibration=None) for one in said.captions], cider)


def references_of(found: Captioned) -> list[Sequence[str]]:
    return [record.captions for record in found.records]


def crossed(found: Captioned, learned_from: Captioned) -> Captioned:
    """Each caption with what was learned from captions of other pictures; both are of the same pictures."""
    judges = cross_fitted(learned_from.captions, references_of(learned_from))
    pairs = zip(found.captions, judges, strict=True)
    return replace(found, captions=[replace(one, calibration=judge.calibration) for one, judge in pairs])


def trust_of(found: Captioned) -> ConfidenceReport:
    return measure_confidence(found.captions, references_of(found), found.cider)


def print_raw(found: Captioned) -> None:
    print("| captions ordered by | best 10 % | best 20 % | best half | all |\n|---|---|---|---|---|")
    for name, raw in RAW.items():
        coverage = risk_coverage([raw(one) for one in found.captions], found.cider)
        print(f"| {name} | {' | '.join(f'{coverage[at]:.3f}' for at in (0, 1, 4, 9))} |")


def print_trusts(judged: Mapping[str, Captioned]) -> None:
    trusts = {name: trust_of(one) for name, one in judged.items()}
    shares = " | ".join(f"{share:.0%}" for share in SHARES)
    print(f"\n| CIDEr-D of the most confident | {shares} |\n|{'---|' * 11}")
    for name, trust in trusts.items():
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in trust.coverage)} |")
    print("\n| | half beside all | words off by | captions off by |\n|---|---|---|---|")
    for name, trust in trusts.items():
        errors = (f"{expected_calibration_error(bins):.3f}" for bins in (trust.words, trust.captions))
        low, high = half_interval(judged[name])
        ratio = f"{trust.coverage[4] / trust.coverage[-1]:.2f} ({low:.2f} to {high:.2f})"
        print(f"| {name} | {ratio} | {' | '.join(errors)} |")
    for kind in ("words", "captions"):
        bins = getattr(next(iter(trusts.values())), kind)
        print(f"\n| {kind}: sure | {' | '.join(f'{one.confidence:.2f}' for one in bins)} |\n|{'---|' * 11}")
        print(f"| right | {' | '.join(f'{one.right:.2f}' for one in bins)} |")


def half_interval(found: Captioned, draws: int = 2000) -> tuple[float, float]:
    """95 % of the more confident half's CIDEr-D as a share of all captions', by the bootstrap over pictures."""
    sure = np.array([caption.confidence for caption in found.captions])
    figures, generator = found.cider, np.random.default_rng(0)
    ratios = []
    for _ in range(draws):
        drawn = generator.integers(0, len(sure), len(sure))
        coverage = risk_coverage(sure[drawn], figures[drawn])
        ratios.append(coverage[4] / coverage[-1])
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def print_thresholds(found: Captioned) -> None:
    """What remains of the captions above some confidence."""
    sure = np.array([caption.confidence for caption in found.captions])
    figures = found.cider
    print("\n| confidence at least | captions that remain | their CIDEr-D |\n|---|---|---|")
    for least in np.unique(np.quantile(sure, (0, 0.25, 0.5, 0.75, 0.9)).round(2)):
        kept = sure >= least
        print(f"| {least:.2f} | {kept.mean():.0%} | {figures[kept].mean():.3f} |")


def print_things(judged: Mapping[str, Captioned], things: Mapping[str, Sequence[Thing]]) -> None:
    """The confidence of nouns, held against whether such a thing was drawn, and whether it was in that colour."""
    print("\n| named things | | drawn | noun off by | drawn in that colour | noun off by |\n|---|---|---|---|---|---|")
    for name, found in judged.items():
        rows = []
        for caption, record in zip(found.captions, found.records, strict=True):
            drawn = [(thing.colour, thing.kind) for thing in things[record.name]]
            for colour, noun in pairwise(caption.words):
                for _, *named in named_groups(f"a {colour.text} {noun.text}"):
                    is_drawn = named[1] in [kind for _, kind in drawn]
                    rows.append((noun.confidence, is_drawn, tuple(named) in drawn))
        sure, *right = np.array(rows, dtype=float).T
        told = [f"{one.mean():.1%} | {expected_calibration_error(reliability(sure, one)):.3f}" for one in right]
        print(f"| {name} | {len(rows):,} | {' | '.join(told)} |")


def _likeness(text: str, others: Sequence[str]) -> float:
    """Mean share of words in common."""
    words = set(text.split())
    shares = [len(words & set(one.split())) / len(words | set(one.split())) for one in others if one or text]
    return sum(shares) / max(1, len(shares))


if __name__ == "__main__":
    main()
