"""Lists of paths, in the forms that find, editors and PowerShell write."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from myllm.apps import path_lists
from myllm.apps.path_lists import can_be_read_again, copy_list, read_paths
from myllm.errors import DataError


@pytest.mark.parametrize("block_bytes", [1, 7, 2**16])
@pytest.mark.parametrize(("content", "paths"), [
    (b"a.png\nb c.png\n", ["a.png", "b c.png"]),
    (b"\xef\xbb\xbfa.png\r\n\r\n  \nb.png", ["a.png", "b.png"]),
    (b"\xef\xbb\xbfa.png", ["a.png"]),
    (b" a.png \n-b.png\n", [" a.png ", "-b.png"]),
    ("😀é\n".encode() + b"caf\xe9", ["😀é", "caf\udce9"]),
    (b"", []), (b"\n", []),
])
def test_a_list_has_a_path_in_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, paths: list[str], block_bytes: int
) -> None:
    monkeypatch.setattr(path_lists, "BLOCK_BYTES", block_bytes)
    (tmp_path / "list").write_bytes(content)
    assert list(read_paths(str(tmp_path / "list"))) == paths


def test_a_list_with_zero_bytes_is_divided_by_them_as_find_writes_it(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    for name in ("a\nb.png", "c\r", " d"):
        (tmp_path / "pics" / name).touch()
    found = subprocess.run(["find", tmp_path / "pics", "-type", "f", "-print0"], stdout=subprocess.PIPE, check=True)
    (tmp_path / "list").write_bytes(found.stdout)
    assert set(read_paths(str(tmp_path / "list"))) == {str(path) for path in (tmp_path / "pics").iterdir()}


def test_paths_of_a_pipe_are_yielded_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        paths = read_paths("-")
        pipe.write(b"a.png\nb.")
        assert next(paths) == "a.png"
        pipe.write(b"png\n")
        assert next(paths) == "b.png"


@pytest.mark.parametrize(("name", "message"), [
    ("list", "list: is UTF-16; save the list of paths as UTF-8"), ("gone", "gone: this list of paths cannot be read"),
    (".", "cannot be read .Is a directory."),
])
def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "list").write_bytes("a.png\n".encode("utf-16"))
    with pytest.raises(DataError, match=message):
        list(read_paths(str(tmp_path / name)))


def test_only_files_can_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    (tmp_path / "list").touch()
    os.mkfifo(tmp_path / "pipe")
    assert [can_be_read_again(str(tmp_path / name)) for name in ("list", "gone", "pipe")] == [True, True, False]
    assert not can_be_read_again("-")


def test_a_copy_of_a_pipe_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.png\n\ncaf\xe9\n")))
    copy = copy_list("-")
    assert list(read_paths(copy)) == list(read_paths(copy)) == ["a.png", "caf\udce9"]


def test_a_closed_standard_input_is_missed_only_by_a_list_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as after <&-
    (tmp_path / "list").write_text("a.png")
    assert list(read_paths(str(tmp_path / "list"))) == ["a.png"]
    with pytest.raises(DataError, match="-: standard input is closed; expected a path in each line"):
        list(read_paths("-"))
