"""`myllm caption`: pictures, folders and globs. A picture that cannot be read does not end the run."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import IO, Any

from myllm.apps.console import Display
from myllm.apps.opening import open_captioner
from myllm.apps.options import CaptionOptions
from myllm.apps.picture_search import FoundPicture, PictureSearch
from myllm.apps.printing import print_json, printable
from myllm.batched import batched
from myllm.caption import Caption, CaptionerProtocol
from myllm.data.records import quantity
from myllm.decoding.sampling import draw_seeds
from myllm.errors import ConfigError, DataError
from myllm.files import Picture, atomic_write
from myllm.inference.onnx_captioner import OnnxCaptioner

Draw = Callable[[Picture, Caption], None]


def caption(options: CaptionOptions) -> int:
    """Caption every picture of `options.paths`. The exit code is 1 if none of them can be captioned."""
    display = Display(options.quiet, json=True)
    search = PictureSearch(options.paths)
    search.check()
    pictures, unusable = list[Picture](), list[dict[str, str]]()
    for found in search:
        if isinstance(found, FoundPicture):
            pictures.append(found.picture)
        else:
            unusable.append({"image": found.path, "error": found.error})
            display.warn(found.error)
    if search.skipped:
        display.warn(search.describe_skipped())
    out = None if options.out is None else Path(options.out)
    if out is not None and out.exists() and not options.overwrite:
        raise ConfigError(f"--out {out} is there already; replace it by --overwrite or give another name")
    heatmaps = heatmap_files(Path(options.heatmaps), pictures, options.overwrite) if options.heatmaps else {}
    captioner = open_captioner(options.model, options.devices, options.precision, options.adapter)
    captioner.decode = captioner.decode_options(**options.decode_changes)
    draw = heatmap_drawer(captioner, heatmaps) if heatmaps else None
    seeds = None if options.seed is None else draw_seeds(options.seed, len(pictures))
    errors: list[dict[str, str]] = []
    done = 0
    with _open(out) if out is not None else nullcontext() as file, display.progress() as progress:
        for batch in batched(pictures, options.batch_size):
            batch_seeds = None if seeds is None else seeds[done : done + len(batch)]
            for row in caption_files(captioner, batch, draw, batch_seeds):
                if "error" in row:
                    errors.append(row)
                    named = "" if row["error"].startswith(row["image"]) else f"{row['image']}: "
                    display.warn(f"{named}{row['error']}")
                elif file is not None:
                    print(json.dumps(row, ensure_ascii=False), file=file, flush=True)
                elif options.json:
                    print_json(row)
                else:
                    print(printable(f"{row['image']}: {row['caption']}"), flush=True)
            done += len(batch)
            progress("captioning", done, len(pictures))
    if out is not None:
        errors_file = Path(f"{out}.errors.jsonl")
        errors_file.unlink(missing_ok=True)  # of an earlier run
        if unusable or errors:
            lines = "".join(json.dumps(error, ensure_ascii=False) + "\n" for error in (*unusable, *errors))
            with atomic_write(errors_file) as binary_file:
                binary_file.write(lines.encode(errors="backslashreplace"))
    count_failed = len(unusable) + len(errors)
    if out is not None or count_failed:
        in_file, see_file = (f" in {out}", f" (see {out}.errors.jsonl)") if out is not None else ("", "")
        failed = f", {count_failed:,} could not be captioned{see_file}" if count_failed else ""
        display.say(f"{quantity(done - len(errors), 'picture')} captioned{in_file}{failed}")
    return 0 if done > len(errors) else 1


def caption_files(
    captioner: CaptionerProtocol, paths: Sequence[Picture], draw: Draw | None = None, seeds: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return a row for each path, in order: {image, caption, score, confidence, alternatives, ended_by}.

    Rows of pictures that cannot be read are {image, error}; `missing` is added if words of `force_words` are missing.
    draw: called with each path and caption. seeds: a random seed for each path.
    """
    rows: list[dict[str, Any]] = [{"image": str(path)} for path in paths]
    images, readable = [], list[int]()
    for index, (row, path) in enumerate(zip(rows, paths, strict=True)):
        try:
            images.append(captioner.preprocess(path))
            readable.append(index)
        except DataError as error:
            row["error"] = str(error)
    if images:
        readable_seeds = None if seeds is None else [seeds[index] for index in readable]
        results = captioner.caption_tensors(images, captioner.decode, seeds=readable_seeds)
        for index, result in zip(readable, results, strict=True):
            row = rows[index]
            if result.error:
                row["error"] = result.error
                continue
            row |= {"caption": result.text, "score": round(result.score, 6)}
            row |= {"confidence": round(result.confidence, 6), "alternatives": result.alternatives}
            row["ended_by"] = result.ended_by
            if result.missing:
                row["missing"] = list(result.missing)
            if draw is not None:
                draw(paths[index], result)
    return rows


def heatmap_files(folder: Path, pictures: Sequence[Picture], overwrite: bool) -> dict[Picture, list[Path]]:
    """Return the files for each picture's heat maps: as many as the number of times that the picture is given.

    A file is named after its picture, with a number if several have that name. Raises ConfigError if a file exists and
    may not be overwritten.
    """
    files, names = dict[Picture, list[Path]](), set[str]()
    for picture in pictures:
        file_name, number = PurePosixPath(str(picture)).name, 1
        name = f"{file_name}.png"
        while name in names:
            number += 1
            name = f"{file_name}-{number}.png"
        names.add(name)
        files.setdefault(picture, []).append(folder / name)
        if files[picture][-1].exists() and not overwrite:
            raise ConfigError(
                f"--heatmaps {folder}: {name} is there already; replace it by --overwrite or give another folder"
            )
    return files


def heatmap_drawer(captioner: CaptionerProtocol, files: Mapping[Picture, list[Path]]) -> Draw:
    """Return a function that writes the heat maps of a picture and its caption to the picture's next file.

    Raises ConfigError for an ONNX export.
    """
    if isinstance(captioner, OnnxCaptioner):
        raise ConfigError("--heatmaps: an ONNX export has no attention weights; use the captioner that was exported")
    from myllm.data.images import load_image
    from myllm.evaluation.heatmaps import draw_words
    from myllm.inference.captioner import Captioner

    assert isinstance(captioner, Captioner)

    def draw(picture: Picture, caption: Caption) -> None:
        maps = captioner.attention_maps(picture, caption)
        with atomic_write(files[picture].pop(0)) as file:
            draw_words(load_image(picture), caption.words, maps, caption.text).save(file, "png")

    return draw


def _open(out: Path) -> IO[str]:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return out.open("w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(f"--out {out}: cannot be written to ({error.strerror}); give another file") from error
