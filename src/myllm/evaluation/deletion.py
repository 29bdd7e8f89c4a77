"""Do heat maps tell what a word hangs on? Measured by taking the picture away in their order, and bringing it back."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from myllm.attribution.methods import logprobs_and_attention
from myllm.caption import Word, normalize_word
from myllm.data.tokenizer import end_token
from myllm.evaluation.pointing import CENTRE, centre
from myllm.inference.captioner import Captioner, Picture

RANDOM = "random"
STEPS = 8
# words that are said of nearly any picture, and hardly hang on any place in it
FUNCTION_WORDS = re.compile(
    "a|an|the|and|or|of|in|on|at|to|by|for|from|with|without|while|as|is|are|was|be|being|been|it|its|he|she|his|her|their"
    "|they|them|that|this|there|who|which|through|up|down|off|over|into|out|onto|near|next|one|some|another|other",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Curves:
    """Mean chance of a word while the picture goes away, or comes (Petsiuk et al. 2018)."""

    deletion: float
    """Area under its chance while the hottest pixels are made the mean colour: low where the map is right."""
    insertion: float
    """Area under its chance while the hottest pixels come out of a blur: high where the map is right."""


def judge_words(
    captioner: Captioner, pictures: Sequence[Picture], methods: Sequence[str], words: int = 3, seed: int = 0
) -> Iterator[dict[str, Curves]]:
    """Curves of some content words of each picture's caption by each method, and by what looks at nothing: `random`
    order of places, and `centre`, a Gaussian in the middle."""
    for number, picture in enumerate(pictures):
        image = captioner.preprocess(picture)
        caption = captioner.caption(image)
        rng = random.Random(f"{seed}/{number}")
        maps = {method: captioner.attention_maps(image, caption, method=method) for method in methods}
        content = list(filter(is_content, caption.words))
        for word in rng.sample(content, min(words, len(content))):
            heats = {method: own[word.tokens].mean(0) for method, own in maps.items()}
            rows, columns = captioner.model.encoder.grid
            noise = torch.tensor([[[[rng.random() for _ in range(columns)] for _ in range(rows)]]])
            heats[RANDOM] = F.interpolate(noise, size=image.shape[1:], mode="bilinear")[0, 0]
            heats[CENTRE] = centre(*image.shape[1:])
            yield {name: draw_curves(captioner, image, caption.tokens, word, heat) for name, heat in heats.items()}


def is_content(word: Word) -> bool:
    """Whether a word tells of this picture: letters, and no function word."""
    text = normalize_word(word.text)
    is_word = word.logprob is not None and text.isalpha() and len(text) > 1
    return is_word and not FUNCTION_WORDS.fullmatch(text)


@torch.inference_mode()
def draw_curves(captioner: Captioner, image: Tensor, tokens: Sequence[int], word: Word, heat: Tensor) -> Curves:
    """image: (3, H, W), preprocessed; heat: (H, W). The word's chance is given the words before it."""
    told = torch.tensor([end_token(captioner.tokenizer), *tokens[: word.tokens.stop]], device=captioner.device)
    images = torch.cat(removal_order(image, heat)).to(captioner.device)
    logprobs = logprobs_and_attention(captioner.model, captioner.model.encode(images), told)[0]
    chances = logprobs[:, word.tokens].sum(-1).exp().cpu()
    area = [float(torch.trapezoid(half, dx=1 / STEPS)) for half in chances.chunk(2)]
    return Curves(*area)


def removal_order(image: Tensor, heat: Tensor) -> tuple[Tensor, Tensor]:
    """(STEPS + 1, 3, H, W) each: pixels deleted, and pixels inserted into a blur, the hottest first, by equal parts."""
    height, width = heat.shape
    rank = heat.flatten().argsort(descending=True, stable=True).argsort().view(height, width)
    first = rank < (torch.arange(STEPS + 1) * height * width // STEPS)[:, None, None, None]
    reach = min(height, width) // 8
    padded = F.pad(image[None], [reach] * 4, mode="reflect")
    blurred = F.avg_pool2d(padded, 2 * reach + 1, stride=1)
    return torch.where(first, 0.0, image), torch.where(first, image, blurred)
