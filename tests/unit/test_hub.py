from pathlib import Path

import pytest

from myllm import hub


def test_local_paths_are_no_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub.is_id("user/name") and hub.is_id("user/name@v1.0")
    assert not any(map(hub.is_id, ("runs/demo", "run/captioner.pt", "runs", "/a/b", "a/b/c")))
