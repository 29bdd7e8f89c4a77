"""Caption a split and judge the captions."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from myllm.batched import batched
from myllm.caption import Caption, CaptionerProtocol
from myllm.config import DecodeConfig
from myllm.data.records import Record, quantity
from myllm.data.scenes import Thing
from myllm.data.splits import picture_digest
from myllm.errors import DataError
from myllm.evaluation.calibration import ConfidenceReport, cross_fitted, described, measure_confidence
from myllm.evaluation.judge import MAIN, Judgement, defined, judge_captions
from myllm.evaluation.leaks import Leaks, find_leaks
from myllm.evaluation.scenes import score_scene_captions, wrong_spans
from myllm.evaluation.slices import Slice, measure_slices, slice_pictures, worst_first
from myllm.metrics.diversity import self_cider
from myllm.metrics.hallucination import invented_spans
from myllm.metrics.ngrams import Words
from myllm.metrics.result import Floats, MetricResult
from myllm.metrics.score import evenly_spaced, tokenized
from myllm.progress import Progress, no_progress


@dataclass(frozen=True)
class Evaluation:
    """A captioner's captions of a split, judged."""

    judgement: Judgement
    records: Sequence[Record]
    captions: Sequence[Caption]
    broken: Sequence[str]
    """Pictures that could not be read, with the reason; they are in no figure."""
    truth: Mapping[str, float] = field(default_factory=dict)
    """For drawn scenes, the result of `score_scene_captions`."""
    leaks: Leaks | None = None
    """Judged pictures and captions that are in the training data, too; None if the training data is not known."""
    slices: Sequence[Slice] = ()
    """CIDEr-D of groups of pictures."""
    trust: ConfidenceReport | None = None
    """How reliable the captions' confidence is; None if there are too few words to measure it."""
    things: Mapping[str, Sequence[Thing]] = field(default_factory=dict)
    """For drawn scenes, the drawn things, by the picture's name."""
    new_scenes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Shares of true and complete captions of further drawn scenes, and their number as `pictures`, by part."""

    @property
    def protocol(self) -> Mapping[str, Any]:
        """How the figures were measured."""
        return self.judgement.protocol

    @property
    def figures(self) -> dict[str, float]:
        """All defined figures, {name: value}: metrics, controls, diversity, and the truth of drawn scenes."""
        entries = {**self.judgement.as_json(), **self.truth}
        return {name: value for name, value in entries.items() if isinstance(value, int | float)}

    @property
    def failed(self) -> list[str]:
        """Pictures for which the decoding rules allowed no token, with the reason; their captions count as empty."""
        return failures(self.records, self.captions)

    @cached_property
    def words(self) -> dict[str, list[Words]]:
        """The captions, and all references, as words."""
        references = (caption for record in self.records for caption in record.captions)
        return {"captions": tokenized(caption.text for caption in self.captions), "references": tokenized(references)}

    @property
    def per_image(self) -> dict[str, Floats]:
        """The value of each picture (N,), by figure; NaN for a share of nothing."""
        return self.judgement.per_image

    def with_figures(self, figures: Mapping[str, MetricResult], **protocol: Any) -> "Evaluation":
        """Return a copy with further figures, and with entries of the protocol that say how they were measured."""
        return replace(self, judgement=self.judgement.with_figures(figures, **protocol))

    def as_json(self) -> dict[str, Any]:
        """Return the contents of metrics.json."""
        return {
            **self.judgement.as_json(),
            **self.truth,
            "leaks": self.leaks and {**self.leaks.as_json(), "without": self.without_leaks(self.leaks)},
            "slices": [asdict(part) for part in worst_first(self.slices)],
            "confidence": self.trust and self.trust.as_json(),
            "broken_pictures": list(self.broken),
            "failed_pictures": self.failed,
        }

    def without_leaks(self, leaks: Leaks) -> dict[str, dict[str, float | None]]:
        """Return all figures without the leaked pictures, and without pictures that have a leaked caption."""
        masks = {"pictures": ~leaks.pictures, "captions": ~leaks.captions}
        return {
            kind: {"pictures": int(mask.sum())}
            | {name: defined(figure.of(mask)) for name, figure in self.judgement.figures.items()}
            for kind, mask in masks.items()
            if mask.any() and not mask.all()
        }

    def describe_leaks(self) -> list[str]:
        """Return sentences on leaks and on CIDEr-D without them; none if the training data is not known."""
        if self.leaks is None:
            return []
        without = [
            f"Without these {kind}: {MAIN} {figures[MAIN]:.3f} of {quantity(int(figures['pictures'] or 0), 'picture')}."
            for kind, figures in self.without_leaks(self.leaks).items()
        ]
        return [*self.leaks.lines(), *without]

    def invented(self, index: int) -> list[tuple[int, int]]:
        """Return (begin, end) of the words of a caption that do not fit the drawn things, or else the references."""
        record, text = self.records[index], self.captions[index].text
        if record.name in self.things:
            return wrong_spans(text, self.things[record.name])
        return invented_spans(text, record.captions)

    def spread(self, count: int) -> list[int]:
        """Return the indices of at most `count` pictures, evenly spaced over the split."""
        return evenly_spaced(len(self.records), count)


@dataclass(frozen=True)
class CaptionedSplit:
    """A caption for each picture that could be read."""

    records: list[Record]
    captions: list[Caption]
    broken: list[str]
    """Pictures that could not be read, with the reason."""


def caption_records(
    captioner: CaptionerProtocol, records: Sequence[Record], decode: DecodeConfig, batch_size: int = 32,
    progress: Progress = no_progress, activity: str = "captioning"
) -> CaptionedSplit:
    """Caption the pictures of `records`; progress is reported as `activity`.

    Raises DataError if none of the pictures can be read.
    """
    captioned = CaptionedSplit([], [], [])
    for batch in batched(records, batch_size):
        readable = []
        for record in batch:
            try:
                readable.append((record, captioner.preprocess(record.image)))
            except DataError as error:
                captioned.broken.append(str(error))
        if readable:
            captions = captioner.caption_tensors([image for _, image in readable], decode)
            # Without attention, which would keep each picture in memory.
            captioned.captions.extend(replace(caption, compute_attention=None) for caption in captions)
            captioned.records.extend(record for record, _ in readable)
        progress(activity, len(captioned.records) + len(captioned.broken), len(records))
    if not captioned.records:
        raise DataError(f"none of {quantity(len(records), 'picture')} can be read; {captioned.broken[0]}")
    return captioned


def failures(records: Sequence[Record], captions: Sequence[Caption]) -> list[str]:
    """Return the name of each picture for which the decoding rules allowed no token, with the reason."""
    pairs = zip(records, captions, strict=True)
    return [f"{record.name}: {caption.error}" for record, caption in pairs if caption.error]


@dataclass(frozen=True)
class Data:
    """The pictures that a captioner is judged on."""

    split: str
    records: Sequence[Record]
    training: Sequence[Record] = ()
    """Training data, if it is known and not the same as `records`."""
    things: Mapping[str, Sequence[Thing]] = field(default_factory=dict)
    """For drawn scenes, the drawn things, by the picture's name."""
    name: str = ""
    """Name of the data set."""


