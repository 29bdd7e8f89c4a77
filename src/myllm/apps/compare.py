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
from myllm.caption import CaptionerProtocol
from myllm.config import CaptionsConfig
from myllm.data.predictions import match, read_predictions
from myllm.data.records import Record, counted, quantity
from myllm.data.sources import References, data_name, read_references
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
    captioners = [
        None if is_caption_file(path) else open_captioner(path, options.devices, options.precision)
        for path in options.paths
    ]
    config = next((captioner.captions for captioner in captioners if captioner is not None), CaptionsConfig())
    captions = options.captions_config(config)
    records = load_split(options.data, options.split, captions, display, limit=options.limit).records
    # files of captions may call pictures by the ids that the references give them
    ids = read_references(options.data, None, captions)[0].ids if None in captioners else {}
    texts = {record.name: list(record.captions) for record in records}
    ids = {key: name for key, name in ids.items() if name in texts}
    references = References(texts, ids, data_name(options.data))
    sides = [
        captions_of_file(path, references, options, display) if captioner is None
        else captions_of_model(path, captioner, records, options, display)
        for path, captioner in zip(options.paths, captioners, strict=True)
    ]
    common = [record for record in records if all(record.name in side.captions for side in sides)]
    if not common:
        raise DataError(f"{options.paths[0]} and {options.paths[1]} caption no picture in common")
    if len(common) < len(records):
        display.warn(f"compared on {len(common):,} of {quantity(len(records), 'picture')}, those that both caption")
    a, b = (
        (path, [side.captions[record.name] for record in common])
        for path, side in zip(options.paths, sides, strict=True)
    )
    data = {"dataset": data_name(options.data), "split": options.split, "data": data_hash(common)}
    protocols = [{**data, **side.protocol} for side in sides]
    comparison = compare(a, b, common, options.split, options.metrics or None, protocols)
    if out is not None:
        write_results(comparison, sides, common, options, out)
    if options.json:
        print_json(comparison.as_json())
    else:
        display.print(comparison_as_text(comparison, sides))
    return 0


def is_caption_file(path: str) -> bool:
    """Return whether the path is a file of captions rather than a captioner."""
    return Path(path).is_file() and Path(path).suffix in CAPTION_SUFFIXES


def captions_of_file(path: str, references: References, options: CompareOptions, display: Display) -> _Side:
    """Return the captions that a file has for the pictures of the references."""
    matched = match(read_predictions(Path(path)), references)
    if matched.missing and not options.allow_missing:
        missing = counted(matched.missing, "picture has no caption", "pictures have no caption")
        raise DataError(f"{path}: {missing}; add them, or compare those that both caption by --allow-missing")
    if matched.unknown:
        display.warn(f"{path}: left out {quantity(len(matched.unknown), 'caption')} of pictures outside the split")
    return _Side(dict(zip(matched.names, matched.captions, strict=True)))


def captions_of_model(
    path: str, captioner: CaptionerProtocol, records: Sequence[Record], options: CompareOptions, display: Display
) -> _Side:
    """Caption the pictures."""
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
    facts = {"Written": current_time(), "Data": data_name(options.data)}
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
