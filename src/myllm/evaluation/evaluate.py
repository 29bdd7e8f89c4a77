"""Caption a split, score it, and put beside it what the same captions score at the wrong pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from myllm.caption import Caption, Describer
from myllm.config import DecodeConfig
from myllm.data.records import Record
from myllm.data.scenes import Thing, judge
from myllm.errors import DataError
from myllm.metrics.diversity import measure_diversity
from myllm.metrics.score import score_captions, shuffled
from myllm.runtime import in_batches


@dataclass(frozen=True)
class Evaluation:
    """Figures with the protocol they were measured by, and what they were measured on."""

    figures: dict[str, float]
    protocol: dict[str, Any]
    records: Sequence[Record]
    captions: Sequence[Caption]
    per_image: dict[str, list[float]]
    broken: Sequence[str]
    """Pictures that could not be read, with the reason; they are in no figure."""

    def as_json(self) -> dict[str, Any]:
        """What metrics.json holds."""
        return {**self.figures, "protocol": self.protocol, "broken_pictures": list(self.broken)}

    def spread(self, count: int) -> range:
        """Places of at most `count` pictures, spread over the split, so that they show it and not its beginning."""
        return range(0, len(self.records), max(1, len(self.records) // count))[:count]


def evaluate(
    captioner: Describer,
    records: Sequence[Record],
    split: str,
    decode: DecodeConfig,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Caption `records` and score them against their own captions. Raises DataError where no picture can be read."""
    kept: list[Record] = []
    captions: list[Caption] = []
    broken: list[str] = []
    done = 0
    for batch in in_batches(records, batch_size):
        readable = []
        for record in batch:
            try:
                readable.append((record, captioner.preprocess(record.image)))
            except DataError as error:
                broken.append(str(error))
        if readable:
            captions += captioner.caption_tensors([image for _, image in readable], decode)
            kept += [record for record, _ in readable]
        done += len(batch)
        if progress is not None:
            progress(done, len(records))
    if not kept:
        raise DataError(f"split {split!r}: none of its {len(records)} pictures can be read; {broken[0]}")
    texts, references = [caption.text for caption in captions], [record.captions for record in kept]
    scores = score_captions(texts, references)
    diversity = measure_diversity(texts)
    figures = dict(scores.corpus)
    control = score_captions(shuffled(texts), references, metrics=("CIDEr-D",))
    figures["CIDEr-D_shuffled"] = control.corpus["CIDEr-D"]
    figures["distinct_captions"] = diversity.distinct_share
    figures["mean_length"] = diversity.mean_length
    protocol = {**scores.protocol, "split": split, "decode": asdict(decode), "CIDEr-D frequencies": "these references"}
    return Evaluation(figures, protocol, kept, captions, scores.per_image, broken)


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
