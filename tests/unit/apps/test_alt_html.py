"""Pictures of HTML and Markdown pages are found where they are; marks in the pages show where that is."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.apps.alt_html import Element, Picture, parse
from myllm.apps.alt_markdown import Piece, markdown_pieces
from myllm.apps.alt_pages import Page, PageFile


def with_marks(text: str, pictures: list[Picture]) -> str:
    """Return the page with a ^ where an alternative text would be inserted."""
    for picture in reversed(pictures):
        assert picture.insert_at is not None
        text = f"{text[: picture.insert_at]}^{text[picture.insert_at :]}"
    return text


HTML_PAGES = [
    "<p><img^ src=a.jpg>\n<IMG^ SRC='b.jpg'/><img^/src=c.jpg></p>",
    "<!-- <img src=no> --><script>'<img src=no>'</script><style>/*<img src=no>*/</style><img^ src=a>",
    "<template><div><img src=no></div></template><textarea><img src=no></textarea><img^ src=a>",
    "<p title='<img src=no>' data-x=\"<img src=no>\">&lt;img src=no><img^ src='>' title=\"\n\">",
    "<![if IE]><img^ src=a><![endif]><!doctype x><?php echo '<img src=no'; ?><img^ src=b>",
    "</p></div><b><i></b><img^ src=a></i><table><tr><td><img^ src=b><tr><td></p><img^ src=c>",
    "<input^ type=IMAGE src=a><input type=text><map><area^ href=a><area shape=default></map><svg^ role=img></svg>",
    "<img^ src=a>\0\r\n<img^ src=b>\rtail <img src='no",
    "<title><!-- </title><textarea></div><!-- <img src=no></textarea><img^ src=a><iframe><!-- </iframe><img^ src=b>",
    "<span^ role=IMG></span><span^ role='image text'></span>",
    "<" + "div><" * 2000 + "img^ src=a>",
]


@pytest.mark.parametrize("marked", HTML_PAGES)
def test_html_pictures_are_found_and_what_only_looks_like_one_is_not(marked: str) -> None:
    page = marked.replace("^", "")
    assert with_marks(page, parse([Piece(page, 0)], page).pictures) == marked


MARKDOWN_PAGES = [
    "![^](a.png) text ![^](<b c.png>)",
    "# A ![^](a.png) #\n\nB\n![^](b.png)\n===\n",
    "> - ![^](a.png)\n>   ![^](b.png)\n> \n>   1. ![^][r]\n\n[r]: c.png\n",
    "```\n![](no.png)\n```\n\n~~~html\n<img src=no>\n~~~\n\n    ![](no.png)\n\n`![](no.png)` ![^](a.png)",
    "<!-- ![](no.png) <img src=no> -->\n\n\\![](no.png) ![^](a.png)",
    "| a | ![^](a.png) |\n|---|---|\n| ![^](a.png) | ![^](a.png) |\n",
    "<p align=center>\n  <img^ src=a.png>\n</p>\n\ntext <img^ src=b.png> <b>![^](c.png)</b>\n",
    "- <div>\n  <img^ src=a.png>\n  </div>\n",
    "text\r\n\r\n![^](a.png)\r\n> ![^](b.png)\r\n",
    "[![^](a.png)](b.md) ![text](no.png) ![r]\n\n[r]: no.png",
    "-\t![^](a.png)\n\n\ttext ![^](b.png)\n",
    "\0 ![^](a.png)\n",
    "---\n# comment\ntitle: A dog\ncover: \"<img src='no'>\"\n---\n![^](a.png)\n",
    "+++\r\ntitle = 'A dog'\r\ncover = '![](no.png)'\r\n+++\r\n![^](a.png)\r\n",
    "---\n\ntitle: ![^](a.png)\n\n---\n",
]


@pytest.mark.parametrize("marked", MARKDOWN_PAGES)
def test_markdown_pictures_without_text_are_found_outside_of_code(marked: str) -> None:
    page = marked.replace("^", "")
    pictures = [picture for picture in parse(markdown_pieces(page), page).pictures if not picture.element.get("alt")]
    assert with_marks(page, pictures) == marked


def test_markdown_picture_whose_place_is_not_certain_has_none() -> None:
    page = "| a |\n|---|\n| x \\| ![](a.png) |\n"
    assert [picture.insert_at for picture in parse(markdown_pieces(page), page).pictures] == [None]


def test_markdown_picture_in_the_cell_after_one_that_was_changed_is_in_its_own_place() -> None:
    page = "![](a.png)\n\n| a | b |\n|---|---|\n| x \\| ![](a.png) | ![](a.png) |\n"
    pictures = parse(markdown_pieces(page), page).pictures[1:]
    assert [picture.line for picture in pictures] == [5, 5]
    assert [picture.insert_at for picture in pictures] == [None, page.rindex("](a.png)")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("is_markdown", [True, False])
def test_line_of_a_picture_is_counted_for_every_kind_of_line_end(end: str, is_markdown: bool) -> None:
    page = end.join(["text", "", "<img src=a>", "<img src=b>", "", "x", ""])
    pieces = markdown_pieces(page) if is_markdown else [Piece(page, 0)]
    assert [picture.line for picture in parse(pieces, page).pictures] == [3, 4]


PARTS = ["<img src=a>", "![](a.png)", "[", "](b)", "`", "> ", "- ", "\n", "\n\n", "<p>", "</p>", "<!--", "-->", "| ",
         "\t", "    ", "```\n", "<a href=b>", "</a>", "word ", "# ", "\\", "&lt;", "<script>", "</script>", "\r\n",
         "|---|\n"]


@given(st.lists(st.sampled_from(PARTS), max_size=30).map("".join), st.booleans())
def test_pictures_of_any_page_are_where_the_page_has_a_picture(page: str, is_markdown: bool) -> None:
    pieces = markdown_pieces(page) if is_markdown else [Piece(page, 0)]
    for picture in parse(pieces, page).pictures:
        if picture.insert_at is not None:
            assert re.search(r"!\[$|<img$", page[: picture.insert_at])


@pytest.mark.parametrize("rest", ["<a " * 20_000, "<img src='b" * 20_001, "</p", "<b title=c"])
def test_a_tag_that_the_page_ends_in_is_left_out(rest: str) -> None:
    page = f"<p>text <img src=a>{rest}"
    tree = parse([Piece(page, 0)], page)
    assert [picture.element.get("src") for picture in tree.pictures] == ["a"] and tree.root.text == "text"


@pytest.mark.parametrize("is_markdown", [True, False])
def test_front_matter_is_a_title_and_no_text(is_markdown: bool) -> None:
    page = "---\ntitle: 'A & B'\ncover: \"<img src='no'>\"\n---\n\n<img src=a>\n"
    file = PageFile(Path("a.md" if is_markdown else "a.html"), Path())
    tree = Page(file, page.encode(), b"", "utf-8", page).tree
    titles = [element for element in tree.root.descendants() if isinstance(element, Element) and element.tag == "title"]
    assert [title.text for title in titles] == ["A & B"] and tree.root.text == "" and tree.pictures[0].line == 6


def test_a_button_ends_the_button_before_it() -> None:
    page = "<button>one" * 300 + "<button><img src=a>"
    element = parse([Piece(page, 0)], page).pictures[0].element
    assert element.parent is not None and element.parent.text == ""


def test_text_around_a_picture_is_that_of_its_block_although_end_tags_are_left_out() -> None:
    page = "<ul><li>one<li><img src=a> two<p>three<table><tr><td>four<td>five</table>"
    element = parse([Piece(page, 0)], page).pictures[0].element
    item = element.closest(["li"])
    assert item is not None and item.text.split() == ["two", "three", "four", "five"]
    assert item.parent is not None and item.parent.text.split()[0] == "one"
