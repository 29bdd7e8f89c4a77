import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from myllm.data import features as features_module
from myllm.data.features import FeatureCache, Features
from myllm.data.records import Findings
from myllm.errors import DataError, MyLLMError

KEY = "vit_tiny weights abc 8 x 8 bicubic"


class Extraction:
    """Pictures with known images and features, and the numbers of the pictures that were encoded."""

    def __init__(self, folder: Path, numbers: Sequence[int] = range(7)) -> None:
        self.folder = folder / "cache"
        self.pictures = [folder / f"{number}.jpg" for number in numbers]
        for number, path in zip(numbers, self.pictures, strict=True):
            path.write_bytes(f"picture {number}".encode())
        self.computed: list[int] = []
        self.findings = Findings()

    def images(self, positions: Sequence[int]) -> Tensor:
        numbers = [int(self.pictures[position].read_bytes().split()[1]) for position in positions]
        return torch.tensor(numbers, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 8, 8)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        numbers = images[:, 0, 0, 0]
        self.computed += numbers.int().tolist()
        return self.features(numbers)

    def features(self, numbers: Tensor) -> tuple[Tensor, ...]:
        grid = torch.arange(20.0).reshape(1, 4, 5) / 7 + numbers[:, None, None]
        return grid, -grid

    def run(
        self, key: str = KEY, half: bool = False, encode: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    ) -> None:
        """Extract the features of all pictures and check them; `computed` and `findings` are of this run."""
        self.computed, self.findings = [], Findings()
        cache = FeatureCache(self.folder, key, half)
        self.check(
            cache.features(self.pictures, self.images, encode or self.encode, self.findings, batch_size=3), half
        )

    def check(self, features: Features, half: bool = False) -> None:
        """Compare the features of some pictures with the values that `encode` gives."""
        positions = torch.tensor([len(self.pictures) - 1, 0, 2])
        numbers = torch.tensor([float(self.pictures[number].read_bytes().split()[1]) for number in positions.tolist()])
        for result, expected in zip(features.rows(positions), self.features(numbers), strict=True):
            assert result.dtype == torch.float32
            torch.testing.assert_close(result, expected, rtol=1e-3 if half else 0, atol=0)

    def file(self, name: str) -> Path:
        [path] = self.folder.glob(f"*/{name}")
        return path


@pytest.fixture
def extraction(tmp_path: Path) -> Extraction:
    return Extraction(tmp_path)


@pytest.mark.parametrize("half", [False, True])
def test_feature_cache_computes_each_picture_once(extraction: Extraction, half: bool) -> None:
    extraction.run(half=half)
    assert extraction.computed == list(range(7))
    extraction.run(half=half)
    assert extraction.computed == [] and extraction.findings == Findings()


def test_feature_cache_in_half_precision_has_half_the_size(extraction: Extraction, tmp_path: Path) -> None:
    extraction.run()
    whole = extraction.file("features.bin").stat().st_size
    other = Extraction(tmp_path)
    other.folder = tmp_path / "half"
    other.run(half=True)
    assert other.file("features.bin").stat().st_size * 2 == whole == 7 * 2 * 4 * 5 * 4


def test_feature_cache_knows_the_pictures_with_a_row(extraction: Extraction, tmp_path: Path) -> None:
    cache = FeatureCache(extraction.folder, KEY)
    assert cache.known(extraction.pictures) == set()
    extraction.run()
    (tmp_path / "new.jpg").write_bytes(b"picture 30")
    (tmp_path / "huge.jpg").touch()
    os.truncate(tmp_path / "huge.jpg", 60 * 2**30)  # sparse: it takes no room on the disk
    pictures = [*extraction.pictures, tmp_path / "new.jpg", tmp_path / "huge.jpg"]
    assert cache.known(pictures) == set(extraction.pictures)


def test_feature_cache_shares_nothing_between_keys_and_precisions(extraction: Extraction) -> None:
    extraction.run()
    for change in ({"key": KEY + "!"}, {"half": True}):
        extraction.run(**change)  # type: ignore[arg-type]
        assert extraction.computed == list(range(7))
    extraction.run()
    assert extraction.computed == []


def test_feature_cache_computes_only_new_and_changed_pictures(extraction: Extraction, tmp_path: Path) -> None:
    extraction.run()
    (tmp_path / "new.jpg").write_bytes(b"picture 30")
    extraction.pictures.insert(0, tmp_path / "new.jpg")
    extraction.pictures[3].write_bytes(b"picture 40")
    extraction.run()
    assert sorted(extraction.computed) == [30, 40]


