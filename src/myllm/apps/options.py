"""The options of each verb that are not already in `config`; read without torch, so that help is instant."""

from dataclasses import dataclass, field
from typing import Literal

from myllm.config import CaptionsConfig, DecodeConfig
from myllm.errors import ConfigError


@dataclass(frozen=True)
class RunOptions:
    """How `myllm train` treats its run folder, and what it prints."""

    resume: bool = False
    """Go on with the run in --out from its last.pt."""
    overwrite: bool = False
    """Begin anew although --out holds a run; its checkpoints are replaced."""
    quiet: bool = False
    """Print only warnings, errors and the last line."""
    json: bool = False
    """Print the final figures as JSON on standard output, everything else on standard error."""


@dataclass(frozen=True)
class DemoOptions:
    """Render scenes, train on them, judge the captioner, and report."""

    out: str = "runs/demo"
    """Folder for the demo's scenes and its run; what an earlier demo wrote there is replaced."""
    minutes: float = 7.5
    """Time for training alone; rendering and judging take about one more."""
    max_steps: int | None = None
    """Train for so many steps instead, so that the result does not depend on the machine's speed."""
    count: int = 24_000
    """Scenes to render."""
    judged: int = 1_000
    """Fresh scenes to judge by, of seen and of held-out pairs each."""
    seed: int = 0
    """Of scenes and training."""
    quiet: bool = False
    """Print only warnings, errors and the report."""

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.judged <= 0 or (self.max_steps is not None and self.max_steps <= 0):
            raise ConfigError("--minutes, --max-steps and --judged must be above 0")


@dataclass(frozen=True)
class ScenesOptions:
    """Write drawn pictures with captions in the layout that `myllm train` reads."""

    out: str
    """New folder for them."""
    count: int = 24_000
    """Pictures in all; a twentieth each goes to the splits val and heldout."""
    seed: int = 0
    """The same seed gives the same bytes."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True)
class CaptionOptions:
    """Caption pictures, folders of pictures (with all below them) and globs."""

    model: str = "captioner"
    """A captioner.pt, a run folder with one, or a folder of safetensors."""
    adapter: str | None = None
    """Folder of a low-rank adapter that was trained on this model, to caption with it."""
    out: str | None = None
    """Write caption JSONL here, and what could not be read to OUT.errors.jsonl; else print."""
    json: bool = False
    """Print JSONL instead of text."""
    heatmaps: str | None = None
    """Folder for a PNG of each picture that shows what was looked at to say each word."""
    overwrite: bool = False
    """Replace --out, and the files of --heatmaps, where they are there already."""
    batch_size: int = 32
    """Pictures captioned at once."""
    devices: str = "auto"
    """auto, cpu or cuda."""
    precision: str = "auto"
    """auto and fp32 are exact; bf16 computes in it; int8 is faster on a CPU, and says nearly the same."""
    quiet: bool = False
    """No progress bar."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Overrides the model's own decoding defaults."""

    def __post_init__(self) -> None:
        if self.batch_size <= 0:
            raise ConfigError(f"--batch_size {self.batch_size}: it must be above 0")


@dataclass(frozen=True)
class EvaluateOptions:
    """Caption a split of a data folder and score the captions."""

    data: str
    """Data folder, as for training."""
    model: str = "captioner"
    """A captioner.pt, a run folder with one, or a folder of safetensors."""
    adapter: str | None = None
    """Folder of a low-rank adapter that was trained on this model, to caption with it."""
    split: str = "val"
    """Name of the split: val, train, or that of another file in DATA/splits."""
    training: str | None = None
    """Data folder that the model was trained on: pictures and captions that are in both are counted, named and left out
    of a second set of figures. DATA's own split train where not given."""
    limit: int | None = None
    """Only this many pictures, the first ones."""
    metrics: str | None = None
    """Compute only these metrics, separated by commas, such as CIDEr-D,BLEU-4; all that are available by default."""
    clip: str | None = None
    """Add CLIPScore and RefCLIPScore by this CLIP: transformers:FOLDER_OR_ID, or open_clip:ARCHITECTURE/WEIGHTS; needs
    the extra `clip`."""
    out: str | None = None
    """Folder for metrics.json, captions.jsonl, samples.png, report.html and its plots."""
    overwrite: bool = False
    """Replace the figures that --out holds already."""
    calibrate: bool = False
    """Learn from these captions what confidence means, and write that into --model, a captioner.pt or our folder."""
    json: bool = False
    """Print the figures as JSON."""
    batch_size: int = 32
    """Pictures captioned at once."""
    devices: str = "auto"
    """auto, cpu or cuda."""
    precision: str = "auto"
    """auto and fp32 are exact; bf16 computes in it; int8 is faster on a CPU, and says nearly the same."""
    quiet: bool = False
    """No progress bar."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Overrides the model's own decoding defaults."""

    def __post_init__(self) -> None:
        if self.batch_size <= 0 or (self.limit is not None and self.limit <= 0):
            raise ConfigError(f"--batch_size {self.batch_size} and --limit {self.limit} must be above 0")


