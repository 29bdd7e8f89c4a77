import json
from pathlib import Path

import pytest

from myllm.config import CaptionsConfig, GPTConfig, VisionConfig
from myllm.training.prepare import Prepared, prepare
from myllm.training_config import TrainConfig

pytest.importorskip("transformers")
from peer_quality import drawn_view, rows_of, train


@pytest.fixture
def prepared(tiny_picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    return prepare(TrainConfig(
        data=str(tiny_picture_folder), vision=VisionConfig("vit_mini_conv8_64", False, frozen=True, mirrored=True),
        text=GPTConfig(n_positions=28, n_layer=1, n_head=4, n_embd=32), mode="last", views=3, devices="cpu",
        captions=CaptionsConfig(vocab_size=300),
    ))


def test_transformers_learns_all_views_with_the_captions_that_are_true_of_them(prepared: Prepared) -> None:
    source = prepared.train
    drawn = {view: tokens for row in rows_of(source, captions=1) * 30 for view, tokens in [drawn_view(row)]}
    assert set(drawn) == set(range(3 * len(source.records)))
    assert all(tokens == source.ids[source.view_captions(view)[0]] for view, tokens in drawn.items())
    assert {view for row in rows_of(prepared.val, captions=5) for view, _ in [drawn_view(row)]} == {0, 1}


def test_transformers_trains_on_stored_features_and_captions_pictures(prepared: Prepared, tmp_path: Path) -> None:
    timer = train(prepared, max_steps=1, pictures=2, beams=2, captions_file=tmp_path / "peer.jsonl")
    lines = (tmp_path / "peer.jsonl").read_text().splitlines()
    assert timer.seconds > 0 and [json.loads(line)["image"] for line in lines] == [
        record.name for record in prepared.val.records[:2]
    ]
