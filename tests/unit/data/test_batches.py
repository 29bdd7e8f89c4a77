import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from myllm.config import PreprocessConfig
from myllm.data.batches import (
    Batch,
    Batches,
    CaptionSource,
    check_pictures,
    evaluation_batches,
    make_source,
    training_batches,
)
from myllm.data.features import Features
from myllm.data.images import Preprocess, load_image
from myllm.data.records import Findings, Record
from myllm.data.tokenizer import decode_tokens, train_tokenizer
from myllm.errors import DataError

COUNTS = (1, 5, 3, 2, 5, 7, 5, 5, 1, 4, 5)  # captions of each picture
WORDS = ("a dog", "a red ball on the left of a cube", "water", "two cats run .", "to the right", "it has left", "grass")
PREPROCESS = Preprocess(PreprocessConfig(image_size=(16, 16)))
TOKENIZER = train_tokenizer(WORDS, 280)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    made = []
    for number, count in enumerate(COUNTS):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        made.append(Record(path, tuple(WORDS[(number + at) % len(WORDS)] for at in range(count))))
    return made


def source_of(records: list[Record], memory_bytes: int = 2**30) -> CaptionSource:
    whole, pixels = check_pictures(records, PREPROCESS, Findings(), memory_bytes=memory_bytes)
    return make_source(whole, pixels, PREPROCESS, TOKENIZER, 48, Findings())


def texts(batch: Batch, place: int) -> list[str]:
    """What is learned of one picture: the targets that the mask lets through."""
    rows = zip(batch.tokens[place, :, 1:], batch.mask[place], strict=True)
    return [decode_tokens(TOKENIZER, row[mask].tolist()) for row, mask in rows if mask.any()]


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for one, two in zip(left, right, strict=True):
        for name in ("images", "tokens", "mask", "index"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name


def test_evaluation_gives_every_caption_once_in_order(records: list[Record]) -> None:
    source = source_of(records)
    batches = list(evaluation_batches(source, 4).epoch(0))
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    for batch in batches:
        for place, at in enumerate(batch.index.tolist()):
            assert texts(batch, place) == list(records[at].captions)


def test_images_are_the_preprocessed_files(records: list[Record]) -> None:
    for memory_bytes in (0, 2**30):
        source = source_of(records, memory_bytes)
        assert (source.pixels is None) == (memory_bytes == 0)
        images = torch.cat([batch.images for batch in evaluation_batches(source, 4, workers=0).epoch(0)])
        assert np.array_equal(images, np.stack([PREPROCESS(load_image(record.image)) for record in records]))
        assert torch.equal(source.images([3, 1]), images[[3, 1]])


def test_padding_reaches_the_longest_caption_of_the_batch_and_is_masked(records: list[Record]) -> None:
    for batch in training_batches(source_of(records), 2, 2, seed=0).epoch(0):
        assert batch.mask.shape == (*batch.tokens.shape[:2], batch.tokens.shape[2] - 1)
        assert batch.mask.sum(-1).max() == batch.mask.shape[-1]
        assert (batch.tokens[..., 0] == 0).all()
        for row, mask in zip(batch.tokens.flatten(0, 1), batch.mask.flatten(0, 1), strict=True):
            length = mask.sum()
            assert mask[:length].all() and not mask[length:].any()
            assert row[length] == 0  # the end token is a target


def test_a_picture_gives_as_many_captions_as_asked_each_once_before_any_again(records: list[Record]) -> None:
    for batch in training_batches(source_of(records), 3, 4, seed=0).epoch(2):
        for place, at in enumerate(batch.index.tolist()):
            drawn, known = texts(batch, place), records[at].captions
            assert len(drawn) == 4 and set(drawn) <= set(known)
            assert max(Counter(drawn).values()) == -(-4 // len(known))


def test_each_epoch_has_each_picture_once_in_another_order(records: list[Record]) -> None:
    batches = training_batches(source_of(records), 4, 1, seed=0)
    orders = [torch.cat([batch.index for batch in batches.epoch(epoch)]).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(len(COUNTS))) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert len(batches) == 3


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("memory_bytes", [0, 2**30])
def test_workers_change_nothing(records: list[Record], augment: bool, memory_bytes: int) -> None:
    source = source_of(records, memory_bytes)
    alone, helped = (training_batches(source, 3, 2, seed=5, augment=augment, workers=count) for count in (0, 2))
    for epoch in (0, 3, 1):
        assert_same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))


