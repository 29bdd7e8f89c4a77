import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from myllm.data.features import FeatureCache
from myllm.data.records import Findings
from myllm.errors import DataError, MyLLMError

KEY = "vit_tiny weights abc 8 x 8 bicubic"


class Bench:
    """Pictures whose images and features are known, and a count of what was computed."""

    def __init__(self, folder: Path, count: int = 7) -> None:
        self.folder = folder / "cache"
        self.pictures = [folder / f"{number}.jpg" for number in range(count)]
        for number, path in enumerate(self.pictures):
            path.write_bytes(f"picture {number}".encode())
        self.computed: list[int] = []
        self.findings = Findings()

    def images(self, positions: Sequence[int]) -> Tensor:
        numbers = [int(self.pictures[at].read_bytes().split()[1]) for at in positions]
        return torch.tensor(numbers, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 8, 8)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        numbers = images[:, 0, 0, 0]
        self.computed += numbers.int().tolist()
        return self.meant(numbers)

    def meant(self, numbers: Tensor) -> tuple[Tensor, ...]:
        grid = torch.arange(20.0).reshape(1, 4, 5) / 7 + numbers[:, None, None]
        return grid, -grid

    def run(
        self, key: str = KEY, half: bool = False, encode: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    ) -> None:
        """Features of all pictures, held against what is meant; `computed` and `findings` are of this run alone."""
        self.computed, self.findings = [], Findings()
        cache = FeatureCache(self.folder, key, half)
        features = cache.features(self.pictures, self.images, encode or self.encode, self.findings, batch_size=3)
        positions = torch.tensor([len(self.pictures) - 1, 0, 2])
        numbers = torch.tensor([float(self.pictures[at].read_bytes().split()[1]) for at in positions.tolist()])
        for found, meant in zip(features.rows(positions), self.meant(numbers), strict=True):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, meant, rtol=1e-3 if half else 0, atol=0)

    def file(self, name: str) -> Path:
        [path] = self.folder.glob(f"*/{name}")
        return path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("half", [False, True])
def test_features_are_computed_once(bench: Bench, half: bool) -> None:
    bench.run(half=half)
    assert bench.computed == list(range(7))
    bench.run(half=half)
    assert bench.computed == [] and bench.findings == Findings()


def test_half_precision_halves_the_file(bench: Bench, tmp_path: Path) -> None:
    bench.run()
    whole = bench.file("features.bin").stat().st_size
    other = Bench(tmp_path)
    other.folder = tmp_path / "half"
    other.run(half=True)
    assert other.file("features.bin").stat().st_size * 2 == whole == 7 * 2 * 4 * 5 * 4


def test_known_are_the_pictures_with_a_row(bench: Bench, tmp_path: Path) -> None:
    cache = FeatureCache(bench.folder, KEY)
    assert cache.known(bench.pictures) == set()
    bench.run()
    (tmp_path / "new.jpg").write_bytes(b"picture 30")
    assert cache.known([*bench.pictures, tmp_path / "new.jpg"]) == set(bench.pictures)


def test_another_key_or_precision_shares_nothing(bench: Bench) -> None:
    bench.run()
    for change in ({"key": KEY + "!"}, {"half": True}):
        bench.run(**change)  # type: ignore[arg-type]
        assert bench.computed == list(range(7))
    bench.run()
    assert bench.computed == []


def test_only_new_and_changed_pictures_are_computed(bench: Bench, tmp_path: Path) -> None:
    bench.run()
    (tmp_path / "new.jpg").write_bytes(b"picture 30")
    bench.pictures.insert(0, tmp_path / "new.jpg")
    bench.pictures[3].write_bytes(b"picture 40")
    bench.run()
    assert sorted(bench.computed) == [30, 40]


