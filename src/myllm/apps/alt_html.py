"""The elements of an HTML page as a tree in which each picture knows its place, its link and the text around it."""

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from html import unescape
from html.parser import HTMLParser
from itertools import accumulate
from typing import NamedTuple

from myllm.apps.alt_markdown import Piece

VOID = frozenset(" ".join((
    "area base br col embed hr img",
    "input link meta param source track wbr",
)).split())
BLOCKS = frozenset(" ".join((
    "address article aside blockquote body caption dd details div dl dt fieldset figcaption figure footer form h1 h2",
    "h3 h4 h5 h6 header hr li main nav ol p pre section table tbody td tfoot th thead title tr ul",
)).split())
# what an element of this name closes if it is open, and the elements beyond which it does not look for that
IMPLIED_ENDS = {
    **dict.fromkeys(BLOCKS - {"body", "title"}, (("p",), ("button", "caption", "table", "td", "th"))),
    "li": (("p", "li"), ("ul", "ol", "menu")), "dt": (("p", "dt", "dd"), ("dl",)), "dd": (("p", "dt", "dd"), ("dl",)),
    "tr": (("tr",), ("table",)), "td": (("td", "th"), ("table", "tr")), "th": (("td", "th"), ("table", "tr")),
    "a": (("a",), ("caption", "table", "td", "th")), "button": (("button",), ("caption", "table", "td", "th")),
}
# what is in them is not shown as elements
INERT = frozenset(" ".join((
    "iframe noembed noframes script",
    "style template textarea title xmp",
)).split())
# names like :alt, v-bind:alt, [attr.alt] and th:alt, and those that set several attributes
ALT_BINDING = re.compile(r"(?<![a-z])(?<!data-)alt(?:[\].].*|-title)?$")
# names like :href, v-bind:href, [href], th:href and [routerLink]
HREF_BINDING = re.compile(r"(?<![a-z])(?<!data-)(?:href|routerlink)[\]}]?$")
BINDINGS = ("v-bind", "x-bind", "th:attr", "data-th-attr", "data-bind")
# Between these, { and < begin template code. Values with PHP or ERB are left out: its quotes may end a value too early.
QUOTED_VALUE = re.compile(r"""=\s*(?:"(?:(?!<[?%])[^"])*"|'(?:(?!<[?%])[^'])*')""")
# conditions of Vue, Angular, Alpine and Thymeleaf
CONDITION = re.compile(r"(?:(?:data-)?(?:v|x|ng)-|\*ng|th:)(?:if|unless|else|show|hide|switch)")
TEMPLATE_CODE = re.compile(r"\{|<[?%]")
# template code that is no text: {% if x %}, {{#if x}}, {{ if .X }}, {{> icon}}, <% if x %>, @if (x) {
CONTROL_CODE = re.compile(
    r"(?<!\{)\{(?!\{)|\{\{[-~]?\s*(?:[#^/>!]|(?:block|define|else|end|if|partial|range|template|with)\b)|<\?|<%(?!=)"
)
UNFINISHED_TAG = re.compile("</?[a-zA-Z]")
ROUTER_LINKS = ("router-link", "nuxt-link")
MAX_DEPTH = 128  # deeper elements become neighbours


