"""Compare two sets of captions of the same pictures: differences, with tests of whether they may be chance."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from myllm.data.records import Record, quantity
from myllm.evaluation.judge import MAIN, Judgement, judge_captions
from myllm.metrics.bootstrap import MIN_RELIABLE, MIN_TESTED, Difference, differences
from myllm.metrics.ngrams import Words
from myllm.metrics.score import tokenized

CHANCE = 0.05


@dataclass(frozen=True)
class Compared:
    """One of the two captioners, with its captions and their judgement."""

    name: str
    captions: Sequence[str]
    judgement: Judgement


@dataclass(frozen=True)
class Comparison:
    """Captioners A and B on the same pictures."""

    a: Compared
    b: Compared
    records: Sequence[Record]
    split: str

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """The difference in each figure, {name: difference}; intervals and tests are paired over pictures."""
        return differences(self.a.judgement.figures, self.b.judgement.figures)

    @cached_property
    def words(self) -> dict[str, list[Words]]:
        """The words of A's captions, of B's captions, and of all references."""
        references = (caption for record in self.records for caption in record.captions)
        return {"A": tokenized(self.a.captions), "B": tokenized(self.b.captions), "references": tokenized(references)}

    @property
    def protocol(self) -> dict[str, Any]:
        """The entries of the protocol that are the same for both."""
        other = self.b.judgement.protocol
        shared = {name: value for name, value in self.a.judgement.protocol.items() if other.get(name) == value}
        return shared | {"split": self.split}

    def as_json(self) -> dict[str, Any]:
        """Return the figures of both captioners, the differences, and the conclusion of `sentence`."""
        return {
            "a": {"name": self.a.name, **self.a.judgement.as_json()},
            "b": {"name": self.b.name, **self.b.judgement.as_json()},
            "differences": {name: {**asdict(d), "difference": d.difference} for name, d in self.differences.items()},
            "sentence": self.sentence(),
        }

    def lines(self) -> list[str]:
        """Return the lines of a table of the figures, then the cautions."""
        head = f"{'A':>6} {'B':>6}  {'B - A':>6}  {'95 % interval':<17} {'p':>6}   A / B / neither is higher"
        lines = [f"{'':<16} {head}"]
        for name, difference in self.differences.items():
            if name == "CIDEr":  # CIDEr-D under another name
                continue
            low, high = difference.interval
            wins = " / ".join(f"{count:,}" for count in difference.wins)
            test = f"{f'{low:+.3f} to {high:+.3f}':<17} {difference.p_text:>6}   {wins}"
            lines.append(f"{name:<16} {difference.a:6.3f} {difference.b:6.3f}  {difference.difference:+6.3f}  {test}")
        reasons = self.a.judgement.undefined | self.b.judgement.undefined
        missing = [name for name in self.a.judgement.figures if name not in self.differences]
        lines += [f"{name:<16}      -      -  {reasons.get(name, 'only A has it')}" for name in missing]
        return [*lines, *self.a.judgement.cautions]

    def sentence(self) -> str:
        """Return a sentence that states which captioner is better, if either is, with the evidence."""
        main = self.differences[MAIN]
        low, high = main.interval
        pictures = f"on {quantity(len(self.records), 'picture')} of split {self.split}"
        values = f"B's {MAIN} of {main.b:.3f} and A's of {main.a:.3f} {pictures} differ by {main.difference:+.3f}"
        if main.p is None:
            return f"{values}; with fewer than {MIN_TESTED} pictures nothing can be said about chance."
        few = f" With fewer than {MIN_RELIABLE} pictures, repeat this on more." * (len(self.records) < MIN_RELIABLE)
        if main.p >= CHANCE:
            return f"{values}, which may be chance ({_evidence(low, high, main.p)}).{few}"
        better, worse, by = ("B", "A", main.difference) if main.difference > 0 else ("A", "B", -main.difference)
        if better == "A":
            low, high = -high, -low
        return (
            f"{better}'s {MAIN} is {by:.3f} higher than {worse}'s {pictures}, {max(main.a, main.b):.3f} compared with "
            f"{min(main.a, main.b):.3f} ({_evidence(low, high, main.p)}); {better} is higher on "
            f"{main.wins[better == 'B']:,} of the pictures. This compares two captioners, not their recipes: another "
            f"seed may give another result.{few}"
        )


def _evidence(low: float, high: float, p: float) -> str:
    return f"95 % interval {low:+.3f} to {high:+.3f}, paired permutation test p = {p:.4f}"


def compare(
    a: tuple[str, Sequence[str]], b: tuple[str, Sequence[str]], records: Sequence[Record], split: str,
    metrics: Sequence[str] | None = None, protocols: Sequence[Mapping[str, Any]] = ({}, {})
) -> Comparison:
    """Compare two named sets of captions, one for each picture of `records`.

    metrics: as for `judge_captions`. protocols: how the captions of each were made.
    """
    references = [record.captions for record in records]
    first, second = (
        Compared(name, captions, judge_captions(captions, references, metrics=metrics).with_protocol(**protocol))
        for (name, captions), protocol in zip((a, b), protocols, strict=True)
    )
    return Comparison(first, second, records, split)
