from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from myllm.checkpoints.native import Checkpoint
from myllm.config import DecodeConfig
from myllm.data.records import Record
from myllm.errors import DataError
from myllm.evaluation.evaluate import Data, Evaluation, evaluate
from myllm.evaluation.judge import judge_captions
from myllm.inference.captioner import Captioner
from myllm.metrics.result import mean_of
from myllm.metrics.score import score_captions

DECODE = DecodeConfig(max_new_tokens=7)


@pytest.fixture(scope="module")
def captioner(tiny_checkpoint: Checkpoint) -> Captioner:
    return Captioner(tiny_checkpoint, torch.device("cpu"))


@pytest.fixture
def records(tmp_path: Path, captioner: Captioner) -> list[Record]:
    """Six pictures; the second reference of each is what the captioner itself says of it."""
    records = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.effect_noise((64, 64), 20 + 40 * number).convert("RGB").save(path)
        records.append(Record(path.name, path, ("a dog runs", captioner.caption(path, max_new_tokens=7).text)))
    return records


def figures(captioner: Captioner, records: Sequence[Record], batch_size: int = 32) -> Evaluation:
    return evaluate(captioner, Data("val", records), DECODE, batch_size)


def test_captions_equal_to_a_reference_score_1(captioner: Captioner, records: list[Record]) -> None:
    result = figures(captioner, records).figures
    assert result["BLEU-1"] == pytest.approx(1) == result["BLEU-2"]


def test_shuffled_control_scores_the_captions_of_other_pictures(
    captioner: Captioner, records: list[Record]
) -> None:
    result = figures(captioner, records)
    texts = [caption.text for caption in result.captions]
    moved = {
        score_captions([*texts[by:], *texts[:by]], [r.captions for r in records]).corpus["CIDEr-D"]
        for by in range(1, 6)
    }
    assert result.figures["CIDEr-D_shuffled"] <= max(*moved, result.figures["CIDEr-D"]) + 1e-9
    assert result.figures["CIDEr-D_shuffled"] < result.figures["CIDEr-D"]


def test_batch_size_does_not_change_figures(captioner: Captioner, records: list[Record]) -> None:
    singly, together = figures(captioner, records, 1), figures(captioner, records, 32)
    assert singly.figures == together.figures
    for name, values in singly.per_image.items():
        np.testing.assert_array_equal(values, together.per_image[name], err_msg=name)


def test_broken_pictures_are_named_and_left_out(captioner: Captioner, records: list[Record]) -> None:
    records[2].image.write_bytes(b"no picture")
    result = figures(captioner, records, 2)
    assert [record.name for record in result.records] == ["0.png", "1.png", "3.png", "4.png", "5.png"]
    assert len(result.captions) == result.protocol["pictures"] == 5
    assert len(result.broken) == 1 and "2.png: not a picture" in result.broken[0]


def test_pictures_for_which_the_rules_allow_no_token_are_named_and_count_as_empty_captions(
    captioner: Captioner, records: list[Record]
) -> None:
    decode = DecodeConfig(min_new_tokens=7, no_repeat_ngram_size=1, only_words=("a",))
    result = evaluate(captioner, Data("val", records), decode)
    assert result.as_json()["failed_pictures"] == result.failed and len(result.failed) == 6
    assert result.failed[0].startswith("0.png: decode: ") and "no token is allowed" in result.failed[0]
    assert {caption.text for caption in result.captions} == {""}
    assert figures(captioner, records).failed == []


def test_only_broken_pictures_are_an_error(captioner: Captioner, records: list[Record]) -> None:
    for record in records:
        record.image.unlink()
    with pytest.raises(DataError, match=r"none of 6 pictures can be read; .*0.png"):
        figures(captioner, records)


def test_progress_counts_every_picture_including_broken_ones(captioner: Captioner, records: list[Record]) -> None:
    records[0].image.unlink()
    calls: list[tuple[str, int, int]] = []
    evaluate(captioner, Data("val", records), DECODE, 4, lambda *counted: calls.append(counted))
    assert calls[:2] == [("captioning", 4, 6), ("captioning", 6, 6)]
    assert {what for what, *_ in calls[2:]} == {"scoring"} and calls[-1][1] == calls[-1][2]


