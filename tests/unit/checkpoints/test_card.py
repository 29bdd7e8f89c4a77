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


def test_a_run_tells_its_data_and_its_figures_with_their_protocol(tiny_model: Models) -> None:
    card = model_card(tiny_model(), DecodeConfig(beams=5), RUN, "birds-captioner")
    for told in ("`vit_mini_conv8_64` at 64 x 64", "| data, train | 6000 |", "| CIDEr-D | 0.5123 |",
                 "| CIDEr-D_shuffled | 0.1 |", "the first 500 of them, found by a beam of 5"):
        assert told in card


def test_the_hubs_own_reader_takes_its_metadata(tiny_model: Models) -> None:
    data = ModelCard(model_card(tiny_model(), DecodeConfig(), RUN, "birds-captioner")).data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("myllm", "image-to-text")
    [result] = data["model-index"][0]["results"][:1]
    assert result["dataset"] == {"name": "birds", "type": "birds", "split": "validation"}
    assert {"name": "CIDEr-D", "type": "cider", "value": 0.5123} in [
        metric for one in data["model-index"][0]["results"] for metric in one["metrics"]
    ]


@pytest.mark.parametrize(
    "provenance",
    [{}, {"imported from": "vit-gpt2"}, {"data": 3, "validation": [1]}, {"validation": {"CIDEr-D": float("nan")}}],
)
def test_whatever_a_checkpoint_knows_it_has_a_card(tiny_model: Models, provenance: dict[str, object]) -> None:
    card = model_card(tiny_model(), DecodeConfig(), provenance, "one")
    assert "Nothing was measured" in card
    assert "model-index" not in ModelCard(card).data.to_dict()


def test_text_of_the_provenance_stays_text(tiny_model: Models) -> None:
    card = model_card(tiny_model(), DecodeConfig(), {"note": "a | b\n# Not a heading <script>"}, "one")
    assert "| note | a \\| b # Not a heading &lt;script> |" in card


def test_a_saved_folder_has_a_card_of_its_name(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_folder(tiny_checkpoint, tmp_path / "mine")
    assert "# mine: captions of pictures" in ModelCard.load(tmp_path / "mine/README.md").content
