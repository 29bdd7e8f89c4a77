"""The unfinished captions of a search, and the choice of how they continue."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from myllm.decoding.arrays import Floats, Ints
from myllm.decoding.constraints import Vocabulary


@dataclass(frozen=True)
class Choice:
    """How the captions of a `History` continue; it has no rows if the search is over."""

    rows: Ints
    """(B',) indices of the images of the history whose search continues."""
    origin: Ints
    """(B', G') index of the caption of the same image that each new caption extends."""
    tokens: Ints
    """(B', G') the token that is appended."""
    logprobs: Floats
    """(B', G') the model's log-probability of that token."""


@dataclass(frozen=True)
class History:
    """The unfinished captions of a search: G captions of each of B images."""

    images: Ints
    """(B,) index of each image in the request."""
    tokens: Ints
    """(B, G, T): the begin token, the prefix, then the chosen tokens."""
    logprobs: Floats
    """(B, G, chosen): the model's log-probability of each chosen token."""
    end: int
    """Id of the token that begins and ends a caption."""
    vocabulary: Vocabulary | None = None
    """The text of each token; needed by rules about words."""

    @classmethod
    def begin(
        cls, images: int, captions: int, end: int, prefix: Sequence[int] = (), vocabulary: Vocabulary | None = None
    ) -> "History":
        """Return `captions` captions for each of `images` images; each holds the begin token and the prefix."""
        tokens = np.tile(np.array([end, *prefix], np.int64), (images, captions, 1))
        return cls(np.arange(images), tokens, np.empty((images, captions, 0), np.float32), end, vocabulary)

    @property
    def chosen(self) -> int:
        """Number of tokens chosen for each caption; the begin token and the prefix are not counted."""
        return self.logprobs.shape[-1]

    def text(self, row: int, caption: int) -> bytes:
        """Return the text of the tokens chosen for one caption, as UTF-8 bytes."""
        assert self.vocabulary is not None
        first = self.tokens.shape[-1] - self.chosen
        return self.vocabulary.text(self.tokens[row, caption, first:].tolist())

    def extend(self, choice: Choice) -> "History":
        """Return the captions that continue, each with its new token."""
        origin = choice.rows[:, None], choice.origin
        return replace(
            self,
            images=self.images[choice.rows],
            tokens=np.concatenate([self.tokens[origin], choice.tokens[..., None]], axis=-1),
            logprobs=np.concatenate([self.logprobs[origin], choice.logprobs[..., None]], axis=-1),
        )