def test_memory_changes_nothing(records: list[Record]) -> None:
    sources = [source_of(records, memory_bytes) for memory_bytes in (0, 2**30)]
    left, right = (training_batches(source, 3, 2, seed=5, augment=True, workers=0) for source in sources)
    assert_same(list(left.epoch(1)), list(right.epoch(1)))


def test_the_order_of_the_records_changes_no_picture_and_no_order(records: list[Record]) -> None:
    backwards = list(reversed(records))
    sources = source_of(records), source_of(backwards)
    left, right = (training_batches(source, 3, 2, 0, augment=True, workers=0) for source in sources)
    for one, two in zip(left.epoch(4), right.epoch(4), strict=True):
        assert torch.equal(one.tokens, two.tokens) and torch.equal(one.images, two.images)
        assert torch.equal(one.index, len(records) - 1 - two.index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_goes_on_where_it_was_left(records: list[Record], workers: int) -> None:
    batches = training_batches(source_of(records, 0), 2, 2, seed=1, augment=True, workers=workers)
    whole = list(batches.epoch(7))
    left = list(itertools.islice(batches.epoch(7), 2))
    assert_same(left + list(batches.epoch(7, start=2)), whole)


def test_augmentation_differs_by_epoch_and_mirrors_captions_with_pictures(records: list[Record]) -> None:
    record = replace(records[0], captions=(WORDS[1],))
    batches = training_batches(source_of([record]), 1, 1, seed=0, augment=True, workers=0)
    seen = {texts(batch, 0)[0] for epoch in range(20) for batch in batches.epoch(epoch)}
    assert seen == {WORDS[1], "a red ball on the right of a cube"}


def test_broken_pictures_are_left_out_with_names(records: list[Record], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(records[1].image.read_bytes()[:300])
    findings, seen = Findings(), []
    mixed = [records[0], Record(bad, ("a dog",)), records[2]]
    whole, pixels = check_pictures(mixed, PREPROCESS, findings, lambda done, total: seen.append((done, total)))
    assert whole == [records[0], records[2]]
    assert np.array_equal(pixels[1], PREPROCESS.resize(load_image(records[2].image)))
    assert len(findings.broken_pictures) == 1 and findings.broken_pictures[0].startswith(f"{bad}: damaged")
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_known_pictures_are_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"not looked at")
    record = Record(tmp_path / "1.png", ("a",))
    assert check_pictures([record], PREPROCESS, Findings(), known={record.image}) == ([record], None)


def test_no_whole_picture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 1 pictures can be read: .*1.png: the file is empty"):
        source_of([Record(tmp_path / "1.png", ("a",))])


def test_features_stand_in_for_images(records: list[Record]) -> None:
    array = np.random.default_rng(0).random((len(records), 2, 3, 4), dtype=np.float32)
    features = Features(array, np.arange(len(records))[::-1].copy())  # type: ignore[arg-type]
    source = replace(source_of(records), features=features)
    for batch in Batches(source, training_batches(source, 4, 1, 0, augment=True).plan).epoch(0):
        assert batch.images is None and batch.features is not None and len(batch.features) == 2
        rows = len(records) - 1 - batch.index
        assert torch.equal(batch.features[1], torch.from_numpy(array[rows.numpy(), 1]))


def test_a_batch_moves_whole(records: list[Record]) -> None:
    batch = next(training_batches(source_of(records), 2, 1, 0).epoch(0)).to("meta")
    assert {each.device.type for each in (batch.images, batch.tokens, batch.mask, batch.index)} == {"meta"}
