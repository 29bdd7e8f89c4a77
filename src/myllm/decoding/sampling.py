"""Greedy search and sampling: take the likeliest token each time, or draw one by its probability."""

from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from myllm.decoding.arrays import IMPOSSIBLE, Array, Floats, pick, to_device_of, to_numpy
from myllm.decoding.engine import Hypothesis, NextTokens, SearchRequest
from myllm.decoding.history import Choice, History
from myllm.decoding.rules import no_token_message

# in place of a finished caption's number, while other captions of its image are still open
FINISHED = -1


class GreedyOrSampling:
    """Extends each caption by one token at a time; several captions of an image are sampled independently."""

    ranks_logprobs: ClassVar[bool] = False

    def __init__(self, request: SearchRequest) -> None:
        self.request, config = request, request.config
        self.captions = config.num_return_sequences or 1
        # (B, G) the number of each caption among those of its image
        self.samples = np.tile(np.arange(self.captions), (request.batch, 1))
        self.hypotheses = [
            [Hypothesis(list(request.prefix)) for _ in range(self.captions)] for _ in range(request.batch)
        ]
        # drawn for each image by its own seed, so that they do not depend on the other images
        shape = self.captions, config.max_new_tokens
        self.uniforms = np.stack([draw_uniforms(seed, shape) for seed in request.seeds]) if config.do_sample else None

    def choose(self, history: History, following: NextTokens) -> Choice:
        """Extend every open caption. Images leave when all their captions have ended."""
        xp, scores = array_namespace(following.scores), following.scores
        if self.uniforms is None:
            chosen = xp.argmax(scores, axis=-1)
        else:
            uniforms = self.uniforms[history.images[:, None], self.samples, history.chosen]
            chosen = draw(scores, to_device_of(uniforms, scores))
        arrays = pick(scores, chosen[..., None]), following.logprobs(chosen[..., None]), chosen[..., None]
        best, logprobs, tokens = (to_numpy(array)[..., 0] for array in arrays)
        is_open = self.samples != FINISHED
        for row, caption in np.argwhere(is_open).tolist():
            hypothesis = self.hypotheses[history.images[row]][self.samples[row, caption]]
            if best[row, caption] == IMPOSSIBLE:
                hypothesis.ended_by = "failed"
                hypothesis.error = no_token_message(self.request.config, history.chosen)
            else:
                token = int(tokens[row, caption])
                hypothesis.logprobs.append(float(logprobs[row, caption]))
                hypothesis.ended_by = self.request.ended_by(history, row, caption, token)
                if hypothesis.ended_by != "end":
                    hypothesis.tokens.append(token)
            is_open[row, caption] = hypothesis.ended_by == "length"
        rows = np.flatnonzero(is_open.any(1))
        # open captions come first; an image that has fewer of them than others keeps finished ones, to fill its row
        width = int(is_open.sum(1).max())
        origin = np.argsort(~is_open[rows], axis=1, kind="stable")[:, :width]
        self.samples = np.take_along_axis(np.where(is_open, self.samples, FINISHED)[rows], origin, 1)
        continued = rows[:, None], origin
        return Choice(rows, origin, tokens[continued], logprobs[continued])

    def results(self) -> list[list[Hypothesis]]:
        """Return the captions of each image, most probable per token first."""
        return [
            sorted([sample for sample in samples if not sample.error], key=lambda sample: -sample.score) or samples[:1]
            for samples in self.hypotheses
        ]


def draw_uniforms(seed: int, shape: tuple[int, int]) -> Floats:
    """Draw numbers from 0 to 1, the same as `torch.rand(shape, generator=torch.Generator().manual_seed(seed))`."""
    words = np.frombuffer(np.random.RandomState(seed & 0xFFFFFFFF).bytes(4 * shape[0] * shape[1]), "<u4")
    uniforms: Floats = ((words & 0xFFFFFF) * np.float32(2**-24)).astype(np.float32).reshape(shape)
    return uniforms


def draw_seeds(seed: int, count: int) -> list[int]:
    """Draw seeds, the same as `torch.randint(2**62, (count,), generator=torch.Generator().manual_seed(seed))`."""
    words = np.frombuffer(np.random.RandomState(seed & 0xFFFFFFFF).bytes(8 * count), "<u4")
    return [(high << 32 | low) % 2**62 for high, low in zip(words[::2].tolist(), words[1::2].tolist(), strict=True)]


@np.errstate(invalid="ignore")  # infinite scores give NaN, which the engine reports
def draw(scores: Array, uniforms: Array) -> Array:
    """Draw a token for each caption: scores (B, G, vocab_size), uniforms (B, G) from 0 to 1 -> (B, G)."""
    xp = array_namespace(scores)
    weights = xp.exp(xp.astype(scores - xp.max(scores, axis=-1, keepdims=True), xp.float64))
    cumulative = xp.cumulative_sum(weights, axis=-1)
    threshold = xp.astype(uniforms, xp.float64)[..., None] * cumulative[..., -1:]
    return xp.argmax(xp.astype(cumulative > threshold, xp.int8), axis=-1)  # the first one
