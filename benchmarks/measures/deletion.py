"""Deletion and insertion curves: does the probability of a word follow the pixels that its heat map marks?"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from measures.pointing import CENTRE, centre
from torch import Tensor
from torch.nn import functional as F

from myllm.attribution.methods import logprobs_and_attention
from myllm.caption import Word, normalize_word
from myllm.data.tokenizer import end_token
from myllm.inference.captioner import Captioner, Picture

RANDOM = "random"
STEPS = 8
# words that fit nearly any picture
FUNCTION_WORDS = re.compile(
    "a|an|the|and|or|of|in|on|at|to|by|for|from|with|without|while|as|is|are|was|be|being|been|it|its|he|she|his|her|their"
    "|they|them|that|this|there|who|which|through|up|down|off|over|into|out|onto|near|next|one|some|another|other",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Curves:
    """Areas under the curve of a word's probability (Petsiuk et al. 2018)."""

    deletion: float
    """While the pixels with the highest values are replaced by the mean colour: low if the map is right."""
    insertion: float
    """While the pixels with the highest values appear in a blurred picture: high if the map is right."""


def judge_words(
    captioner: Captioner, pictures: Sequence[Picture], methods: Sequence[str], words: int = 3, seed: int = 0
) -> Iterator[dict[str, Curves]]:
    """Caption pictures and yield the curves of some content words of each caption, by each method.

    Two baselines are added: `random` values, and `centre`, a Gaussian in the middle of the picture.
    """
    for number, picture in enumerate(pictures):
        image = captioner.preprocess(picture)
        caption = captioner.caption(image)
        rng = random.Random(f"{seed}/{number}")
        maps = {method: captioner.attention_maps(image, caption, method=method) for method in methods}
        content = list(filter(is_content, caption.words))
        for word in rng.sample(content, min(words, len(content))):
            heats = {method: heat[word.tokens].mean(0) for method, heat in maps.items()}
            rows, columns = captioner.model.encoder.grid
            noise = torch.tensor([[[[rng.random() for _ in range(columns)] for _ in range(rows)]]])
            heats[RANDOM] = F.interpolate(noise, size=image.shape[1:], mode="bilinear")[0, 0]
            heats[CENTRE] = centre(*image.shape[1:])
            yield {name: draw_curves(captioner, image, caption.tokens, word, heat) for name, heat in heats.items()}


def is_content(word: Word) -> bool:
    """Whether a generated word says something about its picture: letters, but not a function word."""
    text = normalize_word(word.text)
    is_word = word.logprob is not None and text.isalpha() and len(text) > 1
    return is_word and not FUNCTION_WORDS.fullmatch(text)


@torch.inference_mode()
def draw_curves(captioner: Captioner, image: Tensor, tokens: Sequence[int], word: Word, heat: Tensor) -> Curves:
    """Return the curves of a word, given the words before it. image: (3, H, W), preprocessed; heat: (H, W)."""
    sequence = torch.tensor([end_token(captioner.tokenizer), *tokens[: word.tokens.stop]], device=captioner.device)
    images = torch.cat(removal_order(image, heat)).to(captioner.device)
    logprobs = logprobs_and_attention(captioner.model, captioner.model.encode(images), sequence)[0]
    probabilities = logprobs[:, word.tokens].sum(-1).exp().cpu()
    areas = [float(torch.trapezoid(half, dx=1 / STEPS)) for half in probabilities.chunk(2)]
    return Curves(*areas)


def removal_order(image: Tensor, heat: Tensor) -> tuple[Tensor, Tensor]:
    """Return (STEPS + 1, 3, H, W) twice: pixels deleted, and pixels inserted into a blur, highest values first."""
    height, width = heat.shape
    rank = heat.flatten().argsort(descending=True, stable=True).argsort().view(height, width)
    first = rank < (torch.arange(STEPS + 1) * height * width // STEPS)[:, None, None, None]
    reach = min(height, width) // 8
    padded = F.pad(image[None], [reach] * 4, mode="reflect")
    blurred = F.avg_pool2d(padded, 2 * reach + 1, stride=1)
    return torch.where(first, 0.0, image), torch.where(first, image, blurred)
