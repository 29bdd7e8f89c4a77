import json
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.caption import Calibration, Caption, Word, describe_calibration, normalize_word, split_words
from myllm.errors import CheckpointError

PIECES = st.lists(st.sampled_from([b"a", b" dog", b" ", b"s", b"", b" r", b"\xc3", b"\xa9", b"b c", b".", b"\n"]))
ORIGIN = {"data": "birds", "split": "val", "pictures": 9}
CALIBRATION = Calibration(0.5, 2.0, 1.5, {"dog": 1.0, "a": 3.0}, ("a", "on"), ORIGIN)


def caption(words: str, *logprobs: float, calibration: Calibration | None = CALIBRATION) -> Caption:
    """A caption with one token for each word and an end token, whose log-probability is the last."""
    pieces = [f" {word}".encode() for word in words.split()]
    score = sum(logprobs) / max(1, len(logprobs))
    tokens = list(range(len(pieces)))
    return Caption(words, score, tokens, list(logprobs), "end", pieces=pieces, calibration=calibration)


def probability(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


@given(PIECES)
def test_split_words_finds_the_text_between_blanks(pieces: list[bytes]) -> None:
    words = split_words(pieces, [-1.0] * len(pieces))
    assert [word.text for word in words] == b"".join(pieces).decode(errors="replace").split()
    for word in words:
        content = b"".join(pieces[word.tokens])
        assert word.text in content.decode(errors="replace") or not content.isascii()


@given(PIECES)
def test_split_words_tokens_are_consecutive_and_leave_out_only_final_blanks(pieces: list[bytes]) -> None:
    words = split_words(pieces, [-1.0] * len(pieces))
    ends = [0]
    for word in words:
        assert word.tokens.start in (ends[-1], ends[-1] - 1)  # a token may end one word and begin the next
        ends.append(word.tokens.stop)
    assert b"".join(pieces[ends[-1] :]).strip() == b""


def test_split_words_logprob_is_the_sum_over_its_tokens() -> None:
    pieces = [b"a", b" gr", b"ey", b" ", b"h", b"\xc3", b"\xa9", b".", b" ."]
    words = split_words(pieces, [-0.1 * 2**index for index in range(10)])
    assert [(word.text, word.tokens) for word in words] == [
        ("a", slice(0, 1)), ("grey", slice(1, 3)), ("hé.", slice(3, 8)), (".", slice(8, 9)),
    ]
    assert [word.logprob for word in words] == pytest.approx([-0.1, -0.6, -0.1 * (8 + 16 + 32 + 64 + 128), -25.6])
    assert all(word.confidence == pytest.approx(math.exp(word.logprob or 1)) for word in words)


def test_split_words_logprob_leaves_out_the_prefix() -> None:
    pieces = [b"a", b" ph", b"oto", b" of"]
    words = split_words(pieces, [-0.5, -0.25, -9.0], prefix_length=2)
    assert words == [
        Word("a", slice(0, 1), None, None), Word("photo", slice(1, 3), -0.5, math.exp(-0.5)),
        Word("of", slice(3, 4), -0.25, math.exp(-0.25)),
    ]
    assert Caption("a photo of", -1.0, [1, 2, 3, 4], [-0.5, -0.25, -9.0], "end", pieces=pieces).words == words


@pytest.mark.parametrize(
    ("word", "normalized"), [("Dog.", "dog"), ("(dog", "dog"), ("dog's", "dog's"), (".", ""), ("Élan", "élan")]
)
def test_normalize_word_removes_case_and_surrounding_punctuation(word: str, normalized: str) -> None:
    assert normalize_word(word) == normalized


def test_support_of_a_word_is_that_of_its_rarest_token() -> None:
    words = split_words([b"a", b" gr", b"ey", b"."], [-1.0] * 4, support=[1.0, 0.5, 0.25, 0.75])
    assert [word.support for word in words] == [1.0, 0.25]
    assert [word.support for word in split_words([b"a"], [-1.0])] == [None]


def test_support_changes_calibrated_confidence_and_words_without_it_have_the_usual_one() -> None:
    with_weight = replace(CALIBRATION, support=2.0, usual_support=-0.75)
    dog = caption("dog", -0.4, -0.2, calibration=with_weight)
    odds = 0.5 * -0.4 + 2 * -0.3 + 1.5 + 1
    assert dog.confidence == pytest.approx(probability(odds))
    for share in (0.0, 0.3, 1.0):
        expected = probability(odds + 2 * (math.log(share + 1 / 60) + 0.75))
        assert replace(dog, support=[share]).confidence == pytest.approx(expected)


def test_calibration_of_words_equals_the_closed_form() -> None:
    result = caption("A dog runs .", -0.1, -0.4, -2.0, -0.2, -0.3)
    terms = ((-0.1, 3), (-0.4, 1), (-2.0, 0), (-0.2, 0))
    assert [word.confidence for word in result.words] == pytest.approx(
        [probability(0.5 * logprob + 2 * -0.6 + 1.5 + offset) for logprob, offset in terms]
    )


def test_confidence_is_the_mean_of_the_informative_words() -> None:
    result = caption("a dog runs .", -0.1, -0.4, -2.0, -0.2, -0.3)
    _, dog, runs, _ = (word.confidence or 0 for word in result.words)
    assert result.confidence == pytest.approx((dog + runs) / 2)


def test_confidence_without_informative_words_is_the_mean_of_all() -> None:
    result = caption("a on", -0.1, -0.4, -0.3)
    assert result.confidence == pytest.approx(sum(word.confidence or 0 for word in result.words) / 2)
    assert caption("", -0.3).confidence == 0


def test_confidence_without_calibration_is_the_mean_token_probability() -> None:
    plain = caption("a dog", -0.1, -0.4, -0.4, calibration=None)
    assert plain.confidence == pytest.approx(math.exp(-0.3))
    assert [word.confidence for word in plain.words] == pytest.approx([math.exp(-0.1), math.exp(-0.4)])


def test_confidence_does_not_overflow() -> None:
    assert 0 <= caption("a dog", -1e5, -1e5, -1e5).confidence < 1e-9


def test_calibration_survives_json() -> None:
    assert Calibration.from_json(json.loads(json.dumps(CALIBRATION.as_json()))) == CALIBRATION


@pytest.mark.parametrize(
    "change",
    [{"logprob": "much"}, {"score": None}, {"constant": math.nan}, {"offsets": [1]}, {"offsets": {"dog": math.inf}},
     {"offsets": {"dog": "x"}}, {"common_words": 3}, {"calibrated_on": 3}, {"logprob": 10**400}],
)
def test_calibration_from_json_refuses_anything_else(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="calibration: "):
        Calibration.from_json(CALIBRATION.as_json() | change)
    for broken in (None, 3, [], "calibration"):
        with pytest.raises(CheckpointError):
            Calibration.from_json(broken)


def test_describe_calibration_names_data_and_split() -> None:
    assert re.match("calibrated on 9 pictures of birds, split val", describe_calibration(CALIBRATION))
    assert describe_calibration(None).startswith("not calibrated")
