"""`myllm score`: the metrics alone, for captions of anyone's."""

import csv
import hashlib
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.table import Table

from myllm.apps.console import Display
from myllm.apps.options import ScoreOptions
from myllm.data.predictions import Matched, match, read_predictions, read_references
from myllm.data.records import counted
from myllm.device import choose_device
from myllm.errors import DataError
from myllm.evaluation.clipscore import clip_scores
from myllm.evaluation.judge import Judgement, defined, judge_captions

# Memory for a picture and its captions while they are scored, measured with five references that differ.
BYTES_A_PICTURE = 26_000
TOLD_FROM = 100_000


def score(options: ScoreOptions) -> int:
    """Print figures of predictions against references, with their intervals and what they were measured by."""
    display = Display(options.quiet, json=True)
    predictions = read_predictions(Path(options.predictions))
    references = read_references(Path(options.references), options.split, options.captions)
    matched = match(predictions, references)
    _check_complete(matched, options, display)
    empty = [name for name, caption in zip(matched.names, matched.captions, strict=True) if not caption.strip()]
    if empty:
        display.warn(f"{counted(empty, 'caption is empty and scores 0', 'captions are empty and score 0')}")
    if all(len(group) == 1 for group in matched.references):
        display.warn("each picture has one reference: figures are lower than by five, and noisier")
    if len(matched.names) > TOLD_FROM:
        display.say(
            f"{len(matched.names):,} captions: about {len(matched.names) * BYTES_A_PICTURE / 1e9:.1f} GB of memory"
        )
    with display.counting() as progress:
        metrics = None if options.metrics is None else options.metrics.split(",")
        judgement = judge_captions(matched.captions, matched.references, progress=progress, metrics=metrics)
    if options.clip is not None and options.pictures is not None:
        folder = Path(options.pictures)
        with display.counting() as progress:
            figures = clip_scores(
                options.clip, [folder / name for name in matched.names], matched.captions, matched.references,
                choose_device("auto"), partial(progress, "looking with CLIP"),
            )
        judgement = judgement.with_figures(figures, clip=options.clip)
    judgement = judgement.with_protocol(
        predictions=options.predictions, references_file=options.references, split=options.split,
        missing=len(matched.missing), unknown=len(matched.unknown), data=_hash([matched.names, matched.references]),
        captions=_hash(matched.captions),
    )
    if options.json:
        _print_json(judgement, matched, options)
    elif options.csv:
        _print_csv(judgement, matched, options)
    else:
        _print_text(judgement, matched, options)
    return 0


def _hash(texts: Sequence[object]) -> str:
    """Equal where figures are of the same captions, or of the same references."""
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=8).hexdigest()


def _check_complete(matched: Matched, options: ScoreOptions, display: Display) -> None:
    """Raises DataError where captions or references are left over, unless that is allowed; then it is told."""
    told = []
    if matched.missing:
        told.append(counted(matched.missing, "picture has no caption", "pictures have no caption"))
    if matched.unknown:
        told.append(counted(matched.unknown, "caption is of an unknown picture", "captions are of unknown pictures"))
    if told and not options.allow_missing:
        raise DataError(
            f"{options.predictions} and {options.references} do not fit together: {' and '.join(told)}; name "
            f"the --split that was captioned, or score the {len(matched.names):,} that have both by --allow-missing"
        )
    for line in told:
        display.warn(f"{line}, and left out")


def _print_json(judgement: Judgement, matched: Matched, options: ScoreOptions) -> None:
    held = judgement.as_json()
    if options.per_image:
        held["per_image"] = _rows(judgement, matched)
    print(json.dumps(held, ensure_ascii=False))


def _print_csv(judgement: Judgement, matched: Matched, options: ScoreOptions) -> None:
    if options.per_image:
        rows = _rows(judgement, matched)
    else:
        rows = [
            {"figure": name, "value": defined(figure.corpus), "low": defined(low), "high": defined(high)}
            for (name, figure), (low, high) in zip(
                judgement.figures.items(), judgement.intervals.values(), strict=True
            )
        ]
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _rows(judgement: Judgement, matched: Matched) -> list[dict[str, str | float | None]]:
    columns = {name: [defined(value) for value in values.tolist()] for name, values in judgement.per_image.items()}
    return [
        {"image": name, "caption": caption, **{figure: values[at] for figure, values in columns.items()}}
        for at, (name, caption) in enumerate(zip(matched.names, matched.captions, strict=True))
    ]


def _print_text(judgement: Judgement, matched: Matched, options: ScoreOptions) -> None:
    display = Display()
    protocol = judgement.protocol
    display.console.print(
        f"{protocol['pictures']:,} pictures, {protocol['references']:,} references, tokenizer {protocol['tokenizer']}"
        + (f", split {options.split}" if options.split else "")
    )
    display.console.print("\n".join(judgement.lines()))
    if options.per_image:
        table = Table("image", "CIDEr-D", "caption", box=None)
        for row in _rows(judgement, matched):
            table.add_row(str(row["image"]), f"{row['CIDEr-D']:.3f}", str(row["caption"]))
        display.console.print(table)
