"""`myllm alt`: pictures without alternative text in HTML and Markdown, a suggestion for each, and filling them in."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from myllm.apps.alt_html import Picture
from myllm.apps.alt_links import Destinations
from myllm.apps.alt_pages import Page, difference, filled, find_pages, read_page, write_filled
from myllm.apps.alt_pictures import complexity, find_picture, shown_address, spacer_by_pixels
from myllm.apps.alt_rules import MISSING, OF_TEMPLATE, Finding, is_repeated, judge, judge_unreadable
from myllm.apps.alt_wording import alternative_text
from myllm.apps.console import Display
from myllm.apps.opening import open_captioner
from myllm.apps.options import AltOptions
from myllm.apps.printing import print_json, printable
from myllm.batched import batched
from myllm.caption import Caption, CaptionerProtocol
from myllm.data.images import load_image
from myllm.data.records import quantity
from myllm.errors import DataError, MyLLMError

UNLIMITED = 1_000_000
"""Width of a table that is not shown on a terminal: each picture gets one line, so that programs can read it."""
PictureSource = Path | bytes
"""A picture's file, or its content."""


@dataclass
class Fault:
    """A picture with a wrong or missing alternative text."""

    page: Page
    picture: Picture
    finding: Finding
    is_written: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the row that --json prints."""
        finding = self.finding
        return {
            "file": str(self.page.path), "line": self.picture.line, "picture": shown_address(self.picture.element),
            "problem": finding.problem, "missing": finding.is_missing, "alt": finding.alt, "reason": finding.reason,
            "confidence": None if finding.confidence is None else round(finding.confidence, 6),
            "written": self.is_written,
        }


def alt(options: AltOptions) -> int:
    """Audit the pages of `options.paths`. The exit code is 1 if a picture has no alternative text in the end."""
    display = Display(options.quiet, json=True)
    pages, errors = list[Page](), list[str]()
    for file in find_pages(options.paths):
        try:
            if isinstance(file, DataError):
                raise file
            pages.append(read_page(file))
        except DataError as error:
            errors.append(str(error))
    faults, destinations = list[Fault](), Destinations()
    for page in pages:
        for picture in page.tree.pictures:
            finding = judge(picture.element, partial(destinations.name, page=page))
            if finding is not None:
                faults.append(Fault(page, picture, finding))
    describe([fault for fault in faults if fault.finding.alt is None and not fault.finding.reason], options, display)
    faults = [_with_place(fault) for fault in faults if not _is_empty_markdown(fault)]
    for page, page_faults in _fillable(pages, faults):
        content = filled(page, {fault.picture: fault.finding.alt or "" for fault in page_faults})
        if options.diff:
            _print_difference(page, content)
        elif options.write:
            try:
                write_filled(page, content)
                for fault in page_faults:
                    fault.is_written = True
            except MyLLMError as error:
                errors.append(str(error))
    for message in errors:
        display.warn(message)
    report(pages, faults, errors, options, display)
    return int(bool(errors) or any(fault.finding.is_missing and not fault.is_written for fault in faults))


def describe(faults: Sequence[Fault], options: AltOptions, display: Display) -> None:
    """Give each fault a finding that its picture decides. A picture that several pages show is captioned once."""
    faults_of = dict[PictureSource, list[Fault]]()
    for fault in faults:
        try:
            picture = find_picture(fault.picture.element, fault.page)
            faults_of.setdefault(picture.resolve() if isinstance(picture, Path) else picture, []).append(fault)
        except (DataError, OSError, ValueError) as error:
            fault.finding = judge_unreadable(fault.picture.element, error)
    if not faults_of:
        return
    captioner = open_captioner(options.model, options.devices, options.precision, options.adapter)
    captioner.decode = captioner.decode_options(**{"rank_by": "confidence", **options.decode_changes})
    done, is_calibrated = 0, True
    with display.progress() as progress:
        for batch in batched(faults_of, options.batch_size):
            for picture, result in caption_pictures(captioner, batch):
                for fault in faults_of[picture]:
                    fault.finding = _finding(fault, result, options)
                is_calibrated &= not isinstance(result, Caption) or result.calibration is not None
            done += len(batch)
            progress("captioning", done, len(faults_of))
    if not is_calibrated:
        display.warn(
            f"--model {options.model} is not calibrated: its confidence does not say how often captions are right, so "
            "check each suggestion, or calibrate it by `myllm evaluate --calibrate`"
        )


def caption_pictures(
    captioner: CaptionerProtocol, pictures: Sequence[PictureSource]
) -> Iterator[tuple[PictureSource, Caption | Finding | DataError]]:
    """Yield each picture with its caption, a finding if a caption cannot describe it, or why it cannot be read."""
    images, captioned = list[Any](), list[PictureSource]()
    for picture in pictures:
        try:
            image = load_image(picture)
            name = picture.name if isinstance(picture, Path) else ""
            if decoration := spacer_by_pixels(image):
                yield picture, Finding(MISSING, "", decoration)
            elif reason := complexity(image, name):
                yield picture, Finding(MISSING, None, reason)
            else:
                images.append(captioner.preprocess(image))
                captioned.append(picture)
        except DataError as error:
            yield picture, error
    if images:
        yield from zip(captioned, captioner.caption_tensors(images, captioner.decode), strict=True)


def _finding(fault: Fault, result: Caption | Finding | DataError, options: AltOptions) -> Finding:
    if isinstance(result, Finding):
        return result
    if isinstance(result, DataError):
        return judge_unreadable(fault.picture.element, result)
    if result.error:
        return Finding(MISSING, None, result.error)
    sure = result.confidence
    if sure < options.min_confidence:
        reason = f"the captioner is not sure: confidence {sure:.2f} is below {options.min_confidence:g}"
        return Finding(MISSING, None, reason, sure)
    text = alternative_text(result.text, options.people, is_cut=result.ended_by == "length")
    element = fault.picture.element
    if not any(map(str.isalpha, text)):
        return Finding(MISSING, None, "the caption has no words", sure)
    if is_repeated(result.text, element) or is_repeated(text, element):
        return Finding(MISSING, "", "the text next to it says the same", sure)
    return Finding(MISSING, text, f"describes the picture, confidence {sure:.2f}", sure)


def _with_place(fault: Fault) -> Fault:
    """Return the fault; without a suggestion if that cannot be inserted into the page."""
    if fault.finding.alt is not None and fault.picture.insert_at is None:
        reason = f'write "{fault.finding.alt}" yourself: its place in the Markdown is not certain'
        return replace(fault, finding=replace(fault.finding, alt=None, reason=reason))
    return fault


def _is_empty_markdown(fault: Fault) -> bool:
    """Whether it is a Markdown picture that is to have an empty text, and has: ![](spacer.png)."""
    return fault.picture.is_markdown and fault.finding.alt == ""


def _fillable(pages: Sequence[Page], faults: Sequence[Fault]) -> Iterator[tuple[Page, list[Fault]]]:
    """Yield each page with its faults that can be filled in, if it has any."""
    by_page = defaultdict[int, list[Fault]](list)
    for fault in faults:
        if fault.finding.alt is not None:
            by_page[id(fault.page)].append(fault)
    yield from ((page, by_page[id(page)]) for page in pages if id(page) in by_page)


def _print_difference(page: Page, content: bytes) -> None:
    lines = difference(page, content)
    if sys.stdout.isatty():
        print(printable(lines.decode("utf-8", "replace"), keep="\n\t"), end="", flush=True)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()


def report(
    pages: Sequence[Page], faults: Sequence[Fault], errors: Sequence[str], options: AltOptions, display: Display
) -> None:
    """Print the faults as a table or as JSON, and how many there are."""
    missing = [fault for fault in faults if fault.finding.is_missing]
    of_templates = [fault for fault in faults if fault.finding.problem == OF_TEMPLATE]
    fillable = [fault for fault in missing if fault.finding.alt is not None]
    counts = {
        "pages": len(pages), "pictures": sum(len(page.tree.pictures) for page in pages), "missing": len(missing),
        "suggested": len(fillable), "written": sum(fault.is_written for fault in faults),
        "for_a_person": len(missing) - len(fillable), "made_by_template": len(of_templates),
        "wrong": len(faults) - len(missing) - len(of_templates),
    }
    if options.json:
        print_json({**counts, "faults": [fault.as_json() for fault in faults], "errors": list(errors)})
    elif faults and not options.diff:
        _print_table(faults)
    fill = f"{counts['written']:,} written" if options.write else f"{len(fillable):,} can be filled in by --write"
    read = f"{quantity(len(pages), 'page')}, {quantity(counts['pictures'], 'picture')}"
    display.say(
        f"{read}: {len(missing):,} without alternative text ({fill}, {counts['for_a_person']:,} for a person), "
        f"{counts['wrong']:,} with a wrong one, {counts['made_by_template']:,} that a template may make"
    )


def _print_table(faults: Sequence[Fault]) -> None:
    table = Table("file", "line", "picture", "what is wrong", "suggestion", box=None)
    for fault in faults:
        finding = fault.finding
        suggestion = "for a person" if finding.alt is None else f'"{finding.alt}"'
        cells = (
            str(fault.page.path), f"{fault.picture.line:,}", shown_address(fault.picture.element), finding.problem,
            f"{suggestion}: {finding.reason}",
        )
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in cells))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else UNLIMITED)
    with console.capture() as captured:
        console.print(table)
    print(captured.get(), end="", flush=True)
