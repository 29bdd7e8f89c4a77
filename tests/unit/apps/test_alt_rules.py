"""What is wrong with a picture on a page: one page for each rule; the right answers are written by hand."""

import pytest

from myllm.apps.alt_html import parse
from myllm.apps.alt_markdown import Piece
from myllm.apps.alt_rules import MISSING, OF_TEMPLATE, Finding, is_repeated, judge, judge_unreadable
from myllm.errors import DataError

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
     "<noscript><img src=a.jpg></noscript>", "<img src=spacer.gif>", "<img src=a.jpg width=1 height=1>"],
)
def test_picture_without_text_that_is_no_link_is_described(page: str) -> None:
    assert suggestion(page) == NEEDS_PICTURE


@pytest.mark.parametrize(
    "page",
    ["<a href=b.html><img src=a.jpg></a>", "<a href=b.html>&nbsp;&#8203;<i>&#xf015;</i><img src=a.jpg></a>",
     "<a href=b.html><span> <img src=a.jpg></span></a>", "<area href=b.html>",
     "<a href=b.html><img src=spacer.gif></a>", "<a href=b.html><img src=c.jpg width=1 height=1><img src=a.jpg></a>"],
)
def test_picture_that_is_all_of_a_link_names_where_it_leads_and_is_never_empty(page: str) -> None:
    assert suggestion(page) == "Target"


@pytest.mark.parametrize(
    "page",
    ["<a href=b.html>Dogs <img src=a.jpg></a>", "<a href=b.html><img src=c.jpg alt=Dogs><img src=a.jpg></a>",
     "<a href=b.html aria-labelledby=c><img src=a.jpg></a>", "<a href=b.html><img src=c.jpg><img src=a.jpg></a>",
     "<button>Search <img src=a.jpg></button>", "<a href='{{ url }}'><img src=a.jpg> {{ title }}</a>"],
)
def test_picture_in_a_link_that_has_a_text_gets_an_empty_one(page: str) -> None:
    assert suggestion(page) == ""


@pytest.mark.parametrize(
    "page",
    ["<div style='display: none' id=slide2><img src=a.jpg></div>", "<section hidden><img src=a.jpg></section>",
     "<img src=a.jpg hidden>", "<img src=a.jpg style='visibility:hidden'>"],
)
def test_picture_that_is_not_shown_at_first_is_described_because_tabs_and_carousels_show_it_later(page: str) -> None:
    assert suggestion(page) == NEEDS_PICTURE


def test_text_of_a_picture_that_is_not_shown_at_first_is_judged() -> None:
    finding = judged('<div hidden><img src=a.jpg alt="IMG_1.jpg"></div>')
    assert finding is not None and "is a file name" in finding.problem


@pytest.mark.parametrize(
    "page",
    ["<a href=b.html><span hidden>Dogs</span><img src=a.jpg></a>", "<a href=b.html hidden><img src=a.jpg></a>",
     "<a href=b.html><img src=a.jpg><img src=b.jpg hidden></a>",
     "<a href=b.html><img src=b.jpg style='display:none'><img src=a.jpg></a>"],
)
def test_link_whose_other_content_is_not_shown_is_named_by_its_picture(page: str) -> None:
    assert suggestion(page) == "Target"


@pytest.mark.parametrize(
    "attributes",
    [
        '{% if x %}alt="Our dog Rex"{% endif %}', '{% if a > b %}alt="Our dog Rex"{% endif %}', "{{ attributes }}",
        '{{#if x}}alt="{{x}}"{{/if}}', "<?php if ($x): ?>alt='Rex'<?php endif; ?>", "<%= attributes %>",
        "<c:if test='${x}'>alt='Rex'</c:if>", "[% IF x %]alt='Rex'[% END %]", "{alt}", "{...properties}",
        "width={a > b ? 1 : 2} alt={x}", ':alt="x"', 'v-bind:alt="x"', 'v-bind="x"', '[alt]="x"', '[attr.alt]="x"',
        'bind-alt="x"', 'ng-attr-alt="{{x}}"', 'th:alt="${x}"', 'data-th-alt="${x}"', 'th:attr="alt=${x}"',
        'bind:alt="x"', 'x-bind:alt="x"', 'alt.bind="x"', 'data-bind="attr: {alt: x}"',
        'class="<?php x("y"); ?>" alt="Rex"',
    ],
)
@pytest.mark.parametrize("page", ["<img src=a.jpg {}>", "<a href=b.html><img {} src=a.jpg></a>", "<p hidden><img {}>"])
def test_picture_whose_alt_a_template_may_make_is_left_to_a_person(page: str, attributes: str) -> None:
    finding = judged(page.replace("{}", attributes))
    assert finding is not None and (finding.problem, finding.alt) == (OF_TEMPLATE, None)
    assert "made by a template" in finding.reason and not finding.is_missing


