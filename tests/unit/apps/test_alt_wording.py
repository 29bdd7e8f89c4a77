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
        ("two men and a woman sit", "Three people sit"),
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
        ("a middle aged woman", "A person"),
        ("An older looking man with glasses", "A person with glasses"),
        ("a group of school-aged children", "A group of children"),
        ("a man in his late 20s", "A person"),
        ("two young , blonde girls", "Two blonde children"),
        ("a scruffy looking boy", "A scruffy looking child"),
        ("Baby in Santa outfit", "Child in Santa outfit"),
        ("a girl throws the ball behind her during a game", "A child throws the ball behind them during a game"),
    ],
)
def test_alternative_text_has_no_gender_and_no_age_and_is_still_english(caption: str, expected: str) -> None:
    assert alternative_text(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a cowboy", "A rider"), ("an uncle", "A relative"), ("two nephews", "Two relatives"), ("a king", "A monarch"),
        ("the queen 's hat", "The monarch's hat"), ("a princess", "A royal"), ("a dude", "A person"),
        ("a sportsman", "An athlete"), ("salesmen", "Salespeople"), ("a mailman", "A mail carrier"),
        ("bridesmaids and groomsmen", "Wedding attendants"), ("two babies", "Two children"),
        ("a grandson and his granny", "A grandchild and their grandparent"),
    ],
)
def test_alternative_text_has_neutral_words_for_families_professions_and_ranks(caption: str, expected: str) -> None:
    assert alternative_text(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man and woman hug", "Two people hug"),
        ("a bride and groom", "Two newlyweds"),
        ("a mother and father", "Two parents"),
        ("a husband and wife", "A couple"),
        ("Two boys , a girl and a dog", "Three children and a dog"),
        ("A man , a woman , and two boys sit", "Two people and two children sit"),
        ("a man , woman and child", "Two people and a child"),
        ("men , women and children", "People and children"),
        ("several men and women", "Several people"),
        ("five men and women", "Five people"),
        ("12 boys and a girl", "13 children"),
        ("a smiling young man and woman", "Two smiling people"),
        ("two tall men and two women", "Two tall people and two people"),
        ("men or women", "People"),
        ("a group of men , women watch", "A group of people, people watch"),
        ("a man and a woman's dog", "A person and another person's dog"),
    ],
)
def test_alternative_text_counts_people_together_if_their_words_become_the_same(caption: str, expected: str) -> None:
    assert alternative_text(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man in a hat helps a woman", "A person in a hat helps another person"),
        ("the boy pours water on the baby", "The child pours water on the other child"),
        ("a man and a woman smile but the woman looks away", "Two people smile but the person looks away"),
        ("a man sits while the man's dog runs", "A person sits while the person's dog runs"),
    ],
)
def test_alternative_text_distinguishes_two_people_whose_words_become_the_same(caption: str, expected: str) -> None:
    assert alternative_text(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a toddler boy", "A child"), ("A girl toddler sits", "A child sits"), ("a newborn baby", "A child"),
        ("a woman skier smiles", "A skier smiles"), ("a female tennis player", "A tennis player"),
        ("two boy scouts", "Two scouts"), ("a men 's basketball team", "A basketball team"),
        ("his female partner", "Their partner"), ("the girl 's friend", "The child's friend"),
        ("a baby watches people", "A child watches people"), ("an adult swings", "A person swings"),
        ("a male holding children", "A person holding children"), ("two female martial artists", "Two martial artists"),
        ("two young soccer teams", "Two soccer teams"), ("two women watch children", "Two people watch children"),
    ],
)
def test_alternative_text_leaves_out_a_word_for_people_before_another(caption: str, expected: str) -> None:
    assert alternative_text(caption) == expected


@pytest.mark.parametrize(
    "caption",
    ["A baby elephant drinks", "An old car is parked", "A male lion sleeps", "A snowman in a garden",
     "A little red wagon", "Two people ride an x-ray truck", "A person in a cowboy hat", "Cowboy boots",
     "A cowgirl hat", "A queen size bed", "A drag queen", "A princess costume", "A mother duck", "A female white dog",
     "A fellow rider", "A little league player", "A flower girl", "A Guy Fawkes mask"],
)
def test_alternative_text_keeps_ages_of_what_is_no_person_and_names_of_things(caption: str) -> None:
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