@dataclass(frozen=True)
class ScoreOptions:
    """Score captions, anyone's, against references: the metrics alone."""

    predictions: str
    """Captions: COCO results (JSON), caption JSONL, or CSV with columns image and caption."""
    references: str
    """What people wrote: COCO annotations, Karpathy's JSON, results.csv, or a data folder."""
    split: str | None = None
    """Hold against this split's pictures alone, where the references have splits."""
    allow_missing: bool = False
    """Score the pictures that have both where captions or references are left over; how many are left out is told."""
    metrics: str | None = None
    """Compute only these metrics, separated by commas, such as CIDEr-D,BLEU-4; all that are available by default."""
    clip: str | None = None
    """Add CLIPScore and RefCLIPScore by this CLIP: transformers:FOLDER_OR_ID, or open_clip:ARCHITECTURE/WEIGHTS; needs
    the extra `clip`."""
    pictures: str | None = None
    """Folder of the pictures, which --clip looks at."""
    per_image: bool = False
    """Print each picture's figures too."""
    json: bool = False
    """Print JSON on standard output."""
    csv: bool = False
    """Print CSV: a line a figure, with --per-image a line a picture."""
    quiet: bool = False
    """Print only warnings beside the figures."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """How results.csv is read."""

    def __post_init__(self) -> None:
        if self.json and self.csv:
            raise ConfigError("--json and --csv: one form at a time")
        if (self.clip is None) != (self.pictures is None):
            raise ConfigError("--clip looks at pictures: give it and --pictures, or neither")


@dataclass(frozen=True)
class CompareOptions:
    """Put two captioners side by side on the same pictures: which is better, by how much, and may it be chance?

    Either may be a model or a file of captions, as `myllm score` reads them."""

    data: str
    """Data folder, as for training."""
    split: str = "val"
    """Name of the split to compare on."""
    limit: int | None = None
    """Only this many pictures, the first ones."""
    metrics: str | None = None
    """Compute only these metrics, separated by commas, such as CIDEr-D,BLEU-4; all that are available by default."""
    out: str | None = None
    """Folder for comparison.json, report.html and its plots."""
    overwrite: bool = False
    """Replace the comparison that --out holds already."""
    allow_missing: bool = False
    """Compare on the pictures that both caption, where a file lacks some; how many are left out is told."""
    json: bool = False
    """Print the comparison as JSON."""
    batch_size: int = 32
    """Pictures captioned at once."""
    devices: str = "auto"
    """auto, cpu or cuda."""
    precision: str = "auto"
    """auto and fp32 are exact; bf16 computes in it; int8 is faster on a CPU, and says nearly the same."""
    quiet: bool = False
    """No progress bar."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Overrides both models' own decoding defaults."""

    def __post_init__(self) -> None:
        if self.batch_size <= 0 or (self.limit is not None and self.limit <= 0):
            raise ConfigError(f"--batch_size {self.batch_size} and --limit {self.limit} must be above 0")


@dataclass(frozen=True)
class InfoOptions:
    """Tell what is in a captioner: a captioner.pt, a run folder with one, or a folder of safetensors."""

    json: bool = False
    """Print JSON, a line for each captioner."""


@dataclass(frozen=True)
class DiagramOptions:
    """Draw the architecture of a configuration."""

    preset: str = "seed"
    """Whose configuration."""
    out: str = "architecture.svg"
    """File to write; .svg or .png."""


@dataclass(frozen=True)
class ImportOptions:
    """Turn a captioner of another program, or one on a hub, into a file of ours."""

    out: str
    """New file for it, as captioner.pt."""
    quiet: bool = False
    """Print only warnings and errors."""


@dataclass(frozen=True)
class ExportOptions:
    """Write a captioner in the form of another program."""

    out: str
    """New folder for it."""
    to: Literal["hf", "safetensors", "gpt2", "onnx", "web"] = "hf"
    """hf: transformers' VisionEncoderDecoderModel with all it needs; safetensors: our own folder, with a model card;
    gpt2: the decoder's language alone; onnx: to run without torch, in Python or transformers.js; web: a page that
    captions in the browser, with all it needs."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the numbers in safetensors: the last two make half as large a file, and change captions a little."""
    precision: Literal["fp32", "int8", "int4"] | None = None
    """Of the weights in onnx (fp32 where not given) and web (int8): int8 makes files of 30 %, int4 of 20 % of fp32's
    size; --data tells what it costs."""
    data: str | None = None
    """Data folder: caption a split of it with the captioner and with its export (onnx, web), and compare figures."""
    split: str = "val"
    """Name of that split."""
    limit: int | None = None
    """Only the first so many pictures of it."""
    quiet: bool = False
    """Print only warnings and errors."""


@dataclass(frozen=True)
class PushOptions:
    """Put a captioner into a repository of a hub, with a model card; HF_TOKEN says who you are."""

    private: bool = False
    """Make the repository for yourself alone, where it is not there yet."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the numbers: the last two make half as large a file, and change captions a little."""
    quiet: bool = False
    """Print only warnings and errors."""


@dataclass(frozen=True)
class AverageOptions:
    """Average the weights of captioners of one geometry: often better than any checkpoint of the run they are from."""

    out: str
    """New file for the mean, as captioner.pt."""
    weights: tuple[float, ...] = ()
    """One for each captioner, as [1, 2]; all count alike where none are given."""
    data: str | None = None
    """Data folder: judge each captioner and the mean on a split of it."""
    split: str = "val"
    """Name of that split."""
    devices: str = "auto"
    """auto, cpu or cuda."""
    quiet: bool = False
    """Print only warnings and errors."""