def evaluate(
    captioner: CaptionerProtocol, data: Data, decode: DecodeConfig, batch_size: int = 32,
    progress: Progress = no_progress, metrics: Sequence[str] | None = None
) -> Evaluation:
    """Caption the pictures of `data` and compare the captions with the references.

    metrics: names as for `judge_captions`; by default all that can be computed.
    Raises DataError if no picture can be read, and ConfigError for an unknown metric.
    """
    captioned = caption_records(captioner, data.records, decode, batch_size, progress)
    records = captioned.records
    leaks = find_leaks(data.training, records, progress) if data.training else None
    blind = captioner.blind_caption(decode)
    blind_text = None if blind is None else blind.text
    texts, references = [caption.text for caption in captioned.captions], [record.captions for record in records]
    training_captions = [caption for record in data.training for caption in record.captions]
    judgement = judge_captions(texts, references, training_captions, blind_text, progress, metrics).with_protocol(
        dataset=data.name, split=data.split, data=data_hash(records), model=captioner.weights_hash(),
        decode=asdict(decode), blind=blind_text,
    )
    groups = [[caption.text, *caption.alternatives] for caption in captioned.captions]
    if metrics is None and all(len(group) > 1 for group in groups):
        judgement = judgement.with_figures({"self-CIDEr": self_cider(groups, references)})
    captions, trust = _with_confidence(captioned, judgement)
    slices = slice_pictures(records, training_captions, data.things or None)
    measured = measure_slices(slices, judgement.figures[MAIN])
    is_drawn = all(record.name in data.things for record in records)  # pictures added to drawn scenes are not
    truth = score_scene_captions(texts, [data.things[record.name] for record in records]) if is_drawn else {}
    return Evaluation(judgement, records, captions, captioned.broken, truth, leaks, measured, trust, data.things)


def _with_confidence(captioned: CaptionedSplit, judgement: Judgement) -> tuple[list[Caption], ConfidenceReport | None]:
    """Measure confidence. Captions without a calibration of other pictures get one."""
    references = [record.captions for record in captioned.records]
    values, origin = judgement.per_image[MAIN], described(judgement.protocol)
    try:
        trust = measure_confidence(captioned.captions, references, values, origin)
    except DataError:  # too few words to learn from
        return captioned.captions, None
    return cross_fitted(captioned.captions, references) if trust.is_cross_fitted else captioned.captions, trust


def data_hash(records: Sequence[Record]) -> str:
    """Return a hash of the pictures' names, bytes and captions."""
    digest = hashlib.blake2b(digest_size=8)
    for record in records:
        digest.update(json.dumps([record.name, picture_digest(record.image), *record.captions]).encode())
    return digest.hexdigest()


def describe_search(decode: Mapping[str, Any]) -> str:
    """Return "greedy", "sampled" or "beam" with the number of beams and the ranking, from a protocol's options."""
    search = f"beam {decode['beams']}" if decode["beams"] > 1 else "sampled" if decode["do_sample"] else "greedy"
    rank_by = decode.get("rank_by", "score")
    return search if rank_by == "score" else f"{search}, ranked by {rank_by}"
