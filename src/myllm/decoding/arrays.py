"""Array functions that numpy and torch name differently, so that the search runs the same lines on either.

Scores stay in the library and on the device that computed them. What the search decides is small and held in numpy:
`to_numpy` copies candidates to the host, `to_device_of` copies tokens back.
"""

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, to_device
from numpy.typing import NDArray

Array = Any
"""An array of numpy or a tensor of torch, on any device."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

# numbers that logsumexp reads at a time in numpy, so that temporary arrays stay in the processor's cache
BLOCK = 2**16
# log-probability of what cannot happen
IMPOSSIBLE = float("-inf")


def to_numpy(array: Array) -> NDArray[Any]:
    """Copy of an array in the host's memory; numpy's own arrays are returned as they are."""
    return np.asarray(to_device(array, "cpu"))


def to_device_of(values: NDArray[Any], like: Array) -> Array:
    """`values` as an array of the library and on the device of `like`."""
    return array_namespace(like).asarray(values, device=device(like))


def pick(scores: Array, tokens: Array) -> Array:
    """scores (..., vocab_size) at tokens (..., K) -> (..., K)."""
    return array_namespace(scores).take_along_axis(scores, tokens, axis=-1)


def replace(scores: Array, tokens: Array, values: Array) -> Array:
    """Copy of scores (B, G, vocab_size) with values (B, G, K) at tokens (B, G, K)."""
    xp = array_namespace(scores)
    changed = xp.asarray(scores, copy=True)
    images, captions = (xp.arange(size, device=device(scores)) for size in scores.shape[:2])
    changed[images[:, None, None], captions[None, :, None], tokens] = values
    return changed


def forbid(scores: Array, tokens: Ints, where: Bools | None = None) -> Array:
    """Copy of scores (B, G, vocab_size) with tokens (B, G, K) impossible: all, or those where `where` is true."""
    xp = array_namespace(scores)
    image, caption, column = (np.ones(tokens.shape, bool) if where is None else where).nonzero()
    forbidden = [to_device_of(index, scores) for index in (image, caption, tokens[image, caption, column])]
    changed = xp.asarray(scores, copy=True)
    changed[tuple(forbidden)] = IMPOSSIBLE
    return changed


@np.errstate(invalid="ignore")  # infinite scores give NaN, which the engine reports
def logsumexp(scores: Array) -> Array:
    """Logarithm of the sum of the exponentials over the last axis, which is kept: (..., N) -> (..., 1)."""
    if hasattr(scores, "logsumexp"):  # torch's
        return scores.logsumexp(-1, keepdim=True)
    rows = scores.reshape(-1, scores.shape[-1])
    sums = np.empty((len(rows), 1), scores.dtype)
    step = max(1, BLOCK // scores.shape[-1])
    for first in range(0, len(rows), step):
        block = rows[first : first + step]
        highest = block.max(axis=-1, keepdims=True)
        shifted = block - highest
        sums[first : first + step] = highest + np.log(np.exp(shifted, out=shifted).sum(axis=-1, keepdims=True))
    return sums.reshape(*scores.shape[:-1], 1)


@np.errstate(invalid="ignore")
def log_softmax(scores: Array) -> Array:
    """Logarithm of the softmax over the last axis."""
    return scores - logsumexp(scores)


def softmax(scores: Array) -> Array:
    """Softmax over the last axis."""
    return array_namespace(scores).exp(log_softmax(scores))


def largest(scores: Array, count: int) -> tuple[Array, Array]:
    """The `count` largest scores of the last axis, largest first, and their indices: (..., count) each."""
    if hasattr(scores, "topk"):  # torch's; the array API has none
        return tuple(scores.topk(count))
    size = scores.shape[-1]
    height = int((size / count) ** 0.5)
    if height < 4:
        candidates = _partition(scores, count)
    else:
        # fold the scores into columns: the largest are in the columns with the largest maxima, or among those left over
        width, rows = size // height, scores.shape[:-1]
        columns = _partition(scores[..., : height * width].reshape(*rows, height, width).max(axis=-2), count)
        inside = (columns[..., None] + width * np.arange(height)).reshape(*rows, -1)
        left_over = np.broadcast_to(np.arange(height * width, size), (*rows, size - height * width))
        candidates = np.concatenate([inside, left_over], axis=-1)
        candidates = pick(candidates, _partition(pick(scores, candidates), count))
    values = pick(scores, candidates)
    order = np.argsort(-values, axis=-1, kind="stable")
    return pick(values, order), pick(candidates, order)


def _partition(scores: Floats, count: int) -> Ints:
    """Indices of the `count` largest scores, in any order."""
    return np.argpartition(scores, -count, axis=-1)[..., -count:]
