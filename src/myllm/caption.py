"""Captions, their words, and how confident they are. No torch, so that exported captioners can use it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from myllm.config import END_OF_TEXT, CaptionsConfig, DecodeConfig
from myllm.errors import CheckpointError, ConfigError, tokenizer_errors
from myllm.files import Picture

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

# ASCII blanks only: their bytes are never part of another character
WORD = re.compile(rb"[^ \t-\r\x1c-\x1f]+")
PUNCTUATION = re.compile(r"^[\W_]+|[\W_]+$")


@dataclass(frozen=True)
class Word:
    """A word of a caption: the text between blanks, with the punctuation next to it."""

    text: str
    tokens: slice
    """Indices of its tokens in the caption; `attention[word.tokens]` are their heat maps."""
    logprob: float | None
    """Sum of the log-probabilities of its generated tokens; None if all of them belong to a prefix."""
    confidence: float | None
    """0 to 1: probability that references of the picture use the word; exp(logprob) without calibration."""
    support: float | None = None
    """0 to 1: weight of the most similar training pictures whose captions use it; None if captions are ranked otherwise
    than by retrieval or confidence."""


def split_words(
    pieces: Sequence[bytes], logprobs: Sequence[float], prefix_length: int = 0, support: Sequence[float] = ()
) -> list[Word]:
    """Return the words of a caption in order, without calibrated confidence.

    pieces: the bytes of each token; a character may be split over several.
    logprobs: one for each token after the first `prefix_length`; more, such as the end token's, are ignored.
    support: that of each token, or nothing.

    Blanks in tokens of their own belong to the next word. A token that ends one word and begins another is in both.
    """
    token_at = [token for token, piece in enumerate(pieces) for _ in piece]  # the token that holds each byte
    words, stop = list[Word](), 0
    for match in WORD.finditer(b"".join(pieces)):
        first, last = token_at[match.start()], token_at[match.end() - 1]
        tokens, stop = slice(min(first, stop), last + 1), last + 1
        generated = logprobs[max(0, tokens.start - prefix_length) : max(0, stop - prefix_length)]
        logprob = sum(generated) if generated else None
        confidence = None if logprob is None else math.exp(logprob)
        shared = min(support[tokens]) if support else None
        words.append(Word(match.group().decode(errors="replace"), tokens, logprob, confidence, shared))
    return words


def normalize_word(word: str) -> str:
    """Return the word in lower case without the punctuation around it, for comparisons."""
    return PUNCTUATION.sub("", word).casefold()


@dataclass(frozen=True)
class Calibration:
    """Probability that a generated word is right, meaning that a reference of its picture uses it.

    A logistic regression on the word's log-probability and its caption's score, with an offset for each word, because
    models use some words too readily. `evaluation.calibration` fits it to pictures with references.
    """

    logprob: float
    """Weight of a word's log-probability."""
    score: float
    """Weight of its caption's score."""
    constant: float
    offsets: Mapping[str, float] = field(default_factory=dict)
    """Normalized word (see `normalize_word`) -> number added to its log-odds; 0 for words that are not listed."""
    common_words: tuple[str, ...] = ()
    """Words that so many pictures' references use that they say little about a picture: "a", "is", "the"."""
    calibrated_on: Mapping[str, Any] = field(default_factory=dict)
    """The pictures and decoding options that it was fitted to."""
    support: float = 0.0
    """Weight of the logarithm of a word's support, minus `usual_support`; words without support have the usual one."""
    usual_support: float = 0.0
    """Mean logarithm of the support of informative words."""

    def is_informative(self, word: Word) -> bool:
        """Whether the word says something about a picture: not punctuation, and not one of `common_words`."""
        text = normalize_word(word.text)
        return bool(text) and text not in self.common_words

    def of_words(self, words: Sequence[Word], score: float) -> list[Word]:
        """Return the words of a caption with their calibrated confidence; score: the caption's."""
        return [replace(word, confidence=self._probability(word, score)) for word in words]

    def of_caption(self, words: Sequence[Word]) -> float:
        """Return a caption's confidence: the expected share of its informative words that references use.

        words: as `of_words` returns them. If none is informative, all words count; without words, confidence is 0.
        """
        generated = [(word.confidence, self.is_informative(word)) for word in words if word.confidence is not None]
        informative = [confidence for confidence, is_informative in generated if is_informative]
        counted = informative or [confidence for confidence, _ in generated]
        return sum(counted) / len(counted) if counted else 0.0

    def _probability(self, word: Word, score: float) -> float | None:
        if word.logprob is None:
            return None
        offset = self.offsets.get(normalize_word(word.text), 0.0)
        odds = self.logprob * word.logprob + self.score * score + self.constant + offset
        if word.support is not None:
            odds += self.support * (log_support(word.support) - self.usual_support)
        return 1 / (1 + math.exp(min(700.0, -odds)))  # exp overflows above 709

    def as_json(self) -> dict[str, Any]:
        """Return what checkpoints store; `from_json` reads it."""
        return {**asdict(self), "common_words": list(self.common_words)}

    @classmethod
    def from_json(cls, values: Any) -> "Calibration":
        """Return the calibration that `as_json` wrote. Raises CheckpointError for anything else."""
        try:
            logprob, score, constant = (float(values[name]) for name in ("logprob", "score", "constant"))
            offsets = {str(word): float(offset) for word, offset in values["offsets"].items()}
            common, origin = [str(word) for word in values["common_words"]], dict(values["calibrated_on"])
            support, usual = (float(values.get(name, 0.0)) for name in ("support", "usual_support"))  # new in 2026-11
            if not all(map(math.isfinite, (logprob, score, constant, support, usual, *offsets.values()))):
                raise ValueError("its weights are not finite numbers")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"calibration: {type(error).__name__}, {error}; expected what `myllm evaluate --calibrate` writes"
            ) from error
        return cls(logprob, score, constant, offsets, tuple(common), origin, support, usual)


