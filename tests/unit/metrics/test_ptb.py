"""What each claim expects was printed by Stanford's tokenizer 3.4.1; tests/parity/test_ptb.py asks it again."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.metrics.ptb import ptb_tokenize


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        pytest.param("A dog's ball isn't THERE , it 's red .", "a dog 's ball is n't there it 's red", id="clitics"),
        pytest.param("don’t it’s do n‘t", "do n't it 's do n`t", id="curly apostrophes"),
        pytest.param(
            "cannot Gonna gotta lemme gimme wanna 'tis 'twas",
            "can not gon na got ta lem me gim me wan na 't is 't was",
            id="two words in one",
        ),
        pytest.param(
            "o'clock O'Neil y'all ma'am rock'n'roll 'em goin' ol' s'mores s'more",
            "o'clock o'neil y' all ma'am rock 'n' roll 'em goin ol' s'mores s more",
            id="apostrophes in words",
        ),
        pytest.param("'a' \"b\" “c” «d» ``e'' `f` ''", "a b c d e f", id="quotes go"),
        pytest.param("A`woman i`s a d`og, th’em etc.é", "a`woman i s a d`og th ’em etc. é", id="backquotes in words"),
        pytest.param("“‘a’”", "``` a '''", id="two curly quotes are one token that stays"),
        pytest.param("(a) [b] {c}", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb-", id="brackets stay"),
        pytest.param(
            "t-shirt 3-year-old and/or a/b/c w/ 3.5-inch a_b",
            "t-shirt 3-year-old and/or a/b/c w / 3.5-inch a_b",
            id="compounds",
        ),
        pytest.param("a - b -- c – d — e --- f ----- g … h ... i", "a b c d e f ----- g h i", id="dashes and dots go"),
        pytest.param(
            "10% $5.50 £10 €20 5¢ US$5 1,000.5 1/2 ½ 2½ 5kg 10:30pm",
            "10 % $ 5.50 # 10 $ 20 5 cents us$ 5 1,000.5 1/2 1/2 2 1/2 5kg 10:30 pm",
            id="numbers",
        ),
        pytest.param(
            "'90s 90's 1990s 5'10\" 1-2 1+2 -3",
            "'90s 90 's 1990s 5 10 1-2 1 +2 -3",
            id="years, heights and signs",
        ),
        pytest.param("call (555) 555-1234", "call -lrb-555-rrb- 555-1234", id="a telephone's brackets are part of it"),
        pytest.param(
            "Mr. X at 5 a.m. in the U.S. etc. The end. No. 5 no. Dog.",
            "mr. x at 5 a.m. in the u.s. etc. the end no. 5 no dog",
            id="abbreviations",
        ),
        pytest.param("in La. la. MFG. mfg.", "in la. la mfg mfg.", id="capitals make some abbreviations"),
        pytest.param("end.Then dog., b", "end.then dog. b", id="points without blanks"),
        pytest.param("!!! ?! a! b?", "!!! ?! a b", id="lone marks go, runs stay"),
        pytest.param(
            "R&B b&w a&amp;b &lt;3 *x* a+b C++ #tag #1 @user",
            "r&b b & w a & b < 3 * x * a + b c++ #tag # 1 @user",
            id="symbols",
        ),
        pytest.param(
            "http://x.com/a?b=1. www.flickr.com, x.com a@b.org!",
            "http://x.com/a?b=1 www.flickr.com x.com a@b.org!",
            id="addresses",
        ),
        pytest.param("<b>x</b> <a href=\"y\"> < z", "<b> x </b> <a href=\"y\"> < z", id="tags"),
        pytest.param(":) :-( ;D :/ ^_^", ":-rrb- :--lrb- ;d / ^_^", id="smileys"),
        pytest.param("CAFÉ naïve 日本語 中文。 हिन्दी", "café naïve 日本語 中文 。 हिन्दी", id="scripts"),
        pytest.param("inn't sunn't isn't", "inn t sunn t is n't", id="no n't after an n"),
        pytest.param(
            "vs.\u00ad v\u00ads. can\u00adnot do\u00adn't don\u00ad't", "vs. vs cannot do n't don t", id="soft hyphens"
        ),
        pytest.param(
            "x-raye\u0301 raye\u0301 cafe\u0301's a\u0308-b re\u03015",
            "x-raye \u0301 raye\u0301 cafe\u0301 's a\u0308 b re\u03015",
            id="combining accents end compounds",
        ),
        pytest.param(
            "a 😀 dog 👨‍👩‍👧 ❤️ x\u200by soft\u00adhyphen",
            "a dog ❤ x y softhyphen",
            id="emoji beyond 16 bits go",
        ),
    ],
)
def test_words_equal_stanfords(caption: str, words: str) -> None:
    assert ptb_tokenize(caption) == words.split()


@pytest.mark.parametrize("caption", ["", " ", "\n", ".", "\"'`", "...", "😀"])
def test_captions_of_punctuation_have_no_words(caption: str) -> None:
    assert ptb_tokenize(caption) == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\v", "\f", "\u2028", "\u2029"])
def test_an_end_of_line_is_a_blank(end: str) -> None:
    """There it would end a caption, and every later caption would get the words of the one before."""
    assert ptb_tokenize(f"a dog{end}runs") == ["a", "dog", "runs"]


def test_the_next_caption_is_not_read() -> None:
    """There "no." keeps its point when the next caption starts with a digit."""
    assert [ptb_tokenize(caption) for caption in ("he said no.", "2 dogs")] == [["he", "said", "no"], ["2", "dogs"]]


pieces = st.sampled_from([*"aBé1'’-/.,$&@#(<😀 \n", "n't", "'s", "&amp;", "U.S.", "x.com", "<b>"])


@given(st.text() | st.lists(pieces).map("".join))
def test_words_are_lower_case_and_hold_no_blanks(caption: str) -> None:
    for word in ptb_tokenize(caption):
        assert word == word.lower()
        assert word.split() == [word]


@given(st.lists(st.sampled_from(["a", "dog", "'s", "n't", "t-shirt", "1,000", "and/or", "café", "u.s.", "%"])))
def test_words_between_blanks_are_unchanged(words: list[str]) -> None:
    assert ptb_tokenize(" ".join(words)) == words


@pytest.mark.parametrize(
    "piece",
    ["a", "a.", "a,", "a&", "a+", "~", "中文。", "a-", "a'", "a@", "1/", "1 ", "'", "<a ", "http://a.", "n't", "a_"],
)
def test_long_text_without_blanks_is_tokenized_in_linear_time(piece: str) -> None:
    """99,000 characters took over 15 s while rules scanned them again at each position."""

    def seconds(count: int) -> float:
        start = time.thread_time()  # of this thread only, whatever else the machine does
        ptb_tokenize(piece * (count // len(piece)))
        return time.thread_time() - start

    assert seconds(40_000) < 8 * seconds(10_000) + 0.5
