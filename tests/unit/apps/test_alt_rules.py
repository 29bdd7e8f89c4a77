"""What is wrong with a picture on a page: one page for each rule; the right answers are written by hand."""

import pytest

from myllm.apps.alt_html import parse
from myllm.apps.alt_markdown import Piece
from myllm.apps.alt_rules import MISSING, Finding, is_repeated, judge

NEEDS_PICTURE = "needs its picture"


def judged(page: str) -> Finding | None:
    """Return what is wrong with the last picture of a page; links lead to "Target"."""
    element = parse([Piece(page, 0)], page).pictures[-1].element
    return judge(element, lambda link: ("Target", "test"))


def suggestion(page: str) -> str | None:
    """Return the suggested text, None for a person, or NEEDS_PICTURE."""
    finding = judged(page)
    assert finding is not None and finding.problem == MISSING
    return finding.alt if finding.reason else NEEDS_PICTURE


@pytest.mark.parametrize(
    "page",
    [
        '<img src=a.jpg alt="A dog">',
        '<img src=a.jpg alt="">',
        '<img src=a.jpg alt>',
        '<img src=a.jpg aria-label="A dog">',
        '<img src=a.jpg aria-labelledby=b><p id=b>A dog',
        '<img src=a.jpg title="A dog">',
        '<a href=b.html><img src=a.jpg alt=""> Dogs</a>',
        '<a href=b.html aria-label=Dogs><img src=a.jpg alt=""></a>',
        '<input type=image src=a.jpg aria-label=Search>',
        '<svg role=img><title>A dog</title></svg>',
        '<div aria-hidden=true><svg role=img></svg></div>',
    ],
)
def test_picture_with_a_name_or_marked_as_decoration_has_no_fault(page: str) -> None:
    assert judged(page) is None


@pytest.mark.parametrize(
    "page",
    ["<img src=a.jpg>", "<div><img src=a.jpg></div>", "<a name=top><img src=a.jpg></a>",
     "<a href=b.html>x</a><img src=a>", "<picture><source srcset=b.webp><img src=a.jpg></picture>",
     "<noscript><img src=a.jpg></noscript>"],
)
def test_picture_without_text_that_is_no_link_is_described(page: str) -> None:
    assert suggestion(page) == NEEDS_PICTURE


@pytest.mark.parametrize(
    "page",
    ["<a href=b.html><img src=a.jpg></a>", "<a href=b.html><span> <img src=a.jpg></span></a>", "<area href=b.html>",
     "<a href=b.html><img src=spacer.gif></a>", "<a href=b.html><img src=c.jpg width=1 height=1><img src=a.jpg></a>"],
)
def test_picture_that_is_all_of_a_link_names_where_it_leads_and_is_never_empty(page: str) -> None:
    assert suggestion(page) == "Target"


@pytest.mark.parametrize(
    "page",
    ["<a href=b.html>Dogs <img src=a.jpg></a>", "<a href=b.html><img src=c.jpg alt=Dogs><img src=a.jpg></a>",
     "<a href=b.html aria-labelledby=c><img src=a.jpg></a>", "<a href=b.html><img src=c.jpg><img src=a.jpg></a>",
     "<button>Search <img src=a.jpg></button>"],
)
def test_picture_in_a_link_that_has_a_text_gets_an_empty_one(page: str) -> None:
    assert suggestion(page) == ""


def test_picture_of_a_link_whose_destination_is_unknown_is_for_a_person() -> None:
    page = "<a href=#><img src=a.jpg></a>"
    finding = judge(parse([Piece(page, 0)], page).pictures[0].element, lambda link: ("", ""))
    assert finding is not None and finding.alt is None and "where its link leads" in finding.reason


@pytest.mark.parametrize(
    ("page", "expected"),
    [("<input type=image src=a.png value=Search>", "Search"), ("<input type=image src=a.png>", None),
     ("<button title=Search><img src=a.png></button>", "Search"), ("<button><img src=a.png></button>", None)],
)
def test_picture_of_a_button_names_the_button(page: str, expected: str | None) -> None:
    assert suggestion(page) == expected


