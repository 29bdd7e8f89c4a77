"""From a model and its image keys and values to captions: what the decoding engine is given, and what comes of it."""

from collections.abc import Sequence
from functools import partial

import torch
from tokenizers import Tokenizer

from myllm.caption import Caption, encode_text, fit_to_context, token_bytes
from myllm.config import DecodeConfig
from myllm.data.tokenizer import decode_tokens, end_token
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.engine import Hypothesis, SearchRequest, Stepper
from myllm.decoding.generate import generate
from myllm.inference.torch_steppers import ModelStepper
from myllm.model.kv_cache import ImageKV
from myllm.model.vision_gpt2 import VisionGPT2


def make_search(
    model: VisionGPT2, vocabulary: Vocabulary, image: ImageKV, decode: DecodeConfig, seeds: Sequence[int] = (),
    stepper: Stepper | None = None,
) -> SearchRequest:
    """What the engine is to search: captions of the images, with what they begin with.

    seeds: one for each image, needed by `do_sample`. stepper: what computes the steps, instead of the model itself.
    Raises ConfigError where the prefix leaves no room for a word.
    """
    batch, context = image.batch_size, model.config.text.n_positions
    prefix = vocabulary.encode(decode.prefix) if decode.prefix else []
    decode = fit_to_context(decode, len(prefix), context)
    blind = None
    if decode.contrastive_weight:
        grey = torch.zeros(1, 3, *model.encoder.preprocess.image_size, device=image.device)
        blind = model.encode(grey).select(torch.zeros(batch, dtype=torch.int64, device=grey.device))
    stepper = stepper or ModelStepper(model, 1 + len(prefix) + decode.max_new_tokens)
    return SearchRequest(stepper, image, batch, vocabulary.end, decode, tuple(prefix), vocabulary, blind, seeds)


def make_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The tokenizer as the engine sees it."""
    return Vocabulary(token_bytes(tokenizer), partial(encode_text, tokenizer), end_token(tokenizer))


@torch.inference_mode()
def generate_captions(search: SearchRequest, tokenizer: Tokenizer) -> list[Caption]:
    """The best caption of each image with its alternatives; the model is used as it is, so put it into eval mode."""
    said = search.vocabulary.tokens if search.vocabulary else ()
    return [_caption(hypotheses, tokenizer, said) for hypotheses in generate(search)]


def _caption(hypotheses: Sequence[Hypothesis], tokenizer: Tokenizer, said: Sequence[bytes]) -> Caption:
    """said: the bytes of each token."""
    best = hypotheses[0]
    texts = [decode_tokens(tokenizer, one.tokens).strip() for one in hypotheses]
    # an embedding may have more rows than the tokenizer has tokens; those say nothing
    pieces = [said[token] if token < len(said) else b"" for token in best.tokens]
    return Caption(texts[0], best.score, best.tokens, best.logprobs, best.ended_by, best.missing, texts[1:], pieces)


def draw_seeds(count: int, generator: torch.Generator | None) -> list[int]:
    """A seed a picture: each draws its own way, whatever is drawn beside it."""
    device = None if generator is None else generator.device
    return torch.randint(2**62, (count,), generator=generator, device=device).tolist()
