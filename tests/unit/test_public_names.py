"""What `myllm` exports: every name exists, and documents use nothing else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import myllm

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", myllm.__all__)
def test_public_name_exists(name: str) -> None:
    assert getattr(myllm, name) is not None
    assert name in dir(myllm)


def test_public_names_load_no_torch_before_they_are_used() -> None:
    program = "import sys, myllm; from myllm import Caption, ConfigError, OnnxCaptioner, score_captions; "
    process = subprocess.run([sys.executable, "-c", program + "sys.exit('torch' in sys.modules)"])
    assert process.returncode == 0


def test_public_name_that_is_unknown_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'myllm' has no attribute 'Captain'"):
        myllm.Captain  # noqa: B018


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documents_import_only_public_names(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^\s*(?:from|import) myllm\..*", text, re.MULTILINE) == []
    imported = re.findall(r"^\s*from myllm import ([\w, ]+)", text, re.MULTILINE)
    names = {name.strip() for line in imported for name in line.split(",")}
    assert names <= set(myllm.__all__)
