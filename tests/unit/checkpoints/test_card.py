import re
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from myllm.checkpoints.card import model_card
from myllm.checkpoints.native import Checkpoint, save_folder
from myllm.config import DecodeConfig
from myllm.model.vision_gpt2 import VisionGPT2

RUN = {
    "data": {"folder": "birds", "fingerprint": "a1b2", "train": 6000, "val": 1000},
    "validation": {"epoch": 3, "CIDEr-D": 0.5123, "CIDEr-D_shuffled": 0.1, "val_perplexity": 7.5, "val_loss": 2.01},
    "captioned": 500,
    "seed": 0,
}
Models = Callable[..., VisionGPT2]


def test_model_card_shows_data_and_metrics_with_their_protocol(tiny_model: Models) -> None:
    card = model_card(tiny_model(), DecodeConfig(beams=5), RUN, "birds-captioner")
    for part in ("`vit_mini_conv8_64` at 64 x 64", "| data, train | 6000 |", "| CIDEr-D | 0.5123 |",
                 "| CIDEr-D_shuffled | 0.1 |", "the first 500 of them, found by a beam of 5"):
        assert part in card


def test_model_card_says_that_captions_of_training_pictures_can_be_read(tiny_model: Models) -> None:
    for rank_by, is_said in (("retrieval", True), ("score", False)):
        card = model_card(tiny_model(), DecodeConfig(beams=5, rank_by=rank_by), RUN, "birds-captioner")
        assert ("keeps the captions of its training pictures" in card) == is_said
        assert "the first 500 of them, found by a beam of 5" in card


def test_model_card_metadata_is_read_by_the_hub_library(tiny_model: Models) -> None:
    data = ModelCard(model_card(tiny_model(), DecodeConfig(), RUN, "birds-captioner")).data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("myllm", "image-to-text")
    [result] = data["model-index"][0]["results"][:1]
    assert result["dataset"] == {"name": "birds", "type": "birds", "split": "validation"}
    assert {"name": "CIDEr-D", "type": "cider", "value": 0.5123} in [
        metric for entry in data["model-index"][0]["results"] for metric in entry["metrics"]
    ]


@pytest.mark.parametrize(
    "provenance",
    [{}, {"imported from": "vit-gpt2"}, {"data": 3, "validation": [1]}, {"validation": {"CIDEr-D": float("nan")}}],
)
def test_model_card_is_written_for_any_provenance(tiny_model: Models, provenance: dict[str, object]) -> None:
    card = model_card(tiny_model(), DecodeConfig(), provenance, "one")
    assert "Nothing was measured" in card
    assert "model-index" not in ModelCard(card).data.to_dict()


def test_model_card_installs_our_distribution(tiny_model: Models) -> None:
    """PyPI's `myllm` is another program."""
    card = model_card(tiny_model(), DecodeConfig(), RUN, "birds-captioner")
    assert "pip install 'myllm-captioner[train]'" in card
    assert re.search(r"install\W+myllm(?!-captioner)", card) is None


def test_model_card_escapes_markup_of_the_provenance(tiny_model: Models) -> None:
    card = model_card(tiny_model(), DecodeConfig(), {"note": "a | b\n# Not a heading <script>"}, "one")
    assert "| note | a \\| b # Not a heading &lt;script> |" in card


def test_save_folder_writes_a_model_card_with_the_folder_name(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_folder(tiny_checkpoint, tmp_path / "mine")
    assert "# mine: captions of pictures" in ModelCard.load(tmp_path / "mine/README.md").content
