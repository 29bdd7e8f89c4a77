"""Batches of tensors from records. The content of an epoch depends only on the seed, the epoch and pictures' names.

Small data sets are decoded once and kept in memory; for others, worker processes decode during training.
"""

import math
import random
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import methodcaller

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from myllm.batched import batched
from myllm.data.augmentation import are_english, augment, captions_if_flipped, mirrored_captions
from myllm.data.features import Features
from myllm.data.images import Preprocess, as_pixels
from myllm.data.records import Findings, Record
from myllm.data.splits import name_hash
from myllm.data.tokenizer import encode_captions, end_token
from myllm.device import default_workers
from myllm.errors import DataError
from myllm.files import Picture
from myllm.progress import Progress, no_progress
from myllm.training_config import TrainConfig

MEMORY_BYTES = 2**30
Key = tuple[int, tuple[int, ...]]
"""A batch: the epoch, and the indexes of its pictures."""
Share = Callable[[Sequence[int]], Sequence[int]]
"""Returns the pictures of a batch that this process computes, if several processes share it."""


@dataclass(frozen=True)
class Batch:
    """B pictures with G captions of each, padded to the longest caption of the batch."""

    images: Tensor | None
    """(B, 3, H, W) float32, normalised; None if there are features."""
    features: tuple[Tensor, ...] | None
    """Image tokens (B, S, C) float32 of a frozen backbone, one tensor for each output; None if there are images."""
    tokens: Tensor
    """(B, G, T) int64: the end token, the caption, and end tokens up to T."""
    inputs: Tensor
    """(B, G, T) int64, the decoder's input: `tokens`, with some words hidden by the end token in training."""
    lengths: Tensor
    """(B, G) int64, always on the CPU: tokens[..., 1 : length + 1] are targets, what follows is padding."""
    index: Tensor
    """(B,) int64, indexes of the pictures in the source's records."""
    captions: tuple[Sequence[str], ...] = ()
    """All captions of each picture; if it is flipped, those with left and right swapped."""
    rewards: Tensor | None = None
    """(B, samples) float32, on the CPU: what sampled captions have earned; None without samples."""
    importance: Tensor | None = None
    """(B, G) float32: factor of each caption's loss; None: 1 for all."""

    def without_targets(self) -> "Batch":
        """Return the batch as one of no pictures and captions; its first picture stays, to be run without effect."""
        return replace(self, lengths=torch.zeros_like(self.lengths), index=self.index[:0])

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device; `lengths` stay on the CPU, so that no step has to wait for them."""
        move = methodcaller("to", device, non_blocking=True)
        images = None if self.images is None else move(self.images)
        features = None if self.features is None else tuple(map(move, self.features))
        tokens = move(self.tokens)
        inputs = tokens if self.inputs is self.tokens else move(self.inputs)
        importance = None if self.importance is None else move(self.importance)
        return replace(
            self, images=images, features=features, tokens=tokens, inputs=inputs, index=move(self.index),
            importance=importance,
        )


@dataclass(frozen=True)
class CaptionSource:
    """Readable pictures with their captions as token ids. Made by `make_source`."""

    records: tuple[Record, ...]
    ids: Mapping[str, list[int]]
    """Token ids by caption; captions of mirrored pictures are included."""
    end: int
    """The end token, which is also the padding."""
    preprocess: Preprocess
    pixels: Tensor | None = None
    """(N, 3, H, W) uint8 if all pictures fit into memory."""
    features: Features | None = None
    """Stored features that replace the pictures: those of view v of picture n are number n * views + v."""
    views: int = 1
    """Number of versions of each picture that have features: the picture as it is, and augmented ones."""
    is_english: bool = True
    """Whether the captions are known to be English; if not, augmentation neither flips pictures nor shifts hues."""

    def images(self, index: Sequence[int]) -> Tensor:
        """Return pictures without augmentation: (B, 3, H, W) float32, normalised."""
        return torch.from_numpy(self.preprocess.normalise(self.resized(index).numpy()))

    def view_images(self, numbers: Sequence[int]) -> Tensor:
        """Return views of pictures (B, 3, H, W) float32, normalised; view v of picture n is number n * views + v."""
        pictures = [number // self.views for number in numbers]
        distinct = sorted(set(pictures))  # each is decoded once
        images = self.resized(distinct)[[distinct.index(picture) for picture in pictures]]
        for row, number in enumerate(numbers):
            if number % self.views:
                picture = Image.fromarray(images[row].permute(1, 2, 0).numpy())
                captions = self.records[number // self.views].captions
                picture, _ = augment(picture, captions, self._view_randomness(number), self.is_english)
                images[row] = torch.from_numpy(as_pixels(picture))
        return torch.from_numpy(self.preprocess.normalise(images.numpy()))

    def view_captions(self, number: int) -> Sequence[str]:
        """Return the captions that are true of a view."""
        captions = self.records[number // self.views].captions
        if number % self.views == 0:
            return captions
        return captions_if_flipped(captions, self._view_randomness(number), self.is_english) or captions

    def view_name(self, number: int) -> str:
        """Return a text of all that a view depends on, besides the picture; empty for the picture as it is."""
        record, view = self.records[number // self.views], number % self.views
        return "" if view == 0 else f"view {view} {record.name} {self.is_english} {record.captions}"

    def _view_randomness(self, number: int) -> random.Random:
        return random.Random(name_hash("view", number % self.views, self.records[number // self.views].name))

    def resized(self, index: Sequence[int]) -> Tensor:
        """Return pictures without augmentation: (B, 3, H, W) uint8."""
        if self.pixels is not None:
            return self.pixels[torch.as_tensor(index)]
        pictures = [self.preprocess.resize(self.preprocess.load(self.records[number].image)) for number in index]
        return torch.from_numpy(np.stack(pictures))


def fit_memory(pictures: int, preprocess: Preprocess, memory_bytes: int = MEMORY_BYTES) -> bool:
    """Return whether the pixels of so many pictures may be kept in memory."""
    return pictures * 3 * math.prod(preprocess.size) <= memory_bytes


def check_pictures(
    records: Sequence[Record], preprocess: Preprocess, findings: Findings,
    progress: Progress = no_progress, known: Container[Picture] = (), memory_bytes: int = MEMORY_BYTES,
) -> tuple[list[Record], Tensor | None]:
    """Return the records with readable pictures, and their pixels (N, 3, H, W) uint8 if these fit into memory.

    Each picture is decoded once; broken ones are left out and listed in the findings.
    known: pictures that need no check, because they are known to be good; if there are any, no pixels are returned.
    Raises DataError if no picture can be read.
    """

    def decode(record: Record) -> NDArray[np.uint8] | str:
        try:
            return preprocess.resize(preprocess.load(record.image))
        except DataError as error:
            return str(error)

    height, width = preprocess.size
    unread = [record for record in records if record.image not in known]
    fits = len(unread) == len(records) and fit_memory(len(records), preprocess, memory_bytes)
    pixels = torch.empty(len(records), 3, height, width, dtype=torch.uint8) if fits else None
    broken: set[Picture] = set()
    with ThreadPoolExecutor(1 + default_workers()) as pool:  # Pillow releases the GIL while it decodes
        for number, (record, result) in enumerate(zip(unread, pool.map(decode, unread), strict=True)):
            if isinstance(result, str):
                findings.broken_pictures.append(result)
                broken.add(record.image)
            elif pixels is not None:
                pixels[number - len(broken)] = torch.from_numpy(result)
            progress("reading pictures", number + 1, len(unread))
    readable = [record for record in records if record.image not in broken]
    if not readable:
        raise DataError(f"none of {len(records):,} pictures can be read: {'; '.join(findings.broken_pictures[:3])}")
    return readable, None if pixels is None else pixels[: len(readable)]


def make_source(
    records: Sequence[Record], pixels: Tensor | None, preprocess: Preprocess,
    tokenizer: Tokenizer, n_positions: int, findings: Findings,
) -> CaptionSource:
    """Encode the captions of what `check_pictures` returned.

    Captions of more than `n_positions` tokens are cut and listed in the findings.
    """
    texts = list(dict.fromkeys(caption for record in records for caption in record.captions))
    ids = dict(zip(texts, encode_captions(tokenizer, texts, n_positions, findings), strict=True))
    mirrored = dict.fromkeys(text for record in records for text in mirrored_captions(record.captions) or ())
    new = [text for text in mirrored if text not in ids]
    ids |= zip(new, encode_captions(tokenizer, new, n_positions), strict=True)
    return CaptionSource(
        tuple(records), ids, end_token(tokenizer), preprocess, pixels, is_english=are_english(texts)
    )


def training_batches(source: CaptionSource, config: TrainConfig, share: Share = list) -> "Batches":
    """Return shuffled batches with up to `captions_per_image` captions of each picture, drawn anew in each epoch."""
    augment = config.augment and source.features is None  # stored features are of unchanged pictures
    plan = _BatchPlan(
        source, config.batch_size, config.captions_per_image, augment, config.word_dropout, config.seed
    )
    return Batches(plan, config.workers, share)


def evaluation_batches(
    source: CaptionSource, batch_size: int, workers: int | None = None, share: Share = list
) -> "Batches":
    """Return batches in the order of the records with each caption once; G is the maximum over the batch."""
    return Batches(_BatchPlan(source, batch_size), workers, share)


class Batches:
    """The batches of any epoch, from any batch on. `len` is their number in an epoch."""

    def __init__(self, plan: "_BatchPlan", workers: int | None, share: Share = list) -> None:
        """workers: None for `default_workers`."""
        self.plan, self.share = plan, share
        workers = default_workers() if workers is None else workers
        self._keys: list[Key] = []
        in_memory = plan.source.pixels is not None or plan.source.features is not None
        self._loader: DataLoader[Batch] | None = None
        if workers and (plan.augment or not in_memory):
            # a key is a whole batch: workers collate, and send bytes instead of floats
            self._loader = DataLoader(
                plan, batch_size=None, sampler=self._keys, num_workers=workers, persistent_workers=True,
                prefetch_factor=4,
                generator=torch.Generator(),  # otherwise each epoch would draw a number from the global generator
            )

    def __len__(self) -> int:
        return -(-len(self.plan.source.records) // self.plan.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on; they do not depend on earlier calls.

        If several processes share a batch of too few pictures, some get one `without_targets`.
        """
        whole = self.plan.pictures(epoch)[start:]
        shares = [tuple(self.share(pictures)) for pictures in whole]
        keys = [(epoch, share or pictures[:1]) for share, pictures in zip(shares, whole, strict=True)]
        self._keys[:] = keys  # in place, because the loader keeps the list
        batches = self._loader if self._loader is not None else map(self.plan.__getitem__, keys)
        for share, batch in zip(shares, batches, strict=True):
            if batch.images is not None:
                images = self.plan.source.preprocess.normalise(batch.images.numpy())
                batch = replace(batch, images=torch.from_numpy(images))
            yield batch if share else batch.without_targets()


