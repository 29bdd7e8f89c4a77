"""The options of `myllm caption`."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from myllm.apps.options import AsJson, OneModel, positional
from myllm.config import nearest
from myllm.errors import ConfigError
from myllm.option_checks import Range

FIELDS = ("score", "confidence", "alternatives", "ended_by", "words", "text", "caption")
"""What --fields chooses from; text and caption are written always."""
NOT_WITH_RAY = {
    "overwrite": "give another --out, or remove it and OUT.checkpoint",
    "heatmaps": "draw them with another command, without --ray",
    **dict.fromkeys(("template", "trigger", "append", "prepend"), "write text files from the Parquet files of --out"),
}
"""Options that do not work with --ray, and what to do instead."""


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(OneModel, AsJson):
    """Caption pictures: files, folders with their subfolders, globs, archives and tables. With --out, the same command
    resumes after an interruption, and captions only pictures that have no caption yet."""

    paths: tuple[str, ...] = positional(
        "Picture files, folders, globs, tar or zip archives, Parquet files, or data that `myllm train` reads; - reads "
        "paths from standard input."
    )
    from_: str | None = None
    """File with more paths, one on each line, or separated by zero bytes, as `find -print0` writes them; - is standard
    input."""
    out: str | None = None
    """File for the captions, continued if it exists; pictures that cannot be captioned go to OUT.errors.jsonl. With
    --to txt, a folder for the text files. By default, captions are printed."""
    to: Literal["jsonl", "csv", "parquet", "txt"] | None = None
    """Format of --out; by default its suffix decides, or else jsonl. csv and parquet are written at the end, from
    OUT.jsonl; txt is a text file for each picture, next to it if there is no --out."""
    overwrite: bool = False
    """Caption all pictures again; existing captions stay until there are new ones."""
    n: Annotated[int, Range.POSITIVE] = 1
    """Number of captions of each picture; those after the first are its alternatives."""
    min_confidence: Annotated[float | None, Range.AT_LEAST_0] = None
    """Write no caption with a lower confidence; its picture is listed in OUT.errors.jsonl."""
    fields: tuple[str, ...] = ("score", "confidence", "alternatives", "ended_by")
    """Fields written besides image and caption: score, confidence, alternatives, ended_by, words (each with its
    confidence)."""
    only: str | None = None
    """Only the pictures that failed, are unprocessed (without caption or error), or changed since they were captioned:
    failed, unprocessed or changed; or only those listed in a file, as --from reads it."""
    mixed: bool = False
    """Continue --out although its captions were made by another model or with other options."""
    strict: bool = False
    """End with exit code 1 if any picture could not be captioned."""
    template: str = "{caption}"
    """Text of the files of --to txt, like "a photo of {caption}"."""
    trigger: str | None = None
    """Word at the start of the files of --to txt, followed by a comma."""
    append: bool = False
    """With --to txt: add the caption at the end of existing files, after a comma. By default, a file with text stays
    as it is, and its picture is not captioned."""
    prepend: bool = False
    """With --to txt: add the caption at the beginning of existing files, with a comma behind it."""
    heatmaps: str | None = None
    """Folder for heat maps: a PNG for each picture, with a panel for each word that shows where the model looked;
    --overwrite replaces existing ones."""
    ray: str | None = None
    """Caption on all machines of a Ray cluster: its address like node0:6379, auto for the one this machine belongs to,
    or local to start one on this machine. --out is then a folder of Parquet files on a disk that all machines share."""
    seed: Annotated[int | None, Range.SEED] = None
    """Random seed for --decode.do_sample: a picture's captions depend on it and on the picture's bytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ray is not None:
            self._check_ray()
        for name in self.fields:
            if name not in FIELDS:
                raise ConfigError(f"--fields has {name!r}; known are {', '.join(FIELDS)}{nearest(name, FIELDS)}")
        if self.append and self.prepend:
            raise ConfigError("--append and --prepend: choose one of them")
        if "{caption}" not in self.template:
            raise ConfigError(f"--template is {self.template!r}; it must contain {{caption}}")
        for name in ("template", "trigger", "append", "prepend"):
            if getattr(self, name) != getattr(type(self), name) and self.form != "txt":
                raise ConfigError(f"--{name} is for text files; add --to txt")
        if self.to not in (None, "txt") and self.out is None:
            hint = "; --json prints rows of JSON" * (self.to == "jsonl")
            raise ConfigError(f"--to {self.to} needs --out, the file to write{hint}")
        for name in ("only", "mixed"):
            if getattr(self, name) and self.out is None and self.form != "txt":
                raise ConfigError(f"--{name} needs --out, which holds the captions that are there already")


    def _check_ray(self) -> None:
        """Raise ConfigError for what --ray cannot do."""
        for name, fix in NOT_WITH_RAY.items():
            if getattr(self, name) != getattr(type(self), name):
                raise ConfigError(f"--{name} does not work with --ray; {fix}")
        if self.only not in (None, "failed", "unprocessed"):
            raise ConfigError(
                f"--only {self.only} does not work with --ray; take failed or unprocessed, or list the pictures in a "
                "file for --from, and give another --out"
            )
        if re.fullmatch(r"auto|local|(\[.+\]|[^:/]+):\d+", str(self.ray)) is None:
            raise ConfigError(f"--ray {self.ray}: expected local, auto, or an address like node0:6379")
        if self.out is None:
            raise ConfigError("--ray needs --out, a folder for Parquet files on a disk that all machines share")
        form = self.to or (self.form if self.form != "jsonl" or self.out.lower().endswith(".jsonl") else "parquet")
        if form != "parquet":
            raise ConfigError(f"--ray writes a folder of Parquet files, not {form}; leave out --to, and name --out so")
        if self.devices not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--devices {self.devices} does not work with --ray; take auto, cpu or cuda")

    @property
    def form(self) -> str:
        """Format of the output."""
        suffix = "" if self.out is None else self.out.rpartition(".")[2].lower()
        return self.to or (suffix if suffix in ("csv", "parquet") else "jsonl")

    @property
    def decode_changes(self) -> dict[str, Any]:
        """Decoding options that were given, {name: value}; `n` is one, too."""
        changes = super().decode_changes
        if self.n > 1:
            changes["num_return_sequences"] = self.n
            if not self.decode.do_sample:
                changes["beams"] = max(self.n, self.decode.beams)
        return changes
