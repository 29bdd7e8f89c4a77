from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from myllm.checkpoints.native import Checkpoint
from myllm.config import DecodeConfig
from myllm.data.records import Record
from myllm.data.scenes import Thing
from myllm.errors import DataError
from myllm.evaluation.evaluate import Data, Evaluation, evaluate
from myllm.evaluation.judge import judge_captions
from myllm.evaluation.scenes import score_scene_captions
from myllm.inference.captioner import Captioner
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
        records.append(Record(path, ("a dog runs", captioner.caption(path, max_new_tokens=7).text)))
    return records


def figures(captioner: Captioner, records: Sequence[Record], batch_size: int = 32) -> Evaluation:
    return evaluate(captioner, Data("val", records), DECODE, batch_size)


def test_what_is_said_word_for_word_scores_full_marks(captioner: Captioner, records: list[Record]) -> None:
    found = figures(captioner, records).figures
    assert found["BLEU-1"] == pytest.approx(1) == found["BLEU-2"]


def test_the_shuffled_control_is_the_same_captions_at_other_pictures(
    captioner: Captioner, records: list[Record]
) -> None:
    found = figures(captioner, records)
    texts = [caption.text for caption in found.captions]
    moved = {
        score_captions([*texts[by:], *texts[:by]], [r.captions for r in records]).corpus["CIDEr-D"]
        for by in range(1, 6)
    }
    assert found.figures["CIDEr-D_shuffled"] <= max(*moved, found.figures["CIDEr-D"]) + 1e-9
    assert found.figures["CIDEr-D_shuffled"] < found.figures["CIDEr-D"]


def test_the_size_of_a_batch_changes_nothing(captioner: Captioner, records: list[Record]) -> None:
    one, all_at_once = figures(captioner, records, 1), figures(captioner, records, 32)
    assert one.figures == all_at_once.figures and all(
        (one.per_image[name] == all_at_once.per_image[name]).all() for name in one.per_image
    )


def test_broken_pictures_are_named_and_counted_out(captioner: Captioner, records: list[Record]) -> None:
    records[2].image.write_bytes(b"no picture")
    found = figures(captioner, records, 2)
    assert [record.name for record in found.records] == ["0.png", "1.png", "3.png", "4.png", "5.png"]
    assert len(found.captions) == found.protocol["pictures"] == 5
    assert len(found.broken) == 1 and "2.png: not a picture" in found.broken[0]


def test_nothing_but_broken_pictures_is_an_error(captioner: Captioner, records: list[Record]) -> None:
    for record in records:
        record.image.unlink()
    with pytest.raises(DataError, match=r"none of the 6 pictures can be read; .*0.png"):
        figures(captioner, records)


def test_progress_counts_every_picture_broken_or_not(captioner: Captioner, records: list[Record]) -> None:
    records[0].image.unlink()
    told: list[tuple[str, int, int]] = []
    evaluate(captioner, Data("val", records), DECODE, 4, lambda *counted: told.append(counted))
    assert told[:2] == [("captioning", 4, 6), ("captioning", 6, 6)]
    assert {what for what, *_ in told[2:]} == {"scoring"} and told[-1][1] == told[-1][2]


def test_json_holds_figures_protocol_and_broken_pictures(captioner: Captioner, records: list[Record]) -> None:
    held = figures(captioner, records).as_json()
    assert held["protocol"]["split"] == "val" and held["protocol"]["decode"]["max_new_tokens"] == 7
    assert held["broken_pictures"] == [] and 0 < held["distinct_captions"] <= 1 and held["mean_length"] > 0


def test_what_training_has_too_is_named_and_left_out_of_a_second_set_of_figures(
    captioner: Captioner, records: list[Record], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(records[4].image.read_bytes())
    training = [Record(copy, ("something else",)), Record(tmp_path / "gone.png", ("a cat sleeps",))]
    found = evaluate(captioner, Data("val", records, training), DECODE)
    assert found.leaks is not None and found.leaks.equal == (("4.png", "copy.png"),)
    held = found.as_json()["leaks"]["without"]["pictures"]
    rest = [at for at in range(6) if at != 4]
    assert held["pictures"] == 5 and held["CIDEr-D"] == found.judgement.figures["CIDEr-D"].of(rest)
    assert found.judgement.diversity.unseen_share == 1


def test_several_captions_of_each_picture_are_held_against_each_other(
    captioner: Captioner, records: list[Record]
) -> None:
    several = evaluate(captioner, Data("val", records), DecodeConfig(max_new_tokens=7, beams=3))
    assert 0 <= several.figures["self-CIDEr"] <= 1 and "self-CIDEr" in several.judgement.intervals
    assert "self-CIDEr" not in figures(captioner, records).figures


def test_training_that_is_not_known_is_not_judged(captioner: Captioner, records: list[Record]) -> None:
    found = figures(captioner, records)
    assert found.leaks is None and found.as_json()["leaks"] is None
    assert found.judgement.diversity.unseen_share is None


def test_the_protocol_says_what_was_judged_on_what(captioner: Captioner, records: list[Record]) -> None:
    first = figures(captioner, records).protocol
    assert first["model"] == captioner.weights_hash() and first["blind"] == captioner.blind_caption(DECODE).text
    other = [Record(record.image, ("another caption",)) for record in records]
    again, changed = figures(captioner, records).protocol, figures(captioner, other).protocol
    assert again["data"] == first["data"] != changed["data"]


@given(pictures=st.integers(1, 300), count=st.integers(1, 20))
def test_a_spread_reaches_over_the_split_in_even_steps(pictures: int, count: int) -> None:
    split = [Record(Path("one.png"), ("a dog",))] * pictures
    judgement = judge_captions(["a dog"], [["a dog"]])
    places = list(Evaluation(judgement, split, [], []).spread(count))
    assert len(places) == min(pictures, count) and places[0] == 0
    steps = {after - before for before, after in pairwise(places)}
    assert len(steps) <= 1 and pictures / 2 < places[-1] + max(steps, default=pictures) <= pictures


def test_scenes_are_judged_in_shares() -> None:
    ball = [Thing("ball", "red", "big", (0, 0, 9, 9))]
    said = ["a red ball", "two red balls", "a blue ball", ""]
    assert score_scene_captions(said, [ball] * 4) == {
        "true": 0.5, "complete": 0.25, "invented": 0, "miscoloured": 0.25, "miscounted": 0.25
    }
    cube = Thing("cube", "blue", "big", (20, 0, 29, 9))
    said = ["a red ball left of a blue cube", "a red ball right of a blue cube", "a red ball", ""]
    assert score_scene_captions(said, [[*ball, cube]] * 4)["placed"] == 0.5
