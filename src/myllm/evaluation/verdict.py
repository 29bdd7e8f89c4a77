"""Say in a sentence how good a captioner is: compared with chance, with people, and with the drawn things."""

from collections.abc import Mapping

from myllm.evaluation.judge import MAIN, Judgement
from myllm.metrics.bootstrap import MIN_TESTED

LEVELS = (
    (0.1, "hardly better than chance"),
    (0.5, "better than chance, but nearer to chance than to people"),
    (0.9, "nearer to people than to chance"),
    (1.1, "as close to people’s captions as people are to each other"),
)
"""Upper bounds of a score that is 0 for chance and 1 for people, with the words for scores below them."""
ABOVE_PEOPLE = "closer to people’s captions than people are to each other"


def describe_quality(judgement: Judgement) -> str:
    """Return how good captions are by CIDEr-D, on a scale from chance (shuffled pictures) to people if known."""
    if judgement.diversity.captions < MIN_TESTED:
        return f"With fewer than {MIN_TESTED} pictures, nothing can be said about how good this captioner is."
    value, shuffled = (judgement.figures[name].corpus for name in (MAIN, f"{MAIN}_shuffled"))
    values = f"its {MAIN} is {value:.2f}, and {shuffled:.2f} if the pictures are shuffled"
    if judgement.intervals["grounding_gap"][0] <= 0:
        return f"This captioner may be no better than chance: {values}."
    people, captions = judgement.people.get(MAIN, (0.0, 0.0))
    if people <= shuffled:
        return f"This captioner is better than chance: {values}."
    share = (captions - shuffled) / (people - shuffled)
    level = next((words for bound, words in LEVELS if share < bound), ABOVE_PEOPLE)
    return (
        f"This captioner is {level}. On a scale from 0 (its captions with the pictures shuffled) to 100 (people’s "
        f"captions), it is at {100 * share:.0f} by {MAIN}."
    )


def describe_truth(truth: Mapping[str, float], new_scenes: Mapping[str, Mapping[str, float]]) -> str:
    """Return the shares of true and complete captions of drawn scenes; new_scenes as in `Evaluation`."""
    sentence = (
        f"Of its captions, {truth['true']:.0%} are true (all that is named is in the picture) and "
        f"{truth['complete']:.0%} are complete (all that is in the picture is named, too)"
    )
    if "held-out pairs" in new_scenes:
        held_out = new_scenes["held-out pairs"]
        sentence += (
            f"; if a pair of thing and colour was held out of training, {held_out['true']:.0%} are true and "
            f"{held_out['complete']:.0%} complete"
        )
    return f"{sentence}."
