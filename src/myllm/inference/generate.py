"""From search requests to captions. No torch, so that exports are captioned by the same lines."""

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from itertools import starmap

from tokenizers import Tokenizer

from myllm.caption import Calibration, Caption, Follower, encode_text, token_bytes
from myllm.config import DecodeConfig
from myllm.data.tokenizer import decode_tokens, end_token
from myllm.decoding.arrays import Floats
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.engine import Hypothesis, SearchRequest, SearchStrategy, run_search
from myllm.decoding.retrieval import CaptionIndex, Neighbours
from myllm.decoding.sampling import GreedyOrSampling
from myllm.decoding.search import generate
from myllm.errors import ConfigError


def make_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Return the tokenizer in the form that the search uses."""
    return Vocabulary(token_bytes(tokenizer), partial(encode_text, tokenizer), end_token(tokenizer))


def fit_prefix(vocabulary: Vocabulary, decode: DecodeConfig, context: int) -> tuple[DecodeConfig, list[int]]:
    """Return the options, limited to the model's context, and the tokens of their prefix.

    Blanks at the end of the prefix are dropped: the next token brings its own. Raises ConfigError if the prefix leaves
    no room for a word.
    """
    prefix = vocabulary.encode(decode.prefix.rstrip())
    room = context - len(prefix)
    if room < 1:
        raise ConfigError(
            f"decode.prefix {decode.prefix[:30]!r}... fills the model's context of {context} tokens; shorten it"
        )
    lengths = {name: min(getattr(decode, name), room) for name in ("max_new_tokens", "min_new_tokens")}
    return replace(decode, **lengths), prefix


def generate_captions(
    request: SearchRequest, tokenizer: Tokenizer, followers: Sequence[Follower] | None = None,
    calibration: Calibration | None = None,
) -> list[Caption]:
    """Return the best caption of each image with its alternatives; one with `error` if the rules allowed no token.

    followers: who follows each image. calibration: of the captions' confidence.
    """
    vocabulary, config = request.vocabulary, request.config
    assert vocabulary is not None
    followers = followers or ()
    shows = [follower.show for follower in followers]

    def show_texts(strategy: SearchStrategy) -> None:
        for show, [hypothesis] in zip(shows, strategy.results(), strict=True):
            if show is not None and not hypothesis.error:
                show(caption_text(tokenizer, hypothesis.tokens, vocabulary))

    if followers:
        request = replace(request, is_given_up=lambda image: followers[image].has_left())
    neighbours: Sequence[Neighbours | None] = request.neighbours or [None] * request.batch

    def to_caption(image: int, hypotheses: Sequence[Hypothesis]) -> Caption:
        return _to_caption(hypotheses, neighbours[image], tokenizer, vocabulary, calibration)

    request = replace(request, confidence=lambda image, hypothesis: to_caption(image, [hypothesis]).confidence)
    is_single = config.beams == 1 and (config.num_return_sequences or 1) == 1
    hypotheses = generate(request, show_texts) if is_single and any(shows) else generate(request)
    return list(starmap(to_caption, enumerate(hypotheses)))


def stream_text(
    request: SearchRequest, tokenizer: Tokenizer, context: Callable[[], AbstractContextManager[object]] = nullcontext
) -> Iterator[str]:
    """Yield the caption of a single image in pieces as they are generated, each of whole characters.

    context: context manager for each step; between the pieces, the caller's code runs outside of it.
    Raises ConfigError if the rules allow no token.
    """
    strategy, text, continues = GreedyOrSampling(request), "", True
    assert request.vocabulary is not None
    with closing(run_search(request, strategy)) as steps:
        while continues:
            with context():
                continues = next(steps, steps) is None
            [[hypothesis]] = strategy.results()
            if hypothesis.error:
                raise ConfigError(hypothesis.error)
            longer = caption_text(tokenizer, hypothesis.tokens, request.vocabulary)
            if len(longer) > len(text):
                yield longer[len(text) :]
                text = longer


def find_neighbours(decode: DecodeConfig, index: CaptionIndex | None, means: Callable[[], Floats]) -> list[Neighbours]:
    """Return `SearchRequest.neighbours`; none if the options do not use them, or confidence has no index.

    means: returns the means (B, C) of the pictures' values. Raises ConfigError if retrieval has no index.
    """
    if decode.rank_by == "retrieval":
        require_index(index)
    if decode.rank_by not in ("retrieval", "confidence") or index is None:
        return []
    return [index.neighbours(mean) for mean in means()]


def require_index(index: CaptionIndex | None) -> CaptionIndex:
    """Return the index. Raises ConfigError if there is none."""
    if index is None:
        raise ConfigError(
            "decode.rank_by retrieval: this captioner has no index of its training pictures; train one with "
            "--decode.rank_by retrieval, or take score or consensus"
        )
    return index


def incomplete_bytes(text: bytes) -> int:
    """Number of bytes at the end of a text that begin a UTF-8 character without completing it."""
    decoder = getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return len(decoder.getstate()[0])


def caption_text(tokenizer: Tokenizer, tokens: Sequence[int], vocabulary: Vocabulary) -> str:
    """Text of a caption; a last character whose bytes are incomplete is left out."""
    text = decode_tokens(tokenizer, tokens)
    return (text.removesuffix("\ufffd") if incomplete_bytes(vocabulary.text(tokens)) else text).strip()


def _to_caption(
    hypotheses: Sequence[Hypothesis], neighbours: Neighbours | None, tokenizer: Tokenizer, vocabulary: Vocabulary,
    calibration: Calibration | None,
) -> Caption:
    best = hypotheses[0]
    if best.error:
        return Caption("", 0.0, [], [], "failed", error=best.error)
    text, *alternatives = [caption_text(tokenizer, hypothesis.tokens, vocabulary) for hypothesis in hypotheses]
    whole = vocabulary.text(best.tokens)
    left = len(whole) - incomplete_bytes(whole)
    pieces = []
    for token in best.tokens:  # like the text, without the incomplete character
        pieces.append(vocabulary.text([token])[:left])
        left -= len(pieces[-1])
    return Caption(
        text, best.score, best.tokens, best.logprobs, best.ended_by, best.missing, alternatives,
        [(other.ended_by, len(other.logprobs)) for other in hypotheses[1:]], pieces=pieces,
        support=neighbours.support(best.tokens) if neighbours else (), calibration=calibration,
    )
