"""Caption a split, score it, and put beside it what the same captions score at the wrong pictures."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from myllm.caption import Caption, Describer
from myllm.config import DecodeConfig
from myllm.data.records import Record
from myllm.data.scenes import Thing, judge
from myllm.data.splits import picture_digest
from myllm.errors import DataError
from myllm.evaluation.judge import Judgement, judge_captions
from myllm.metrics.figure import Floats
from myllm.runtime import in_batches


@dataclass(frozen=True)
class Evaluation:
    """A captioner's captions of a split, and what they are worth."""

    judgement: Judgement
    records: Sequence[Record]
    captions: Sequence[Caption]
    broken: Sequence[str]
    """Pictures that could not be read, with the reason; they are in no figure."""
    truth: dict[str, float] = field(default_factory=dict)
    """Of scenes, whose truth is known: what `judge_scenes` found."""

    @property
    def protocol(self) -> dict[str, Any]:
        """How the figures were measured."""
        return self.judgement.protocol

    @property
    def figures(self) -> dict[str, float]:
        """Every figure that is one number, by name."""
        told = self.judgement.as_json() | self.truth
        return {name: value for name, value in told.items() if isinstance(value, int | float)}

    @property
    def per_image(self) -> dict[str, Floats]:
        """(N,) of each figure that a single picture has."""
        return self.judgement.per_image

    def as_json(self) -> dict[str, Any]:
        """What metrics.json holds."""
        return {**self.judgement.as_json(), **self.truth, "broken_pictures": list(self.broken)}

    def spread(self, count: int) -> range:
        """Places of at most `count` pictures, spread over the split, so that they show it and not its beginning."""
        return range(0, len(self.records), max(1, len(self.records) // count))[:count]


@dataclass(frozen=True)
class Said:
    """A caption for each picture that could be read."""

    records: list[Record]
    captions: list[Caption]
    broken: list[str]
    """Pictures that could not be read, with the reason."""


def caption_records(
    captioner: Describer,
    records: Sequence[Record],
    decode: DecodeConfig,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Said:
    """Caption the pictures of `records`. Raises DataError where none of them can be read."""
    said = Said([], [], [])
    done = 0
    for batch in in_batches(records, batch_size):
        readable = []
        for record in batch:
            try:
                readable.append((record, captioner.preprocess(record.image)))
            except DataError as error:
                said.broken.append(str(error))
        if readable:
            said.captions.extend(captioner.caption_tensors([image for _, image in readable], decode))
            said.records.extend(record for record, _ in readable)
        done += len(batch)
        if progress is not None:
            progress(done, len(records))
    if not said.records:
        raise DataError(f"none of the {len(records)} pictures can be read; {said.broken[0]}")
    return said


def evaluate(
    captioner: Describer,
    records: Sequence[Record],
    split: str,
    decode: DecodeConfig,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Caption `records` and score them against their own captions. Raises DataError as `caption_records`."""
    said = caption_records(captioner, records, decode, batch_size, progress)
    blind = captioner.blind_caption(decode)
    judgement = judge_captions(
        [caption.text for caption in said.captions], [record.captions for record in said.records],
        blind=None if blind is None else blind.text,
    )  # fmt: skip
    judgement.protocol.update(
        split=split, decode=asdict(decode), model=captioner.weights_hash(), data=data_hash(said.records),
        blind=None if blind is None else blind.text,
    )  # fmt: skip
    return Evaluation(judgement, said.records, said.captions, said.broken)


def data_hash(records: Sequence[Record]) -> str:
    """Of the pictures' bytes, names and captions: equal where figures were measured on the same."""
    digest = hashlib.blake2b(digest_size=8)
    for record in records:
        digest.update(json.dumps([record.name, picture_digest(record.image), *record.captions]).encode())
    return digest.hexdigest()


def told_search(decode: Mapping[str, Any]) -> str:
    """How captions are searched by the options of a protocol: greedy, sampled, or by a beam of so many."""
    return f"beam {decode['beams']}" if decode["beams"] > 1 else "sampled" if decode["do_sample"] else "greedy"


def judge_scenes(texts: Sequence[str], things: Sequence[Sequence[Thing]]) -> dict[str, float]:
    """Shares of captions of scenes that are true, complete, and rightly placed; see `data.scenes.judge`.

    `placed` is a share of the captions that say how things lie to each other, and absent where none does.
    """
    verdicts = [judge(text, own) for text, own in zip(texts, things, strict=True)]
    placed = [verdict.placed for verdict in verdicts if verdict.placed is not None]
    figures = {
        "true": sum(verdict.true for verdict in verdicts) / len(verdicts),
        "complete": sum(verdict.complete for verdict in verdicts) / len(verdicts),
    }
    return figures | ({"placed": sum(placed) / len(placed)} if placed else {})


def told_judgement(figures: Mapping[str, float]) -> str:
    """What `judge_scenes` found, on one line."""
    return "   ".join(f"{name} {figures[name]:6.1%}" for name in ("true", "complete", "placed") if name in figures)


JUDGEMENT = (
    "true: every thing and colour named is in the picture; complete: all are named, no other, rightly counted; "
    "placed: of captions that say left, right, above or below, those where it is so."
)
