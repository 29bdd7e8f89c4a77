"""`myllm data inspect`, `convert` and `split`: look at data, change its format, and divide it without leaks."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from myllm.apps.console import Display
from myllm.apps.data_options import ComparingPictures, ConvertOptions, SplitOptions
from myllm.apps.opening import report_findings
from myllm.data.convert import convert
from myllm.data.records import Record, counted, quantity
from myllm.data.sources import data_paths, read_records
from myllm.data.split_lists import check_no_lists, divide, write_lists
from myllm.errors import ConfigError
from myllm.evaluation.copy_groups import Copies, find_copy_groups, group_copies


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
    folder = Path(options.out) if options.out else (data if data.is_dir() else data.parent) / "splits"
    check_no_lists(folder, options.overwrite)
    display = Display(options.quiet)
    records, findings = read_records(data, options.captions, use_lists=False)
    report_findings(findings, display)
    if findings.splits or any(record.split for record in records):
        display.warn("the data has splits of its own, which the lists replace")
    copies = find_copies(records, options, None, display)
    groups = group_copies(records, copies.pairs)
    splits = divide(groups, {"val": options.val, "test": options.test}, options.seed)
    write_lists(splits, folder)
    for name, members in splits.items():
        captions = sum(len(record.captions) for record in members)
        display.print(
            f"{name:<6} {quantity(len(members), 'picture')} ({len(members) / len(records):.1%}), "
            f"{quantity(captions, 'caption')}"
        )
    if kept := [" = ".join(record.name for record in group) for group in groups if len(group) > 1]:
        display.print(counted(kept, "group of copies kept together", "groups of copies kept together"))
    display.print(f"Wrote {folder}")
    return 0


def find_copies(
    records: Sequence[Record], options: ComparingPictures, looks: int | None, display: Display
) -> Copies:
    """Find copies with a progress bar, and warn of broken pictures. looks: see `find_copy_groups`."""
    with display.progress() as progress:
        copies = find_copy_groups(records, 0 if options.fast else looks, progress)
    if copies.broken:
        display.warn(counted(list(copies.broken.values()), "picture cannot be read", "pictures cannot be read"))
    return copies
