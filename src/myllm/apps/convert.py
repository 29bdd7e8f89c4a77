"""`myllm import`, `export`, `pull` and `push`: captioners of other programs as ours, ours as theirs, and a hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from myllm.apps.console import Display
from myllm.apps.evaluate import records_of
from myllm.apps.options import ExportOptions, ImportOptions, PushOptions
from myllm.captioner import Captioner
from myllm.checkpoints import hub, native, web
from myllm.checkpoints.formats import RUNNABLE, WRITERS, load, recognise
from myllm.checkpoints.onnx import OnnxCaptioner
from myllm.checkpoints.onnx_search import check
from myllm.errors import ConfigError
from myllm.evaluation.evaluate import Evaluation, evaluate, told_search

NO_TOKENIZER = (
    "no tokenizer: the source has none, so captioning will ask for one. Set HF_GPT2_REPO to GPT-2's, a hub id or a "
    "folder with vocab.json and merges.txt, and import again"
)
# None keeps the numbers as they are
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def import_model(sources: Sequence[str], options: ImportOptions, decode: Mapping[str, Any]) -> int:
    """Say what the source is, and write it as a captioner of ours."""
    out, display = unused(options.out), Display(options.quiet)
    form, path = recognise(_only(sources))
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
        _warn_of_defaults(checkpoint, display)
        if options.to == "web" and not web.runtime_folder().is_dir():
            kept = web.runtime_folder()
            display.say(f"npm fetches {web.PACKAGE}, {web.MEGABYTES} MB, once; the 14 that are used stay in {kept}")
        RUNNABLE[options.to](checkpoint, out, options.precision or ("int8" if options.to == "web" else "fp32"))
    elif dtype is not None:
        native.save_folder(checkpoint, out, dtype)
    else:
        WRITERS[options.to](checkpoint, out)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    display.say(f"{_size(checkpoint)} in {out}: {', '.join(path.name for path in files)} ({megabytes:.1f} MB)")
    if options.data is not None:
        exported = OnnxCaptioner.load(out / "model" if options.to == "web" else out)
        _compare(checkpoint, exported, options, display)
    return 0


def _warn_of_defaults(checkpoint: native.Checkpoint, display: Display) -> None:
    try:
        check(checkpoint.decode)
    except ConfigError as error:
        display.warn(f"its defaults: {error}")


def _compare(checkpoint: native.Checkpoint, exported: OnnxCaptioner, options: ExportOptions, display: Display) -> None:
    """Print the figures of the captioner and of its export on a split, and how many captions stay the same."""
    records = records_of(Path(options.data or ""), options.split, checkpoint.captions, display)[: options.limit]
    told: dict[str, Evaluation] = {}
    for name, captioner in (("the captioner", Captioner(checkpoint, torch.device("cpu"))), ("its export", exported)):
        with display.counting() as progress:
            told[name] = evaluate(
                captioner, records, options.split, checkpoint.decode,
                progress=lambda done, total: progress(f"captioning with {name}", done, total),  # noqa: B023
            )  # fmt: skip
    first, second = told.values()
    for figure in ("BLEU-4", "CIDEr-D"):
        before, after = first.figures[figure], second.figures[figure]
        display.say(f"{figure} {before:.4f} exported {after:.4f}, {100 * (after - before):+.2f} points")
    same = sum(one.text == other.text for one, other in zip(first.captions, second.captions, strict=True))
    search = told_search(first.protocol["decode"])
    display.say(f"the same caption for {same:,} of {len(first.captions):,} pictures of {options.split}, {search}")


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
    return f"{sum(one.numel() for one in checkpoint.model.parameters()) / 1e6:.1f} million parameters"
