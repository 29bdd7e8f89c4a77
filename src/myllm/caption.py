"""What is said of a picture, by whatever computed it. No torch: captioners are run without it too."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from myllm.confidence import Calibration, Word, words_of
from myllm.config import END_OF_TEXT, CaptionsConfig, DecodeConfig
from myllm.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor


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
    look: Callable[["Caption"], "Tensor"] | None = field(default=None, repr=False)

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
        words = words_of(self.pieces, self.token_logprobs, given)
        return words if self.calibration is None else self.calibration.of_words(words, self.score)

    @cached_property
    def attention(self) -> "Tensor":
        """(T, H, W): what was looked at to say each of the T tokens, in the picture's own pixels; each sums to one.

        By the method `attribution.DEFAULT`; at most 1,024 pixels on the longer side, else `Captioner.look` says.
        Computed when first asked for. Raises ConfigError where the caption was made without its picture at hand.
        """
        if self.look is None:
            raise ConfigError("this caption was made without its picture at hand; use Captioner.caption")
        return self.look(self)


class Describer(Protocol):
    """Whatever captions pictures: a `Captioner`, or an exported one without torch."""

    decode: DecodeConfig
    captions: CaptionsConfig

    def preprocess(self, image: Any, /) -> Any:
        """A picture as `caption_tensors` takes it, (3, H, W) float32. Raises DataError."""
        ...

    def decode_options(self, **decode: Any) -> DecodeConfig: ...

    def caption_tensors(self, images: Sequence[Any], decode: DecodeConfig, /) -> list[Caption]: ...

    def blind_caption(self, decode: DecodeConfig, /) -> Caption | None:
        """What it says where all image tokens are zeros: of any picture the same. None where that can't be had."""
        ...

    def weights_hash(self) -> str:
        """The same for the same weights."""
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
