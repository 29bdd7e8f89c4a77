import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.errors import ConfigError
from myllm.metrics.tokenize import TOKENIZERS, simple_tokenize, tokenize


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog runs .", "a dog runs"),
        ("A man in a T-shirt, at 5 o'clock!", "a man in a t-shirt at 5 o'clock"),
        ("They don't see the dog's ball", "they do n't see the dog 's ball"),
        ("a man 's hat", "a man 's hat"),
        ("The boys' 'red' ball -- \"new\"", "the boys red ball new"),
        ("2.5 metres, 1,000 people.Then none", "2.5 metres 1,000 people then none"),
        ("one(two)/three & #4", "one two three 4"),
    ],
)
def test_english_splits_as_documented(caption: str, words: str) -> None:
    assert simple_tokenize(caption) == words.split()


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("don’t — “go”…", ["do", "n't", "go"]),
        ("Ｆｕｌｌ ﬁre", ["full", "fire"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा"]),
        ("a ❤️ dog 👨‍👩‍👧", ["a", "dog"]),
        ("two\nlines\there", ["two", "lines", "here"]),
    ],
)
def test_unicode_is_one_form_and_keeps_its_marks(caption: str, words: list[str]) -> None:
    assert simple_tokenize(caption) == words


@pytest.mark.parametrize("caption", ["", " ", "...", "-'-", "👍"])
def test_a_caption_without_words_has_no_tokens(caption: str) -> None:
    assert simple_tokenize(caption) == []


@given(st.text(alphabet="abnst dN'’-.,!5_é\t"))
def test_tokenizing_the_tokens_changes_nothing(caption: str) -> None:
    words = simple_tokenize(caption)
    assert simple_tokenize(" ".join(words)) == words


@given(st.text())
def test_words_are_never_blank_and_hold_no_blanks(caption: str) -> None:
    assert all(word and not any(map(str.isspace, word)) for word in simple_tokenize(caption))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_tokenizer_maps_each_caption(name: str) -> None:
    assert tokenize(["a dog", "a cat"], name) == [["a", "dog"], ["a", "cat"]]


def test_an_unknown_tokenizer_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'stanford'.*simple"):
        tokenize(["a dog"], "stanford")
