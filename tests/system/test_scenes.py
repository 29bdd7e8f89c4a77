"""`myllm scenes`: the same seed gives the same bytes, in a layout that is read without findings."""

import hashlib
import shlex
import shutil
from pathlib import Path

import pytest

from myllm.apps.cli import main
from myllm.config import CaptionsConfig
from myllm.data.scenes import HELD_OUT, draw_scene, read_things
from myllm.data.sources import read_records
from myllm.data.splits import split_records
from myllm.evaluation.scenes import named_groups


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_scenes_of_a_seed_are_the_same_bytes_and_of_another_seed_differ(scenes: Path, tmp_path: Path) -> None:
    for name, seed in (("same", "0"), ("other", "1")):
        assert main(["scenes", "--out", str(tmp_path / name), "--count=60", "--seed", seed, "--quiet"]) == 0
    assert digest(tmp_path / "same") == digest(scenes)
    same, other = digest(scenes), digest(tmp_path / "other")
    assert same.keys() == other.keys() and not any(
        same[name] == other[name] for name in same if not name.startswith("splits/")
    )


def test_scenes_are_read_without_findings(scenes: Path) -> None:
    records, findings = read_records(scenes, CaptionsConfig())
    splits = split_records(records, findings)
    assert {name: len(split) for name, split in splits.items()} == {"train": 54, "val": 3, "heldout": 3}
    assert findings.lines() == []
    assert all(len(record.captions) == 5 for record in records)


def test_scenes_name_held_out_pairs_only_in_part_heldout(scenes: Path) -> None:
    records, _ = read_records(scenes, CaptionsConfig())
    for record in records:
        pairs = {(kind, colour) for caption in record.captions for _, colour, kind in named_groups(caption)}
        assert bool(pairs & HELD_OUT) == record.name.startswith("heldout")


def test_scenes_list_the_boxes_of_their_things(scenes: Path) -> None:
    things = read_things(scenes)
    assert things["val_000002.png"] == draw_scene(0, "val", 2)[1].things
    assert things.keys() == {path.name for path in (scenes / "flickr30k_images").iterdir()}


def test_scenes_refuse_a_folder_that_is_not_empty(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(scenes, tmp_path / "data"))
    before = digest(out)
    assert main(["scenes", "--out", str(out), "--count=20"]) == 1
    assert f"{out} is not empty; give another --out" in capsys.readouterr().err
    assert digest(out) == before


def test_scenes_refuse_a_count_too_small_to_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenes", "--out", str(tmp_path / "data"), "--count=19"]) == 2
    assert "--count 19: at least 20 pictures" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_scenes_prints_a_command_for_a_folder_with_a_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "my scenes")
    assert main(["scenes", "--out", folder, "--count=20", "--quiet"]) == 0
    command = shlex.split(capsys.readouterr().out.partition("Train on them with: ")[2])
    assert command[command.index("--data") + 1] == folder
