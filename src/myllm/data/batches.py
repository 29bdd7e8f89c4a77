"""From records to batches of tensors. What an epoch holds is a function of (seed, epoch, picture's name) alone.

Small sets are decoded once and kept in memory; otherwise worker processes decode beside the training.
"""

import random
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from myllm.data.features import Features
from myllm.data.images import Preprocess, as_pixels, augment, load_image, mirrored_captions
from myllm.data.records import Findings, Record
from myllm.data.splits import name_hash
from myllm.data.tokenizer import encode_captions, end_token
from myllm.errors import DataError

MEMORY_BYTES = 2**30
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Batch:
    """B pictures with G captions of each, padded to the longest caption of the batch."""

    images: Tensor | None
    """(B, 3, H, W) float32, normalised; None where there are features."""
    features: tuple[Tensor, ...] | None
    """A frozen backbone's image tokens (B, S, C) float32, one tensor a reading; None where there are images."""
    tokens: Tensor
    """(B, G, T) int64."""
    mask: Tensor
    """(B, G, T - 1) bool: whether tokens[..., 1:] is a target or padding."""
    index: Tensor
    """(B,) int64, positions of the pictures in the source's records."""

    def to(self, device: torch.device | str) -> "Batch":
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        images = None if self.images is None else move(self.images)
        features = None if self.features is None else tuple(map(move, self.features))
        return Batch(images, features, move(self.tokens), move(self.mask), move(self.index))


@dataclass(frozen=True)
class CaptionSource:
    """Whole pictures with their captions as token ids: what batches are made of. Made by `make_source`."""

    records: tuple[Record, ...]
    ids: Mapping[str, list[int]]
    """Token ids of each caption, mirrored ones included."""
    end: int
    """The end token, with which captions are padded; the mask tells it from a target."""
    preprocess: Preprocess
    pixels: Tensor | None = None
    """(N, 3, H, W) uint8 where all fit into memory."""
    features: Features | None = None
    """Stored features instead of pictures."""

    def images(self, positions: Sequence[int]) -> Tensor:
        """(B, 3, H, W) float32 of the pictures at these positions, not augmented."""
        return torch.from_numpy(self.preprocess.normalise(self.resized(positions).numpy()))

    def resized(self, positions: Sequence[int]) -> Tensor:
        """(B, 3, H, W) uint8."""
        if self.pixels is not None:
            return self.pixels[torch.as_tensor(positions)]
        pictures = [self.preprocess.resize(load_image(self.records[at].image)) for at in positions]
        return torch.from_numpy(np.stack(pictures))


@dataclass(frozen=True)
class BatchPlan:
    """How batches are drawn from a source."""

    batch_size: int
    captions_per_image: int | None = None
    """None: every caption once; else this many a picture, drawn anew each epoch, repeated where there are fewer."""
    shuffle: bool = False
    augment: bool = False
    seed: int = 0
    workers: int = 1


def check_pictures(
    records: Sequence[Record], preprocess: Preprocess, findings: Findings,
    progress: Progress | None = None, known: Container[Path] = (), memory_bytes: int = MEMORY_BYTES,
) -> tuple[list[Record], Tensor | None]:
    """The records whose pictures are whole, with all their pixels (N, 3, H, W) uint8 where these fit into memory.

    Each picture is decoded once; broken ones are left out and reported. progress: called with (pictures done, in all).
    known: pictures that were read before, as those with stored features, are not decoded, and no pixels are kept then.
    Raises DataError where no picture is whole.
    """

    def decode(record: Record) -> NDArray[np.uint8] | str:
        try:
            return preprocess.resize(load_image(record.image))
        except DataError as error:
            return str(error)

    height, width = preprocess.size
    unread = [record for record in records if record.image not in known]
    fits = len(unread) == len(records) and len(records) * 3 * height * width <= memory_bytes
    pixels = torch.empty(len(records), 3, height, width, dtype=torch.uint8) if fits else None
    broken: set[Path] = set()
    # Pillow lets go of the interpreter while it decodes, so threads share the work
    with ThreadPoolExecutor(2) as pool:
        for at, (record, result) in enumerate(zip(unread, pool.map(decode, unread), strict=True)):
            if isinstance(result, str):
                findings.broken_pictures.append(result)
                broken.add(record.image)
            elif pixels is not None:
                pixels[at - len(broken)] = torch.from_numpy(result)
            if progress is not None:
                progress(at + 1, len(unread))
    whole = [record for record in records if record.image not in broken]
    if not whole:
        raise DataError(f"none of {len(records):,} pictures can be read: {'; '.join(findings.broken_pictures[:3])}")
    return whole, None if pixels is None else pixels[: len(whole)]


def make_source(
    records: Sequence[Record], pixels: Tensor | None, preprocess: Preprocess,
    tokenizer: Tokenizer, n_positions: int, findings: Findings,
) -> CaptionSource:
    """What `check_pictures` gave, with the captions as ids; those too long for `n_positions` are cut and reported."""
    texts = list(dict.fromkeys(caption for record in records for caption in record.captions))
    ids = dict(zip(texts, encode_captions(tokenizer, texts, n_positions, findings), strict=True))
    mirrored = dict.fromkeys(text for record in records for text in mirrored_captions(record.captions) or ())
    new = [text for text in mirrored if text not in ids]
    ids |= zip(new, encode_captions(tokenizer, new, n_positions), strict=True)
    return CaptionSource(tuple(records), ids, end_token(tokenizer), preprocess, pixels)


