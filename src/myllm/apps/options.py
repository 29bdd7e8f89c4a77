"""The options of each verb, a frozen dataclass each; importing them imports no torch, so that help is instant.

Options that several verbs share are declared once, in the base classes at the top.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from myllm.config import CaptionsConfig, DecodeConfig
from myllm.errors import ConfigError
from myllm.option_checks import Range, check_options
from myllm.training_config import TrainConfig

DEFAULT_PRESET = "vit-gpt2"


def positional(text: str, usage: str = "PATH...") -> Any:
    """Return the field of the words after a verb that are not options. text: their help. usage: their name in it."""
    return field(default=(), metadata={"help": text, "usage": usage})


@dataclass(frozen=True, kw_only=True)
class VerbOptions:
    """Base of the options of every verb."""

    given_names: frozenset[str] = field(default=frozenset(), repr=False)
    """Not an option, but the names of the options given, like decode.beams; all others have their defaults."""

    def __post_init__(self) -> None:
        check_options(self, "--")


@dataclass(frozen=True, kw_only=True)
class Printed(VerbOptions):
    quiet: bool = False
    """Print only results, warnings and errors: no progress."""


@dataclass(frozen=True, kw_only=True)
class AsJson(VerbOptions):
    json: bool = False
    """Print the results as JSON on standard output, everything else on standard error."""


@dataclass(frozen=True, kw_only=True)
class Replacing(VerbOptions):
    overwrite: bool = False
    """Replace existing results in --out."""


@dataclass(frozen=True, kw_only=True)
class NewFile(Printed):
    out: str
    """New captioner file to write, for example captioner.pt."""


@dataclass(frozen=True, kw_only=True)
class OnDevice(Printed):
    devices: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class Captioning(OnDevice):
    """Verbs that caption pictures with decoding options of the user's choice."""

    batch_size: Annotated[int, Range.POSITIVE] = 32
    """Number of pictures captioned at once."""
    precision: str = "auto"
    """Arithmetic: auto and fp32 are exact; bf16 is faster on GPUs; int8 is faster on CPUs and changes few captions."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Decoding options. Those not given have the values stored with the model, or else the defaults below."""

    @property
    def decode_changes(self) -> dict[str, Any]:
        """Decoding options that were given, {name: value}."""
        names = [name.removeprefix("decode.") for name in self.given_names if name.startswith("decode.")]
        return {name: getattr(self.decode, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class OneModel(Captioning):
    model: str = "captioner"
    """The captioner: captioner.pt, a run folder, a folder of safetensors, an ONNX export, or a hub id (user/name)."""
    adapter: str | None = None
    """Folder of a low-rank adapter (LoRA) to use with this model, on which it must have been trained."""


@dataclass(frozen=True, kw_only=True)
class OnSplit(VerbOptions):
    split: str = "val"
    """Split of the data: val, train, or another that the data has."""
    limit: Annotated[int | None, Range.POSITIVE] = None
    """Use only the first LIMIT pictures of the split."""


@dataclass(frozen=True, kw_only=True)
class WithMetrics(VerbOptions):
    metrics: tuple[str, ...] = ()
    """Metrics to compute, separated by commas, like CIDEr-D,BLEU-4; by default all that are available."""


@dataclass(frozen=True, kw_only=True)
class Judging(Captioning, OnSplit, WithMetrics, Replacing, AsJson):
    """Verbs that caption a split of a data folder and score the captions."""

    data: tuple[str, ...] | str
    """Data in any form that `myllm train` reads: folder, file, archive or repository of a hub; several, each with
    --data, are mixed."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """How the data is read; options that are given override the captioner's own."""

    def captions_config(self, default: CaptionsConfig) -> CaptionsConfig:
        """Return how the data is read: as `default`, which is the captioner's, except for options that are given."""
        names = [name.removeprefix("captions.") for name in self.given_names if name.startswith("captions.")]
        return replace(default, **{name: getattr(self.captions, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class Drawing(Printed):
    count: Annotated[int, Range.POSITIVE] = 24_000
    """Number of scenes to draw; 5 % each go to the splits val and heldout."""
    seed: Annotated[int, Range.SEED] = 0
    """Random seed; the same seed gives the same scenes."""


@dataclass(frozen=True, kw_only=True)
class Stored(Printed):
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the stored weights; the 16-bit types halve the file and change captions slightly."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainConfig, Replacing, AsJson, Printed):
    """Train a captioner on a folder of pictures with captions."""

    preset: str | None = None
    """Options to start from: vit-gpt2, scenes, photos-fast or photos. All other options override them."""
    resume: bool = False
    """Resume the run in --out from its last.pt, with the options that it began with."""
    dry_run: bool = False
    """Write nothing into --out; print the parameters, memory, arithmetic and time of the run, and the largest batch
    that fits."""

    @property
    def config(self) -> TrainConfig:
        """The options that the run itself depends on."""
        return TrainConfig(**{option.name: getattr(self, option.name) for option in fields(TrainConfig)})


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Drawing):
    """Draw scenes, train a captioner on them, judge it and write a report."""

    out: str = "runs/demo"
    """Folder for the scenes and the run. The same command resumes a demo that was interrupted."""
    overwrite: bool = False
    """Replace a demo in --out that was made with other options."""
    minutes: Annotated[float, Range.POSITIVE] = 7.5
    """Minutes of training; drawing and judging take about one more."""
    max_steps: Annotated[int | None, Range.POSITIVE] = None
    """Train for this many steps instead of --minutes; the result then does not depend on the machine's speed."""
    judged: Annotated[int, Range.POSITIVE] = 1_000
    """New scenes to judge the captioner on: this many with pairs of thing and colour seen in training, and this many
    with held-out pairs."""


@dataclass(frozen=True, kw_only=True)
class ScenesOptions(Drawing):
    """Draw scenes with captions, in the format that `myllm train` reads."""

    out: str
    """New folder for the pictures and captions."""


@dataclass(frozen=True, kw_only=True)
class AltOptions(OneModel, AsJson):
    """Find pictures without alternative text in HTML and Markdown files, suggest one for each, and fill it in.

    Existing texts are never changed. The exit code is 1 if a picture has no alternative text.
    """

    paths: tuple[str, ...] = positional("HTML and Markdown files, or folders; /img/a.jpg starts from the folder.")
    write: bool = False
    """Write the suggestions into the files."""
    diff: bool = False
    """Print what --write would change, as a unified diff, and change nothing."""
    min_confidence: Annotated[float, Range.FRACTION] = 0.7
    """Leave a picture to a person if its caption's confidence is lower than this."""
    people: bool = False
    """Keep words of gender and age, like "woman" and "boy", which become "person" and "child" otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diff and (self.write or self.json):
            raise ConfigError(f"--diff and --{'write' if self.write else 'json'}: choose one of them")


@dataclass(frozen=True, kw_only=True)
class LabelOptions(Printed, AsJson):
    """Ask a vision-language model on a server for captions of pictures, to train on. Resumes where it was stopped."""

    paths: tuple[str, ...] = positional("Picture files, folders or globs.")
    teacher: str
    """Address of the server: for the API of OpenAI, which vLLM and others have, too, http://localhost:8000/v1; for
    Ollama http://localhost:11434/api/generate. Without a path, the server is asked which API it has."""
    out: str
    """File for the captions, JSONL that `myllm train --data` reads; it is continued if it exists. Pictures without a
    caption go to OUT.errors.jsonl, and are asked about again when the command is repeated."""
    model: str | None = None
    """Name of the model; not needed for a server that has only one."""
    prompt: str = "Describe this picture in one short, plain sentence. Answer with the sentence only."
    """What is asked about each picture."""
    n: Annotated[int, Range.POSITIVE] = 1
    """Number of captions to ask for; different ones are all trained on."""
    temperature: Annotated[float | None, Range.AT_LEAST_0] = None
    """Sampling temperature; the server's own if not given. Above 0, the captions of --n differ."""
    overwrite: bool = False
    """Ask about all pictures again; an existing --out is replaced when the first answer arrives."""
    requests: Annotated[int, Range.POSITIVE] = 8
    """Number of requests at once."""
    tries: Annotated[int, Range.POSITIVE] = 5
    """Number of requests for a caption, with growing pauses, until its picture counts as failed."""
    timeout: Annotated[float, Range.POSITIVE] = 120.0
    """Seconds that the server has for an answer."""
    max_side: Annotated[int, Range.IMAGE_SIZE] = 1024
    """Longest side in pixels of the pictures that are sent; larger ones are made smaller."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key for the server. Ollama gets a key only if this option is given."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(OneModel, Judging):
    """Caption a split of a data folder and score the captions."""

    training: str | None = None
    """Data folder that the model was trained on; by default the split train of DATA. Pictures and captions that also
    occur there are listed, and the figures are also reported without them."""
    clip: str | None = None
    """CLIP model for CLIPScore and RefCLIPScore: transformers:FOLDER_OR_ID, or open_clip:ARCHITECTURE/WEIGHTS; needs
    the extra `clip`."""
    out: str | None = None
    """Folder for metrics.json, captions.jsonl, samples.png, report.html and its plots."""
    calibrate: bool = False
    """Calibrate the model's confidence on these captions, and save the calibration in --model (a captioner.pt or a
    folder of safetensors)."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(WithMetrics, AsJson, Printed):
    """Score captions, from any source, against references. Needs no model."""

    predictions: str
    """Captions to score: COCO results (JSON), caption JSONL, or CSV with columns image and caption."""
    references: tuple[str, ...] | str
    """Captions written by people: a file or folder in any format that `myllm train` reads; or several, each with
    --references."""
    split: str | None = None
    """Score only this split, if the references have splits."""
    allow_missing: bool = False
    """Score the pictures that have both a caption and references, and report how many were left out."""
    clip: str | None = None
    """CLIP model for CLIPScore and RefCLIPScore: transformers:FOLDER_OR_ID, or open_clip:ARCHITECTURE/WEIGHTS; needs
    the extra `clip`."""
    pictures: str | None = None
    """Folder of the pictures, needed by --clip."""
    per_image: bool = False
    """Also print the figures of each picture."""
    csv: bool = False
    """Print CSV: a line for each figure, or with --per-image a line for each picture."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """How the references are read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.json and self.csv:
            raise ConfigError("--json and --csv: choose one of them")
        if (self.clip is None) != (self.pictures is None):
            raise ConfigError("--clip needs the pictures: give both --clip and --pictures, or neither")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Judging):
    """Compare two captioners on the same pictures: which one is better, by how much, and could it be chance."""

    paths: tuple[str, ...] = positional("The two to compare: models, or files of captions that `myllm score` reads.")
    out: str | None = None
    """Folder for comparison.json, report.html and its plots."""
    allow_missing: bool = False
    """Compare only the pictures that both have captions for, and report how many were left out."""


@dataclass(frozen=True, kw_only=True)
class InfoOptions(AsJson):
    """Describe a captioner: captioner.pt, a run folder, a folder of safetensors, or a hub id."""

    paths: tuple[str, ...] = positional("Captioners to describe.")


@dataclass(frozen=True, kw_only=True)
class DiagramOptions(VerbOptions):
    """Draw the architecture of a preset."""

    preset: str = DEFAULT_PRESET
    """Preset to draw: vit-gpt2, scenes, photos-fast or photos."""
    out: str = "architecture.svg"
    """File to write; .svg or .png."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions(NewFile):
    """Convert a captioner of another program, or one on a hub, into a captioner file of MyLLM."""

    paths: tuple[str, ...] = positional("The captioner: a folder, a file, or a hub id like user/name@revision.")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Stored, OnSplit):
    """Write a captioner in the format of another program."""

    paths: tuple[str, ...] = positional("The captioner: captioner.pt, a folder, or a hub id (user/name).")
    out: str
    """New folder to write."""
    to: Literal["hf", "safetensors", "gpt2", "onnx", "web"] = "hf"
    """hf: transformers' VisionEncoderDecoderModel with all its files; safetensors: MyLLM's own folder with a model
    card; gpt2: only the language model; onnx: runs without torch, in Python or transformers.js; web: a web page that
    captions in the browser, with all its files."""
    precision: Literal["fp32", "int8", "int4"] | None = None
    """Weights of --to onnx (default fp32) and --to web (default int8). int8 files have 30 %, int4 files 20 % of the
    size of fp32; --data shows how much the captions change."""
    data: str | None = None
    """Data folder: caption a split with the captioner and with its export (onnx, web) and compare the figures."""


@dataclass(frozen=True, kw_only=True)
class PushOptions(Stored):
    """Upload a captioner to a repository on a hub, with a model card. Needs a token in the variable HF_TOKEN."""

    paths: tuple[str, ...] = positional("Two words: the captioner, and the repository as user/name.")
    private: bool = False
    """Make the repository private if it does not exist yet."""


@dataclass(frozen=True, kw_only=True)
class AverageOptions(NewFile, OnDevice, OnSplit):
    """Average the weights of captioners of one architecture; the average may be better than each of them."""

    paths: tuple[str, ...] = positional("The captioners: captioner.pt files, folders, or hub ids (user/name).")
    weights: Annotated[tuple[float, ...], Range.AT_LEAST_0] = ()
    """One weight for each captioner, like [1, 2]; by default all are equal."""
    data: str | None = None
    """Data folder: judge each captioner and the average on a split."""
