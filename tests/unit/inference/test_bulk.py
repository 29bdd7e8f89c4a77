"""Captions of many pictures are those of each picture on its own, whatever the batch, the order and the threads."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from myllm.checkpoints.native import Checkpoint
from myllm.inference.bulk import BulkCaptioner, Result
from myllm.inference.captioner import Captioner

OPTIONS: list[dict[str, Any]] = [
    {}, {"beams": 3}, {"beams": 4, "length_penalty": 2.0, "num_return_sequences": 2},
    {"beams": 2, "early_stopping": True}, {"beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"beams": 3, "rank_by": "consensus"}, {"beams": 3, "rank_by": "confidence"},
    {"contrastive_weight": 0.5}, {"min_new_tokens": 3, "max_new_tokens": 9}, {"no_repeat_ngram_size": 1},
    {"repetition_penalty": 2.0}, {"prefix": "a small"}, {"force_words": ("cube",), "beams": 3},
    {"bad_words": ("a", "red")}, {"only_words": ("a", "red", "ball", "cube")}, {"regex": "(a|two) [a-z]+"},
    {"stop_strings": ("b",)},
]


@dataclass(frozen=True)
class Item:
    picture: Path


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eleven different pictures."""
    folder, chance = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(11):
        pixels = chance.integers(0, 256, (4, 4 + number % 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((70, 60)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def captioner_of(checkpoint: Checkpoint, **decode: Any) -> Captioner:
    captioner = Captioner(checkpoint, torch.device("cpu"))
    captioner.decode = captioner.decode_options(**decode)
    return captioner


def results_of(captioner: Captioner, paths: list[Path], **options: Any) -> list[Result[Item]]:
    settings = {"batch_size": 4, "threads": 2} | options
    bulk: BulkCaptioner[Item] = BulkCaptioner(captioner, **settings)
    return [result for results in bulk.caption(map(Item, paths)) for result in results]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bulk_captions_equal_those_of_each_picture_in_any_batch_and_order(
    tiny_checkpoint: Checkpoint, paths: list[Path], options: dict[str, Any]
) -> None:
    captioner = captioner_of(tiny_checkpoint, **options)
    expected = {path: captioner.caption(path) for path in paths}
    for batch_size, threads in ((1, 1), (3, 2), (32, 3)):
        shuffled = random.Random(batch_size).sample(paths, len(paths))
        results = results_of(captioner, shuffled, batch_size=batch_size, threads=threads)
        assert [result.item.picture for result in results] == shuffled
        for result in results:
            assert result.caption is not None and result.caption.tokens == expected[result.item.picture].tokens
            assert result.caption.alternatives == expected[result.item.picture].alternatives


def test_samples_depend_on_the_seed_and_the_picture(tiny_checkpoint: Checkpoint, paths: list[Path]) -> None:
    captioner = captioner_of(tiny_checkpoint, do_sample=True, temperature=3.0)

    def tokens(seed: int, order: list[Path]) -> dict[Path, list[int]]:
        results = results_of(captioner, order, seed=seed)
        return {result.item.picture: result.caption.tokens for result in results if result.caption is not None}

    assert tokens(1, paths) == tokens(1, paths[::-1]) != tokens(2, paths)


def test_a_picture_that_cannot_be_read_is_an_error_in_its_place(tiny_checkpoint: Checkpoint, paths: list[Path]) -> None:
    broken = paths[0].with_suffix(".jpg")
    broken.write_bytes(b"no picture")
    results = results_of(captioner_of(tiny_checkpoint), [paths[0], broken, broken.with_name("gone.png"), paths[1]])
    assert [bool(result.error) for result in results] == [False, True, True, False]
    assert results[1].error.startswith(f"{broken}: not a picture") and results[1].digest
    assert "cannot be read (No such file or directory)" in results[2].error and not results[2].digest


def test_rules_that_allow_no_token_are_an_error(tiny_checkpoint: Checkpoint, paths: list[Path]) -> None:
    options = {"min_new_tokens": 7, "no_repeat_ngram_size": 1, "only_words": ("a",)}
    [result] = results_of(captioner_of(tiny_checkpoint, **options), paths[:1])
    assert result.caption is None and "no token is allowed at position" in result.error


def test_a_picture_that_is_not_claimed_is_not_captioned(tiny_checkpoint: Checkpoint, paths: list[Path]) -> None:
    digests = [result.digest for result in results_of(captioner_of(tiny_checkpoint), paths)]
    results = results_of(captioner_of(tiny_checkpoint), paths, claim=lambda digest: digest != digests[2])
    assert [result.caption is None for result in results] == [index == 2 for index in range(len(paths))]
    assert not any(result.error for result in results) and [result.digest for result in results] == digests


@pytest.mark.parametrize(("count", "sizes"), [(11, [1, 1, 2, 2, 3, 2]), (9, [1, 1, 2, 2, 2, 1]), (3, [1, 1, 1])])
def test_threads_get_batches_of_one_size_so_that_none_idles_at_the_end(
    tiny_checkpoint: Checkpoint, paths: list[Path], count: int, sizes: list[int]
) -> None:
    bulk: BulkCaptioner[Item] = BulkCaptioner(captioner_of(tiny_checkpoint), batch_size=4, threads=2)
    assert [len(results) for results in bulk.caption(map(Item, paths[:count]))] == sizes


def test_pictures_are_taken_as_they_are_needed(tiny_checkpoint: Checkpoint, paths: list[Path]) -> None:
    taken = []

    def endless() -> Any:
        while True:
            taken.append(0)
            yield Item(paths[0])

    bulk: BulkCaptioner[Item] = BulkCaptioner(captioner_of(tiny_checkpoint), batch_size=4, threads=2)
    batches = bulk.caption(endless())
    for _ in range(6):
        next(batches)
    assert len(taken) <= 2 + 4 + 4 * 6  # batches of 1, 1, 2, 2, then of 4; at most four more are prepared
    batches.close()
