"""Compare our Penn Treebank tokenizer with pycocoevalcap's, which runs Stanford's in Java.

Without Java, its recorded words of some hard captions are used: tests/fixtures/ptb.tsv, a caption and its words on each
line.
"""

import csv
import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from myllm.metrics.ptb import ptb_tokenize

RECORDED = Path(__file__).parents[1] / "fixtures/ptb.tsv"

Words = list[str]
Stanford = Callable[[list[str]], list[Words]]

HARD = r"""
dog Man USA café日本 it's DON'T we're I'll he'd I'm you've dogs' don’t dog’s y'all 'em 'til 'cause 'tis 'Twas
goin' ol' o'clock O'Neil d'or ma'am c'mon li'l s'mores s'more rock'n'roll 'n' cannot gonna Wanna gotta gimme
lemme G'day po'boy t-shirt x-ray mother-in-law 3-year-old 3.5-inch 1,000-foot and/or w/ b/w a/b/c/d 24/7 a_b
a--b a-U.S. 1/2 11/2 ½ 2½ 3 1 10 1,000 3.5 .5 2010 '90s 90s 90's 1990s '08 12:30 5:30pm 10am 5kg 6'2" 1st 2x4
1-2 1+2 -5 +5 555-1234 (555) 12/25/2010 $ $5 US$ US$5 £5 5€ 5¢ 10% ¥ Mr. Mrs. St. etc. vs. No. no. fig. La. la.
mfg. Inc. Jr. Ph.D. ph.d. a.m. p.m. U.S. U.S.A. e.g. A.B dog. end.Then ab!cd x.y.z R&B b&w AT&T rock&roll &
&amp; &lt; a&amp;b @ @user #tag # #1 * ** *** a*b + a+b C++ c# = < > << <b> </b> <br/> ( ) (a) [ ] [a] { } _ __
~ | \ ^ ° ™ é Ω ñandú हिन्दी 中文。 😀 👍🏽 ❤️ http://x.com/a?b=1 https://a.b www.flickr.com www.a.b/cd x.com x-y.com
x.com/ab a@b.com a.b@c.de :) :-( ;) :D ^_^ <3 - -- --- ----- – — . .. ... .... … , ; : ! !! ? ?! ' '' ` `` " ‘ ’
“ ” « » ‘a’ “a”
"""
PIECES = HARD.split()
OPENINGS = ("", "'", '"', "(", "“", "‘", "-", "$", "#", "<")
CLOSINGS = ("", ".", ",", "...", "!", "?", ":", "'", "'s", "’s", '"', ")", "”", "-", "/", "%", "., b")


def hard_captions() -> Iterator[str]:
    """Yield every piece after every opening and before every closing, at the start of a caption and later."""
    for opening, piece, closing in itertools.product(OPENINGS, PIECES, CLOSINGS):
        yield from (f"{opening}{piece}{closing} dog", f"a {opening}{piece}{closing}")


def glued_captions(count: int) -> Iterator[str]:
    """Yield captions of random pieces, mostly without blanks between them."""
    chance = random.Random(0)
    for _ in range(count):
        yield "".join(chance.choice(PIECES) + chance.choice(("", "", " ")) for _ in range(chance.randint(1, 6))).strip()


@pytest.fixture(scope="session")
def stanford() -> Stanford:
    """Return a function that tokenizes captions with pycocoevalcap."""
    if shutil.which("java") is None:
        pytest.skip("no Java here; the recorded words in ptb.tsv are used instead")

    def tokenize(captions: list[str]) -> list[Words]:
        # A line of one word between two captions: Stanford's rules look beyond the end of a line.
        lines = [{"caption": line} for caption in captions for line in (caption, "x")]
        printed = PTBTokenizer().tokenize({0: lines})[0]
        assert len(printed) == len(lines)
        assert set(printed[1::2]) == {"x"}
        return [line.split() for line in printed[::2]]

    return tokenize


def differences(captions: list[str], expected: list[Words]) -> list[str]:
    pairs = zip(captions, map(ptb_tokenize, captions), expected, strict=True)
    return [f"{text!r}: ours {words}, Stanford's {right}" for text, words, right in pairs if words != right]


def recorded() -> tuple[list[str], list[Words]]:
    rows = [line.split("\t") for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    return [caption for caption, _ in rows], [words.split() for _, words in rows]


def test_ptb_tokenize_equals_the_recorded_words_of_stanford() -> None:
    """The tests below need Java; this one does not."""
    captions, words = recorded()
    assert len(captions) > 500
    assert differences(captions, words) == []


def test_stanford_gives_the_recorded_words(stanford: Stanford) -> None:
    captions, words = recorded()
    assert stanford(captions) == words


@pytest.mark.slow
def test_ptb_tokenize_equals_stanford_on_hard_captions(stanford: Stanford) -> None:
    captions = list(hard_captions())
    assert differences(captions, stanford(captions)) == []


def test_ptb_tokenize_differs_from_stanford_on_at_most_one_in_a_hundred_random_captions(stanford: Stanford) -> None:
    captions = list(glued_captions(8000))
    assert len(differences(captions, stanford(captions))) < 80


@pytest.mark.slow
@pytest.mark.needs_data
def test_ptb_tokenize_equals_stanford_on_every_caption_of_flickr8k(stanford: Stanford, shared_data: Path) -> None:
    with (shared_data / "results.csv").open(newline="", encoding="utf-8") as file:
        captions = [row[2].strip() for row in csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE)][1:]
    assert len(captions) == 35_000
    assert differences(captions, stanford(captions)) == []
