"""`myllm compare`: two captioners, or files of captions, on the same pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from myllm.apps.console import Display
from myllm.apps.data_folder import caption_split, load_split
from myllm.apps.opening import open_captioner
from myllm.apps.options import CompareOptions
from myllm.apps.printing import print_json
from myllm.apps.run_folder import REPORT_FILE, current_time, output_folder, write_text
from myllm.config import CaptionsConfig
from myllm.data.predictions import References, match, read_predictions
from myllm.data.records import Record, counted, quantity
from myllm.errors import ConfigError, DataError
from myllm.evaluation.compare import Comparison, compare
from myllm.evaluation.evaluate import data_hash, describe_search
from myllm.evaluation.gallery import WordMapsOf
from myllm.files import json_text

COMPARISON_FILE = "comparison.json"
CAPTION_SUFFIXES = (".json", ".jsonl", ".csv")


@dataclass(frozen=True)
class _Side:
    """The captions of one of the two."""

    captions: dict[str, str]
    """By the picture's name."""
    how: str = "captions from a file"
    """How they were made, for people."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """How they were made, for programs."""
    word_maps_of: Callable[[Sequence[Record]], WordMapsOf | None] = lambda records: None
    """Returns the heat maps of the words of some of the pictures, by the index of the picture."""


def compare_two(options: CompareOptions) -> int:
    """Print the figures of both, their differences, and what can be concluded from them."""
    display = Display(options.quiet, options.json)
    if len(options.paths) != 2:
        raise ConfigError(f"compare takes two captioners, or files of captions; got {len(options.paths)}")
    out = output_folder(options.out, COMPARISON_FILE, options.overwrite)
    records = load_split(options.data, options.split, CaptionsConfig(), display, limit=options.limit).records
    sides = [captions_of(path, records, options, display) for path in options.paths]
    common = [record for record in records if all(record.name in side.captions for side in sides)]
    if not common:
        raise DataError(f"there is no picture that both {options.paths[0]} and {options.paths[1]} caption")
    if len(common) < len(records):
        display.warn(f"compared on {len(common):,} of {quantity(len(records), 'picture')}, those that both caption")
    a, b = (
        (path, [side.captions[record.name] for record in common])
        for path, side in zip(options.paths, sides, strict=True)
    )
    data = {"dataset": Path(options.data).resolve().name, "split": options.split, "data": data_hash(common)}
    protocols = [{**data, **side.protocol} for side in sides]
    comparison = compare(a, b, common, options.split, options.metrics or None, protocols)
    if out is not None:
        write_results(comparison, sides, common, options, out)
    if options.json:
        print_json(comparison.as_json())
    else:
        display.print(comparison_as_text(comparison, sides))
    return 0


def captions_of(path: str, records: Sequence[Record], options: CompareOptions, display: Display) -> _Side:
    """Return the captions that a file has for the pictures, or that a model makes."""
    if Path(path).is_file() and Path(path).suffix in CAPTION_SUFFIXES:
        references = References({record.name: list(record.captions) for record in records}, {}, options.data)
        matched = match(read_predictions(Path(path)), references)
        if matched.missing and not options.allow_missing:
            missing = counted(matched.missing, "picture has no caption", "pictures have no caption")
            raise DataError(f"{path}: {missing}; add them, or compare those that both caption by --allow-missing")
        if matched.unknown:
            display.warn(f"{path}: left out {quantity(len(matched.unknown), 'caption')} of pictures outside the split")
        return _Side(dict(zip(matched.names, matched.captions, strict=True)))
    captioner = open_captioner(path, options.devices, options.precision)
    decode = captioner.decode_options(**options.decode_changes)
    split = caption_split(path, captioner, records, display, decode, options.batch_size)
    captions = {record.name: caption for record, caption in zip(split.records, split.captions, strict=True)}

    def word_maps_of(pictures: Sequence[Record]) -> WordMapsOf | None:
        from myllm.evaluation.heatmaps import make_word_maps  # imports torch and matplotlib

        return make_word_maps(captioner, pictures, [captions[picture.name] for picture in pictures])

    texts = {name: caption.text for name, caption in captions.items()}
    protocol = {"model": captioner.weights_hash(), "decode": asdict(decode)}
    return _Side(texts, describe_search(asdict(decode)), protocol, word_maps_of)


def write_results(
    comparison: Comparison, sides: Sequence[_Side], records: Sequence[Record], options: CompareOptions, out: Path
) -> None:
    """Write comparison.json, the plots and report.html."""
    from myllm.evaluation.plots import WORD_PLOTS, save_plots  # imports matplotlib
    from myllm.evaluation.report import comparison_report, write_report

    write_text(out / COMPARISON_FILE, json_text(comparison.as_json()))
    save_plots(WORD_PLOTS, comparison.words, out)
    facts = {"Written": current_time(), "Data": Path(options.data).resolve().name}
    facts |= {f"{name} decodes": side.how for name, side in zip("AB", sides, strict=True)}
    word_maps = sides[0].word_maps_of(records), sides[1].word_maps_of(records)
    write_report(out / REPORT_FILE, comparison_report(facts, comparison, word_maps))


def comparison_as_text(comparison: Comparison, sides: Sequence[_Side]) -> str:
    """Return the comparison as text."""
    protocol = comparison.a.judgement.protocol
    return "\n".join([
        f"A: {comparison.a.name} ({sides[0].how})",
        f"B: {comparison.b.name} ({sides[1].how})",
        f"Split {comparison.split}, {quantity(protocol['pictures'], 'picture')}, "
        f"{quantity(protocol['references'], 'reference')}, tokenizer {protocol['tokenizer']}",
        *comparison.lines(),
        comparison.sentence(),
    ])
