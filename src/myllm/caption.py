"""What is said of a picture, by whatever computed it. No torch: captioners are run without it too."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from myllm.config import END_OF_TEXT, CaptionsConfig, DecodeConfig
from myllm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

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


def split_words(pieces: Sequence[bytes], logprobs: Sequence[float], given: int = 0) -> list[Word]:
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


def normalize_word(word: str) -> str:
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
    """What is added for a word, as `normalize_word`; 0 for one that was not met."""
    common_words: tuple[str, ...] = ()
    """What stands in the references of so many pictures that it tells little of one: "a", "is", "the"."""
    calibrated_on: Mapping[str, Any] = field(default_factory=dict)
    """The pictures and the decoding that it was learned from."""

    def is_telling(self, word: Word) -> bool:
        text = normalize_word(word.text)
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
        offset = self.offsets.get(normalize_word(word.text), 0.0)
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


def describe_calibration(calibration: Calibration | None) -> str:
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


@dataclass
class Caption:
    """One caption of a picture."""

    text: str
    score: float
    """Mean log-probability of its tokens, the end included."""
    tokens: list[int]
    """Without begin and end."""
    token_logprobs: list[float]
    """Of those of `tokens` that were chosen, not given as a prefix, and of the end where it was reached."""
    ended_by: Literal["end", "stop", "length"]
    """Its end token, one of stop_strings, or max_new_tokens."""
    missing: tuple[str, ...] = ()
    """Of force_words, those that did not find their place."""
    alternatives: list[str] = field(default_factory=list)
    """The other beams' or samples' captions, best first."""
    pieces: Sequence[bytes] = field(default=(), repr=False)
    """What each of `tokens` says; a character may be torn over several."""
    calibration: Calibration | None = field(default=None, repr=False)
    """What turns log-probabilities into confidence; None where the captioner was never calibrated."""
    compute_attention: Callable[["Caption"], "Tensor"] | None = field(default=None, repr=False)

    @property
    def confidence(self) -> float:
        """0..1: the share of its telling words that references of the picture can be expected to use; `Calibration`.

        Where the captioner is not calibrated: the mean chance that it gave its tokens, a geometric mean.
        """
        return math.exp(self.score) if self.calibration is None else self.calibration.of_caption(self.words)

    @cached_property
    def words(self) -> list[Word]:
        """Its words in order, each with its tokens and its own confidence."""
        given = len(self.tokens) + (self.ended_by == "end") - len(self.token_logprobs)
        words = split_words(self.pieces, self.token_logprobs, given)
        return words if self.calibration is None else self.calibration.of_words(words, self.score)

    @cached_property
    def attention(self) -> "Tensor":
        """(T, H, W): what was looked at to say each of the T tokens, in the picture's own pixels; each sums to one.

        By the method `attribution.methods.DEFAULT`; at most 1,024 pixels on the longer side unless set otherwise (see
        `Captioner.attention_maps`).
        Computed when first asked for. Raises ConfigError where the caption was made without its picture at hand.
        """
        if self.compute_attention is None:
            raise ConfigError("this caption has no picture; use Captioner.attention_maps(picture, caption)")
        return self.compute_attention(self)


@dataclass(frozen=True)
class Sample:
    """A validation picture, its caption and its references."""

    image: Path
    caption: str
    references: Sequence[str]


class CaptionerProtocol(Protocol):
    """What captions pictures: a `Captioner`, or an `OnnxCaptioner` without torch."""

    decode: DecodeConfig

    @property
    def captions(self) -> CaptionsConfig:
        """How captions were read in training."""
        ...

    def preprocess(self, image: Any, /) -> Any:
        """Return a picture as `caption_tensors` takes it, (3, H, W) float32. Raises DataError."""
        ...

    def decode_options(self, **decode: Any) -> DecodeConfig:
        """Return `decode` with some options replaced. Raises ConfigError."""
        ...

    def caption_tensors(self, images: Sequence[Any], decode: DecodeConfig, /) -> list[Caption]:
        """Caption preprocessed images."""
        ...

    def blind_caption(self, decode: DecodeConfig, /) -> Caption | None:
        """Return the caption for image tokens that are all zeros, the same for every picture; None if not available."""
        ...

    def weights_hash(self) -> str:
        """Return a hash that is equal for equal weights."""
        ...


def encode_text(tokenizer: "Tokenizer", text: str) -> list[int]:
    """The tokens of words that a caption is to have."""
    # written out, the end token would end a caption
    return list(tokenizer.encode(text.replace(END_OF_TEXT, " "), add_special_tokens=False).ids)


def token_bytes(tokenizer: "Tokenizer") -> list[bytes]:
    """The bytes of each token of a byte-level tokenizer; none for the end token, and others that are no text."""
    # GPT-2 writes bytes that are not printable as characters from 256 on, in their order
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    odd = [byte for byte in range(256) if byte not in plain]
    byte_of = {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(odd)}
    special = tokenizer.get_added_tokens_decoder()
    found = []
    for token in range(tokenizer.get_vocab_size()):
        text = "" if token in special else tokenizer.id_to_token(token) or ""
        found.append(bytes(byte_of[character] for character in text) if set(text) <= byte_of.keys() else b"")
    return found


def fit_to_context(decode: DecodeConfig, given: int, context: int) -> DecodeConfig:
    """The options with no more tokens than a context has room for beside the `given` ones of the prefix.

    Raises ConfigError where the prefix leaves no room for a word.
    """
    room = context - given
    if room < 1:
        raise ConfigError(
            f"decode.prefix {decode.prefix[:30]!r}... fills the model's context of {context} tokens; shorten it"
        )
    return replace(
        decode, max_new_tokens=min(decode.max_new_tokens, room), min_new_tokens=min(decode.min_new_tokens, room)
    )
