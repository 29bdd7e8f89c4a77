"""The options of `myllm data inspect`, `convert` and `split`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from myllm.apps.options import AsJson, Printed, Replacing, positional
from myllm.config import CaptionsConfig
from myllm.errors import ConfigError
from myllm.option_checks import Range


@dataclass(frozen=True, kw_only=True)
class ComparingPictures(Printed):
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """How captions are read; by default as `myllm train` reads them."""
    fast: bool = False
    """Find only copies with equal bytes. Comparing pictures by their looks takes about half a minute for 7,000, and up
    to four times as long for twice as many."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions(ComparingPictures, Replacing, AsJson):
    """Describe data: counts, captions, words, scripts, copies, leaks between splits, and broken pictures."""

    paths: tuple[str, ...] = positional("Folders and files of data, in any format that `myllm train` reads.", "DATA...")
    sheet: str | None = None
    """PNG file to write: a sample of the pictures with their captions, and of the copies."""
    overwrite: bool = False
    """Replace an existing --sheet."""
    tokenizer: str | None = None
    """Count tokens of GPT-2's tokenizer in this folder or hub repository; by default one is trained on the captions, as
    `myllm train` does."""
    seed: Annotated[int, Range.SEED] = 0
    """Random seed of the sample in --sheet."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Printed):
    """Write data in another format, with the names, captions and splits that it has; pictures are copied unchanged."""

    paths: tuple[str, ...] = positional(
        "Folders and files of data, in any format that `myllm train` reads, and the new folder to write.", "DATA... OUT"
    )
    to: Literal["csv", "jsonl", "webdataset", "parquet", "sidecar"]
    """csv: captions.csv and images/; jsonl: captions.jsonl and images/; webdataset: tar files; parquet: tables that
    contain the pictures, for Hugging Face datasets; sidecar: next to each picture a .txt, a caption on each line."""
    captions: CaptionsConfig = field(default_factory=lambda: CaptionsConfig(lowercase=False))
    """How captions are read; by default they keep their case."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions(ComparingPictures):
    """Divide pictures into train, val and test. Copies of a picture stay together, so that nothing leaks."""

    paths: tuple[str, ...] = positional("Folder or file of data, in any format that `myllm train` reads.", "DATA")
    val: Annotated[float, Range.FRACTION] = 0.1
    """Share of the pictures that is for validation."""
    test: Annotated[float, Range.FRACTION] = 0.1
    """Share of the pictures that is for tests."""
    seed: Annotated[int, Range.SEED] = 0
    """Another seed gives another division."""
    out: str | None = None
    """Folder for the lists train.txt, val.txt and test.txt; by default DATA/splits, where `myllm train` reads them."""
    overwrite: bool = False
    """Replace existing lists."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val + self.test >= 1:
            raise ConfigError(f"--val {self.val:g} and --test {self.test:g} leave no pictures to train on")
