"""Caption a split, score it, and put beside it what the same captions score at the wrong pictures."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from myllm.batched import batched
from myllm.caption import Caption, CaptionerProtocol
from myllm.config import DecodeConfig
from myllm.data.records import Record
from myllm.data.scenes import Thing
from myllm.data.splits import picture_digest
from myllm.errors import DataError
from myllm.evaluation.calibration import ConfidenceReport, cross_fitted, described, measure_confidence
from myllm.evaluation.judge import MAIN, Judgement, judge_captions
from myllm.evaluation.leaks import Leaks, find_leaks
from myllm.evaluation.scenes import score_scene_captions
from myllm.evaluation.slices import Slice, slice_pictures, worst_first
from myllm.metrics.bootstrap import intervals
from myllm.metrics.diversity import self_cider
from myllm.metrics.ngrams import Words
from myllm.metrics.result import Floats
from myllm.metrics.score import no_progress, tokenized


@dataclass(frozen=True)
class Evaluation:
    """A captioner's captions of a split, and what they are worth."""

    judgement: Judgement
    records: Sequence[Record]
    captions: Sequence[Caption]
    broken: Sequence[str]
    """Pictures that could not be read, with the reason; they are in no figure."""
    truth: dict[str, float] = field(default_factory=dict)
    """Of scenes, whose truth is known: what `score_scene_captions` found."""
    leaks: Leaks | None = None
    """What was judged and in training too; None where training is not known."""
    slices: Sequence[Slice] = ()
    """Of CIDEr-D, the worst first."""
    trust: ConfidenceReport | None = None
    """What the captions' confidence is worth; None where there are too few words to say."""

    @property
    def protocol(self) -> dict[str, Any]:
        """How the figures were measured."""
        return self.judgement.protocol

    @property
    def figures(self) -> dict[str, float]:
        """Every figure that is one number, by name."""
        told = self.judgement.as_json() | self.truth
        return {name: value for name, value in told.items() if isinstance(value, int | float)}

    @cached_property
    def words(self) -> dict[str, list[Words]]:
        """The captions, and all references, as words."""
        references = (caption for record in self.records for caption in record.captions)
        return {
            "captions": tokenized(caption.text for caption in self.captions), "references": tokenized(references)
        }

    @property
    def per_image(self) -> dict[str, Floats]:
        """(N,) of each figure that a single picture has."""
        return self.judgement.per_image

    def as_json(self) -> dict[str, Any]:
        """What metrics.json holds."""
        return {
            **self.judgement.as_json(),
            **self.truth,
            "leaks": None if self.leaks is None else self._leaks_as_json(self.leaks),
            "slices": [asdict(part) for part in self.slices],
            "confidence": None if self.trust is None else self.trust.as_json(),
            "broken_pictures": list(self.broken),
        }

    def without_leaks(self, leaks: Leaks) -> dict[str, dict[str, float]]:
        """Every figure without the pictures that training has too, and without those whose caption it has."""
        kept = {"pictures": ~leaks.pictures, "captions": ~leaks.captions}
        figures = self.judgement.figures
        return {
            name: {"pictures": int(mask.sum())} | {figure: figures[figure].of(mask) for figure in figures}
            for name, mask in kept.items()
            if mask.any() and not mask.all()
        }

    def describe_leaks(self) -> list[str]:
        """Sentences on what is in training too, and on CIDEr-D without it; none where training is not known."""
        if self.leaks is None:
            return []
        without = [
            f"Without these {what}: {MAIN} {figures[MAIN]:.3f} of {figures['pictures']:,} pictures."
            for what, figures in self.without_leaks(self.leaks).items()
        ]
        return [*self.leaks.lines(), *without]

    def _leaks_as_json(self, leaks: Leaks) -> dict[str, Any]:
        return {
            "training_pictures": leaks.training,
            "equal": leaks.equal,
            "alike": leaks.alike,
            "repeated_captions": leaks.repeated,
            "without": self.without_leaks(leaks),
        }

    def spread(self, count: int) -> range:
        """Places of at most `count` pictures, spread over the split, so that they show it and not its beginning."""
        return range(0, len(self.records), max(1, len(self.records) // count))[:count]


@dataclass(frozen=True)
class CaptionedSplit:
    """A caption for each picture that could be read."""

    records: list[Record]
    captions: list[Caption]
    broken: list[str]
    """Pictures that could not be read, with the reason."""


def caption_records(
    captioner: CaptionerProtocol,
    records: Sequence[Record],
    decode: DecodeConfig,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> CaptionedSplit:
    """Caption the pictures of `records`. Raises DataError where none of them can be read."""
    said = CaptionedSplit([], [], [])
    done = 0
    for batch in batched(records, batch_size):
        readable = []
        for record in batch:
            try:
                readable.append((record, captioner.preprocess(record.image)))
            except DataError as error:
                said.broken.append(str(error))
        if readable:
            captions = captioner.caption_tensors([image for _, image in readable], decode)
            # not at hand any more: each would hold its picture, and a split has thousands
            said.captions.extend(replace(caption, compute_attention=None) for caption in captions)
            said.records.extend(record for record, _ in readable)
        done += len(batch)
        if progress is not None:
            progress(done, len(records))
    if not said.records:
        raise DataError(f"none of the {len(records)} pictures can be read; {said.broken[0]}")
    return said


@dataclass(frozen=True)
class Data:
    """What a captioner is judged on."""

    split: str
    records: Sequence[Record]
    training: Sequence[Record] = ()
    """Of what it was trained on, where that is known and something else."""
    things: Mapping[str, Sequence[Thing]] = field(default_factory=dict)
    """Of drawn scenes, by the picture's name, what was drawn."""
    name: str = ""
    """Of the data set."""


def evaluate(
    captioner: CaptionerProtocol,
    data: Data,
    decode: DecodeConfig,
    batch_size: int = 32,
    progress: Callable[[str, int, int], None] = no_progress,
) -> Evaluation:
    """Caption the pictures and score the captions against the pictures' own. Raises DataError as `caption_records`."""
    said = caption_records(captioner, data.records, decode, batch_size, partial(progress, "captioning"))
    leaks = find_leaks(data.training, said.records, partial(progress, "looking for leaks")) if data.training else None
    blind = captioner.blind_caption(decode)
    texts = [caption.text for caption in said.captions]
    learned = [caption for record in data.training for caption in record.captions]
    judgement = judge_captions(
        texts, [record.captions for record in said.records], learned, None if blind is None else blind.text, progress
    )
    judgement.protocol.update(
        dataset=data.name, split=data.split, data=data_hash(said.records), model=captioner.weights_hash(),
        decode=asdict(decode), blind=None if blind is None else blind.text,
    )
    groups = [[caption.text, *caption.alternatives] for caption in said.captions]
    if all(len(group) > 1 for group in groups):
        judgement.add({"self-CIDEr": self_cider(groups, [record.captions for record in said.records])})
    captions, trust = _trusted(said, judgement)
    return Evaluation(
        judgement, said.records, captions, said.broken, _truth(texts, said.records, data.things), leaks,
        _slices(said.records, learned, data.things, judgement), trust,
    )


def _truth(texts: Sequence[str], records: Sequence[Record], things: Mapping[str, Sequence[Thing]]) -> dict[str, float]:
    # pictures that someone put beside the scenes have no boxes
    if not all(record.name in things for record in records):
        return {}
    return score_scene_captions(texts, [things[record.name] for record in records])


def _trusted(said: CaptionedSplit, judgement: Judgement) -> tuple[list[Caption], ConfidenceReport | None]:
    """The captions with a confidence that other pictures calibrated, where their own is not to be judged by these."""
    references = [record.captions for record in said.records]
    try:
        trust = measure_confidence(said.captions, references, judgement.per_image[MAIN], described(judgement.protocol))
    except DataError:  # too few words to learn from
        return said.captions, None
    return cross_fitted(said.captions, references) if trust.is_cross_fitted else said.captions, trust


def _slices(
    records: Sequence[Record],
    learned: Sequence[str],
    things: Mapping[str, Sequence[Thing]],
    judgement: Judgement,
) -> list[Slice]:
    found, _ = worst_first(
        slice_pictures(records, learned, things or None), judgement.figures[MAIN],
        lambda part: intervals({MAIN: part}, draws=2_000)[MAIN],
    )
    return found


def data_hash(records: Sequence[Record]) -> str:
    """Of the pictures' bytes, names and captions: equal where figures were measured on the same."""
    digest = hashlib.blake2b(digest_size=8)
    for record in records:
        digest.update(json.dumps([record.name, picture_digest(record.image), *record.captions]).encode())
    return digest.hexdigest()


def describe_search(decode: Mapping[str, Any]) -> str:
    """How captions are searched by the options of a protocol: greedy, sampled, or by a beam of so many."""
    return f"beam {decode['beams']}" if decode["beams"] > 1 else "sampled" if decode["do_sample"] else "greedy"