@pytest.mark.parametrize(
    "attributes",
    ['class="{{ x }}"', "data-x='{\"a\": 1}'", ":class=x", "data-alt=Dog", "data-alt-src=b.jpg", 'data-x="1 < 2"',
     "salt=x", "data-x = 'a > {b'"],
)
def test_picture_whose_other_attributes_a_template_makes_is_described(attributes: str) -> None:
    assert suggestion(f"<img src=a.jpg {attributes}>") == NEEDS_PICTURE


def test_alt_in_a_template_is_kept() -> None:
    assert judged("<img src=a.jpg alt={x}>") is judged('<img src=a.jpg alt="{{ x }}">') is None


def test_picture_of_a_link_whose_destination_is_unknown_is_for_a_person() -> None:
    page = "<a href=#><img src=a.jpg></a>"
    finding = judge(parse([Piece(page, 0)], page).pictures[0].element, lambda link: ("", ""))
    assert finding is not None and finding.alt is None and "where its link leads" in finding.reason


@pytest.mark.parametrize(
    ("page", "expected"),
    [("<input type=image src=a.png value=Search>", "Search"), ("<input type=image src=a.png>", None),
     ("<input type=image src=a.png value='{{ _(1) }}'>", None), ("<button title={x}><img src=a.png></button>", None),
     ("<button title=Search><img src=a.png></button>", "Search"), ("<button><img src=a.png></button>", None)],
)
def test_picture_of_a_button_names_the_button(page: str, expected: str | None) -> None:
    assert suggestion(page) == expected


@pytest.mark.parametrize(
    "page",
    [
        "<img src=a.jpg role=presentation>",
        "<img src=a.jpg role='NONE presentation'>",
        "<img src=a.jpg aria-hidden=true>",
        "<section aria-hidden=TRUE><img src=a.jpg></section>",
        "<div aria-hidden=true><a href=b.html><img src=a.jpg></a></div>",
    ],
)
def test_decoration_gets_an_empty_text(page: str) -> None:
    assert suggestion(page) == ""


def unreadable(page: str, error: Exception) -> str | None:
    """Return the suggested text for the picture of a page if its file cannot be read."""
    return judge_unreadable(parse([Piece(page, 0)], page).pictures[0].element, error).alt


@pytest.mark.parametrize(
    "page",
    ["<img src=https://example.org/t.gif width=1 height=1>", '<img src=t.gif width="1px" height="1px">',
     "<img src=count.php height=0>"],
)
@pytest.mark.parametrize("error", [FileNotFoundError("gone"), DataError("broken or remote")])
def test_picture_that_cannot_be_read_is_a_spacer_by_its_size(page: str, error: Exception) -> None:
    assert unreadable(page, error) == ""


def test_picture_is_a_spacer_by_its_name_only_if_its_file_is_missing() -> None:
    for page in ("<img src=img/spacer.gif>", "<img src=/Pixel.png srcset='dot.png 2x'>"):
        assert unreadable(page, FileNotFoundError("gone")) == ""
        assert unreadable(page, DataError("broken or remote")) is None


@pytest.mark.parametrize(
    "page",
    ["<img src=a.jpg>", "<img src=spacer.gif data-src=a.jpg>", "<img src=spacer.gif srcset=a.jpg>", "<img>",
     "<picture><source srcset=a.jpg><img src=spacer.gif></picture>", "<img src=spacer.gif data-srcset='a.jpg 2x'>",
     "<img src=a.jpg width=0 height=0 style='width:100%; height:auto'>"],
)
def test_picture_that_cannot_be_read_is_for_a_person_if_it_may_show_something(page: str) -> None:
    assert unreadable(page, FileNotFoundError("gone")) is None


@pytest.mark.parametrize(
    "content",
    ["{% if a %}<img src=a>{% else %}Dogs{% endif %}", "{{#if a}}<img src=a>{{else}}Dogs{{/if}}",
     "{{- if .A }}<img src=a>{{ else }}Dogs{{ end }}", "<% if a %><img src=a><% else %>Dogs<% end %>",
     "@if (a) {<img src=a>} @else {Dogs}", "{{> icon}}<img src=a>", "<img v-if=a src=a><b v-else>Dogs</b>",
     "<img *ngIf=a src=a><b>Dogs</b>", "<img src=a th:if='${a}'><b>Dogs</b>"],
)
def test_picture_whose_link_has_a_text_only_by_a_condition_is_for_a_person(content: str) -> None:
    assert suggestion(f"<a href=b.html>{content}</a>") is None
    assert suggestion(f"<button>{content}</button>") is None


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
        ('<img src=a.jpg alt="&#8203;">', "only blanks"),
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
