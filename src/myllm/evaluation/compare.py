"""Two sets of captions of the same pictures side by side: what differs, and whether that may be chance."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from myllm.data.records import Record
from myllm.evaluation.judge import MAIN, Judgement, judge_captions
from myllm.metrics.bootstrap import Difference, differences
from myllm.metrics.ngrams import Words
from myllm.metrics.score import tokenized

CHANCE = 0.05


@dataclass(frozen=True)
class Compared:
    """One of the two."""

    name: str
    captions: Sequence[str]
    judgement: Judgement


@dataclass(frozen=True)
class Comparison:
    """B beside A on the same pictures."""

    a: Compared
    b: Compared
    records: Sequence[Record]
    split: str

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """By figure; the bootstrap is paired, over pictures."""
        return differences(self.a.judgement.figures, self.b.judgement.figures)

    @cached_property
    def words(self) -> dict[str, list[Words]]:
        """The captions of each, and all references, as words."""
        references = (caption for record in self.records for caption in record.captions)
        return {"A": tokenized(self.a.captions), "B": tokenized(self.b.captions), "references": tokenized(references)}

    @property
    def protocol(self) -> dict[str, Any]:
        """What both were judged by."""
        other = self.b.judgement.protocol
        shared = {name: value for name, value in self.a.judgement.protocol.items() if other.get(name) == value}
        return shared | {"split": self.split}

    def as_json(self) -> dict[str, Any]:
        """Both with their figures, and the differences."""
        return {
            "a": {"name": self.a.name, **self.a.judgement.as_json()},
            "b": {"name": self.b.name, **self.b.judgement.as_json()},
            "differences": {
                name: {**asdict(found), "difference": found.difference} for name, found in self.differences.items()
            },
            "sentence": self.sentence(),
        }

    def lines(self) -> list[str]:
        """The figures side by side, for people to read."""
        head = f"{'A':>6} {'B':>6}  {'B - A':>6}  {'95 % interval':<17} {'p':>6}   A / B / neither is higher"
        lines = [f"{'':<16} {head}"]
        for name, found in self.differences.items():
            if name == "CIDEr":  # CIDEr-D by its other name
                continue
            low, high = found.interval
            wins = " / ".join(f"{count:,}" for count in found.wins)
            told = f"{found.difference:+6.3f}  {f'{low:+.3f} to {high:+.3f}':<17} {found.p:6.4f}   {wins}"
            lines.append(f"{name:<16} {found.a:6.3f} {found.b:6.3f}  {told}")
        return lines

    def sentence(self) -> str:
        """What may honestly be said of the two."""
        found = self.differences[MAIN]
        low, high = found.interval
        where = f"on {len(self.records):,} pictures of split {self.split}"
        measured = f"(95 % interval {low:+.3f} to {high:+.3f}, paired bootstrap, p = {found.p:.4f})"
        if found.p >= CHANCE:
            return (
                f"B's {MAIN} of {found.b:.3f} and A's of {found.a:.3f} {where} differ by {found.difference:+.3f}, "
                f"which may be chance {measured}."
            )
        better, worse, by = ("B", "A", found.difference) if found.difference > 0 else ("A", "B", -found.difference)
        wins = found.wins[better == "B"]
        return (
            f"{better}'s {MAIN} is {by:.3f} higher than {worse}'s {where}, {max(found.a, found.b):.3f} beside "
            f"{min(found.a, found.b):.3f} {measured}; it says only that these two captioners differ, not that their "
            f"recipes do, and {better} is higher on {wins:,} of the pictures."
        )


def compare(
    a: tuple[str, Sequence[str]], b: tuple[str, Sequence[str]], records: Sequence[Record], split: str
) -> Comparison:
    """Two named sets of captions, one a picture of `records` each."""
    references = [record.captions for record in records]
    first, second = (Compared(name, said, judge_captions(said, references)) for name, said in (a, b))
    return Comparison(first, second, records, split)
