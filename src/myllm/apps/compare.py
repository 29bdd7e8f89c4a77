"""`myllm compare`: two captioners, or files of captions, on the same pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from myllm.apps.caption import open_captioner
from myllm.apps.console import Display
from myllm.apps.evaluate import caption_with_progress, load_split
from myllm.apps.options import CompareOptions
from myllm.apps.train import REPORT_FILE, current_time, write_text
from myllm.config import CaptionsConfig
from myllm.data.predictions import References, match, read_predictions
from myllm.data.records import Record, counted
from myllm.errors import ConfigError, DataError
from myllm.evaluation.compare import Comparison, compare
from myllm.evaluation.evaluate import data_hash, describe_search
from myllm.evaluation.gallery import WordMapsOf
from myllm.evaluation.heatmaps import make_word_maps
from myllm.evaluation.plots import plot_words
from myllm.evaluation.report import comparison_report, write_report
from myllm.files import json_text

FILE = "comparison.json"
SUFFIXES = (".json", ".jsonl", ".csv")


@dataclass(frozen=True)
class _Side:
    """What one of the two says."""

    captions: dict[str, str]
    """By the picture's name."""
    how: str
    """How they were made."""
    protocol: Mapping[str, Any]
    """The same for programs."""
    look: WordMapsOf | None = None
    """Heat maps of a picture's words, by its place among `captions`."""

    def look_of(self, records: Sequence[Record]) -> WordMapsOf | None:
        """The same by a picture's place among `records`."""
        look, places = self.look, {name: place for place, name in enumerate(self.captions)}
        return None if look is None else lambda place: look(places[records[place].name])


def compare_two(paths: Sequence[str], options: CompareOptions, decode: Mapping[str, Any]) -> int:
    """Print both with their figures, the differences, and what may honestly be said."""
    display = Display(options.quiet, options.json)
    if len(paths) != 2:
        raise ConfigError(f"compare takes two captioners, or files of captions; {len(paths)} were given")
    out = None if options.out is None else Path(options.out)
    if out is not None and not options.overwrite and (out / FILE).exists():
        raise ConfigError(f"--out {out} holds {FILE} already; replace it by --overwrite, or give another folder")
    records = load_split(Path(options.data), options.split, CaptionsConfig(), display).records[: options.limit]
    sides = [_captions_of(path, records, options, decode, display) for path in paths]
    common = [record for record in records if all(record.name in side.captions for side in sides)]
    if not common:
        raise DataError(f"there is no picture that both {paths[0]} and {paths[1]} caption")
    if len(common) < len(records):
        display.warn(f"compared on {len(common):,} of {len(records):,} pictures, those that both caption")
    a, b = ((path, [side.captions[one.name] for one in common]) for path, side in zip(paths, sides, strict=True))
    metrics = None if options.metrics is None else options.metrics.split(",")
    comparison = compare(a, b, common, options.split, metrics)
    data = {"dataset": Path(options.data).resolve().name, "split": options.split, "data": data_hash(common)}
    comparison = replace(
        comparison,
        a=comparison.a.with_protocol(**data, **sides[0].protocol),
        b=comparison.b.with_protocol(**data, **sides[1].protocol),
    )
    if out is not None:
        write_text(out / FILE, json_text(comparison.as_json()))
        plot_words(comparison.words, out)
        facts = {"Written": current_time(), "Data": Path(options.data).resolve().name}
        facts |= {f"{name} decodes": side.how for name, side in zip("AB", sides, strict=True)}
        looks = sides[0].look_of(common), sides[1].look_of(common)
        write_report(out / REPORT_FILE, comparison_report(facts, comparison, looks))
    if options.json:
        print(json.dumps(comparison.as_json(), ensure_ascii=False))
    else:
        display.console.print("\n".join(_lines(comparison, [side.how for side in sides])))
    return 0


def _captions_of(
    path: str, records: Sequence[Record], options: CompareOptions, decode: Mapping[str, Any], display: Display
) -> _Side:
    if Path(path).is_file() and Path(path).suffix in SUFFIXES:
        references = References({record.name: list(record.captions) for record in records}, {}, options.data)
        matched = match(read_predictions(Path(path)), references)
        if matched.missing and not options.allow_missing:
            told = counted(matched.missing, "picture has no caption", "pictures have no caption")
            raise DataError(f"{path}: {told}; add them, or compare on those that both caption by --allow-missing")
        if matched.unknown:
            display.warn(
                f"{path}: captions of pictures that are not in the split are left out: {len(matched.unknown):,}"
            )
        return _Side(dict(zip(matched.names, matched.captions, strict=True)), "captions from a file", {})
    captioner = open_captioner(path, options.devices, options.precision)
    chosen = captioner.decode_options(**decode)
    said = caption_with_progress(path, captioner, records, display, chosen, options.batch_size)
    captions = {record.name: caption.text for record, caption in zip(said.records, said.captions, strict=True)}
    how = describe_search({"beams": chosen.beams, "do_sample": chosen.do_sample})
    protocol = {"model": captioner.weights_hash(), "decode": asdict(chosen)}
    return _Side(captions, how, protocol, make_word_maps(captioner, said.records, said.captions))


def _lines(comparison: Comparison, told: Sequence[str]) -> list[str]:
    protocol = comparison.a.judgement.protocol
    return [
        f"A: {comparison.a.name} ({told[0]})",
        f"B: {comparison.b.name} ({told[1]})",
        f"Split {comparison.split}, {protocol['pictures']:,} pictures, {protocol['references']:,} references, "
        f"tokenizer {protocol['tokenizer']}",
        *comparison.lines(),
        comparison.sentence(),
    ]
