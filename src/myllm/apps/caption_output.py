"""Rows of captions, and captions that are printed."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from myllm.apps.caption_options import CaptionOptions
from myllm.apps.console import Display
from myllm.apps.heatmap_files import HeatmapFiles
from myllm.apps.json_lines import Row
from myllm.apps.picture_search import FoundPicture, PictureSearch, UnusablePath
from myllm.apps.printing import print_json, printable
from myllm.caption import Caption, CaptionerProtocol
from myllm.config import VERSION
from myllm.data.records import quantity
from myllm.inference.bulk import Result

CONFIDENCE = "confidence"
MAX_WARNINGS = 20


def row_fields(options: CaptionOptions) -> Collection[str]:
    """Return the fields of rows: those of --fields, and the alternatives if there are several captions (--n)."""
    return {*options.fields, "alternatives"} if options.n > 1 else options.fields


def row_of(image: str, caption: Caption, fields: Collection[str]) -> Row:
    """Return a row of captions: image, caption, the fields, and `missing` if words of `force_words` are missing."""
    words = [{"text": word.text, CONFIDENCE: _rounded(word.confidence)} for word in caption.words]
    values = {
        "score": _rounded(caption.score), CONFIDENCE: _rounded(caption.confidence),
        "alternatives": caption.alternatives, "ended_by": caption.ended_by, "words": words,
    }
    chosen = {name: value for name, value in values.items() if name in fields}
    missing = {"missing": list(caption.missing)} if caption.missing else {}
    return {"image": image, "caption": caption.text, **chosen, **missing}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def low_confidence(caption: Caption, minimum: float | None) -> str:
    """Return the error of a caption whose confidence is below the minimum; '' if it is not."""
    confidence = round(caption.confidence, 6)
    is_low = minimum is not None and confidence < minimum
    return f"confidence {confidence:g} is below --min-confidence {minimum:g}" if is_low else ""


def run_facts(options: CaptionOptions, captioner: CaptionerProtocol) -> dict[str, Any]:
    """Return what the captions of a run depend on, by name."""
    names = ("precision", "seed", "min_confidence", "fields", "template", "trigger", "append", "prepend", "heatmaps")
    return {
        "myllm": VERSION, "model": options.model, "weights": captioner.weights_hash(),
        **{f"decode.{name}": value for name, value in asdict(captioner.decode).items()},
        **{name: getattr(options, name) for name in names}, "overwrite": options.overwrite,
    }


class PrintedCaptions:
    """Prints captions as they come, and keeps nothing."""

    is_resumed = False
    """Whether there are captions of an earlier run."""

    def __init__(self, options: CaptionOptions, display: Display) -> None:
        self.options, self.display = options, display
        self.captioned, self.failed, self.seen = 0, 0, 0
        self.is_stopped = False
        self.heatmaps: HeatmapFiles | None = None

    def __enter__(self) -> "PrintedCaptions":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, captioner: CaptionerProtocol) -> None:
        """Get ready to write. Raises MyLLMError."""

    def stop(self) -> None:
        """Finish what is in work, and begin nothing new."""
        self.is_stopped = True
        os.write(2, b"\nfinishing the batches in hand; Ctrl-C ends at once\n")

    def left(self, search: PictureSearch) -> Iterator[FoundPicture]:
        """Yield the pictures to caption."""
        for entry in search:
            if self.is_stopped:
                return
            if isinstance(entry, UnusablePath):
                if self.is_wanted(entry.path):
                    self.fail(entry.path, entry.error)
            elif self.is_left(entry):
                yield entry

    def left_twins(self) -> Iterator[FoundPicture]:
        """Yield pictures that others in work have held up, after these."""
        yield from ()

    def is_wanted(self, image: str) -> bool:
        """Return whether a picture is one of those to caption, if it has no caption yet."""
        return True

    def is_left(self, entry: FoundPicture) -> bool:
        """Return whether a picture is to be captioned."""
        return True

    def claim(self, digest: str) -> bool:
        """Return whether a picture with this hash is to be captioned; if not, it is a copy of one that is."""
        return True

    def write(self, results: Sequence[Result[FoundPicture]]) -> None:
        """Print the captions of a batch."""
        for result in results:
            image = str(result.item.picture)
            if result.caption is None:
                self.fail(image, result.error)
                continue
            if self._is_below_minimum(image, result.caption):
                continue
            if self.heatmaps is not None:
                self.heatmaps.draw(result.item.picture, result.caption)
            if self.options.json:
                print_json(row_of(image, result.caption, row_fields(self.options)))
            else:
                texts = [result.caption.text, *result.caption.alternatives[: self.options.n - 1]]
                for text in texts:
                    print(printable(f"{image}: {text}"), flush=True)
            self.count(captioned=1)

    def count(self, captioned: int = 0, failed: int = 0) -> None:
        """Count pictures."""
        self.captioned += captioned
        self.failed += failed
        self.seen += captioned + failed

    def fail(self, image: str, error: str, **facts: Any) -> None:
        """Report a picture that has no caption."""
        self.count(failed=1)
        if self.failed <= MAX_WARNINGS:
            self.display.warn(error if error.startswith(image) else f"{image}: {error}")
        elif self.failed == MAX_WARNINGS + 1:
            self.display.warn(f"more pictures cannot be captioned{self.see_errors()}")

    def see_errors(self) -> str:
        """Return where all errors are listed."""
        return "; with --out they are all listed in a file"

    def finish(self, is_complete: bool) -> None:
        """Print a summary of what failed."""
        if self.failed:
            self.display.say(f"{quantity(self.captioned, 'picture')} captioned, {self.failed:,} could not be captioned")

    def counts(self) -> dict[str, int]:
        """Return what became of the pictures."""
        return {"captioned": self.captioned, "failed": self.failed}

    def _is_below_minimum(self, image: str, caption: Caption) -> bool:
        if error := low_confidence(caption, self.options.min_confidence):
            self.fail(image, error, confidence=_rounded(caption.confidence))
        return bool(error)
