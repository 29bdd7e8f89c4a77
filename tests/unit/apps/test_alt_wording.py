"""The wording of alternative texts; the right texts are written by hand."""

import pytest

from myllm.apps.alt_wording import MAX_LENGTH, alternative_text


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a young woman in a red shirt is walking", "A person in a red shirt is walking"),
        ("an elderly man holds a cup", "A person holds a cup"),
        ("a young athlete jumps", "An athlete jumps"),
        ("an old umpire and a young umpire", "An umpire and an umpire"),
        ("an adult soccer player kicks a ball", "A soccer player kicks a ball"),
        ("two men and a woman sit", "Two people and a person sit"),
        ("a man and a woman sit on a bench", "Two people sit on a bench"),
        ("boys and girls play", "Children play"),
        ("a boy and a girl run", "Two children run"),
        ("the man 's dog barks .", "The person's dog barks"),
        ("the boys' team wears blue", "The children's team wears blue"),
        ("a group of young men", "A group of people"),
        ("a little girl throws her ball", "A child throws their ball"),
        ("a dog runs behind her", "A dog runs behind them"),
        ("a girl smiles while she quickly catches a ball", "A child smiles while they quickly catch a ball"),
        ("a man laughs as he is splashed", "A person laughs as they are splashed"),
        ("a 5 year old boy in a pool", "A child in a pool"),
        ("an eight-year-old is swimming", "A child is swimming"),
        ("a policeman and two firemen", "A police officer and two firefighters"),
        ("a male in a hat", "A person in a hat"),
        ("the female rock climber looks as if she's tired", "The rock climber looks as if they're tired"),
        ("a mother and her baby", "A parent and their child"),
    ],
)
def test_alternative_text_has_no_gender_and_no_age_and_is_still_english(caption: str, expected: str) -> None:
    assert alternative_text(caption) == expected


@pytest.mark.parametrize(
    "caption",
    ["A baby elephant drinks", "An old car is parked", "A male lion sleeps", "A snowman in a garden",
     "A little red wagon", "Two people ride an x-ray truck"],
)
def test_alternative_text_keeps_ages_of_what_is_no_person(caption: str) -> None:
    assert alternative_text(caption) == caption


def test_alternative_text_keeps_words_for_people_if_asked() -> None:
    assert alternative_text("a young woman and her son .", people=True) == "A young woman and her son"


@pytest.mark.parametrize("lead_in", ["image of ", "a picture of ", "this is a photo of ", "There is an image showing "])
def test_alternative_text_does_not_begin_with_image_of(lead_in: str) -> None:
    assert alternative_text(f"{lead_in}a dog on grass") == "A dog on grass"


def test_alternative_text_is_cut_at_the_end_of_a_word_that_can_end_it() -> None:
    assert MAX_LENGTH == 125
    caption = "a dog " + "runs over green grass " * 5  # 115 characters and a blank
    assert alternative_text(caption + "and on sand") == caption.capitalize().strip() + " and on sand"[:0]
    assert len(alternative_text("x" * 300)) == 125


def test_alternative_text_of_a_cut_caption_does_not_end_in_an_article() -> None:
    assert alternative_text("a dog runs over the", is_cut=True) == "A dog runs"
    assert alternative_text("a person looks on") == "A person looks on"
