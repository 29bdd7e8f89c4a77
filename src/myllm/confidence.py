"""The words of a caption, and how sure it is of them. No torch and no numpy: captions are told without them too."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from myllm.errors import CheckpointError

# ASCII's alone: as a byte, none of them is a part of another character
BLANKS = re.compile(rb"[ \t-\r\x1c-\x1f]+")
MARKS = re.compile(r"^[\W_]+|[\W_]+$")


@dataclass(frozen=True)
class Word:
    """What stands between blanks in a caption, punctuation that sticks to it included."""

    text: str
    tokens: slice
    """Which of the caption's tokens say it: `attention[word.tokens]` is where they looked."""
    logprob: float | None
    """Of those of its tokens that were chosen, together; None where all were given as a prefix."""
    confidence: float | None
    """0..1: the chance that references of the picture use it too; exp(logprob) where that is not calibrated."""


def words_of(pieces: Sequence[bytes], logprobs: Sequence[float], given: int = 0) -> list[Word]:
    """The words that tokens say, in order; confidence is not calibrated.

    pieces: what each token says; a character may be torn over several. logprobs: of the tokens but the first `given`;
    what follows them, as the end's, is not looked at. A blank alone belongs to the word after it, and a token that
    ends one word and begins another to both.
    """
    words, said, first, last = list[Word](), b"", 0, -1
    for at, piece in enumerate([*pieces, b" "]):  # a blank ends the last word as it does the others
        for place, part in enumerate(BLANKS.split(piece)):
            if place and said:
                chosen = logprobs[max(0, first - given) : max(0, last + 1 - given)]
                logprob = sum(chosen) if chosen else None
                text, tokens = said.decode(errors="replace"), slice(first, last + 1)
                words.append(Word(text, tokens, logprob, None if logprob is None else math.exp(logprob)))
                said = b""
            if part:
                first = first if said else min(at, last + 1)
                said, last = said + part, at
    return words


def spelled(word: str) -> str:
    """A word as it is compared: casing and the punctuation around it count for nothing."""
    return MARKS.sub("", word).casefold()


@dataclass(frozen=True)
class Calibration:
    """How often words are right that a model says with some log-probability, learned from pictures with references.

    A word is right where one of its picture's references uses it. The log-odds of that are estimated by a logistic
    regression on its own log-probability and the mean one of its caption, with an offset for each word, as some are
    said too readily. `evaluation.calibration` fits it.
    """

    logprob: float
    """Weight of a word's log-probability."""
    score: float
    """Weight of its caption's score."""
    constant: float
    offsets: Mapping[str, float] = field(default_factory=dict)
    """What is added for a word, as `spelled`; 0 for one that was not met."""
    common_words: tuple[str, ...] = ()
    """What stands in the references of so many pictures that it tells little of one: "a", "is", "the"."""
    calibrated_on: Mapping[str, Any] = field(default_factory=dict)
    """The pictures and the decoding that it was learned from."""

    def is_telling(self, word: Word) -> bool:
        text = spelled(word.text)
        return bool(text) and text not in self.common_words

    def of_words(self, words: Sequence[Word], score: float) -> list[Word]:
        """The words of a caption of that score with calibrated confidence."""
        return [replace(word, confidence=self._chance(word, score)) for word in words]

    def of_caption(self, words: Sequence[Word]) -> float:
        """A caption's confidence: the share of its telling words that references use too, as far as can be expected.

        words: as `of_words` gives them. Where none tells anything, of all of them; 0 where there is none.
        """
        chosen = [(self.is_telling(word), word.confidence) for word in words if word.confidence is not None]
        counted = [one for is_telling, one in chosen if is_telling] or [one for _, one in chosen]
        return sum(counted) / len(counted) if counted else 0.0

    def _chance(self, word: Word, score: float) -> float | None:
        if word.logprob is None:
            return None
        offset = self.offsets.get(spelled(word.text), 0.0)
        odds = self.logprob * word.logprob + self.score * score + self.constant + offset
        return 1 / (1 + math.exp(min(700.0, -odds)))  # 700: what exp can still take

    def as_json(self) -> dict[str, Any]:
        """As checkpoints hold it; `from_json` reads it."""
        plain = {"offsets": dict(self.offsets), "common_words": list(self.common_words)}
        return {**asdict(self), **plain, "calibrated_on": dict(self.calibrated_on)}

    @classmethod
    def from_json(cls, values: Any) -> "Calibration":
        """Raises CheckpointError for anything but what `as_json` gives."""
        try:
            logprob, score, constant = (float(values[name]) for name in ("logprob", "score", "constant"))
            offsets = {str(word): float(offset) for word, offset in values["offsets"].items()}
            common, origin = [str(word) for word in values["common_words"]], dict(values["calibrated_on"])
            if not all(map(math.isfinite, (logprob, score, constant, *offsets.values()))):
                raise ValueError("its weights are no finite numbers")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"calibration: {type(error).__name__}, {error}; expected what myllm writes: take another copy"
            ) from error
        return cls(logprob, score, constant, offsets, tuple(common), origin)


def told_calibration(calibration: Calibration | None) -> str:
    """In a line, what confidence means."""
    if calibration is None:
        return "not calibrated: a caption's is the mean chance of a token (`myllm evaluate --calibrate` changes that)"
    on = calibration.calibrated_on
    decode = on.get("decode")
    options = ", ".join(f"{name} {value}" for name, value in decode.items()) if isinstance(decode, Mapping) else ""
    return (
        f"calibrated on {on.get('pictures')} pictures of {on.get('data')}, split {on.get('split')}, "
        f"decoding {options or 'greedily'}"
    )
