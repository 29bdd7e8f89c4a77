from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from myllm.inference.teacher_apis import clean_caption, error_message, has_several_sentences, retry_after


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        ("  A dog\n runs. ", "A dog runs."), ('"A dog runs."', "A dog runs."), ("“ A dog ”", "A dog"),
        ("'A dog'", "A dog"), ('"Stop" and "Go" are written', '"Stop" and "Go" are written'),
        ('"Stop" is written on "A"', '"Stop" is written on "A"'), ("the dog's", "the dog's"), ('"', '"'), ('""', ""),
        ([{"type": "text", "text": "A "}, {"type": "text", "text": "dog"}], "A dog"), (None, ""), (5, ""), ([None], ""),
    ],
)
def test_clean_caption_removes_blanks_line_ends_and_quotes_around_the_whole(content: Any, caption: str) -> None:
    assert clean_caption(content) == caption


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        ('<think>What is it?\nA dog.</think>\n\n"A dog runs."', "A dog runs."), ("<think>\n\n</think>A dog", "A dog"),
        ("It is a dog.</think> A dog", "A dog"), ("<think>It may be a", ""), ("A dog </think> A <think> cat", "A"),
        ("<THINKING>a dog</THINKING> A dog", "A dog"), ("A dog thinks < 3", "A dog thinks < 3"),
        ([{"type": "text", "text": "<think>a</think>A dog"}], "A dog"),
    ],
)
def test_clean_caption_removes_reasoning(content: Any, caption: str) -> None:
    assert clean_caption(content) == caption


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog runs.", False), ("A dog runs", False), ("A dog runs. It is brown.", True), ("What? A dog!", True),
        ('He says "Go." Then he goes', True), ("a sign reads 2.5 km", False), ("a house at no. 5", False),
    ],
)
def test_has_several_sentences(caption: str, expected: bool) -> None:
    assert has_several_sentences(caption) == expected


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("7", 7), ("0.5", 0.5), ("soon", None), ("-3", None), ("9" * 30, None),
     ("Fri, 01 Jan 2010 00:00:00 GMT", 0), ("Fri, 99 Jan", None)],
)
def test_retry_after_reads_seconds(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_retry_after_reads_a_date() -> None:
    seconds = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True))
    assert seconds is not None and 90 < seconds <= 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"error": {"message": "no such model", "code": 5}}', "'no such model'"), ('{"error": "gone"}', "'gone'"),
        ('{"detail": "bad"}', "'bad'"), ("<html><b>Bad</b>\ngateway</html>", "'Bad gateway'"), ("", "''"),
        ("[1]", "'[1]'"), ("\x1b[2J", r"'\x1b[2J'"), ("x" * 900, f"'{'x' * 300}'"),
    ],
)
def test_error_message_is_what_the_server_says(text: str, message: str) -> None:
    assert error_message(text) == message
