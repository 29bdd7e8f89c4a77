import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from myllm.config import PreprocessConfig
from myllm.data.augmentation import augment
from myllm.data.batches import (
    Batch,
    Batches,
    CaptionSource,
    check_pictures,
    evaluation_batches,
    hide_words,
    make_source,
    training_batches,
)
from myllm.data.features import FeatureCache
from myllm.data.images import Preprocess, load_image
from myllm.data.records import Findings, Record
from myllm.data.tokenizer import decode_tokens, train_tokenizer
from myllm.errors import DataError
from myllm.training_config import TrainConfig

COUNTS = (1, 5, 3, 2, 5, 7, 5, 5, 1, 4, 5)  # captions of each picture
WORDS = ("a dog", "a red ball on the left of a cube", "water", "two cats run .", "to the right", "it has left", "grass")
PREPROCESS = Preprocess(PreprocessConfig(image_size=(16, 16)))
TOKENIZER = train_tokenizer(WORDS, 280)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    result = []
    for number, count in enumerate(COUNTS):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        result.append(Record(path.name, path, tuple(WORDS[(number + shift) % len(WORDS)] for shift in range(count))))
    return result


def source_of(records: list[Record], memory_bytes: int = 2**30) -> CaptionSource:
    readable, pixels = check_pictures(records, PREPROCESS, Findings(), memory_bytes=memory_bytes)
    return make_source(readable, pixels, PREPROCESS, TOKENIZER, 48, Findings())


def texts(batch: Batch, row: int) -> list[str]:
    """Return the captions that are learned of a picture, decoded from the targets."""
    captions = zip(batch.tokens[row, :, 1:], batch.lengths[row], strict=True)
    return [decode_tokens(TOKENIZER, tokens[:length].tolist()) for tokens, length in captions if length]


