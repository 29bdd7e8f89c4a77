"""Names of heat maps: a file for each picture, whatever the pictures are called and whenever they appear."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from myllm.apps.heatmap_files import HeatmapFiles
from myllm.apps.picture_search import PictureSearch
from myllm.checkpoints.native import Checkpoint
from myllm.inference.captioner import Captioner


@pytest.fixture
def captioner(tiny_checkpoint: Checkpoint) -> Captioner:
    return Captioner(tiny_checkpoint, torch.device("cpu"))


def write_picture(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64)).save(path)
    return path


def test_a_picture_that_appears_after_the_choice_gets_a_map_and_replaces_none(
    captioner: Captioner, tmp_path: Path
) -> None:
    first, late = (write_picture(tmp_path / f"{folder}/a.png") for folder in ("first", "late"))
    files = HeatmapFiles(tmp_path / "maps", captioner)
    files.choose(PictureSearch([str(first)]), is_replaced=False)
    write_picture(tmp_path / "maps/a.png-2.png")
    mine = (tmp_path / "maps/a.png-2.png").read_bytes()
    for picture in (late, first):
        files.draw(picture, captioner.caption(picture))
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["a.png-2.png", "a.png-3.png", "a.png.png"]
    assert (tmp_path / "maps/a.png-2.png").read_bytes() == mine


def test_maps_of_the_longest_names_are_separate_files(captioner: Captioner, tmp_path: Path) -> None:
    names = [f"{'é' * 125}{end}.png" for end in "ab"]
    pictures = [write_picture(tmp_path / "pics" / name) for name in names]
    files = HeatmapFiles(tmp_path / "maps", captioner)
    files.choose(PictureSearch([str(tmp_path / "pics")]), is_replaced=False)
    for picture in pictures:
        files.draw(picture, captioner.caption(picture))
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [f"{'é' * 120}-2.png", f"{'é' * 120}.png"]