@dataclass(frozen=True)
class _BatchPlan(Dataset[Batch]):
    """How batches are drawn from a source; maps a key to its batch, whose images are still uint8."""

    source: CaptionSource
    batch_size: int
    captions_per_image: int | None = None
    """None: each caption once, in the order of the records. A number: shuffled, with so many captions of a picture."""
    augment: bool = False
    word_dropout: float = 0.0
    """Share of the input words that are hidden."""
    seed: int = 0

    def pictures(self, epoch: int) -> list[tuple[int, ...]]:
        """Return the indexes of the pictures of each batch of an epoch."""
        records = self.source.records
        order = list(range(len(records)))
        if self.captions_per_image is not None:
            order.sort(key=lambda index: name_hash("order", self.seed, epoch, records[index].name))
        return [tuple(indices) for indices in batched(order, self.batch_size)]

    def __getitem__(self, key: Key) -> Batch:
        epoch, indices = key
        source, index = self.source, torch.tensor(indices)
        images = source.resized(indices) if source.features is None else None
        views = [self._view(epoch, number) for number in indices]
        features = source.features.rows(torch.tensor(views)) if source.features is not None else None
        captions, inputs, all_captions = [], [], []
        for row, number in enumerate(indices):
            texts = source.view_captions(views[row])
            rng = random.Random(name_hash(self.seed, epoch, source.records[number].name))
            if self.augment and images is not None:
                picture = Image.fromarray(images[row].permute(1, 2, 0).numpy())
                picture, texts = augment(picture, texts, rng, source.is_english)
                images[row] = torch.from_numpy(as_pixels(picture))
            all_captions.append(texts)
            if self.captions_per_image is not None:
                texts = rng.sample(texts, min(self.captions_per_image, len(texts)))
            captions.append([source.ids[text] for text in texts])
            if self.word_dropout:
                inputs.append([hide_words(ids, self.word_dropout, source.end, rng) for ids in captions[-1]])
        tokens, lengths = pad_captions(captions, source.end)
        hidden = pad_captions(inputs, source.end)[0] if inputs else tokens
        return Batch(images, features, tokens, hidden, lengths, index, tuple(all_captions))

    def _view(self, epoch: int, number: int) -> int:
        """Return the number of a picture's view in an epoch: in training, one after the other."""
        views, name = self.source.views, self.source.records[number].name
        is_training = self.captions_per_image is not None
        return number * views + ((name_hash("view", self.seed, name) + epoch) % views if is_training else 0)


def hide_words(ids: Sequence[int], share: float, hidden: int, rng: random.Random) -> list[int]:
    """Return `ids` with a random share of them, but never the first, replaced by the token `hidden`."""
    return [*ids[:1], *(hidden if rng.random() < share else token for token in ids[1:])]


def pad_captions(captions: Sequence[Sequence[Sequence[int]]], end: int) -> tuple[Tensor, Tensor]:
    """Return tokens (B, G, T) and numbers of targets (B, G); a picture with fewer captions gets rows of padding.

    captions: token ids of each caption of each picture, with the begin token.
    """
    groups = max(len(group) for group in captions)
    longest = max(len(ids) for group in captions for ids in group)
    filled = [[*group, *[()] * (groups - len(group))] for group in captions]
    tokens = [[[*ids, *[end] * (longest - len(ids))] for ids in group] for group in filled]
    lengths = [[max(0, len(ids) - 1) for ids in group] for group in filled]
    return torch.tensor(tokens), torch.tensor(lengths)
