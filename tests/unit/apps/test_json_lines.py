import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from myllm.apps.json_lines import JsonLines
from myllm.errors import DataError

ROWS = [{"image": "a.png", "caption": "ein Hündchen"}, {"image": "b.png", "caption": "zwei"}]


def write(path: Path, *rows: dict[str, str], replace: bool = False) -> None:
    with JsonLines(path, replace) as file:
        file.begin()
        for row in rows:
            file.append(row)


def rows_of(path: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    JsonLines(path, on_row=lambda row, offset: rows.append(row))
    return rows


def read(path: Path) -> list[dict[str, str]]:
    content = path.read_text(encoding="utf-8")
    assert content.endswith("\n")
    return [json.loads(line) for line in content.splitlines()]


def test_rows_are_on_disk_when_append_returns_and_are_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "new/out.jsonl"
    with JsonLines(path) as file:
        for count, row in enumerate(ROWS, 1):
            file.append(row)
            assert read(path) == ROWS[:count]
    assert rows_of(path) == ROWS


def test_a_file_cut_at_any_byte_keeps_its_whole_rows_and_grows_on(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, *ROWS)
    content = path.read_bytes()
    first = content.index(b"\n")
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        whole = (length >= first) + (length >= len(content) - 1)  # a row without its line end is whole
        assert rows_of(path) == ROWS[:whole]
        write(path)
        assert path.read_bytes() == b"".join(content.splitlines(keepends=True)[:whole])
        write(path, *ROWS[whole:])
        assert path.read_bytes() == content


def test_opening_a_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"image": "a.png"}\n{"image": "b')
    assert rows_of(path) == [{"image": "a.png"}]
    assert path.read_bytes() == b'{"image": "a.png"}\n{"image": "b'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"mine", "ends with b'mine', which is not a row of captions"), (b'{"image": 1}\n', "line 1 is not a row"),
        (b'{"image": "a"}\n[]\n{"image": "b"}\n', "line 2 is not a row"), (b"\n\n", "line 1 is not a row"),
        (b"\x89PNG\r\n", "line 1 is not a row"),
    ],
)
def test_a_file_of_another_kind_is_refused_and_not_changed(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        JsonLines(path)
    assert path.read_bytes() == content


def test_a_replaced_file_stays_until_the_first_new_row_is_there(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    write(path, replace=True)
    assert path.read_text() == "old"
    write(path, *ROWS, replace=True)
    assert read(path) == ROWS and os.listdir(tmp_path) == ["out.jsonl"]


def test_replacing_that_is_interrupted_before_its_first_row_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, ROWS[0])
    write(path, replace=True)
    assert rows_of(path) == [] and read(path) == [ROWS[0]]
    write(path, ROWS[1])
    assert rows_of(path) == read(path) == [ROWS[1]]


LIMITED = """
import pathlib, sys
from myllm.apps.json_lines import JsonLines
with JsonLines(pathlib.Path(sys.argv[1]), replace=len(sys.argv) > 2) as file:
    for number in range(100):
        file.append({"image": f"{number}.png", "caption": "x" * 50})
"""


@pytest.mark.parametrize("replace", [False, True])
def test_a_full_disk_is_reported_and_leaves_whole_rows(tmp_path: Path, replace: bool) -> None:
    path, limit = tmp_path / "out.jsonl", 20 if replace else 1000
    path.write_text('{"image": "old.png"}\n')
    command = [sys.executable, "-c", LIMITED, str(path), *["replace"] * replace]
    process = subprocess.run(
        command, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert f"MyLLMError: cannot write {path}: File too large; the previous content is kept" in process.stderr
    assert len(read(path)) == (1 if replace else 12) and read(path)[0] == {"image": "old.png"}
    assert sorted(os.listdir(tmp_path)) == [*[".out.jsonl.part"] * replace, "out.jsonl"]


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    row = {"image": os.fsdecode(b"caf\xe9.png"), "caption": "a"}
    write(tmp_path / "out.jsonl", row)
    assert rows_of(tmp_path / "out.jsonl") == [row] == read(tmp_path / "out.jsonl")
