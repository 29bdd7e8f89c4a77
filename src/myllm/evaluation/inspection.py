"""What is in a data set: counts, lengths, words and scripts of captions, copies, leaks between splits, and findings."""

import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from myllm.data.records import Findings, Record, counted, quantity
from myllm.evaluation.copy_groups import Copies, Pair

FREQUENT_WORDS = 20
RARE_WORDS = 10
"""Number of words that occur once that are shown."""
SCRIPT_NAMES = {"Cjk": "Chinese characters", "Hangul": "Korean", "Hiragana": "Japanese", "Katakana": "Japanese"}


@dataclass(frozen=True)
class Spread:
    """Lengths, from the shortest to the longest."""

    shortest: int
    median: float
    mean: float
    percentile_95: int
    longest: int

    def __str__(self) -> str:
        if self.shortest == self.longest:
            return f"{self.longest:,}"
        return (
            f"{self.shortest:,} to {self.longest:,}, median {self.median:g}, mean {self.mean:.1f}, "
            f"95 % at most {self.percentile_95:,}"
        )


@dataclass(frozen=True)
class Inspection:
    """What is in a data set."""

    formats: Sequence[str]
    """What was read, like "Karpathy JSON: data/dataset.json"."""
    splits: Mapping[str, int]
    """Number of pictures in each split that training would use."""
    captions: int
    captions_per_picture: Spread
    words: Spread
    tokens: Spread
    """Tokens of a caption, with those at its beginning and end."""
    tokenizer: str
    vocabulary: Counter[str]
    """How often each word occurs."""
    scripts: Counter[str]
    """Number of captions with letters of each script."""
    pictures: int
    findings: Sequence[str]
    """Sentences about anything unusual."""

    @property
    def rare_words(self) -> list[str]:
        """Words that occur once."""
        return sorted(word for word, count in self.vocabulary.items() if count == 1)

    def as_json(self) -> dict[str, Any]:
        """Return all of it in types that JSON has."""
        facts = {name: vars(value) if isinstance(value, Spread) else value for name, value in vars(self).items()}
        words = {"size": len(self.vocabulary), "once": len(self.rare_words),
                 "frequent": dict(self.vocabulary.most_common(FREQUENT_WORDS))}
        return facts | {"vocabulary": words, "scripts": dict(self.scripts.most_common())}

    def lines(self) -> list[str]:
        """Return it as text."""
        rare = self.rare_words
        examples = rare[:: max(1, len(rare) // RARE_WORDS)][:RARE_WORDS]
        rows = {
            "pictures": f"{self.pictures:,}",
            "captions": f"{self.captions:,}; of a picture {self.captions_per_picture}",
            "splits": _listed(self.splits.items()),
            "words": f"of a caption {self.words}",
            "tokens": f"of a caption {self.tokens}, with two end tokens ({self.tokenizer})",
            "vocabulary": f"{quantity(len(self.vocabulary), 'word')}; {len(rare):,} occur once"
            + f", such as {', '.join(examples)}" * bool(examples),
            "frequent": _listed(self.vocabulary.most_common(FREQUENT_WORDS)),
            "scripts": f"captions with {_listed(self.scripts.most_common())}" if self.scripts else "no letters",
        }
        findings = self.findings or ["nothing unusual"]
        return [
            *(f"{name:<11} {text}" for name, text in rows.items()),
            *(f"{'' if index else 'findings':<11} {line}" for index, line in enumerate(findings)),
        ]


def inspect_records(
    splits: Mapping[str, Sequence[Record]], findings: Findings, copies: Copies, records: Sequence[Record],
    token_counts: Sequence[int], tokenizer: str,
) -> Inspection:
    """Describe the data. splits: as training uses them. token_counts: of the captions of `records`, in their order."""
    captions = [caption for record in records for caption in record.captions]
    words = [words_of(caption) for caption in captions]
    unusual = [*findings.lines(), *_copy_findings(copies, splits, len(records)), *_caption_findings(records, splits)]
    return Inspection(
        formats=findings.formats, splits={name: len(members) for name, members in splits.items()},
        captions=len(captions), captions_per_picture=spread(len(record.captions) for record in records),
        words=spread(map(len, words)), tokens=spread(token_counts), tokenizer=tokenizer,
        vocabulary=Counter(word for caption in words for word in caption),
        scripts=Counter(script for caption in captions for script in scripts_of(caption)),
        pictures=len(records), findings=unusual,
    )


def spread(lengths: Iterable[int]) -> Spread:
    """Return the spread of one or more lengths."""
    ordered = sorted(lengths)
    return Spread(
        ordered[0], statistics.median(ordered), statistics.fmean(ordered), ordered[(len(ordered) * 95 - 1) // 100],
        ordered[-1],
    )


def words_of(caption: str) -> list[str]:
    """Return the words between blanks, in lower case, without punctuation around them."""
    return [word for part in caption.lower().split() if (word := _without_punctuation(part))]


@cache
def _without_punctuation(word: str) -> str:
    inside = [index for index, character in enumerate(word) if unicodedata.category(character)[0] not in "PS"]
    return word[inside[0] : inside[-1] + 1] if inside else ""


def scripts_of(caption: str) -> set[str]:
    """Return the scripts of a caption's letters, like Latin, Cyrillic or Chinese characters."""
    return {_script(character) for character in set(caption) if character.isalpha()}


@cache
def _script(letter: str) -> str:
    """Return the script of a letter: the first word of its name, as in CYRILLIC SMALL LETTER A."""
    name = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "unknown").split()[0].capitalize()
    return SCRIPT_NAMES.get(name, name)


def _copy_findings(copies: Copies, splits: Mapping[str, Sequence[Record]], count: int) -> list[str]:
    """Return sentences about broken pictures, and about copies in one split and in two."""
    split_of = {record.name: name for name, members in splits.items() for record in members}

    def crosses(pair: Pair) -> bool:
        return len({split_of.get(record.name) for record in pair} - {None}) > 1

    leaks = [" ~ ".join(f"{record.name} of {split_of[record.name]}" for record in pair)
             for pair in copies.alike if crosses(pair)]
    similar = [f"{a.name} ~ {b.name}" for a, b in copies.alike if not crosses((a, b))]
    sentences = [
        (list(copies.broken.values()), "picture that cannot be read", "pictures that cannot be read"),
        (similar, "pair of pictures that look like copies", "pairs of pictures that look like copies"),
        (leaks, "pair of copies in two splits, which `myllm data split` would keep together",
         "pairs of copies in two splits, which `myllm data split` would keep together"),
    ]
    lines = [counted(*sentence) for sentence in sentences if sentence[0]]
    if copies.compared < count - len(copies.broken) - sum(len(group) - 1 for group in copies.equal):
        looks = f"the looks of the first {copies.compared:,} only" if copies.compared else "not by their looks"
        lines.append(f"copies were searched for by the bytes of all pictures, {looks}")
    return lines


def _caption_findings(records: Sequence[Record], splits: Mapping[str, Sequence[Record]]) -> list[str]:
    """Return sentences about captions that are repeated: of one picture, of several, and in two splits."""
    pictures = Counter(caption for record in records for caption in set(record.captions))
    shared = [f"{caption!r} of {count:,}" for caption, count in pictures.most_common() if count > 1]
    twice = [record.name for record in records if len(set(record.captions)) < len(record.captions)]
    sentences = [
        (twice, "picture with the same caption twice", "pictures with the same caption twice"),
        (shared, "caption of several pictures", "captions of several pictures"),
    ]
    lines = [counted(*sentence) for sentence in sentences if sentence[0]]
    trained = {caption for record in splits["train"] for caption in record.captions}
    for name, members in splits.items():
        texts = [caption for record in members for caption in record.captions]
        repeated = sum(caption in trained for caption in texts)
        if name != "train" and repeated:
            lines.append(f"{repeated:,} of {quantity(len(texts), 'caption')} of {name} are word for word in train")
    return lines


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts)
