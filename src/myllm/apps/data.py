"""`myllm data inspect`, `convert` and `split`: look at data, change its format, and divide it without leaks."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from myllm.apps.console import Display
from myllm.apps.data_folder import report_findings
from myllm.apps.data_options import ConvertOptions, InspectOptions, SplitOptions
from myllm.apps.printing import print_json
from myllm.caption import Sample
from myllm.data.convert import convert
from myllm.data.records import Record, counted, quantity
from myllm.data.sources import data_paths, read_records
from myllm.data.split_lists import check_no_lists, divide, write_lists
from myllm.data.splits import name_hash, split_lists, split_records
from myllm.data.tokenizer import encode_captions, gpt2_tokenizer, train_tokenizer
from myllm.errors import ConfigError, DataError
from myllm.evaluation.copy_groups import Copies, find_copy_groups, group_copies
from myllm.evaluation.inspection import inspect_records
from myllm.hub import is_id

MAX_COMPARED = 20_000
"""`inspect` compares the looks of at most this many pictures, because the time grows with the square."""
SAMPLES, PAIRS, COLUMNS = 24, 9, 6
"""Pictures and pairs of copies in a contact sheet, and its columns: an even number, so that pairs are in one row."""


def inspect_data(options: InspectOptions) -> int:
    """Describe data, and write a contact sheet."""
    sheet = None if options.sheet is None else check_sheet(Path(options.sheet), options.overwrite)
    display = Display(options.quiet, json=options.json)
    records, findings = read_records(options.paths, options.captions)
    splits = split_records(records, findings)
    for line in findings.formats:
        display.say(f"Reading {line}")
    with display.progress() as progress:
        copies = find_copy_groups(records, 0 if options.fast else MAX_COMPARED, progress)
    tokens, tokenizer = count_tokens(records, splits["train"], options)
    inspection = inspect_records(splits, findings, copies, records, tokens, tokenizer)
    if sheet is not None:
        draw_sheet(splits, copies, sheet, options.seed)
        display.say(f"Wrote {sheet}")
    if options.json:
        print_json(inspection.as_json())
    else:
        display.print("\n".join(inspection.lines()))
    return 0


def check_sheet(path: Path, overwrite: bool) -> Path:
    """Return the path. Raises ConfigError if it cannot be written, ModuleNotFoundError if pictures cannot be drawn."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--sheet {path}: expected the name of a PNG file, like sheet.png")
    if path.exists() and not overwrite:
        raise ConfigError(f"--sheet {path} is there already; replace it by --overwrite or give another name")
    import_module("myllm.evaluation.plots")  # needs matplotlib; better missed now than after the work
    return path


def count_tokens(
    records: Sequence[Record], training: Sequence[Record], options: InspectOptions
) -> tuple[list[int], str]:
    """Return the number of tokens of each caption with its end tokens, and a description of the tokenizer."""
    if options.tokenizer is not None:
        tokenizer, origin = gpt2_tokenizer(options.tokenizer), f"tokenizer of {options.tokenizer}"
    else:
        texts = (caption for record in training for caption in record.captions)
        tokenizer, origin = train_tokenizer(texts, options.captions.vocab_size), "tokenizer trained on these captions"
    captions = [caption for record in records for caption in record.captions]
    counts = [len(row) for row in encode_captions(tokenizer, captions, sys.maxsize)]
    return counts, f"{origin}, vocabulary {tokenizer.get_vocab_size():,}"


def draw_sheet(splits: Mapping[str, Sequence[Record]], copies: Copies, path: Path, seed: int) -> None:
    """Write a picture of a random sample, each with its first caption and its name; then pairs of copies."""
    from myllm.evaluation.plots import plot_samples

    split_of = {record.name: name for name, members in splits.items() for record in members}
    readable = [record for members in splits.values() for record in members if record.name not in copies.broken]
    if not readable:
        raise DataError(f"no picture can be read, so --sheet {path} cannot be drawn; leave it out to see the reasons")
    chosen = sorted(readable, key=lambda record: name_hash(seed, record.name))[:SAMPLES]
    pairs = copies.pairs[:PAIRS]
    if pairs and len(chosen) % 2:
        chosen.pop()  # so that both pictures of a pair are in one row
    title = f"{quantity(len(chosen), 'picture')} of {len(readable):,}, each with its first caption"
    records = [*chosen, *(record for pair in pairs for record in pair)]
    abouts = [f"{record.name} ({split_of.get(record.name, 'unused')})" for record in records]
    samples = [
        Sample(record.name, record.image, record.captions[0], [about])
        for record, about in zip(records, abouts, strict=True)
    ]
    plot_samples(samples, path, COLUMNS, title + f"; then {quantity(len(pairs), 'pair')} of copies" * bool(pairs))


def convert_data(options: ConvertOptions) -> int:
    """Write data in another format into a new folder."""
    *sources, out = options.paths
    if not sources:
        raise ConfigError(f"only {out} is given; expected DATA... OUT: what to read, and the new folder")
    check_outside(Path(out), sources)
    display = Display(options.quiet)
    records, findings = read_records(sources, options.captions)
    report_findings(findings, display)
    with display.progress() as progress:
        changes = convert(records, options.to, Path(out), progress)
    if changes:
        display.warn(counted(changes, "name changed", "names changed"))
    captions = sum(len(record.captions) for record in records)
    display.print(
        f"Wrote {quantity(len(records), 'picture')} with {quantity(captions, 'caption')} to {out} as {options.to}. "
        f"Train on them with: myllm train --data {shlex.quote(out)} --out captioner"
    )
    return 0


def check_outside(out: Path, sources: Sequence[str]) -> None:
    """Raise ConfigError if `out` exists or is inside a folder of data, whose pictures would then count twice."""
    if out.exists():
        raise ConfigError(f"{out} is there already; give another name, or move it away")
    for source in data_paths(sources):
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise ConfigError(f"{out} is inside {source}, which would then hold each picture twice; give another OUT")


def split_data(options: SplitOptions) -> int:
    """Write lists of the pictures of each split."""
    if len(options.paths) > 1:
        raise ConfigError(f"unexpected {options.paths[1]!r}; give one DATA, and split others on their own")
    data = Path(options.paths[0])
    if options.out is None and not data.exists() and is_id(str(data)):
        raise ConfigError(f"{data} is data of a hub; give --out for the lists, or make it a folder by data convert")
    root = data if data.is_dir() else data.parent
    folder = Path(options.out) if options.out else root / "splits"
    check_no_lists(folder, options.overwrite)
    display = Display(options.quiet)
    records, findings = read_records(data, options.captions, use_lists=False)
    report_findings(findings, display)
    if split_lists(root) or any(record.split for record in records):
        display.warn("the lists replace the splits that the data has")
    with display.progress() as progress:
        copies = find_copy_groups(records, 0 if options.fast else None, progress)
    if copies.broken:
        display.warn(counted(list(copies.broken.values()), "picture cannot be read", "pictures cannot be read"))
    groups = group_copies(records, copies.pairs)
    splits = divide(groups, {"val": options.val, "test": options.test}, options.seed)
    write_lists(splits, folder)
    for name, members in splits.items():
        captions = sum(len(record.captions) for record in members)
        display.print(
            f"{name:<6} {quantity(len(members), 'picture')} ({len(members) / len(records):.1%}), "
            f"{quantity(captions, 'caption')}"
        )
    if groups_of_copies := [" = ".join(record.name for record in group) for group in groups if len(group) > 1]:
        display.print(counted(groups_of_copies, "group of copies kept together", "groups of copies kept together"))
    display.print(f"Wrote {folder}")
    return 0

