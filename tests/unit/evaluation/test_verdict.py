from collections.abc import Sequence

import pytest

from myllm.evaluation.judge import judge_captions
from myllm.evaluation.verdict import describe_quality, describe_truth

COLOURS, KINDS = ("red", "blue", "green", "white"), ("dog", "cat", "ball", "boat", "hat")
THINGS = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS]
REFERENCES = [(f"a {thing} on grass", f"one {thing} lies there", f"the {thing} is outside") for thing in THINGS]
RIGHT = [f"a {thing} on grass" for thing in THINGS]


def verdict(captions: Sequence[str], references: Sequence[Sequence[str]] = REFERENCES) -> str:
    return describe_quality(judge_captions(captions, references, metrics=["CIDEr-D"]))


def test_captions_of_other_pictures_are_no_better_than_chance() -> None:
    assert verdict(RIGHT[1:] + RIGHT[:1]).startswith("This captioner may be no better than chance: its CIDEr-D is")
    assert "may be no better than chance" in verdict(["a dog on grass"] * 20)


@pytest.mark.parametrize(("captions", "words"), [
    ([f"some {thing.split()[1]}" for thing in THINGS], "nearer to chance than to people"),
    (RIGHT[:6] + ["nothing"] * 14, "nearer to people than to chance"),
    (RIGHT, "closer to people’s captions than people are"),
])
def test_better_captions_get_a_better_verdict(captions: list[str], words: str) -> None:
    sentence = verdict(captions)
    assert words in sentence and "On a scale from 0" in sentence


def test_people_score_as_people() -> None:
    captions = [group[1 + index % 2] for index, group in enumerate(REFERENCES)]
    judgement = judge_captions(captions, REFERENCES, metrics=["CIDEr-D"])
    people, same = judgement.people["CIDEr-D"]
    shuffled = judgement.figures["CIDEr-D_shuffled"].corpus
    assert f"it is at {100 * (same - shuffled) / (people - shuffled):.0f} by CIDEr-D" in describe_quality(judgement)


def test_without_several_references_there_is_no_comparison_with_people() -> None:
    sentence = verdict(RIGHT, [group[:1] for group in REFERENCES])
    assert sentence.startswith("This captioner is better than chance: its CIDEr-D is") and "people" not in sentence


def test_fewer_than_ten_pictures_have_no_verdict() -> None:
    assert "nothing can be said" in verdict(RIGHT[:9], REFERENCES[:9])


def test_truth_names_held_out_pairs_if_they_were_judged() -> None:
    truth, held_out = {"true": 0.925, "complete": 0.5}, {"held-out pairs": {"true": 0.75, "complete": 0.25}}
    sentence = describe_truth(truth, {})
    assert "92% are true" in sentence and "50% are complete" in sentence and "held out" not in sentence
    assert describe_truth(truth, held_out).endswith("was held out of training, 75% are true and 25% complete.")
