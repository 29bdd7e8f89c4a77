"""`myllm import`, `export`, `pull` and `push`: captioners to and from other programs and hubs."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from myllm.apps.console import Display
from myllm.apps.data_folder import caption_split, load_split
from myllm.apps.options import ExportOptions, ImportOptions, PushOptions
from myllm.apps.run_folder import unused
from myllm.checkpoints import hub, native
from myllm.checkpoints.formats import WRITERS, find_format, load
from myllm.checkpoints.hf_generation import unsupported_options
from myllm.data.records import Record, quantity
from myllm.errors import ConfigError
from myllm.evaluation.evaluate import describe_search
from myllm.export import onnx_export, web
from myllm.inference.captioner import Captioner
from myllm.inference.onnx_captioner import OnnxCaptioner
from myllm.metrics.score import score_captions
from myllm.model.weight_files import count_parameters
from myllm.progress import Progress

NO_TOKENIZER = (
    "the source has no tokenizer, which captioning needs. Set HF_GPT2_REPO to one of GPT-2, a hub id or a folder with "
    "vocab.json and merges.txt, and import again"
)
# exports that run without torch
RUNNABLE: Mapping[str, Callable[[native.Checkpoint, Path, onnx_export.Precision, Progress], None]] = {
    "onnx": onnx_export.to_folder,
    "web": web.to_folder,
}
# None stores the weights as they are
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def import_model(options: ImportOptions) -> int:
    """Open a captioner of another program or on a hub, print its format, and write it as captioner.pt."""
    out, display = unused(options.out), Display(options.quiet)
    form, path = find_format(only_path(options.paths))
    display.say(f"{path}: {form.name}")
    checkpoint = form.read(path)
    for note in checkpoint.provenance.get("notes", ()):
        display.warn(note)
    if not checkpoint.tokenizer.get_vocab_size():
        display.warn(NO_TOKENIZER)
    native.save(checkpoint, out)
    display.say(f"{_size(checkpoint)} in {out}; {_caption_with(out)}")
    return 0


def export_model(options: ExportOptions) -> int:
    """Write the captioner in the format of --to."""
    out, display, dtype = unused(options.out), Display(options.quiet), DTYPES[options.dtype]
    if dtype is not None and options.to != "safetensors":
        raise ConfigError(f"--dtype {options.dtype}: only --to safetensors takes this option")
    for name, value in (("precision", options.precision), ("data", options.data)):
        if value is not None and options.to not in RUNNABLE:
            raise ConfigError(f"--{name} {value}: only --to {' and '.join(RUNNABLE)} take this option")
    checkpoint = load(only_path(options.paths))
    if options.to in RUNNABLE:
        return export_runnable(checkpoint, out, options, display)
    if dtype is not None:
        native.save_folder(checkpoint, out, dtype)
    else:
        WRITERS[options.to](checkpoint, out)
    for message in unsupported_options(checkpoint.decode) if options.to == "hf" else ():
        display.warn(message)
    display.say(files_as_text(checkpoint, out))
    return 0


def export_runnable(checkpoint: native.Checkpoint, out: Path, options: ExportOptions, display: Display) -> int:
    """Write an export that runs without torch; with --data, print how its captions differ."""
    records: Sequence[Record] = ()
    if options.data is not None:  # errors in the data are raised before anything is written
        data = load_split(options.data, options.split, checkpoint.captions, display, limit=options.limit)
        records = data.records
    is_web = options.to == "web"
    for option in web.ignored_options(checkpoint.decode) if is_web else ():
        display.warn(f"the page ignores the captioner's decode.{option}")
    if is_web and not web.runtime_folder().is_dir():
        folder = web.runtime_folder()
        display.say(f"npm downloads {web.PACKAGE}, {web.DOWNLOAD_MB} MB, once; the 14 MB in use stay in {folder}")
    with display.progress() as progress:
        precision = options.precision or ("int8" if is_web else "fp32")
        RUNNABLE[options.to](checkpoint, out, precision, progress)
    display.say(files_as_text(checkpoint, out))
    serve = f"serve it with `python -m http.server --directory {shlex.quote(str(out))}`"
    display.say(serve if is_web else _caption_with(out))
    if records:
        export = OnnxCaptioner.load(out / "model" if is_web else out)
        original = native.without_index(checkpoint) if is_web else checkpoint  # the page ranks captions by score
        compare_with_export(original, export, records, options.split, display)
    return 0


def files_as_text(checkpoint: native.Checkpoint, out: Path) -> str:
    """Return the size of the model and the files of its export."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    return f"{_size(checkpoint)} in {out}: {', '.join(path.name for path in files)} ({megabytes:.1f} MB)"


def compare_with_export(
    checkpoint: native.Checkpoint, export: OnnxCaptioner, records: Sequence[Record], split: str, display: Display
) -> None:
    """Print the figures of the captioner and of its export on a split, and how many captions are equal."""
    captioner, decode = Captioner(checkpoint, torch.device("cpu")), checkpoint.decode
    original = caption_split("the captioner", captioner, records, display, decode)
    exported = caption_split("its export", export, records, display, decode)
    references = [record.captions for record in original.records]
    before, after = (
        score_captions([caption.text for caption in result.captions], references, ("BLEU", "CIDEr")).corpus
        for result in (original, exported)
    )
    for figure in ("BLEU-4", "CIDEr-D"):
        difference = 100 * (after[figure] - before[figure])
        display.say(f"{figure} {before[figure]:.4f} exported {after[figure]:.4f}, {difference:+.2f} points")
    equal = sum(a.text == b.text for a, b in zip(original.captions, exported.captions, strict=True))
    search = describe_search(asdict(decode))
    display.say(f"the same caption for {equal:,} of {quantity(len(original.captions), 'picture')} of {split}, {search}")


def push_model(options: PushOptions) -> int:
    """Upload the captioner to a repository on a hub."""
    if len(options.paths) != 2:
        raise ConfigError(
            f"expected a captioner and a repository, like `myllm push runs/mine user/name`; got {len(options.paths)}"
        )
    model, repo = options.paths
    address = hub.upload(load(model), repo, options.private, DTYPES[options.dtype])
    Display(options.quiet).say(f"pushed to {address}")
    return 0


def only_path(paths: Sequence[str]) -> str:
    """Return the only path. Raises ConfigError if there are several."""
    if len(paths) > 1:
        raise ConfigError(f"one model at a time; {len(paths)} were given")
    return paths[0]


def _caption_with(model: Path) -> str:
    return f"caption with `myllm caption PICTURE --model {shlex.quote(str(model))}`"


def _size(checkpoint: native.Checkpoint) -> str:
    return f"{count_parameters(checkpoint.model) / 1e6:.1f} million parameters"