def test_json_has_figures_protocol_and_broken_pictures(captioner: Captioner, records: list[Record]) -> None:
    entries = figures(captioner, records).as_json()
    assert entries["protocol"]["split"] == "val" and entries["protocol"]["decode"]["max_new_tokens"] == 7
    assert entries["broken_pictures"] == [] and 0 < entries["distinct_captions"] <= 1 and entries["mean_length"] > 0


def test_leaks_are_named_and_left_out_of_a_second_set_of_figures(
    captioner: Captioner, records: list[Record], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(records[4].image.read_bytes())
    gone = Record("gone.png", tmp_path / "gone.png", ("a cat sleeps",))
    training = [Record(copy.name, copy, ("something else",)), gone]
    result = evaluate(captioner, Data("val", records, training), DECODE)
    assert result.leaks is not None and result.leaks.equal == (("4.png", "copy.png"),)
    entries = result.as_json()["leaks"]["without"]["pictures"]
    rest = [0, 1, 2, 3, 5]
    assert entries["pictures"] == 5 and entries["CIDEr-D"] == result.judgement.figures["CIDEr-D"].of(rest)
    assert result.judgement.diversity.unseen_share == 1


def test_self_cider_is_computed_from_the_captions_of_a_beam(
    captioner: Captioner, records: list[Record]
) -> None:
    several = evaluate(captioner, Data("val", records), DecodeConfig(max_new_tokens=7, beams=3))
    assert 0 <= several.figures["self-CIDEr"] <= 1 and "self-CIDEr" in several.judgement.intervals
    assert "self-CIDEr" not in figures(captioner, records).figures


def test_without_training_data_leaks_are_unknown(captioner: Captioner, records: list[Record]) -> None:
    result = figures(captioner, records)
    assert result.leaks is None and result.as_json()["leaks"] is None
    assert result.judgement.diversity.unseen_share is None


def test_protocol_has_hashes_of_model_and_data(captioner: Captioner, records: list[Record]) -> None:
    first = figures(captioner, records).protocol
    assert first["model"] == captioner.weights_hash() and first["blind"] == captioner.blind_caption(DECODE).text
    other = [Record(record.image.name, record.image, ("another caption",)) for record in records]
    again, changed = figures(captioner, records).protocol, figures(captioner, other).protocol
    assert again["data"] == first["data"] != changed["data"]


@given(pictures=st.integers(1, 300), count=st.integers(1, 20))
def test_spread_is_even_over_the_split(pictures: int, count: int) -> None:
    split = [Record("one.png", Path("one.png"), ("a dog",))] * pictures
    indices = Evaluation(judge_captions(["a dog"], [["a dog"]], metrics=()), split, [], []).spread(count)
    assert len(indices) == min(pictures, count) and indices[0] == 0
    steps = {after - before for before, after in pairwise([*indices, pictures])}
    assert max(steps) - min(steps) <= 1


def test_only_chosen_metrics_are_evaluated(captioner: Captioner, records: list[Record]) -> None:
    evaluation = evaluate(captioner, Data("val", records), DECODE, metrics=["CIDEr-D", "BLEU-4"])
    assert {"BLEU-1", "METEOR", "CHAIRi"}.isdisjoint(evaluation.judgement.figures)
    assert {"BLEU-4", "CIDEr-D"} <= evaluation.figures.keys()


def test_with_figures_returns_a_changed_copy(captioner: Captioner, records: list[Record]) -> None:
    evaluation = figures(captioner, records)
    changed = evaluation.with_figures({"CLIPScore": mean_of([0.5] * 6)}, clip="a CLIP")
    assert changed.figures["CLIPScore"] == 0.5 and changed.protocol["clip"] == "a CLIP"
    assert "CLIPScore" not in evaluation.figures and "clip" not in evaluation.protocol
