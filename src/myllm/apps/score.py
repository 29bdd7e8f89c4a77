"""`myllm score`: the metrics for captions from any source; needs no model and no torch."""

import csv
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from myllm.apps.console import Display
from myllm.apps.data_folder import report_findings
from myllm.apps.options import ScoreOptions
from myllm.apps.printing import print_json, printable
from myllm.data.predictions import Matched, match, read_predictions
from myllm.data.records import counted, quantity
from myllm.data.sources import read_references
from myllm.device import choose_device
from myllm.errors import DataError
from myllm.evaluation.clipscore import clip_scores
from myllm.evaluation.judge import Judgement, defined, judge_captions

# measured memory for scoring one caption with five different references
BYTES_PER_PICTURE = 26_000
MEMORY_REPORTED_FROM = 100_000
# a spreadsheet takes a cell that begins like this for a formula
FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r")


def score(options: ScoreOptions) -> int:
    """Print the figures of predictions against references, with their intervals and how they were measured."""
    display = Display(options.quiet, json=True)
    predictions = read_predictions(Path(options.predictions))
    references, findings = read_references(options.references, options.split, options.captions)
    report_findings(findings, display)
    matched = match(predictions, references)
    check_complete(matched, references.source, options, display)
    warn_of_captions(matched, display)
    with display.progress() as progress:
        judgement = judge_captions(
            matched.captions, matched.references, progress=progress, metrics=options.metrics or None
        )
        if options.clip is not None and options.pictures is not None:
            figures = clip_scores(
                options.clip, [Path(options.pictures) / name for name in matched.names], matched.captions,
                matched.references, choose_device("auto"), progress,
            )
            judgement = judgement.with_figures(figures, clip=options.clip)
    judgement = judgement.with_protocol(
        predictions=options.predictions, references_file=options.references, split=options.split,
        missing=len(matched.missing), unknown=len(matched.unknown),
        data=hash_of([matched.names, matched.references]), captions=hash_of(matched.captions),
    )
    if options.json:
        rows = {"per_image": rows_of(judgement, matched)} if options.per_image else {}
        print_json({**judgement.as_json(), **rows})
    elif options.csv:
        print_csv(judgement, matched, options.per_image)
    else:
        print_text(judgement, matched, options)
    return 0


def hash_of(texts: Sequence[object]) -> str:
    """Return a hash by which scripts can check whether two scores are of the same captions or references."""
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=8).hexdigest()


def check_complete(matched: Matched, references: str, options: ScoreOptions, display: Display) -> None:
    """Raise DataError if captions or references are left over; warn of it if --allow-missing."""
    faults = []
    if matched.missing:
        faults.append(counted(matched.missing, "picture has no caption", "pictures have no caption"))
    if matched.unknown:
        faults.append(counted(matched.unknown, "caption is of an unknown picture", "captions are of unknown pictures"))
    if faults and not options.allow_missing:
        raise DataError(
            f"{options.predictions} and {references} do not fit together: {' and '.join(faults)}; name "
            f"the --split that was captioned, or score the {len(matched.names):,} that have both by --allow-missing"
        )
    for fault in faults:
        display.warn(f"{fault}, and left out")


def warn_of_captions(matched: Matched, display: Display) -> None:
    """Warn of empty captions and of pictures with one reference; report the memory that many captions take."""
    empty = [name for name, caption in zip(matched.names, matched.captions, strict=True) if not caption.strip()]
    if empty:
        display.warn(counted(empty, "caption is empty and scores 0", "captions are empty and score 0"))
    if all(len(references) == 1 for references in matched.references):
        display.warn("each picture has one reference: figures are lower than with five, and less certain")
    if len(matched.names) > MEMORY_REPORTED_FROM:
        gigabytes = len(matched.names) * BYTES_PER_PICTURE / 1e9
        display.say(f"{len(matched.names):,} captions need about {gigabytes:.1f} GB of memory")


def print_csv(judgement: Judgement, matched: Matched, per_image: bool) -> None:
    """Print a row for each figure, or for each picture.

    Text that a spreadsheet would run gets a leading quote; characters that control a terminal are escaped.
    """
    rows: list[dict[str, Any]] = rows_of(judgement, matched) if per_image else [
        {"figure": name, "value": defined(figure.corpus), "low": defined(low), "high": defined(high)}
        for (name, figure), (low, high) in zip(judgement.figures.items(), judgement.intervals.values(), strict=True)
    ]
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) if isinstance(value, str) else value for name, value in row.items()})


def _cell(text: str) -> str:
    return "'" * text.startswith(FORMULA_BEGINS) + printable(text, keep="\t\n\r")


def rows_of(judgement: Judgement, matched: Matched) -> list[dict[str, Any]]:
    """Return a row for each picture: {image, caption, and its figures}."""
    columns = {name: [defined(value) for value in values.tolist()] for name, values in judgement.per_image.items()}
    return [
        {"image": name, "caption": caption, **{figure: values[index] for figure, values in columns.items()}}
        for index, (name, caption) in enumerate(zip(matched.names, matched.captions, strict=True))
    ]


def print_text(judgement: Judgement, matched: Matched, options: ScoreOptions) -> None:
    """Print the figures, and with --per-image a table of pictures."""
    display, protocol = Display(), judgement.protocol
    display.print(
        f"{quantity(protocol['pictures'], 'picture')}, {quantity(protocol['references'], 'reference')}, "
        f"tokenizer {protocol['tokenizer']}" + (f", split {options.split}" if options.split else "")
    )
    display.print("\n".join(judgement.lines()))
    if options.per_image:
        table = Table("image", "CIDEr-D", "caption", box=None)
        for row in rows_of(judgement, matched):
            table.add_row(printable(row["image"]), f"{row['CIDEr-D']:.3f}", printable(row["caption"]))
        display.console.print(table)