def log_support(support: float) -> float:
    """Return the logarithm of a word's support; a word that no picture supports counts as half a picture of thirty."""
    return math.log(support + 1 / 60)


def describe_calibration(calibration: Calibration | None) -> str:
    """Return one line that says what confidence means."""
    if calibration is None:
        return "not calibrated: the mean probability of a caption's tokens (`myllm evaluate --calibrate` changes that)"
    origin = calibration.calibrated_on
    decode = origin.get("decode")
    options = ", ".join(f"{name} {value}" for name, value in decode.items()) if isinstance(decode, Mapping) else ""
    return (
        f"calibrated on {origin.get('pictures')} pictures of {origin.get('data')}, split {origin.get('split')}, "
        f"decoding {options or 'greedily'}"
    )


@dataclass
class Caption:
    """One caption of a picture."""

    text: str
    score: float
    """Mean log-probability of its generated tokens, the end token included."""
    tokens: list[int]
    """Token ids without begin and end, the prefix included."""
    token_logprobs: list[float]
    """One log-probability for each generated token: the end token included, the prefix excluded."""
    ended_by: Literal["end", "stop", "length", "failed"]
    """Why it ended: the end token, one of stop_strings, max_new_tokens, or rules that allowed no token."""
    missing: tuple[str, ...] = ()
    """Words of force_words that it does not contain."""
    alternatives: list[str] = field(default_factory=list)
    """Texts of the other beams or samples, best first."""
    alternative_endings: Sequence[tuple[str, int]] = field(default=(), repr=False)
    """Of each of `alternatives`: why it ended, and how many tokens were generated, the end token included."""
    error: str = ""
    """Why the picture has no caption: the rules allowed no token. Empty otherwise."""
    pieces: Sequence[bytes] = field(default=(), repr=False)
    """The bytes of each of `tokens`; a character may be split over several."""
    support: Sequence[float] = field(default=(), repr=False)
    """`Word.support` of each of `tokens`; empty if `rank_by` is neither retrieval nor confidence."""
    calibration: Calibration | None = field(default=None, repr=False)
    """What turns log-probabilities into confidence; None if the captioner was never calibrated."""
    compute_attention: Callable[["Caption"], "Tensor"] | None = field(default=None, repr=False)
    """Computes `attention`; None if the picture is not known."""

    @property
    def confidence(self) -> float:
        """0 to 1: expected share of its informative words that references of the picture use; see `Calibration`.

        Without calibration: the geometric mean of its tokens' probabilities.
        """
        if self.error:
            return 0.0
        return math.exp(self.score) if self.calibration is None else self.calibration.of_caption(self.words)

    @property
    def prefix_length(self) -> int:
        """Number of tokens of the prefix."""
        return len(self.tokens) + (self.ended_by == "end") - len(self.token_logprobs)

    @cached_property
    def words(self) -> list[Word]:
        """The words in order, each with its tokens and confidence."""
        words = split_words(self.pieces, self.token_logprobs, self.prefix_length, self.support)
        return words if self.calibration is None else self.calibration.of_words(words, self.score)

    @cached_property
    def attention(self) -> "Tensor":
        """Heat maps (T, H, W) in the picture's coordinates of where the model looked for each token; each sums to one.

        Computed at the first access, by the default method and size of `Captioner.attention_maps`. Raises ConfigError
        if the picture is not known, and DataError if it cannot be read any more.
        """
        if self.compute_attention is None:
            raise ConfigError("this caption has no picture; use Captioner.attention_maps(picture, caption)")
        return self.compute_attention(self)


