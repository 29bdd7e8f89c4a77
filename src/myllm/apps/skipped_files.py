"""Files that are not read: those that look like pictures, counted and with advice, and captions of earlier runs."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from myllm.data.images import PICTURE_SUFFIXES
from myllm.data.stored import SUFFIXES as ARCHIVE_SUFFIXES
from myllm.data.table_pictures import SUFFIXES as TABLE_SUFFIXES
from myllm.errors import install_command

FOLDER_LINK = "link to a folder"
# what `myllm caption` appends to --out for the names of its files; the first is always there
OUTPUT_ENDS = (".run.json", ".errors.jsonl", ".jsonl", ".checkpoint", "")
COLLECTIONS = (*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES)
CAMERA = "a camera's raw data is not read; export it as JPEG"
CONVERT = "this format is not read; convert it to PNG or JPEG"
INSTALL_HEIF = f"pillow-heif reads them; install it: {install_command('pillow-heif')}"
ADVICE = {
    CAMERA: ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl "
            ".sr2 .srf .srw .x3f",
    # Pillow opens some of these, too, but its readers of rare formats are not given foreign files
    CONVERT: ".ai .blp .bw .cdr .cur .dcx .dds .djvu .emf .eps .exr .fit .fits .flc .fli .ftc .ftu .gbr .hdr .icb "
             ".icns .im .jng .jxl .jxr .mng .msp .palm .pcd .pct .pcx .pict .psb .psd .pxr .qoi .ras .rgb .rgba .sgi "
             ".svg .svgz .tga .vda .vst .wdp .wmf .xbm .xcf .xpm",
    INSTALL_HEIF: ".heic .heif .hif",
}
ADVICE_FOR = {suffix: advice for advice, suffixes in ADVICE.items() for suffix in suffixes.split()}
"""Advice by the suffix of files that look like pictures."""


def is_skipped(suffix: str) -> bool:
    """Return whether files with this suffix, in lower case, look like pictures, or like a file of pictures."""
    return suffix not in PICTURE_SUFFIXES and (suffix in ADVICE_FOR or suffix in COLLECTIONS)


class SkippedFiles:
    """Counts skipped files by suffix, and keeps the first of each."""

    def __init__(self, total: "SkippedFiles | None" = None) -> None:
        """total: counts the same files, too."""
        self.total = total
        self.counts = Counter[str]()
        self.first: dict[str, str] = {}

    def add(self, suffix: str, path: Path | str) -> None:
        """Count a file; suffix: `FOLDER_LINK` for a link to a folder."""
        self.counts[suffix] += 1
        self.first.setdefault(suffix, str(path))
        if self.total is not None:
            self.total.add(suffix, path)

    def describe(self) -> str:
        """Return how many were skipped, the first of each suffix, and advice; '' if there are none."""
        return "; ".join(
            f"skipped {count:,} {_noun(suffix, count)}, {'the first is' if count > 1 else 'which is'} "
            f"{self.first[suffix]}: {_advice(suffix, self.first[suffix])}"
            for suffix, count in self.counts.most_common()
        )


def _noun(suffix: str, count: int) -> str:
    if suffix == FOLDER_LINK:
        return "links to folders" if count > 1 else suffix
    return f"{suffix} files" if count > 1 else f"{suffix} file"


def _advice(suffix: str, first: str) -> str:
    if suffix == FOLDER_LINK:
        return "links are not followed; give the folder itself"
    if suffix in COLLECTIONS:
        if Path(first).is_file():
            return f"to read it, give the path {Path(first).parent}/*{suffix}"
        return "unpack it from its archive"
    return ADVICE_FOR[suffix]


def without_outputs(paths: Sequence[str]) -> list[str]:
    """Return the paths without those that `myllm caption` wrote, which a glob of a shell, such as pics/*, includes.

    A text file is left out if its picture is among the paths, another file if the .run.json next to it is.
    """
    known = set(paths)
    return [path for path in paths if not is_output(path, known.__contains__)]


def is_output(path: str, is_there: Callable[[str], bool]) -> bool:
    """Return whether `myllm caption` wrote it: a text file next to its picture, or a file of an --out."""
    stem, suffix = os.path.splitext(path)
    if suffix == ".txt" and any(is_there(stem + end) or is_there(stem + end.upper()) for end in PICTURE_SUFFIXES):
        return True
    return suffix.lower() not in PICTURE_SUFFIXES and any(
        path.endswith(end) and is_there(path.removesuffix(end) + OUTPUT_ENDS[0]) for end in OUTPUT_ENDS
    )
