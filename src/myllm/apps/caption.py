"""`myllm caption`: pictures, folders and globs. One bad picture never ends the run."""

import glob
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

from myllm.apps.console import Display
from myllm.apps.options import CaptionOptions
from myllm.apps.startup import without_garbage_collection
from myllm.batched import batched
from myllm.caption import Caption, CaptionerProtocol
from myllm.checkpoints.checks import is_onnx_export
from myllm.data.images import PICTURE_SUFFIXES
from myllm.errors import ConfigError, DataError
from myllm.files import atomic_write
from myllm.inference.onnx_captioner import OnnxCaptioner

# A file's name may hold bytes that are no UTF-8; escaped so, JSON gives them back as they were.
ODD_NAMES = "backslashreplace"


def caption(paths: Sequence[str], options: CaptionOptions, decode: Mapping[str, Any]) -> int:
    """Caption everything under `paths`. Exit code 1 where not a single picture could be captioned."""
    display = Display(options.quiet, json=True)
    pictures = list(find_pictures(paths))
    out = Path(options.out) if options.out is not None else None
    if out is not None and out.exists() and not options.overwrite:
        raise ConfigError(f"--out {out} is there already; replace it by --overwrite or give another name")
    heatmaps = heatmap_files(Path(options.heatmaps), pictures, options.overwrite) if options.heatmaps else {}
    captioner = open_captioner(options.model, options.devices, options.precision, options.adapter)
    captioner.decode = captioner.decode_options(**decode)
    draw = heatmap_drawer(captioner, heatmaps) if heatmaps else None
    errors: list[dict[str, str]] = []
    done = 0
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ODD_NAMES)
    opened = _opened(out) if out is not None else nullcontext(None)
    with opened as lines, display.counting() as progress:
        for batch in batched(pictures, options.batch_size):
            for row in caption_files(captioner, batch, draw):
                if "error" in row:
                    errors.append(row)
                    display.warn(f"{row['image']}: {row['error']}")
                else:
                    text = json.dumps(row, ensure_ascii=False)
                    _write(lines, text if out or options.json else f"{row['image']}: {row['caption']}")
            done += len(batch)
            progress("captioning", done, len(pictures))
    if out is not None:
        failed = Path(f"{out}.errors.jsonl")
        failed.unlink(missing_ok=True)  # of an earlier run
        if errors:
            failed.write_text("".join(json.dumps(row) + "\n" for row in errors), encoding="utf-8")
    captioned = len(pictures) - len(errors)
    if out is not None or errors:
        broken = (
            f", {len(errors):,} could not be read" + (f" (see {out}.errors.jsonl)" if out else "") if errors else ""
        )
        display.say(f"{captioned:,} pictures captioned{f' in {out}' if out else ''}{broken}")
    return 0 if captioned else 1


def open_captioner(model: str, devices: str, precision: str, adapter: str | None = None) -> CaptionerProtocol:
    """The captioner in any form, with an adapter where one is named. Raises CheckpointError or ConfigError."""
    if not is_onnx_export(Path(model)):
        with without_garbage_collection():
            from myllm.inference.captioner import Captioner  # brings torch, which an export does without

        opened = Captioner.load(model, devices, precision, {adapter: adapter} if adapter else {})
        opened.use_adapter(adapter)
        return opened
    captioner = OnnxCaptioner.load(model)
    if adapter or devices == "cuda" or precision not in ("auto", captioner.precision):
        raise ConfigError(
            f"--model {model} is an ONNX export in {captioner.precision} for the CPU; leave out --devices, "
            "--precision and --adapter, or take the captioner that was exported"
        )
    return captioner


def find_pictures(paths: Sequence[str]) -> Iterator[Path]:
    """Pictures of the paths in order: files as given, folders with all below them, globs. Raises DataError."""
    for word in paths:
        path = Path(word)
        if path.is_dir():
            found = sorted(one for one in path.rglob("*") if one.suffix.lower() in PICTURE_SUFFIXES and one.is_file())
            if not found:
                raise DataError(
                    f"{path}: no pictures in this folder or below; looked for {', '.join(sorted(PICTURE_SUFFIXES))}"
                )
            yield from found
        elif path.exists():
            yield path
        elif matches := sorted(glob.glob(word, recursive=True)):
            yield from (Path(match) for match in matches)
        elif "://" in word:
            raise DataError(f"{word}: addresses are not fetched; save the picture and give its path")
        else:
            raise DataError(f"{word}: no such file or folder, and no file matches it as a glob")


def caption_files(
    captioner: CaptionerProtocol, paths: Sequence[Path], draw: Callable[[Path, Caption], None] | None = None
) -> list[dict[str, Any]]:
    """A row for each path, in order: {image, caption, score, confidence, alternatives} or {image, error}.

    Words of `force_words` that found no place are told as `missing`. draw: what else to do with each caption.
    """
    rows: list[dict[str, Any]] = [{"image": str(path)} for path in paths]
    images, readable = [], []
    for row, path in zip(rows, paths, strict=True):
        try:
            images.append(captioner.preprocess(path))
            readable.append(row)
        except DataError as error:
            row["error"] = str(error)
    if images:
        for row, result in zip(readable, captioner.caption_tensors(images, captioner.decode), strict=True):
            row |= {"caption": result.text, "score": round(result.score, 6)}
            row |= {"confidence": round(result.confidence, 6), "alternatives": result.alternatives}
            if result.missing:
                row["missing"] = list(result.missing)
            if draw is not None:
                draw(Path(row["image"]), result)
    return rows


def heatmap_files(folder: Path, pictures: Sequence[Path], overwrite: bool) -> dict[Path, Path]:
    """The file for each picture's heat maps: its own name and .png, numbered where two pictures have one name.

    Raises ConfigError where one is there already and may not be replaced.
    """
    files, names = {}, Counter[str]()
    for picture in pictures:
        names[picture.name] += 1
        number = f"-{names[picture.name]}" if names[picture.name] > 1 else ""
        files[picture] = folder / f"{picture.name}{number}.png"
    there = [file for file in files.values() if file.exists()]
    if there and not overwrite:
        raise ConfigError(
            f"--heatmaps {folder}: {there[0].name} is there already; replace it by --overwrite or give another folder"
        )
    return files


def heatmap_drawer(captioner: CaptionerProtocol, files: Mapping[Path, Path]) -> Callable[[Path, Caption], None]:
    """What writes a picture's file of `files`, given its caption. Raises ConfigError for an export."""
    if isinstance(captioner, OnnxCaptioner):
        raise ConfigError("--heatmaps: an ONNX export does not tell what it looked at; take the captioner itself")
    from myllm.data.images import load_image
    from myllm.evaluation.heatmaps import draw_words
    from myllm.inference.captioner import Captioner

    assert isinstance(captioner, Captioner)

    def draw(picture: Path, caption: Caption) -> None:
        maps = captioner.attention_maps(picture, caption)
        with atomic_write(files[picture]) as file:
            draw_words(load_image(picture), caption.words, maps, caption.text).save(file, "png")

    return draw


def _opened(out: Path) -> IO[str]:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return out.open("w", encoding="utf-8", errors=ODD_NAMES)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be written to ({error.strerror}); give another file") from error


def _write(file: IO[str] | None, line: str) -> None:
    """Flushed at once: what is captioned is not lost with the process."""
    print(line, file=file, flush=True)