@dataclass(frozen=True)
class Follower:
    """Follows the decoding of one picture's caption, and can end it."""

    has_left: Callable[[], bool]
    """Called after each step; if it returns True, the caption is given up, and costs no further step."""
    show: Callable[[str], object] | None = None
    """Called after each step with the text so far; never with beams or several captions, whose best is known only at
    the end."""


@dataclass(frozen=True)
class Sample:
    """A validation picture with its caption and references."""

    name: str
    image: Picture
    caption: str
    references: Sequence[str]


class CaptionerProtocol(Protocol):
    """Anything that captions pictures: a `Captioner`, or an `OnnxCaptioner`, which needs no torch."""

    decode: DecodeConfig

    @property
    def context(self) -> int:
        """Maximum length of a caption in tokens, begin token and prefix included."""
        ...

    @property
    def captions(self) -> CaptionsConfig:
        """How captions were read in training."""
        ...

    def preprocess(self, image: Any, /) -> Any:
        """Return a picture as `caption_tensors` takes it, (3, H, W) float32. Raises DataError if it is unreadable."""
        ...

    def decode_options(self, **decode: Any) -> DecodeConfig:
        """Return the decoding defaults with some options replaced. Raises ConfigError if these do not fit together."""
        ...

    def caption_tensors(
        self, images: Sequence[Any], decode: DecodeConfig, /, *, seeds: Sequence[int] | None = None,
        followers: Sequence[Follower] | None = None,
    ) -> list[Caption]:
        """Return a caption for each preprocessed image.

        seeds: a random seed for each, used with `do_sample`. followers: who follows each.
        """
        ...

    def blind_caption(self, decode: DecodeConfig, /) -> Caption | None:
        """Return the caption for image tokens that are all zeros, the same for every picture; None if not available."""
        ...

    def weights_hash(self) -> str:
        """Return a hash that is equal for equal weights."""
        ...


def encode_text(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Return the tokens of a text that captions are to contain or begin with."""
    # the end token, written out in the text, would end the caption
    with tokenizer_errors():
        return list(tokenizer.encode(text.replace(END_OF_TEXT, " "), add_special_tokens=False).ids)


def token_bytes(tokenizer: "Tokenizer") -> list[bytes]:
    """Return the bytes of each token of a byte-level tokenizer; b"" for the end token and others without text."""
    # GPT-2's tokenizer writes non-printable bytes as the characters from 256 on, in order
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
    special = tokenizer.get_added_tokens_decoder()
    pieces = []
    for token in range(tokenizer.get_vocab_size()):
        text = "" if token in special else tokenizer.id_to_token(token) or ""
        pieces.append(bytes(byte_of[character] for character in text) if set(text) <= byte_of.keys() else b"")
    return pieces