def test_feature_cache_finds_rows_by_content(extraction: Extraction, tmp_path: Path) -> None:
    extraction.run()
    extraction.pictures[0].rename(tmp_path / "moved.jpg")
    (tmp_path / "copy.jpg").write_bytes(b"picture 3")
    extraction.pictures = [tmp_path / "copy.jpg", *reversed(extraction.pictures[1:]), tmp_path / "moved.jpg"]
    extraction.run()
    assert extraction.computed == []


def test_feature_cache_repairs_a_flipped_bit(extraction: Extraction) -> None:
    extraction.run()
    content = bytearray(extraction.file("features.bin").read_bytes())
    content[2 * len(content) // 7 + 5] ^= 1
    extraction.file("features.bin").write_bytes(content)
    extraction.run()
    assert extraction.computed == [2]
    assert extraction.findings.lines() == [f"1 damaged feature recomputed ({extraction.file('features.bin')}: row 2)"]
    extraction.run()
    assert extraction.computed == [] and extraction.findings == Findings()


@pytest.mark.parametrize("kept", [0, 1, 160 * 4 + 3, 160 * 6])
def test_feature_cache_repairs_a_truncated_file(extraction: Extraction, kept: int) -> None:
    extraction.run()
    content = extraction.file("features.bin").read_bytes()
    extraction.file("features.bin").write_bytes(content[:kept])
    extraction.run()
    assert extraction.computed == list(range(kept // 160, 7))
    assert extraction.file("features.bin").read_bytes() == content


def test_feature_cache_repairs_a_missing_file(extraction: Extraction) -> None:
    extraction.run()
    extraction.file("features.bin").unlink()
    extraction.run()
    assert extraction.computed == list(range(7)) and len(extraction.findings.repaired_features) == 7


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "{}", '{"key": 3}', '{"key": "?", "shape": [1], "rows": []}', "\xff",
        json.dumps({"key": f"{KEY} float32", "shape": [2, 4, 5], "rows": {"digest": [1, 2, 3]}}),
    ],
)
def test_feature_cache_reports_and_repairs_an_unreadable_index(extraction: Extraction, content: str) -> None:
    extraction.run()
    extraction.file("index.json").write_bytes(content.encode("latin-1"))
    extraction.run()
    assert extraction.computed == list(range(7))
    assert "unreadable" in extraction.findings.repaired_features[0]
    extraction.run()
    assert extraction.computed == []


def test_feature_cache_repairs_an_index_with_a_wrong_row(extraction: Extraction) -> None:
    extraction.run()
    index = json.loads(extraction.file("index.json").read_text())
    first, second = list(index["rows"])[:2]
    index["rows"][first], index["rows"][second] = index["rows"][second], index["rows"][first]
    extraction.file("index.json").write_text(json.dumps(index))
    extraction.run()
    assert sorted(extraction.computed) == [0, 1]


def test_feature_cache_resumes_interrupted_extraction(extraction: Extraction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("myllm.data.features.BATCHES_PER_SAVE", 1)

    def interrupted(images: Tensor) -> tuple[Tensor, ...]:
        if len(extraction.computed) >= 6:
            raise KeyboardInterrupt
        return extraction.encode(images)

    with pytest.raises(KeyboardInterrupt):
        extraction.run(encode=interrupted)
    extraction.run()
    assert extraction.computed == [6] and extraction.findings == Findings()


def test_feature_cache_progress_includes_stored_pictures(extraction: Extraction, tmp_path: Path) -> None:
    extraction.run()
    for number in range(7, 12):
        (tmp_path / f"{number}.jpg").write_bytes(f"picture {number}".encode())
        extraction.pictures.append(tmp_path / f"{number}.jpg")
    reports: list[tuple[str, int, int]] = []
    FeatureCache(extraction.folder, KEY).features(
        extraction.pictures, extraction.images, extraction.encode, Findings(), 3, lambda *report: reports.append(report)
    )
    assert reports == [("encoding pictures", 10, 12), ("encoding pictures", 12, 12)]


def test_feature_cache_refuses_features_beyond_half_precision(extraction: Extraction) -> None:
    with pytest.raises(DataError, match="half_features"):
        extraction.run(half=True, encode=lambda images: (images[:, 0] + 1e6,))


def test_feature_cache_keeps_finished_rows_if_the_disk_is_full(
    extraction: Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    extraction.run()
    extraction.pictures[0].write_bytes(b"picture 50")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(MyLLMError, match=r"features.bin: No space left.*Make room"):
        extraction.run()
    monkeypatch.undo()
    extraction.run()
    assert extraction.computed == [50]


def extract_slowly(folder: Path, numbers: Sequence[int], barrier: Any) -> None:
    """Extract features while another process does, and check them when both have finished."""
    extraction = Extraction(folder, numbers)
    features_module.BATCHES_PER_SAVE = 1

    def encode(images: Tensor) -> tuple[Tensor, ...]:
        time.sleep(0.1)
        return extraction.encode(images)

    barrier.wait()
    features = FeatureCache(extraction.folder, KEY).features(
        extraction.pictures, extraction.images, encode, Findings(), batch_size=2
    )
    barrier.wait()
    extraction.check(features)


def test_feature_cache_gives_two_processes_their_own_pictures(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)
    parts = range(7), range(4, 10)
    processes = [fork.Process(target=extract_slowly, args=(tmp_path, numbers, barrier)) for numbers in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    together = Extraction(tmp_path, range(10))
    together.run()
    assert together.computed == [] and together.findings == Findings()


def extract_until_killed(folder: Path, syncs: int) -> None:
    """Extract features until the given number of files was to be brought to the disk."""
    countdown = iter(range(syncs - 1, 0, -1))
    os.fsync = lambda file: next(countdown, 0) or os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    features_module.BATCHES_PER_SAVE = 1
    Extraction(folder, range(31)).run()


@pytest.mark.parametrize("syncs", [7, 8])  # after rows, and after their index, which is not renamed yet
def test_feature_cache_uses_nothing_wrong_of_a_process_killed_while_writing(tmp_path: Path, syncs: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=extract_until_killed, args=(tmp_path, syncs))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    extraction = Extraction(tmp_path, range(30, -1, -1))
    extraction.run()
    assert 0 < len(extraction.computed) < 31 and extraction.findings == Findings()


def test_features_refuse_a_row_that_changed_after_the_start(extraction: Extraction) -> None:
    cache = FeatureCache(extraction.folder, KEY)
    features = cache.features(extraction.pictures, extraction.images, extraction.encode, extraction.findings)
    with extraction.file("features.bin").open("r+b") as file:
        file.seek(2 * 160 + 9)
        file.write(b"?")
    with pytest.raises(DataError, match=r"features.bin: row 2 has changed since it was written.*start again"):
        features.rows(torch.tensor([1, 2]))


def test_features_refuse_another_picture_in_the_row(extraction: Extraction) -> None:
    cache = FeatureCache(extraction.folder, KEY)
    features = cache.features(extraction.pictures, extraction.images, extraction.encode, extraction.findings)
    content = extraction.file("features.bin").read_bytes()
    with extraction.file("features.bin").open("r+b") as file:
        file.write(content[160:320])
    with pytest.raises(DataError, match="row 0 has changed since it was written"):
        features.rows(torch.tensor([0]))


def test_feature_cache_gives_no_row_to_another_picture(extraction: Extraction) -> None:
    """A run that has a row in use reads its picture's features or an error, whatever others repair and add."""
    cache = FeatureCache(extraction.folder, KEY)
    in_use = cache.features(extraction.pictures, extraction.images, extraction.encode, extraction.findings)
    content = extraction.file("features.bin").read_bytes()
    extraction.file("features.bin").write_bytes(content[:330])
    Extraction(extraction.folder.parent, [30, 31, 32, 33, 2]).run()
    assert torch.equal(in_use.rows(torch.tensor([2]))[0], extraction.features(torch.tensor([2.0]))[0])
    for number in range(3, 7):
        with pytest.raises(DataError, match="has changed since it was written"):
            in_use.rows(torch.tensor([number]))


def test_feature_cache_reads_a_picture_once_for_known_and_features(extraction: Extraction) -> None:
    extraction.run()
    cache = FeatureCache(extraction.folder, KEY)
    assert cache.known(extraction.pictures) == set(extraction.pictures)
    for path in extraction.pictures:
        path.unlink()
    result = cache.features(extraction.pictures, extraction.images, extraction.encode, Findings())
    assert len(result.pictures) == 7 and extraction.computed == list(range(7))