@pytest.mark.parametrize(
    "page",
    [
        "<img src=a.jpg role=presentation>",
        "<img src=a.jpg role=none>",
        "<img src=a.jpg aria-hidden=true>",
        "<div hidden><img src=a.jpg></div>",
        '<img src=a.jpg style="display: none">',
        "<img src=https://example.org/t.gif width=1 height=1>",
        '<img src=t.gif width="1px" height="1px">',
        "<img src=img/spacer.gif>",
        "<div aria-hidden=true><a href=b.html><img src=a.jpg></a></div>",
    ],
)
def test_decoration_gets_an_empty_text(page: str) -> None:
    assert suggestion(page) == ""


@pytest.mark.parametrize("mark", ["role=presentation", "aria-hidden=true"])
def test_decoration_that_is_all_of_a_link_is_for_a_person(mark: str) -> None:
    assert suggestion(f"<a href=b.html><img src=a.jpg {mark}></a>") is None


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ('<img src=pics/IMG_1.jpg alt="IMG_1.jpg">', "is a file name"),
        ('<img src=pics/IMG_1.jpg alt="IMG_1">', "is a file name"),
        ('<img src=a.jpg alt="b.png">', "is a file name"),
        ('<img src=a.jpg alt="Image">', "says nothing"),
        ('<img src=a.jpg alt="Picture of a dog">', 'begins with "image of"'),
        ('<img src=a.jpg alt=" ">', "only blanks"),
        ('<a href=b.html><img src=a.jpg alt="Our dogs"> Our dogs</a>', "repeats the text"),
        ('<a href=b.html><img src=a.jpg alt=""></a>', "its link has no other text"),
        ('<area href=b.html alt="">', "names a link or a button"),
    ],
)
def test_wrong_text_is_reported_and_not_changed(page: str, problem: str) -> None:
    finding = judged(page)
    assert finding is not None and problem in finding.problem
    assert not finding.is_missing and finding.alt is None


@pytest.mark.parametrize("alt", ["dog", "Route 66", "A picture frame", "Image processing"])
def test_text_like_a_file_name_or_a_placeholder_is_right_if_it_says_something(alt: str) -> None:
    assert judged(f'<img src="dog.jpg" alt="{alt}">') is None


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<figure><img src=a.jpg><figcaption>A red ball on the grass.</figcaption></figure>", True),
        ("<p><img src=a.jpg></p><p>There is grass. On it, a red ball on grass!</p>", True),
        ("<h2>Red ball on grass</h2><img src=a.jpg>", True),
        ("<td><img src=a.jpg> Red ball, grass</td>", True),
        ("<td><img src=a.jpg><script>'Red ball, grass'</script></td>", False),
        ("<td><style>/* red ball grass */</style><img src=a.jpg><div>Red ball, grass</div></td>", True),
        ("<figure><img src=a.jpg><figcaption>A red ball.</figcaption></figure>", False),
        ("<p>A red ball. Grass.</p><img src=a.jpg>", False),
        ("<p>A red ball on grass</p><p>Text</p><img src=a.jpg><p>Text</p>", False),
        ("<img src=a.jpg>", False),
    ],
)
def test_caption_is_repeated_if_a_sentence_next_to_the_picture_has_its_words(page: str, expected: bool) -> None:
    element = parse([Piece(page, 0)], page).pictures[0].element
    assert is_repeated("A red ball on grass", element) == expected


@pytest.mark.parametrize(
    "start",
    ["<td>" + "".join(f"<div>A dog {number}. Cats</div>" for number in range(20_000)), "a dog 7, " * 20_000,
     "A dog 7." + "<div></div>" * 20_000],
    ids=["cell", "text", "empty divs"],
)
def test_time_grows_with_the_page_not_with_pictures_times_what_is_next_to_them(start: str) -> None:
    page = start + '<img src=a.jpg alt="A cat"><img src=a.jpg>' * 1000  # minutes if each picture read the page again
    elements = [picture.element for picture in parse([Piece(page, 0)], page).pictures]
    assert len(elements) == 2000
    for element in elements:
        finding = judge(element, lambda link: ("", ""))
        assert (finding is None) == ("alt" in element.attributes)
        assert is_repeated("The dog 7", element) and not is_repeated("Dogs and cats", element)