class Sentences:
    """The sentences of a text, found by their words."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.has_words = re.search(r"\w", text) is not None

    def has_together(self, words: Collection[str]) -> bool:
        """Return whether a sentence has all the words, of which there is at least one, in lower case."""
        indices = [self._indices_by_word.get(word, set()) for word in words]
        return bool(set.intersection(*sorted(indices, key=len)))

    @cached_property
    def _indices_by_word(self) -> dict[str, set[int]]:
        result = defaultdict[str, set[int]](set)
        for index, sentence in enumerate(re.split(r"[.!?;\n]", self.text.lower())):
            for word in words_of(sentence):
                result[word].add(index)
        return result


def words_of(text: str) -> set[str]:
    """Return the words of a text, in lower case."""
    return set(re.findall(r"\w+", text.lower()))


class Element:
    """An element with its attributes (names in lower case) and children; the root has the tag ""."""

    def __init__(
        self, tag: str, attributes: dict[str, str], parent: "Element | None", position: int = 0, start_tag: str = ""
    ) -> None:
        self.tag, self.attributes, self.parent, self.position = tag, attributes, parent, position
        self.start_tag = start_tag
        """Its start tag as the page has it."""
        self.children = list[Element | str]()
        self.index = len(parent.children) if parent else 0
        """Index among the children of its parent."""
        self.depth: int = parent.depth + 1 if parent else 0

    def get(self, name: str) -> str:
        """Return an attribute without blanks around it; "" if it is missing."""
        return self.attributes.get(name, "").strip()

    @property
    def role(self) -> str:
        """Its first role, in lower case."""
        return next(iter(self.get("role").lower().split()), "")

    @property
    def is_aria_hidden(self) -> bool:
        """Whether its own aria-hidden hides it from screen readers."""
        return self.get("aria-hidden").lower() == "true"

    @property
    def is_shown(self) -> bool:
        """Whether it is shown when the page opens, as far as its own attributes say."""
        style = "".join(self.get("style").lower().split())
        return not ("hidden" in self.attributes or "display:none" in style or "visibility:hidden" in style)

    def ancestors(self) -> Iterator["Element"]:
        """Yield the element itself, its parent and so on."""
        element: Element | None = self
        while element is not None:
            yield element
            element = element.parent

    def closest(self, tags: Collection[str]) -> "Element | None":
        """Return the nearest of `ancestors` with one of these tags."""
        return next((element for element in self.ancestors() if element.tag in tags), None)

    def descendants(self) -> Iterator["Element | str"]:
        """Yield what is in the element, in order of the page; not what is in inert elements."""
        rest = self.children[::-1]
        while rest:
            child = rest.pop()
            yield child
            if isinstance(child, Element) and child.tag not in INERT:
                rest += child.children[::-1]

    @cached_property
    def text(self) -> str:
        """Its text as it is seen, with a line end around blocks."""
        return _joined(self, with_names=False)

    @cached_property
    def line(self) -> str:
        """Its text in one line, in lower case."""
        return " ".join(self.text.split()).lower()

    @cached_property
    def sentences(self) -> Sentences:
        """The sentences of its text."""
        return Sentences(self.text)

    @cached_property
    def sentences_of_children(self) -> list[tuple[int, Sentences]]:
        """The indices of the children that show words, and their sentences."""
        read = (
            (index, Sentences(child) if isinstance(child, str) else child.sentences)
            for index, child in enumerate(self.children) if isinstance(child, str) or child.tag not in INERT
        )
        return [(index, sentences) for index, sentences in read if sentences.has_words]

    @cached_property
    def name(self) -> str:
        """Its text as it is read aloud: alternative texts and labels included, hidden elements not."""
        return _joined(self, with_names=True)

    @cached_property
    def has_conditions(self) -> bool:
        """Whether a template or a script decides what of its content is shown."""
        elements = (child for child in self.descendants() if isinstance(child, Element))
        is_bound = any(CONDITION.match(name) for child in elements for name in child.attributes)
        return is_bound or CONTROL_CODE.search(self.name) is not None


def _joined(element: Element, with_names: bool) -> str:
    parts, rest = list[str](), element.children[::-1]
    while rest:
        child = rest.pop()
        if isinstance(child, str):
            parts.append(child)
            continue
        is_label = with_names and child.tag == "title"  # of an SVG drawing
        is_silent = with_names and (child.is_aria_hidden or not child.is_shown)
        if (child.tag in INERT and not is_label) or is_silent:
            continue
        if with_names:
            parts.append(f" {child.get('aria-label') or child.get('alt')} ")
        if child.tag in BLOCKS or child.tag == "br":
            parts.append("\n")
            rest.append("\n")
        rest += child.children[::-1]
    lines = (" ".join(line.split()) for line in "".join(parts).split("\n"))
    return "\n".join(line for line in lines if line)


class Picture(NamedTuple):
    """A picture of a page, or another element that needs a text in place of a picture."""

    element: Element
    line: int
    """Counted from 1."""
    insert_at: int | None
    """Offset in the page's text where an alternative text can be inserted; None if there is no such place."""
    is_markdown: bool
    """Whether it is written as ![](picture.png)."""


class Tree(NamedTuple):
    """A page: all elements below a root, the pictures in order, and the address that relative ones start from."""

    root: Element
    pictures: list[Picture]
    base: str