def batches_of(
    source: CaptionSource, batch_size: int, captions_per_image: int, seed: int = 0, augment: bool = False,
    workers: int = 1,
) -> Batches:
    return training_batches(source, TrainConfig(
        batch_size=batch_size, captions_per_image=captions_per_image, seed=seed, augment=augment, workers=workers,
        word_dropout=0.3,
    ))


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for first, second in zip(left, right, strict=True):
        for name in ("images", "tokens", "inputs", "lengths", "index"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_evaluation_batches_have_every_caption_once_in_order(records: list[Record]) -> None:
    source = source_of(records)
    batches = list(evaluation_batches(source, 4).epoch(0))
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    for batch in batches:
        for row, number in enumerate(batch.index.tolist()):
            assert texts(batch, row) == list(records[number].captions)


def test_batch_images_are_the_preprocessed_files(records: list[Record]) -> None:
    for memory_bytes in (0, 2**30):
        source = source_of(records, memory_bytes)
        assert (source.pixels is None) == (memory_bytes == 0)
        images = torch.cat([batch.images for batch in evaluation_batches(source, 4, workers=0).epoch(0)])
        assert np.array_equal(images, np.stack([PREPROCESS(load_image(record.image)) for record in records]))
        assert torch.equal(source.images([3, 1]), images[[3, 1]])


def test_batch_lengths_count_the_targets_and_padding_reaches_the_longest(records: list[Record]) -> None:
    for batch in batches_of(source_of(records), 2, 2, seed=0).epoch(0):
        assert batch.lengths.shape == batch.tokens.shape[:2]
        assert batch.lengths.max() == batch.tokens.shape[2] - 1
        assert (batch.tokens[..., 0] == 0).all()
        for tokens, length in zip(batch.tokens.flatten(0, 1), batch.lengths.flatten().tolist(), strict=True):
            assert (tokens[1:length] != 0).all() and (tokens[length:] == 0).all()  # the end token is a target


def test_training_batches_have_different_captions_of_a_picture(records: list[Record]) -> None:
    for batch in batches_of(source_of(records), 3, 4).epoch(2):
        for row, number in enumerate(batch.index.tolist()):
            captions, known = texts(batch, row), records[number].captions
            assert len(captions) == min(4, len(known)) and len(set(captions)) == len(captions)
            assert set(captions) <= set(known)


def test_training_batches_of_several_processes_are_slices_of_the_batches_of_one(records: list[Record]) -> None:
    source, config = source_of(records), TrainConfig(batch_size=4, captions_per_image=2, word_dropout=0.3)
    shares = [training_batches(source, config, lambda items, rank=rank: items[rank::4]).epoch(3) for rank in range(4)]
    for whole, *parts in zip(training_batches(source, config).epoch(3), *shares, strict=True):
        assert sorted(whole.index.tolist()) == sorted(index for part in parts for index in part.index.tolist())
        for rank, part in enumerate(parts):
            rows = slice(rank, None, 4)
            assert part.index.tolist() == whole.index[rows].tolist()
            if len(part.index):
                length = part.inputs.shape[-1]
                assert torch.equal(part.inputs, whole.inputs[rows, : part.inputs.shape[1], :length])
            else:
                assert part.lengths.sum() == 0 and part.images is not None and len(part.images) == 1


def test_training_batches_have_each_picture_once_in_another_order_each_epoch(records: list[Record]) -> None:
    batches = batches_of(source_of(records), 4, 1, seed=0)
    orders = [torch.cat([batch.index for batch in batches.epoch(epoch)]).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(len(COUNTS))) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert len(batches) == 3


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("memory_bytes", [0, 2**30])
def test_batches_do_not_depend_on_workers(records: list[Record], augment: bool, memory_bytes: int) -> None:
    source = source_of(records, memory_bytes)
    without, with_workers = (
        batches_of(source, 3, 2, seed=5, augment=augment, workers=count) for count in (0, 2)
    )
    for epoch in (0, 3, 1):
        assert_same(list(without.epoch(epoch)), list(with_workers.epoch(epoch)))


def test_batches_do_not_depend_on_memory(records: list[Record]) -> None:
    sources = [source_of(records, memory_bytes) for memory_bytes in (0, 2**30)]
    left, right = (batches_of(source, 3, 2, seed=5, augment=True, workers=0) for source in sources)
    assert_same(list(left.epoch(1)), list(right.epoch(1)))


def test_batches_do_not_depend_on_the_order_of_the_records(records: list[Record]) -> None:
    backwards = list(reversed(records))
    sources = source_of(records), source_of(backwards)
    left, right = (batches_of(source, 3, 2, 0, augment=True, workers=0) for source in sources)
    for first, second in zip(left.epoch(4), right.epoch(4), strict=True):
        assert torch.equal(first.tokens, second.tokens) and torch.equal(first.images, second.images)
        assert torch.equal(first.index, len(records) - 1 - second.index)


@pytest.mark.parametrize("workers", [0, 1])
def test_epoch_resumes_at_any_batch(records: list[Record], workers: int) -> None:
    batches = batches_of(source_of(records, 0), 2, 2, seed=1, augment=True, workers=workers)
    expected = list(batches.epoch(7))
    before = list(itertools.islice(batches.epoch(7), 2))
    assert_same(before + list(batches.epoch(7, start=2)), expected)


def test_training_batches_augment_anew_each_epoch_and_mirror_captions(records: list[Record]) -> None:
    record = replace(records[0], captions=(WORDS[1],))
    batches = batches_of(source_of([record]), 1, 1, seed=0, augment=True, workers=0)
    captions = {texts(batch, 0)[0] for epoch in range(20) for batch in batches.epoch(epoch)}
    assert captions == {WORDS[1], "a red ball on the right of a cube"}


def test_check_pictures_leaves_out_broken_ones_with_their_names(records: list[Record], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(records[1].image.read_bytes()[:300])
    findings, reports = Findings(), []
    mixed = [records[0], Record(bad.name, bad, ("a dog",)), records[2]]
    readable, pixels = check_pictures(mixed, PREPROCESS, findings, lambda *report: reports.append(report))
    assert readable == [records[0], records[2]]
    assert np.array_equal(pixels[1], PREPROCESS.resize(load_image(records[2].image)))
    assert len(findings.broken_pictures) == 1 and findings.broken_pictures[0].startswith(f"{bad}: damaged")
    assert reports == [("reading pictures", done, 3) for done in (1, 2, 3)]


def test_check_pictures_does_not_decode_known_ones(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"not decoded")
    record = Record("1.png", tmp_path / "1.png", ("a",))
    assert check_pictures([record], PREPROCESS, Findings(), known={record.image}) == ([record], None)


def test_check_pictures_refuses_a_set_without_readable_pictures(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 1 pictures can be read: .*1.png: the file is empty"):
        source_of([Record("1.png", tmp_path / "1.png", ("a",))])


def test_batches_of_stored_features_have_no_images(records: list[Record], tmp_path: Path) -> None:
    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        return images[:, 0], images[:, 2] ** 2

    source = source_of(records)
    pictures = [record.image for record in records]
    features = FeatureCache(tmp_path, "key").features(pictures, source.images, encode, Findings())
    for batch in batches_of(replace(source, features=features), 4, 1, 0, augment=True).epoch(0):
        assert batch.images is None and batch.features is not None and len(batch.features) == 2
        assert torch.equal(batch.features[1], encode(source.images(batch.index))[1])


def with_views(source: CaptionSource, views: int, folder: Path) -> CaptionSource:
    """Return the source with stored features: the pixels of `views` views of each picture."""
    source = replace(source, views=views)
    numbers = range(views * len(source.records))
    features = FeatureCache(folder, "key").features(
        [source.records[number // views].image for number in numbers], source.view_images,
        lambda images: (images.flatten(2),), Findings(), views=[source.view_name(number) for number in numbers],
    )
    return replace(source, features=features)


def test_each_epoch_takes_the_next_view_with_the_captions_that_are_true_of_it(
    records: list[Record], tmp_path: Path
) -> None:
    source = with_views(replace(source_of(records), is_english=True), 3, tmp_path)
    batches, seen, swapped = batches_of(source, 4, 7), dict[int, list[Tensor]](), 0
    for epoch in range(6):
        for batch in batches.epoch(epoch):
            assert batch.features is not None and batch.images is None
            for row, number in enumerate(batch.index.tolist()):
                seen.setdefault(number, []).append(batch.features[0][row])
                assert sorted(texts(batch, row)) == sorted(batch.captions[row])
                swapped += batch.captions[row] != records[number].captions
    for number, features in seen.items():
        assert all(torch.equal(features[epoch], features[epoch + 3]) for epoch in range(3))
        views = {tuple(feature.flatten().tolist()) for feature in features}
        assert len(views) == 3 and tuple(source.images([number]).flatten().tolist()) in views
    assert swapped


def test_captions_of_a_view_are_those_that_augment_returns_with_its_picture(records: list[Record]) -> None:
    source = replace(source_of(records), views=40, is_english=True)
    flipped = 0
    for number in range(40 * len(records)):
        captions = records[number // 40].captions
        picture = Image.fromarray(source.resized([number // 40])[0].permute(1, 2, 0).numpy())
        if number % 40:
            picture, captions = augment(picture, captions, source._view_randomness(number), True)
        expected = PREPROCESS.normalise(np.asarray(picture)[None].transpose(0, 3, 1, 2))
        assert np.array_equal(source.view_images([number]).numpy(), expected)
        assert tuple(source.view_captions(number)) == tuple(captions)
        flipped += tuple(captions) != records[number // 40].captions
    assert flipped


def test_evaluation_takes_the_pictures_as_they_are(records: list[Record], tmp_path: Path) -> None:
    source = with_views(source_of(records), 2, tmp_path)
    for batch in evaluation_batches(source, 4).epoch(5):
        assert batch.features is not None
        assert torch.equal(batch.features[0], source.images(batch.index.tolist()).flatten(2))


def test_features_of_a_view_are_not_used_for_other_captions_or_for_the_picture(records: list[Record]) -> None:
    source = replace(source_of(records), views=2)
    other = replace(source, records=tuple(replace(record, captions=("a red dog",)) for record in records))
    names = [source.view_name(number) for number in range(4)]
    assert names[0] == names[2] == "" and names[1] != names[3] and names[1] != other.view_name(1)


def test_batch_moves_to_a_device_except_for_its_lengths(records: list[Record]) -> None:
    batch = next(batches_of(source_of(records), 2, 1, 0).epoch(0)).to("meta")
    assert batch.images is not None and batch.lengths.device.type == "cpu"
    assert {tensor.device.type for tensor in (batch.images, batch.tokens, batch.index)} == {"meta"}


@given(share=st.floats(0, 0.99), seed=st.integers(0, 2**32))
def test_hide_words_spares_the_first_token_and_changes_nothing_else(share: float, seed: int) -> None:
    ids = [9, *range(1, 9)]
    hidden = hide_words(ids, share, 9, random.Random(seed))
    assert hidden[0] == 9 and all(new in (old, 9) for new, old in zip(hidden, ids, strict=True))


def test_hide_words_hides_the_given_share() -> None:
    hidden = hide_words([0] * 10_001, 0.3, 1, random.Random(0))
    assert sum(hidden) / 10_000 == pytest.approx(0.3, abs=0.02)
