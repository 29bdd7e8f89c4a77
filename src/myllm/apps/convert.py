"""`myllm import`, `export`, `pull` and `push`: captioners of other programs as ours, ours as theirs, and a hub."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from myllm.apps.console import Display
from myllm.apps.evaluate import caption_with_progress, load_split
from myllm.apps.options import ExportOptions, ImportOptions, PushOptions
from myllm.checkpoints import hub, native
from myllm.checkpoints.formats import WRITERS, find_format, load
from myllm.checkpoints.hf_generation import unsupported_options
from myllm.data.records import Record
from myllm.errors import ConfigError
from myllm.evaluation.evaluate import describe_search
from myllm.export import onnx_export, web
from myllm.inference.captioner import Captioner
from myllm.inference.onnx_captioner import OnnxCaptioner
from myllm.inference.onnx_search import check
from myllm.metrics.score import score_captions
from myllm.model.weight_files import count_parameters

NO_TOKENIZER = (
    "no tokenizer: the source has none, so captioning will ask for one. Set HF_GPT2_REPO to GPT-2's, a hub id or a "
    "folder with vocab.json and merges.txt, and import again"
)
# captioners that run without torch, in a precision
RUNNABLE: Mapping[str, Callable[[native.Checkpoint, Path, onnx_export.Precision, onnx_export.Progress], None]] = {
    "onnx": onnx_export.to_folder,
    "web": web.to_folder,
}
# None keeps the numbers as they are
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def import_model(sources: Sequence[str], options: ImportOptions, decode: Mapping[str, Any]) -> int:
    """Say what the source is, and write it as a captioner of ours."""
    out, display = unused(options.out), Display(options.quiet)
    form, path = find_format(_only(sources))
    display.say(f"{path}: {form.name}")
    checkpoint = form.read(path)
    for note in checkpoint.provenance.get("notes", ()):
        display.warn(note)
    if not checkpoint.tokenizer.get_vocab_size():
        display.warn(NO_TOKENIZER)
    native.save(checkpoint, out)
    display.say(f"{_size(checkpoint)} in {out}; caption with `myllm caption PICTURE --model {out}`")
    return 0


def export_model(models: Sequence[str], options: ExportOptions, decode: Mapping[str, Any]) -> int:
    """Write the captioner in the form that --to names."""
    out, display, dtype = unused(options.out), Display(options.quiet), DTYPES[options.dtype]
    if dtype is not None and options.to != "safetensors":
        raise ConfigError(f"--dtype {options.dtype}: only --to safetensors takes it")
    for name, value in (("precision", options.precision), ("data", options.data)):
        if value is not None and options.to not in RUNNABLE:
            raise ConfigError(f"--{name} {value}: only --to {' and '.join(RUNNABLE)} take it")
    checkpoint = load(_only(models))
    if options.to in RUNNABLE:
        return _export_to_run(checkpoint, out, options, display)
    if dtype is not None:
        native.save_folder(checkpoint, out, dtype)
    else:
        WRITERS[options.to](checkpoint, out)
    for message in unsupported_options(checkpoint.decode) if options.to == "hf" else ():
        display.warn(message)
    display.say(_written(checkpoint, out))
    return 0


def _export_to_run(checkpoint: native.Checkpoint, out: Path, options: ExportOptions, display: Display) -> int:
    """Write what runs without torch; with --data, print what that changes."""
    records: Sequence[Record] = ()
    if options.data is not None:  # what would be in the way later is told before anything is written
        check(checkpoint.decode)
        records = load_split(Path(options.data), options.split, checkpoint.captions, display).records[: options.limit]
    else:
        try:
            check(checkpoint.decode)
        except ConfigError as error:
            display.warn(f"its defaults: {error}")
    is_web = options.to == "web"
    if is_web and not web.runtime_folder().is_dir():
        kept = web.runtime_folder()
        display.say(f"npm fetches {web.PACKAGE}, {web.MEGABYTES} MB, once; the 14 that are used stay in {kept}")
    with display.counting() as progress:
        precision = options.precision or ("int8" if is_web else "fp32")
        RUNNABLE[options.to](checkpoint, out, precision, lambda done, total: progress("exporting", done, total))
    display.say(_written(checkpoint, out))
    way = f"serve it with `python -m http.server --directory {out}`" if is_web else f"--model {out} captions with it"
    display.say(way)
    if records:
        _compare(checkpoint, OnnxCaptioner.load(out / "model" if is_web else out), records, options.split, display)
    return 0


def _written(checkpoint: native.Checkpoint, out: Path) -> str:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    return f"{_size(checkpoint)} in {out}: {', '.join(path.name for path in files)} ({megabytes:.1f} MB)"


def _compare(
    checkpoint: native.Checkpoint, exported: OnnxCaptioner, records: Sequence[Record], split: str, display: Display
) -> None:
    """Print the figures of the captioner and of its export on a split, and how many captions stay the same."""
    captioner, decode = Captioner(checkpoint, torch.device("cpu")), checkpoint.decode
    first = caption_with_progress("the captioner", captioner, records, display, decode)
    second = caption_with_progress("its export", exported, records, display, decode)
    references = [record.captions for record in first.records]
    before, after = (
        score_captions([caption.text for caption in said.captions], references, ("BLEU", "CIDEr")).corpus
        for said in (first, second)
    )
    for figure in ("BLEU-4", "CIDEr-D"):
        difference = 100 * (after[figure] - before[figure])
        display.say(f"{figure} {before[figure]:.4f} exported {after[figure]:.4f}, {difference:+.2f} points")
    same = sum(one.text == other.text for one, other in zip(first.captions, second.captions, strict=True))
    search = describe_search(asdict(decode))
    display.say(f"the same caption for {same:,} of {len(first.captions):,} pictures of {split}, {search}")


def push_model(words: Sequence[str], options: PushOptions, decode: Mapping[str, Any]) -> int:
    """Put the captioner into a repository of a hub."""
    if len(words) != 2:
        raise ConfigError(
            f"expected a captioner and a repository, as `myllm push runs/mine user/name`; got {len(words)}"
        )
    model, repo = words
    address = hub.upload(load(model), repo, options.private, DTYPES[options.dtype])
    Display(options.quiet).say(f"pushed to {address}")
    return 0


def unused(out: str) -> Path:
    """Where --out is to be written. Raises ConfigError where something is there already."""
    if Path(out).exists():
        raise ConfigError(f"--out {out} is there already; give another name, or remove it")
    return Path(out)


def _only(paths: Sequence[str]) -> str:
    if len(paths) > 1:
        raise ConfigError(f"one model at a time; {len(paths)} were given")
    return paths[0]


def _size(checkpoint: native.Checkpoint) -> str:
    return f"{count_parameters(checkpoint.model) / 1e6:.1f} million parameters"
