import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.caption import Calibration, Caption, Word, describe_calibration, normalize_word, split_words
from myllm.errors import CheckpointError

PIECES = st.lists(st.sampled_from([b"a", b" dog", b" ", b"s", b"", b" r", b"\xc3", b"\xa9", b"b c", b".", b"\n"]))
ORIGIN = {"data": "birds", "split": "val", "pictures": 9}
LEARNED = Calibration(0.5, 2.0, 1.5, {"dog": 1.0, "a": 3.0}, ("a", "on"), ORIGIN)


def caption(words: str, *logprobs: float, calibration: Calibration | None = LEARNED) -> Caption:
    """A caption of a token a word, which ended by itself; the last log-probability is the end's."""
    pieces = [f" {word}".encode() for word in words.split()]
    score = sum(logprobs) / max(1, len(logprobs))
    tokens = list(range(len(pieces)))
    return Caption(words, score, tokens, list(logprobs), "end", pieces=pieces, calibration=calibration)


def chance(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


@given(PIECES)
def test_words_are_what_stands_between_blanks_however_it_is_torn(pieces: list[bytes]) -> None:
    words = split_words(pieces, [-1.0] * len(pieces))
    assert [word.text for word in words] == b"".join(pieces).decode(errors="replace").split()
    for word in words:
        own = b"".join(pieces[word.tokens])
        assert word.text in own.decode(errors="replace") or not own.isascii()


@given(PIECES)
def test_tokens_of_words_follow_each_other_and_leave_out_only_blanks_at_the_end(pieces: list[bytes]) -> None:
    words = split_words(pieces, [-1.0] * len(pieces))
    ends = [0]
    for word in words:
        assert word.tokens.start in (ends[-1], ends[-1] - 1)  # a token may end one word and begin the next
        ends.append(word.tokens.stop)
    assert b"".join(pieces[ends[-1] :]).strip() == b""


def test_a_words_log_probability_is_that_of_its_tokens_together() -> None:
    pieces = [b"a", b" gr", b"ey", b" ", b"h", b"\xc3", b"\xa9", b".", b" ."]
    words = split_words(pieces, [-0.1 * 2**at for at in range(10)])
    assert [(word.text, word.tokens) for word in words] == [
        ("a", slice(0, 1)), ("grey", slice(1, 3)), ("hé.", slice(3, 8)), (".", slice(8, 9)),
    ]
    assert [word.logprob for word in words] == pytest.approx([-0.1, -0.6, -0.1 * (8 + 16 + 32 + 64 + 128), -25.6])
    assert all(word.confidence == pytest.approx(math.exp(word.logprob or 1)) for word in words)


def test_given_words_have_no_log_probability_and_half_given_ones_that_of_the_rest() -> None:
    pieces = [b"a", b" ph", b"oto", b" of"]
    words = split_words(pieces, [-0.5, -0.25, -9.0], given=2)
    assert words == [
        Word("a", slice(0, 1), None, None), Word("photo", slice(1, 3), -0.5, math.exp(-0.5)),
        Word("of", slice(3, 4), -0.25, math.exp(-0.25)),
    ]
    assert Caption("a photo of", -1.0, [1, 2, 3, 4], [-0.5, -0.25, -9.0], "end", pieces=pieces).words == words


@pytest.mark.parametrize(
    ("word", "plain"), [("Dog.", "dog"), ("(dog", "dog"), ("dog's", "dog's"), (".", ""), ("Élan", "élan")]
)
def test_casing_and_punctuation_around_a_word_count_for_nothing(word: str, plain: str) -> None:
    assert normalize_word(word) == plain


def test_a_words_confidence_is_its_log_odds_by_closed_form() -> None:
    told = caption("A dog runs .", -0.1, -0.4, -2.0, -0.2, -0.3)
    assert [word.confidence for word in told.words] == pytest.approx(
        [chance(0.5 * own + 2 * -0.6 + 1.5 + offset) for own, offset in ((-0.1, 3), (-0.4, 1), (-2.0, 0), (-0.2, 0))]
    )


def test_a_captions_confidence_is_the_mean_of_its_telling_words() -> None:
    told = caption("a dog runs .", -0.1, -0.4, -2.0, -0.2, -0.3)
    _, dog, runs, _ = (word.confidence or 0 for word in told.words)
    assert told.confidence == pytest.approx((dog + runs) / 2)


def test_a_caption_that_tells_nothing_is_judged_by_all_its_words_and_an_empty_one_is_worth_nothing() -> None:
    told = caption("a on", -0.1, -0.4, -0.3)
    assert told.confidence == pytest.approx(sum(word.confidence or 0 for word in told.words) / 2)
    assert caption("", -0.3).confidence == 0


def test_without_calibration_confidence_is_the_mean_chance_of_a_token() -> None:
    plain = caption("a dog", -0.1, -0.4, -0.4, calibration=None)
    assert plain.confidence == pytest.approx(math.exp(-0.3))
    assert [word.confidence for word in plain.words] == pytest.approx([math.exp(-0.1), math.exp(-0.4)])


def test_log_probabilities_without_bound_do_not_overflow() -> None:
    assert 0 <= caption("a dog", -1e5, -1e5, -1e5).confidence < 1e-9


def test_what_was_learned_comes_back_through_json() -> None:
    assert Calibration.from_json(json.loads(json.dumps(LEARNED.as_json()))) == LEARNED


@pytest.mark.parametrize(
    "change",
    [{"logprob": "much"}, {"score": None}, {"constant": math.nan}, {"offsets": [1]}, {"offsets": {"dog": math.inf}},
     {"offsets": {"dog": "x"}}, {"common_words": 3}, {"calibrated_on": 3}, {"logprob": 10**400}],
)
def test_what_is_no_calibration_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="calibration: "):
        Calibration.from_json(LEARNED.as_json() | change)
    for broken in (None, 3, [], "calibration"):
        with pytest.raises(CheckpointError):
            Calibration.from_json(broken)


def test_it_is_told_what_it_was_learned_from() -> None:
    assert re.match("calibrated on 9 pictures of birds, split val", describe_calibration(LEARNED))
    assert describe_calibration(None).startswith("not calibrated")