def test_names_and_order_do_not_matter_and_byte_equal_pictures_share_a_row(bench: Bench, tmp_path: Path) -> None:
    bench.run()
    bench.pictures[0].rename(tmp_path / "moved.jpg")
    (tmp_path / "copy.jpg").write_bytes(b"picture 3")
    bench.pictures = [tmp_path / "copy.jpg", *reversed(bench.pictures[1:]), tmp_path / "moved.jpg"]
    bench.run()
    assert bench.computed == []


def test_a_flipped_bit_is_found_and_its_row_computed_again(bench: Bench) -> None:
    bench.run()
    content = bytearray(bench.file("features.bin").read_bytes())
    content[2 * len(content) // 7 + 5] ^= 1
    bench.file("features.bin").write_bytes(content)
    bench.run()
    assert bench.computed == [2]
    assert bench.findings.lines() == [f"1 damaged feature recomputed ({bench.file('features.bin')}: row 2)"]
    bench.run()
    assert bench.computed == [] and bench.findings == Findings()


@pytest.mark.parametrize("kept", [0, 1, 160 * 4 + 3, 160 * 6])
def test_a_file_cut_short_costs_only_what_is_gone(bench: Bench, kept: int) -> None:
    bench.run()
    content = bench.file("features.bin").read_bytes()
    bench.file("features.bin").write_bytes(content[:kept])
    bench.run()
    assert bench.computed == list(range(kept // 160, 7))
    assert bench.file("features.bin").read_bytes() == content


def test_a_lost_file_is_made_again(bench: Bench) -> None:
    bench.run()
    bench.file("features.bin").unlink()
    bench.run()
    assert bench.computed == list(range(7)) and len(bench.findings.repaired_features) == 7


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"key": 3}', '{"key": "?", "shape": [1], "rows": []}', "\xff"],
)
def test_an_unreadable_index_is_reported_and_made_again(bench: Bench, content: str) -> None:
    bench.run()
    bench.file("index.json").write_bytes(content.encode("latin-1"))
    bench.run()
    assert bench.computed == list(range(7))
    assert "unreadable" in bench.findings.repaired_features[0]
    bench.run()
    assert bench.computed == []


def test_an_index_with_a_wrong_row_is_found(bench: Bench) -> None:
    bench.run()
    index = json.loads(bench.file("index.json").read_text())
    first, second = list(index["rows"])[:2]
    index["rows"][first], index["rows"][second] = index["rows"][second], index["rows"][first]
    bench.file("index.json").write_text(json.dumps(index))
    bench.run()
    assert sorted(bench.computed) == [0, 1]


def test_interrupted_extraction_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("myllm.data.features.BATCHES_PER_SAVE", 1)

    def interrupted(images: Tensor) -> tuple[Tensor, ...]:
        if len(bench.computed) >= 6:
            raise KeyboardInterrupt
        return bench.encode(images)

    with pytest.raises(KeyboardInterrupt):
        bench.run(encode=interrupted)
    bench.run()
    assert bench.computed == [6] and bench.findings == Findings()


def test_progress_counts_what_was_there_too(bench: Bench, tmp_path: Path) -> None:
    bench.run()
    for number in range(7, 12):
        (tmp_path / f"{number}.jpg").write_bytes(f"picture {number}".encode())
        bench.pictures.append(tmp_path / f"{number}.jpg")
    reports: list[tuple[str, int, int]] = []
    FeatureCache(bench.folder, KEY).features(
        bench.pictures, bench.images, bench.encode, Findings(), 3, lambda *report: reports.append(report)
    )
    assert reports == [("encoding pictures", 10, 12), ("encoding pictures", 12, 12)]


def test_features_beyond_half_precision_are_refused(bench: Bench) -> None:
    with pytest.raises(DataError, match="half_features"):
        bench.run(half=True, encode=lambda images: (images[:, 0] + 1e6,))


def test_a_full_disk_is_told_and_costs_nothing_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run()
    bench.pictures[0].write_bytes(b"picture 50")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(MyLLMError, match=r"features.bin: No space left.*Make room"):
        bench.run()
    monkeypatch.undo()
    bench.run()
    assert bench.computed == [50]