def training_batches(
    source: CaptionSource, batch_size: int, captions_per_image: int, seed: int, augment: bool = False, workers: int = 1
) -> "Batches":
    """Shuffled batches with captions drawn anew in each epoch."""
    return Batches(source, BatchPlan(batch_size, captions_per_image, True, augment, seed, workers))


def evaluation_batches(source: CaptionSource, batch_size: int, workers: int = 1) -> "Batches":
    """Batches in the order of the records with every caption once; G is the most that a picture of the batch has."""
    return Batches(source, BatchPlan(batch_size, workers=workers))


class Batches:
    """The batches of any epoch, from any batch on. `len` is their number in an epoch."""

    def __init__(self, source: CaptionSource, plan: BatchPlan) -> None:
        self.source = source
        # features are of unchanged pictures
        self.plan = plan if source.features is None else replace(plan, augment=False)
        self._keys = _EpochKeys(source, self.plan)
        in_memory = source.pixels is not None or source.features is not None
        self._dataset = _BatchDataset(source, self.plan)
        self._loader: DataLoader[Batch] | None = None
        if plan.workers and (self.plan.augment or not in_memory):
            # a key is a whole batch: workers collate, and send bytes instead of floats
            self._loader = DataLoader(
                self._dataset, batch_size=None, sampler=self._keys, num_workers=plan.workers,
                persistent_workers=True, prefetch_factor=4,
            )

    def __len__(self) -> int:
        return -(-len(self.source.records) // self.plan.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of this epoch from number `start` on, the same whatever was delivered before."""
        self._keys.epoch, self._keys.start = epoch, start
        batches = self._loader if self._loader is not None else (self._dataset[key] for key in self._keys)
        for batch in batches:
            if batch.images is not None:
                images = self.source.preprocess.normalise(batch.images.numpy())
                batch = replace(batch, images=torch.from_numpy(images))
            yield batch


Key = tuple[int, tuple[int, ...]]


class _EpochKeys(Sampler[Key]):
    """(epoch, positions) of each batch. It is told the epoch, as a loader with living workers keeps its sampler."""

    def __init__(self, source: CaptionSource, plan: BatchPlan) -> None:
        self.source, self.plan = source, plan
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[Key]:
        epoch, size = self.epoch, self.plan.batch_size
        order = range(len(self.source.records)) if not self.plan.shuffle else self._shuffled()
        for first in range(self.start * size, len(order), size):
            yield epoch, tuple(order[first : first + size])

    def _shuffled(self) -> Sequence[int]:
        hashes = [name_hash("order", self.plan.seed, self.epoch, record.name) for record in self.source.records]
        return sorted(range(len(hashes)), key=hashes.__getitem__)


class _BatchDataset(Dataset[Batch]):
    """A batch for a key; its images are still uint8."""

    def __init__(self, source: CaptionSource, plan: BatchPlan) -> None:
        self.source, self.plan = source, plan

    def __getitem__(self, key: Any) -> Batch:
        epoch, positions = key
        source, plan = self.source, self.plan
        index = torch.tensor(positions)
        images = source.resized(positions) if source.features is None else None
        features = source.features.rows(index) if source.features is not None else None
        captions = []
        for place, position in enumerate(positions):
            record = source.records[position]
            texts: Sequence[str] = record.captions
            rng = random.Random(name_hash(plan.seed, epoch, record.name))
            if plan.augment and images is not None:
                picture = Image.fromarray(images[place].permute(1, 2, 0).numpy())
                picture, texts = augment(picture, texts, rng)
                images[place] = torch.from_numpy(as_pixels(picture))
            captions.append([source.ids[text] for text in _choose(texts, plan.captions_per_image, rng)])
        tokens, mask = _pad(captions, source.end)
        return Batch(images, features, tokens, mask, index)


def _choose(captions: Sequence[str], count: int | None, rng: random.Random) -> Sequence[str]:
    if count is None:
        return captions
    drawn = rng.sample(captions, len(captions))
    return [drawn[at % len(drawn)] for at in range(count)]


def _pad(captions: Sequence[Sequence[Sequence[int]]], end: int) -> tuple[Tensor, Tensor]:
    """(B, G, T) tokens and (B, G, T - 1) mask; a place without a caption is padding alone."""
    groups = max(len(group) for group in captions)
    longest = max(len(ids) for group in captions for ids in group)
    tokens = [[[*ids, *[end] * (longest - len(ids))] for ids in _filled(group, groups)] for group in captions]
    lengths = torch.tensor([[len(ids) for ids in _filled(group, groups)] for group in captions])
    mask = torch.arange(1, longest) < lengths[..., None]
    return torch.tensor(tokens), mask


def _filled(group: Sequence[Sequence[int]], groups: int) -> Sequence[Sequence[int]]:
    return [*group, *[()] * (groups - len(group))]
