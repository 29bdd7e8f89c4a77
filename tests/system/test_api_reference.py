"""`make docs`: the reference of what `myllm` exports."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import myllm

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_api_reference_has_every_public_name_and_no_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error::UserWarning", "docs/api_reference.py", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    page = (tmp_path / "myllm.html").read_text(encoding="utf-8")
    documented = set(re.findall(r' id="([\w.]+)"', page))
    assert documented >= set(myllm.__all__) | {"Captioner.caption", "Captioner.load", "DecodeConfig.beams"}
    assert (tmp_path / "index.html").exists()