def parse(pieces: Sequence[Piece], text: str) -> Tree:
    """Return the tree of a page's HTML; `text` is the page that the pieces' sources are offsets in."""
    builder = _TreeBuilder()
    html = "".join(piece.html for piece in pieces)
    builder.line_starts = [0, *(match.end() for match in re.finditer("\n", html))]
    builder.feed(html)
    if UNFINISHED_TAG.match(builder.rawdata):  # browsers leave it out, too; `close` would look for its end at each "<"
        builder.rawdata = ""
    builder.close()
    starts = list(accumulate((len(piece.html) for piece in pieces), initial=0))
    newlines = [match.start() for match in re.finditer("\r\n?|\n", text)]
    pictures = []
    for element in builder.pictures:
        index = bisect_right(starts, element.position) - 1
        piece = pieces[index]
        source = None if piece.source is None else piece.source + element.position - starts[index]
        skipped = len("![") if piece.is_markdown_picture else 1 + len(element.tag)
        insert_at = None if source is None else source + skipped
        line = bisect_right(newlines, piece.block if source is None else source) + 1
        pictures.append(Picture(element, line, insert_at, piece.is_markdown_picture))
    return Tree(builder.root, pictures, builder.base)


class _TreeBuilder(HTMLParser):
    """Builds the tree as browsers do in the usual cases of missing end tags."""

    CDATA_CONTENT_ELEMENTS = tuple(sorted(INERT - {"template"}))  # type: ignore[misc]  # Python 3.11 has two

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self.open = Element("", {}, None)
        self.counts = Counter[str]()
        """How many elements of a name are open."""
        self.pictures = list[Element]()
        self.base = ""
        self.line_starts = [0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Add an element; open it if it can have children."""
        for closed, barriers in [IMPLIED_ENDS[tag]] if tag in IMPLIED_ENDS else []:
            self._end(closed, barriers)
        line, column = self.getpos()
        attributes = {name: value or "" for name, value in reversed(attrs)}  # the first of equal names counts
        position = self.line_starts[line - 1] + column
        element = Element(tag, attributes, self.open, position, self.get_starttag_text() or "")
        self.open.children.append(element)
        is_inert = any(self.counts[name] for name in INERT)
        if tag == "base" and "href" in attributes and not self.base and not is_inert:
            self.base = element.get("href")
        if _needs_name(element) and not is_inert:
            self.pictures.append(element)
        if tag not in VOID and element.depth < MAX_DEPTH:
            self.open = element
            self.counts[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost open element of this name, and what is in it."""
        self._end((tag,), ())

    def handle_data(self, data: str) -> None:
        """Add text."""
        is_escaped = self.cdata_elem in ("textarea", "title")
        self.open.children.append(unescape(data) if is_escaped else data)

    def parse_marked_section(self, i: int, report: int = 1) -> int:
        """Read <![...> as browsers do, as a comment; the base class raises AssertionError for unknown ones."""
        return self.parse_bogus_comment(i)

    def _end(self, tags: Collection[str], barriers: Collection[str]) -> None:
        if not any(self.counts[tag] for tag in tags):
            return
        for element in self.open.ancestors():
            if element.tag in barriers:
                return
            if element.tag in tags:
                while self.open is not element.parent:
                    self.counts[self.open.tag] -= 1
                    assert self.open.parent is not None
                    self.open = self.open.parent
                return


def has_alt_of_template(element: Element) -> bool:
    """Return whether a template may write an alt into the element's start tag, or a script that binds attributes."""
    has_binding = any(name in BINDINGS or ALT_BINDING.search(name) for name in element.attributes)
    return has_binding or re.search("[{<]", QUOTED_VALUE.sub("", element.start_tag)[1:]) is not None


def has_bound_address(link: Element) -> bool:
    """Return whether a template or a script gives a link its address."""
    names = link.attributes.keys() - {"href"}
    return link.tag in ROUTER_LINKS or any(name in BINDINGS or HREF_BINDING.search(name) for name in names)


def _needs_name(element: Element) -> bool:
    """Whether it is a picture, or stands for one."""
    if element.tag == "input":
        return element.get("type").lower() == "image"
    if element.tag == "area":
        return "href" in element.attributes
    return element.tag == "img" or element.role in ("img", "image")
