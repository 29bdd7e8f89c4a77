"""Captions of equal pictures are written for each, in whatever order the pictures are finished."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from myllm.apps.caption_options import CaptionOptions
from myllm.apps.console import Display
from myllm.apps.json_lines import line_of
from myllm.apps.picture_search import FoundPicture
from myllm.apps.saved_captions import SavedCaptions
from myllm.caption import Caption
from myllm.checkpoints.native import Checkpoint
from myllm.errors import ConfigError
from myllm.inference.bulk import Result
from myllm.inference.captioner import Captioner

COPY, ORIGINAL = (FoundPicture(Path(name), Path(), name) for name in ("copy.png", "original.png"))
DIGEST = "the hash of both"


@pytest.fixture
def output(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Iterator[SavedCaptions]:
    """Captions that are written to out.jsonl."""
    options = CaptionOptions(paths=("pictures",), model="captioner", out=str(tmp_path / "out.jsonl"))
    with SavedCaptions(options, Display(quiet=True, json=True)) as output:
        output.start(Captioner(tiny_checkpoint, torch.device("cpu")))
        assert output.is_left(COPY) and output.is_left(ORIGINAL)
        # another thread captions the original; meanwhile the batch of the copy is finished
        assert output.claim(DIGEST) and not output.claim(DIGEST)
        output.write([Result(COPY, DIGEST)])
        assert not output.claim(DIGEST)
        yield output


def test_a_copy_that_is_finished_before_its_original_gets_its_caption(output: SavedCaptions, tmp_path: Path) -> None:
    output.write([Result(ORIGINAL, DIGEST, Caption("a dog", 0.0, [], [], "end"))])
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    assert lines[1] == lines[0].replace(b"original.png", b"copy.png")


def test_a_copy_that_is_finished_before_its_original_gets_its_error(output: SavedCaptions, tmp_path: Path) -> None:
    output.write([Result(ORIGINAL, DIGEST, error="no token is allowed")])
    rows = [{"image": f"{name}.png", "error": "no token is allowed"} for name in ("original", "copy")]
    assert (tmp_path / "out.jsonl.errors.jsonl").read_bytes() == b"".join(map(line_of, rows))


def test_a_link_to_the_output_stays_a_link(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out.jsonl").symlink_to("disk/rows.jsonl")
    options = CaptionOptions(paths=("pictures",), model="captioner", out=str(tmp_path / "out.jsonl"))
    with SavedCaptions(options, Display(quiet=True, json=True)) as output:
        output.start(Captioner(tiny_checkpoint, torch.device("cpu")))
        output.log.append([{"image": "a.png", "caption": caption} for caption in ("old", "new")])
        output.finish(is_complete=True)
    assert (tmp_path / "out.jsonl").is_symlink()
    assert (tmp_path / "disk/rows.jsonl").read_bytes() == line_of({"image": "a.png", "caption": "new"})


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_does_not_replace_rows_of_the_same_name(tiny_checkpoint: Checkpoint, tmp_path: Path, form: Any) -> None:
    (tmp_path / "out").write_bytes(line_of({"image": "a.png", "caption": "a dog"}))
    (tmp_path / "out.run.json").write_text("{}")
    options = CaptionOptions(paths=("pictures",), model="captioner", out=str(tmp_path / "out"), to=form)
    captioner = Captioner(tiny_checkpoint, torch.device("cpu"))
    with SavedCaptions(options, Display(quiet=True)) as output, pytest.raises(ConfigError, match="is not a table"):
        output.start(captioner)
    (tmp_path / "out").unlink()
    for _ in range(2):  # a table without rows, when all pictures are broken, is one of an earlier run
        with SavedCaptions(options, Display(quiet=True)) as output:
            output.start(captioner)
            output.finish(is_complete=True)


def test_nothing_is_added_to_a_text_in_utf16(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = codecs.BOM_UTF16_LE + "my dog".encode("utf-16-le")
    (tmp_path / "a.txt").write_bytes(text)
    options = CaptionOptions(paths=(str(tmp_path),), model="captioner", to="txt", append=True)
    with SavedCaptions(options, Display(quiet=True, json=True)) as output:
        output.start(Captioner(tiny_checkpoint, torch.device("cpu")))
        assert not output.is_left(FoundPicture(tmp_path / "a.png", tmp_path, "a.png"))
        assert output.failed == 1 and b"is UTF-16" in output.errors_path.read_bytes()
    assert (tmp_path / "a.txt").read_bytes() == text
