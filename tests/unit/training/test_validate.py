from pathlib import Path

import pytest

from myllm.caption import Sample
from myllm.training.validate import MIN_CIDER_PICTURES, Validation, best_criterion, is_better


def row(cider: float, loss: float) -> dict[str, float | str]:
    return {"CIDEr-D": cider, "val_loss": loss, "stage": "all"}


@pytest.mark.parametrize(
    ("figures", "best", "criterion", "expected"),
    [
        (row(0.2, 3.0), row(0.1, 2.0), "CIDEr-D", True),
        (row(0.1, 1.0), row(0.2, 2.0), "CIDEr-D", False),
        (row(0.0, 1.9), row(0.0, 2.0), "CIDEr-D", True),  # equal: the loss decides
        (row(0.0, 2.0), row(0.0, 2.0), "CIDEr-D", False),
        (row(0.0, 1.9), row(0.9, 2.0), "loss", True),
        (row(0.9, 2.1), row(0.0, 2.0), "loss", False),
    ],
)
def test_is_better_decides_equal_cider_by_loss(
    figures: dict[str, float | str], best: dict[str, float | str], criterion: str, expected: bool
) -> None:
    assert is_better(figures, best, criterion) == expected


def test_best_criterion_is_the_loss_with_few_pictures() -> None:
    assert best_criterion("CIDEr-D", MIN_CIDER_PICTURES - 1) == best_criterion("loss", 5000) == "loss"
    assert best_criterion("CIDEr-D", MIN_CIDER_PICTURES) == "CIDEr-D"


def validation(captions: list[str], cider: float, shuffled_cider: float) -> Validation:
    return Validation(2.0, [Sample("a.png", Path("a.png"), text, (text,)) for text in captions], cider, shuffled_cider)


def test_validation_warns_of_repeated_captions_and_of_ignored_pictures() -> None:
    different = [f"picture {number}" for number in range(30)]
    assert validation(different, 0.5, 0.1).warnings() == []
    [collapsed] = validation(["a dog"] * 7 + different[:23], 0.5, 0.1).warnings()
    assert collapsed.startswith("23% of the captions are the same sentence ('a dog')")
    [ignored] = validation(different, 0.1, 0.09).warnings()
    assert "CIDEr-D 0.090, without shuffling 0.100" in ignored
    assert validation(["a dog"] * 20, 0.1, 0.1).warnings() == []  # too few to tell


def test_validation_warns_of_repeated_words_and_of_unfinished_captions() -> None:
    plain = [f"picture {number}" for number in range(30)]
    texts = [f"dog {number} on a hill and dog {number} on a hill" for number in range(6)] + plain[6:]
    samples = [Sample("a.png", Path("a.png"), text, (reference,)) for text, reference in zip(texts, plain, strict=True)]
    [repeated, ended] = Validation(2.0, samples, 0.5, 0.1).warnings()
    assert repeated.startswith("20% of the captions repeat three words, of people's 0.0%")
    assert ended.startswith("20% of the captions end in words that hardly any of people's ends in ('hill')")
