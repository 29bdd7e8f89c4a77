"""What `myllm caption --ray` lists, and how it ends if Ray does not start; without a cluster."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from myllm.apps.caption_options import CaptionOptions
from myllm.apps.cli import main

pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
ray_data = pytest.importorskip("myllm.apps.ray_data", reason="Ray is not installed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with 1.png and 2.png in pics/."""
    (tmp_path / "pics").mkdir()
    for number in (1, 2):
        (tmp_path / f"pics/{number}.png").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(*words: str) -> list[str]:
    """Return the pictures that the tasks of the cluster list."""
    listing = ray_data.Listing(CaptionOptions(paths=words, out="out", ray="local"))
    tasks = ray_data.PictureSource(listing.groups).get_read_tasks(1)
    return sorted(image for task in tasks for block in task() for image in block["image"].to_pylist())


def test_a_table_that_is_given_in_two_ways_is_listed_once(folder: Path) -> None:
    parquet.write_table(pa.table({"image": [b"1", b"2"]}), "t.parquet")
    assert listed("t.parquet", "./t.parquet", ".//t.parquet") == ["t.parquet, row 1", "t.parquet, row 2"]


def test_a_picture_that_tables_name_in_several_rows_is_listed_once(folder: Path) -> None:
    for name in ("t", "u"):
        parquet.write_table(pa.table({"image": ["pics/1.png", "pics/2.png", "pics/1.png"]}), f"{name}.parquet")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"path": f"pics/{number}.png"} for number in (1, 2, 1)], kind)
    parquet.write_table(pa.table({"image": images}), "v.parquet")
    pictures = ["pics/1.png", "pics/2.png"]
    assert listed("t.parquet") == listed("v.parquet") == listed("pics", "t.parquet", "u.parquet") == pictures


def test_the_output_of_an_earlier_run_is_not_listed(folder: Path) -> None:
    for name in ("pics/o.parquet", "pics/o.parquet.run.json"):
        parquet.write_table(pa.table({"image": ["pics/1.png"], "caption": ["a dog"]}), name)
    assert listed("pics/*") == ["pics/1.png", "pics/2.png"]


def test_ray_that_does_not_start_says_what_to_do(
    folder: Path, tiny_captioner_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise Exception("The current node timed out during startup.")  # Ray's own

    monkeypatch.setattr("ray.init", fail)
    shutil.copy(tiny_captioner_file, "captioner.pt")
    assert main(["caption", "pics", "--model=captioner.pt", "--ray=local", "--out=out", "--quiet"]) == 1
    message = capsys.readouterr().err
    assert "--ray local: Ray did not start (The current node timed out during startup.)" in message
    assert "wait until this machine is less busy, or leave out --ray. Resume with: myllm caption pics" in message
