import dataclasses
import json
import math

import pytest

from myllm.errors import ConfigError, DataError
from myllm.evaluation.judge import judge_captions
from myllm.metrics.result import mean_of
from myllm.metrics.score import score_captions

CAPTIONS = ["a red dog runs", "two cats sleep", "a man rides a bike", "a boat on the sea"]
REFERENCES = [[text, f"{text} here"] for text in CAPTIONS]


def test_right_captions_score_high_and_shuffled_ones_low() -> None:
    judgement = judge_captions(CAPTIONS, REFERENCES)
    assert judgement.figures["BLEU-4"].corpus == pytest.approx(1, abs=1e-6)
    assert judgement.figures["CIDEr-D_shuffled"].corpus < 0.2 * judgement.figures["CIDEr-D"].corpus
    gap = judgement.figures["CIDEr-D"].corpus - judgement.figures["CIDEr-D_shuffled"].corpus
    assert judgement.figures["grounding_gap"].corpus == pytest.approx(gap)


def test_the_same_caption_for_every_picture_has_no_grounding_gap() -> None:
    judgement = judge_captions(["a red dog runs"] * 4, REFERENCES)
    assert judgement.figures["grounding_gap"].corpus == 0


def test_blind_control_scores_one_sentence_for_every_picture() -> None:
    judgement = judge_captions(CAPTIONS, REFERENCES, blind="two cats sleep")
    expected = score_captions(["two cats sleep"] * 4, REFERENCES).corpus["CIDEr-D"]
    assert judgement.figures["CIDEr-D_blind"].corpus == pytest.approx(expected)
    assert "CIDEr-D_blind" not in judge_captions(CAPTIONS, REFERENCES).figures


def test_json_has_every_defined_figure_within_its_interval() -> None:
    judgement = judge_captions(CAPTIONS, REFERENCES)
    entries = judgement.as_json()
    assert entries["intervals"].keys() == judgement.figures.keys() <= entries.keys()
    for name, (low, high) in judgement.intervals.items():
        assert name in judgement.undefined or low <= entries[name] <= high, name
    assert entries["people"]["CIDEr-D"].keys() == {"people", "captions"}
    assert entries["protocol"]["pictures"] == 4 and entries["protocol"]["references"] == 8
    assert "10,000 draws" in entries["protocol"]["intervals"]


def test_lines_show_each_figure_once_with_people() -> None:
    lines = judge_captions(CAPTIONS, REFERENCES).lines()
    (cider,) = [line for line in lines if line.startswith("CIDEr-D ")]
    assert "(" in cider
    assert "people" in lines[0] and "people" not in judge_captions(CAPTIONS, [[text] for text in CAPTIONS]).lines()[0]


def test_shares_show_their_denominator_or_why_there_is_none() -> None:
    judgement = judge_captions(CAPTIONS, REFERENCES)
    lines = {line.split()[0]: line for line in judgement.lines()}
    assert lines["counts_wrong"].endswith("of 1 number") and judgement.as_json()["denominators"]["counts_wrong"] == 1
    arabic = judge_captions(["كلب يجري", "رجل"], [["كلب"], ["رجل"]])
    lines = {line.split()[0]: line for line in arabic.lines()}
    for name in ("CHAIRi", "CHAIRs"):
        assert "  -  the captions name no things of the English word lists" in lines[name]
    entries = json.loads(json.dumps(arabic.as_json(), allow_nan=False))
    assert entries["CHAIRi"] is None and entries["intervals"]["CHAIRs"] == [None, None]
    assert entries["undefined"].keys() == {"CHAIRi", "CHAIRs", "places_wrong", "colours_wrong", "counts_wrong"}
    assert entries["undefined"]["CHAIRs"] == entries["undefined"]["CHAIRi"]  # "name no things", not "name no captions"
    assert math.isnan(arabic.per_image["CHAIRi"][0])


def test_a_share_of_nothing_in_the_captions_of_people_is_a_dash() -> None:
    judgement = judge_captions(["a red dog", "a cat"], [["a dog runs", "a dog"], ["a cat", "a cat sits"]])
    line = next(line for line in judgement.lines() if line.startswith("colours_wrong"))
    assert line.endswith("  - (1.000)  of 1 colour")


def test_one_picture_and_one_word_are_not_said_in_the_plural() -> None:
    lines = judge_captions(["dog"], [["dog"]]).lines()
    assert any(line.endswith("vocabulary 1 word") for line in lines)
    assert any(line.startswith("1 picture is few") for line in lines)


def test_few_pictures_and_text_without_blanks_are_cautioned() -> None:
    one, few = judge_captions(["a dog"], [["a dog"]]), judge_captions(CAPTIONS, REFERENCES)
    assert "CIDEr-D of one picture is 0 by definition" in one.cautions[0] and "1 picture is few" in one.cautions[1]
    assert "4 pictures are few" in few.cautions[0] and few.cautions[0] in few.lines()
    many = judge_captions(["a dog"] * 100, [["a cat"]] * 100)
    assert many.cautions == ()
    assert "no blanks between words" in judge_captions(["狗在跑"] * 100, [["狗在草地上跑"]] * 100).cautions[0]


def test_only_chosen_metrics_are_judged_and_cider_d() -> None:
    judgement = judge_captions(CAPTIONS, REFERENCES, metrics=["BLEU-4"])
    assert list(judgement.figures) == ["BLEU-4", "CIDEr-D", "CIDEr-D_shuffled", "grounding_gap"]
    assert judgement.people.keys() == {"BLEU-4", "CIDEr-D"} and judgement.protocol["metrics"] == ["BLEU-4"]
    assert not any("METEOR" in line for line in judgement.lines())
    with pytest.raises(ConfigError, match="'SPICE' is unknown"):
        judge_captions(CAPTIONS, REFERENCES, metrics=["SPICE"])


def test_a_judgement_is_changed_only_in_copies() -> None:
    judgement = judge_captions(CAPTIONS, REFERENCES)
    before = judgement.as_json()
    changed = judgement.with_figures({"CLIPScore": mean_of([0.5] * 4)}, clip="a CLIP").with_protocol(split="val")
    assert changed.figures["CLIPScore"].corpus == 0.5 and changed.intervals["CLIPScore"] == (0.5, 0.5)
    assert changed.protocol["clip"] == "a CLIP" and changed.protocol["split"] == "val"
    assert judgement.as_json() == before and "CLIPScore" not in judgement.intervals
    with pytest.raises(dataclasses.FrozenInstanceError):
        judgement.protocol = {}  # type: ignore[misc]


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(DataError, match="no captions"):
        judge_captions([], [])
