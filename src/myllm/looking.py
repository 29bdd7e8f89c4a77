"""From maps on a model's grid to maps on the picture itself, and from tokens to the words that people read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from myllm.attribution import shares
from myllm.caption import Caption
from myllm.data.images import Preprocess
from myllm.data.tokenizer import decode_tokens

WORD = re.compile(r"\s*(\w+(?:['’-]\w+)*|[^\w\s])")  # a token mostly has the blank before its word
TORN = "\ufffd"  # what the tokenizer shows of a character whose bytes are not all there yet
LONGEST = 1024
"""Pixels of a map's longer side: at 4000 x 3000 the maps of 15 words would take 720 MB."""


@dataclass(frozen=True)
class Shown:
    """A picture as a model is shown it, and where in the picture that lies."""

    tensor: Tensor
    """(3, H, W) float32, preprocessed."""
    size: tuple[int, int]
    """Width and height of the upright picture, in pixels."""
    window: tuple[float, float, float, float]
    """(left, top, right, bottom) of the tensor in the picture; see `Preprocess.window`."""

    @classmethod
    def whole(cls, tensor: Tensor) -> "Shown":
        """A tensor of which no picture is known: its own coordinates are the picture's."""
        height, width = tensor.shape[1:]
        return cls(tensor, (width, height), (0, 0, width, height))


def show(picture: Image.Image, preprocess: Preprocess) -> Shown:
    """An upright RGB picture, as `load_image` gives it, preprocessed."""
    return Shown(torch.from_numpy(preprocess(picture)), picture.size, preprocess.window(picture.size))


@dataclass(frozen=True)
class Word:
    """A word of a caption, or a punctuation mark, with what was looked at to say it."""

    text: str
    start: int
    """Place of its first character in the caption's text."""
    tokens: tuple[int, ...]
    """Places of its tokens among the caption's."""
    logprob: float | None
    """The sum of its tokens' log-probabilities; None where it was given as a prefix."""
    map: Tensor
    """(H, W) float32, mean of its tokens' maps."""


def on_picture(maps: Tensor, shown: Shown, longest: int | None = LONGEST) -> Tensor:
    """(T, rows, columns) of the model's grid -> (T, H, W) of the picture, each still summing to one.

    Crop and border are undone: what the model was not shown has zero, and what lay on a border is gone.
    """
    scale = 1.0 if longest is None else min(1.0, longest / max(shown.size))
    width, height = (max(1, round(side * scale)) for side in shown.size)
    left, top, right, bottom = shown.window
    # the middles of the map's pixels, as parts of the window from -1 to 1
    x = ((torch.arange(width) + 0.5) * shown.size[0] / width - left) / (right - left) * 2 - 1
    y = ((torch.arange(height) + 0.5) * shown.size[1] / height - top) / (bottom - top) * 2 - 1
    across = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)
    # the outermost places reach to the edge of the window
    found = F.grid_sample(maps[None], across[None].float(), padding_mode="border", align_corners=False)[0]
    return shares(found * (across.abs() <= 1).all(-1))


def words(tokenizer: Tokenizer, caption: Caption, maps: Tensor) -> list[Word]:
    """The words of a caption in order. maps: (T, H, W), one of each of its tokens."""
    logprobs = caption.token_logprobs[: len(caption.token_logprobs) - (caption.ended_by == "end")]
    told = [None] * (len(caption.tokens) - len(logprobs)) + list(logprobs)
    spans = token_spans(tokenizer, caption.tokens)
    found = []
    for match in WORD.finditer(caption.text):
        own = tuple(at for at, (begin, end) in enumerate(spans) if begin < match.end() and end > match.start())
        if own:
            chances = [told[at] for at in own]
            logprob = None if None in chances else sum(one for one in chances if one is not None)
            found.append(Word(match[1], match.start(1), own, logprob, maps[list(own)].mean(0)))
    return found


def token_spans(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end of each token in the text of them all, from which blanks at both ends are stripped."""
    whole = decode_tokens(tokenizer, tokens)
    begins = [decode_tokens(tokenizer, tokens[:count]).rstrip(TORN) for count in range(len(tokens))]
    edges = [len(text) - len(whole) + len(whole.lstrip()) for text in [*begins, whole]]
    # a token of part of a character's bytes has the whole character
    return [(edge, next((end for end in edges[at:] if end > edge), edge)) for at, edge in enumerate(edges[:-1])]
