"""The metrics of a report as text: labels, meanings, numbers with intervals, and how they were measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from myllm.data.records import quantity
from myllm.evaluation.calibration import changed_options
from myllm.evaluation.evaluate import describe_search
from myllm.evaluation.judge import Judgement

METRICS = {
    "BLEU-1": ("BLEU-1", ".3f", "share of the captions’ words that a reference contains"),
    "BLEU-2": ("BLEU-2", ".3f", "like BLEU-1, for sequences of one and two words"),
    "BLEU-3": ("BLEU-3", ".3f", "like BLEU-1, for sequences of up to three words"),
    "BLEU-4": ("BLEU-4", ".3f", "like BLEU-1, for sequences of up to four words"),
    "ROUGE-L": ("ROUGE-L", ".3f", "longest series of words that a reference contains in the same order"),
    "METEOR": ("METEOR", ".3f", "words shared with a reference; word forms, synonyms and word order count"),
    "CIDEr-D": ("CIDEr-D", ".3f", "phrases shared with the references, from 0 to 10; rare phrases count more"),
    "CIDEr-D_shuffled": ("CIDEr-D, shuffled pictures", ".3f", "control: each caption scored on another picture"),
    "CIDEr-D_blind": ("CIDEr-D, no picture", ".3f", "control: the caption without a picture, scored on all pictures"),
    "grounding_gap": ("Grounding gap", ".3f", "CIDEr-D minus CIDEr-D with shuffled pictures"),
    "CHAIRi": ("CHAIRi", ".1%", "lower is better: share of the named things that no reference names"),
    "CHAIRs": ("CHAIRs", ".1%", "lower is better: share of captions with a thing that no reference names"),
    "places_wrong": ("Places wrong", ".1%", "lower is better: share of the named places that no reference names"),
    "colours_wrong": ("Colours wrong", ".1%", "lower is better: share of the named colours that no reference names"),
    "counts_wrong": ("Counts wrong", ".1%", "lower is better: share of the numbers that no reference supports"),
    "self-CIDEr": ("self-CIDEr", ".3f", "diversity of the captions of one picture, 0 to 1"),
    "CLIPScore": ("CLIPScore", ".3f", "how well the captions fit the pictures, according to a CLIP model"),
    "RefCLIPScore": ("RefCLIPScore", ".3f", "CLIPScore combined with how well the captions fit the references"),
    "distinct_captions": ("Distinct captions", ".1%", "number of different captions over the number of captions"),
    "mean_length": ("Mean length", ".1f", "words per caption"),
    "true": ("True", ".1%", "captions of scenes that name only things in the picture"),
    "invented": ("Invented", ".1%", "lower is better: captions that name a kind of thing that is not there"),
    "miscoloured": ("Miscoloured", ".1%", "lower is better: captions that give a thing the wrong colour"),
    "miscounted": ("Miscounted", ".1%", "lower is better: captions with a wrong number of things"),
    "complete": ("Complete", ".1%", "captions that name all that the picture shows, and nothing else"),
    "placed": ("Placed", ".1%", "share of true ones among the captions that say left, right, above or below"),
}
"""Label, number format and meaning of each metric; a metric that is not listed is shown under its own name."""

PROTOCOL = {
    "split": "Split", "pictures": "Pictures", "references": "References", "tokenizer": "Tokenizer",
    "CIDEr-D frequencies": "CIDEr-D’s word frequencies", "decode": "Decoding", "intervals": "Intervals",
    "blind": "Caption without a picture", "model": "Hash of the weights", "data": "Hash of the data", "clip": "CLIP",
}
"""Label of each entry that a report shows."""


@dataclass(frozen=True)
class Cell:
    """A number, with a smaller line below it, such as its interval."""

    value: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """Metrics: the headings of the value columns, and for each metric its label, its meaning and a cell per column."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Cell]]]


def judgement_table(judgement: Judgement, values: Mapping[str, float]) -> Table:
    """Return all metrics of one captioner, and the same metrics for people's captions if they are known.

    values: figures without an interval, {name: value}.
    """
    people, rows = judgement.people, []
    for name, label, form, meaning in describe_metrics({**judgement.figures, **values}):
        is_judged = name in judgement.figures
        cells = [_metric_cell(judgement, name, form) if is_judged else Cell(format(values[name], form))]
        if name in people:
            person, captions = ("-" if math.isnan(score) else format(score, form) for score in people[name])
            cells.append(Cell(person, f"captioner {captions}"))
        elif people:
            cells.append(Cell(""))
        rows.append((label, meaning, cells))
    return Table(["Value, 95 % interval", *["People"] * bool(people)], rows)


def describe_metrics(names: Iterable[str]) -> list[tuple[str, str, str, str]]:
    """Return name, label, number format and meaning of each metric, without CIDEr, another name of CIDEr-D."""
    return [(name, *METRICS.get(name, (name, ".3f", ""))) for name in names if name != "CIDEr"]


def describe_protocol(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Return how the metrics were measured, by label."""
    texts = {
        name: format(value, "," if isinstance(value, int) else "") for name, value in protocol.items()
        if name in PROTOCOL and name != "decode" and value is not None
    }
    if "decode" in protocol:
        changed = changed_options(protocol["decode"]).items()
        options = [f"{name} {value}" for name, value in changed if name not in ("beams", "do_sample", "rank_by")]
        texts["decode"] = ", ".join([describe_search(protocol["decode"]), *options])
    return {label: texts[name] for name, label in PROTOCOL.items() if name in texts}


def _metric_cell(judgement: Judgement, name: str, form: str) -> Cell:
    """Return a metric with its interval. A share also says of how many things; without any, it is "-"."""
    metric = judgement.figures[name]
    if name in judgement.undefined:
        return Cell("-", judgement.undefined[name])
    total = "" if metric.denominator is None else f"; of {quantity(metric.denominator, metric.unit)}"
    low, high = judgement.intervals[name]
    return Cell(format(metric.corpus, form), f"{low:{form}} to {high:{form}}{total}")
