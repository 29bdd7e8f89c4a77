"""`myllm caption --ray` on a cluster of two machines, which are processes here: equal captions, each exactly once."""

import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from myllm.apps.cli import main
from myllm.errors import MyLLMError

pytestmark = pytest.mark.slow
COUNT = 60
Jsonl = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tiny_run: Path, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captioner.pt, pictures in pics/, one of them broken, and others in shard.tar and table.parquet."""
    folder = tmp_path_factory.mktemp("ray")
    shutil.copy(tiny_run / "captioner.pt", folder)
    (folder / "pics").mkdir()
    for number in range(COUNT):
        Image.new("RGB", (64, 64), (number, 255 - number, 99)).save(folder / f"pics/{number}.png")
    (folder / "pics/broken.png").write_bytes(b"no picture")
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for picture in pictures[:3]:
            archive.add(picture, f"inside/{picture.name}")
    table = pyarrow.table({"image": [picture.read_bytes() for picture in pictures[3:]]})
    pyarrow.parquet.write_table(table, folder / "table.parquet")
    return folder


def ray_option(cluster: Any) -> str:
    return f"--ray=127.0.0.1:{cluster.address.rpartition(':')[2]}"


def words(out: str, *more: str) -> list[str]:
    return ["caption", "--model=captioner.pt", f"--out={out}", "--batch-size=1", "--quiet", *more]


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """Rows by picture; each picture must have one."""
    rows = pyarrow.parquet.read_table(out).to_pylist()
    assert len({row["image"] for row in rows}) == len(rows)
    return {row["image"]: row for row in rows}


def all_pictures() -> set[str]:
    return {"pics/broken.png", *(f"pics/{number}.png" for number in range(COUNT))}


@pytest.fixture(scope="module")
def captioned(cluster: Any, folder: Path) -> dict[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(words("out", ray_option(cluster), "pics", "shard.tar", "table.parquet")) == 0
    return rows_of(folder / "out")


def test_ray_captions_equal_those_of_one_machine(
    captioned: dict[str, dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch, jsonl: Jsonl
) -> None:
    monkeypatch.chdir(folder)
    assert main(words("one.jsonl", "pics", "shard.tar", "table.parquet")) == 0
    expected = {row["image"]: row for row in jsonl(folder / "one.jsonl")}
    assert len(expected) == COUNT + 5
    for image, row in expected.items():
        del row["digest"]
        assert {name: captioned[image][name] for name in row} == row


def test_ray_lists_a_broken_picture(captioned: dict[str, dict[str, Any]]) -> None:
    errors = {image: row["error"] for image, row in captioned.items() if row["error"] is not None}
    assert list(errors) == ["pics/broken.png"] and "not a picture" in errors["pics/broken.png"]
    assert captioned["pics/broken.png"]["caption"] is None


def test_ray_with_other_options_on_resume_is_refused(
    captioned: dict[str, dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main(words("out", "--ray=local", "--decode.beams=3", "pics")) == 2
    assert "decode.beams is 3, but the captions in --out out were made with 1" in capsys.readouterr().err


def test_ray_with_a_machine_killed_midway_captions_each_picture_once(
    cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    [second], written = cluster.worker_nodes, list[Path]()

    def kill() -> None:
        while not (files := list(folder.glob("killed/*.parquet"))):
            time.sleep(0.01)
        cluster.remove_node(second, allow_graceful=False)
        written.extend(files)

    killer = Thread(target=kill, daemon=True)
    killer.start()
    assert main(words("killed", ray_option(cluster), "pics")) == 0
    killer.join()
    cluster.add_node(**cluster.machine)
    assert set(rows_of(folder / "killed")) == all_pictures()
    assert len(written) < len(list(folder.glob("killed/*.parquet")))


def test_ray_that_is_killed_and_repeated_captions_each_picture_once(
    cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, stopped: Any
) -> None:
    monkeypatch.chdir(folder)
    command = words("stopped", ray_option(cluster), "pics")
    stopped(command, signal.SIGKILL, lambda: len(list(folder.glob("stopped.checkpoint/*[0-9].parquet"))) > 1)
    note, *others = folder.glob("stopped.checkpoint/*[0-9].parquet")
    # as if it had been killed between the file and the note that it is complete
    note.rename(note.with_suffix(".pending.parquet"))
    assert main(command) == 0
    assert set(rows_of(folder / "stopped")) == all_pictures()
    written = {path.name for path in folder.glob("stopped/*.parquet")}
    assert f"{note.stem}-0.parquet" not in written and all(f"{other.stem}-0.parquet" in written for other in others)


def test_ray_captions_only_what_is_unprocessed_or_failed(
    cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    command = words("chosen", ray_option(cluster), "chosen-pics")
    pictures = folder / "chosen-pics"
    pictures.mkdir()
    for name in ("a", "b"):
        (pictures / f"{name}.png").write_bytes(b"no picture")
    shutil.copy("pics/0.png", pictures)

    def captions() -> dict[str, str | None]:
        return {Path(image).stem: row["caption"] for image, row in rows_of(folder / "chosen").items()}

    assert main([*command, "--only=failed"]) == 2
    assert "--only failed: --out chosen has no captions yet" in capsys.readouterr().err
    assert main(command) == 0
    caption = captions()["0"]
    assert caption is not None and captions() == {"a": None, "b": None, "0": caption}
    shutil.copy("pics/0.png", pictures / "a.png")
    shutil.copy("pics/0.png", pictures / "new.png")
    assert main([*command, "--only=unprocessed"]) == 0
    assert captions() == {"a": None, "b": None, "0": caption, "new": caption}
    shutil.copy("pics/0.png", pictures / "later.png")

    def fail(*_: Path) -> None:
        raise MyLLMError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("myllm.apps.ray_data._replace_errors", fail)
        assert main([*command, "--only=failed"]) == 1
    assert captions() == {"a": None, "b": None, "0": caption, "new": caption}
    assert "Resume with: myllm caption chosen-pics" in (errors := capsys.readouterr().err) and "--only failed" in errors
    assert main([*command, "--only=failed"]) == 0
    assert captions() == {"a": caption, "b": None, "0": caption, "new": caption}
    assert not list(folder.glob("chosen.failed*"))


@pytest.mark.parametrize(("more", "message"), [
    (["--out=o", "--heatmaps=maps"], "--heatmaps does not work with --ray; draw them with another command"),
    (["--out=o", "--only=changed"], "--only changed does not work with --ray; take failed or unprocessed, or list the"),
    (["--out=o", "--overwrite"], "--overwrite does not work with --ray; give another --out"),
    (["--out=o", "--append"], "--append does not work with --ray; write text files from the Parquet files"),
    (["--out=o", "--to=txt"], "--ray writes a folder of Parquet files, not txt"),
    (["--out=o.csv"], "--ray writes a folder of Parquet files, not csv"),
    (["--out=o", "--devices=cuda:1"], "--devices cuda:1 does not work with --ray; take auto, cpu or cuda"),
    ([], "--ray needs --out, a folder for Parquet files"),
    (["--out=o", "--ray=ray://node0"], "--ray ray://node0: expected local, auto, or an address like node0:6379"),
])
def test_ray_refuses_options_that_it_cannot_honour(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", "pics", "--ray=local", *more]) == 2
    assert message in capsys.readouterr().err


def test_ray_without_a_cluster_at_the_address_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(words("nowhere", "--ray=127.0.0.1:1", "pics")) == 2
    assert "--ray 127.0.0.1:1: no cluster answers" in capsys.readouterr().err


def test_ray_does_not_add_to_parquet_files_of_another_program(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "other").mkdir()
    shutil.copy("table.parquet", "other")
    assert main(words("other", "--ray=local", "pics")) == 2
    assert "--out other has Parquet files, but other.checkpoint" in capsys.readouterr().err


def test_ray_that_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "myllm.apps.ray_data", raising=False)
    assert main(["caption", "pics", "--ray=local", "--out=o"]) == 1
    assert "this needs ray, which is not installed; install it with" in (errors := capsys.readouterr().err)
    assert f"{sys.executable} -m pip install 'ray[data]'" in errors


def test_ray_is_imported_only_where_it_is_used() -> None:
    code = "import sys, myllm.apps.caption; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
