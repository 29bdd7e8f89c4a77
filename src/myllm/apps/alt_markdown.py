"""Markdown as HTML whose pieces know their place in the Markdown, so that pictures can be changed there."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from html import escape
from itertools import accumulate
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.parser_inline import RuleFuncInlineType
from markdown_it.rules_inline import StateInline, html_inline, image
from markdown_it.token import Token

FRONT_MATTER = re.compile(
    r"(---|\+\+\+)[ \t]*\r?\n(?:[ \t]*#.*\n)*[\w\"'.-]+[ \t]*[:=].*\n(?:.*\n)*?(?:\1|\.\.\.)[ \t]*\r?(?:\n|$)"
)
LINE = re.compile(r"([^\r\n]*)(?:\r\n?|\n|$)")
PARSED_LINE = re.compile(r"[^\n]*\n|[^\n]+")


class Piece(NamedTuple):
    """A piece of HTML, and where it comes from."""

    html: str
    source: int | None = None
    """Offset in the page's text of the same characters, or of a Markdown picture; None if there is no such place."""
    is_markdown_picture: bool = False
    block: int = 0
    """Offset of the block that it is in, for pieces without a source."""


def front_matter(text: str) -> tuple[int, str]:
    """Return the length of a page's front matter, as Jekyll and Hugo read it, and the title in it."""
    match = FRONT_MATTER.match(text)
    title = None if match is None else re.search(r"^title[ \t]*[:=][ \t]*(.*?)[ \t]*$", match[0], re.MULTILINE)
    return 0 if match is None else match.end(), "" if title is None else title[1].strip("\"'\r")


def title_pieces(title: str) -> list[Piece]:
    """Return the HTML of a title that is not in the page's text."""
    return [Piece(f"<title>{escape(title)}</title>\n")] * bool(title)


def markdown_pieces(text: str) -> list[Piece]:
    """Return the HTML of a Markdown page: CommonMark with tables. Pictures without alternative text have no `alt`."""
    parser = MarkdownIt("commonmark", {"html": True, "maxNesting": 100}).enable("table")
    parser.inline.ruler.at("image", _with_start(image))
    parser.inline.ruler.at("html_inline", _with_start(html_inline))
    lines = _SourceLines(text)
    end, title = front_matter(text)
    pieces = title_pieces(title)
    for token in parser.parse(re.sub(r"[^\r\n]", "", text[:end]) + text[end:]):
        if token.type == "inline":
            start = lines.start(token)
            pieces += (piece._replace(block=start) for piece in _inline_pieces(token, lines))
        elif token.type == "html_block":
            html = zip(PARSED_LINE.findall(token.content), lines.offsets(token), strict=False)
            pieces += (Piece(line, offset, block=lines.start(token)) for line, offset in html)
        elif token.nesting and not token.hidden:
            pieces.append(Piece(f"<{'/' * (token.nesting < 0)}{token.tag}>\n"))
        else:
            pieces.append(Piece(f"<pre>{escape(token.content)}</pre>" if token.content else "\n"))
    return pieces


def _with_start(rule: RuleFuncInlineType) -> RuleFuncInlineType:
    """Return a rule of the parser that also notes where its token starts."""

    def noting(state: StateInline, silent: bool) -> bool:
        start = state.pos
        matches = rule(state, silent)
        if matches and not silent:
            state.tokens[-1].meta["start"] = start
        return matches

    return noting


class _SourceLines:
    """The lines of a Markdown page; the parser reports lines, and their content without marks like "> "."""

    def __init__(self, text: str) -> None:
        matches = list(LINE.finditer(text))
        self.lines = [match[1].replace("\0", "\ufffd") for match in matches]  # as the parser does
        self.starts = [match.start() for match in matches]
        self.read = [0] * len(self.lines)
        """For each line, the end of what was found in it; the next cell of a table comes after it."""

    def start(self, token: Token) -> int:
        """Return the offset in the page of a token's first line."""
        return self.starts[token.map[0]] if token.map else 0

    def offsets(self, token: Token) -> list[int | None]:
        """Return the offset in the page of each line of a token's content; None for a line that was changed."""
        first = token.map[0] if token.map else 0
        return [self._offset(first + index, line) for index, line in enumerate(token.content.split("\n"))]

    def _offset(self, number: int, content: str) -> int | None:
        stripped = content.lstrip(" ")  # a tab before it may have become spaces
        if number >= len(self.lines):
            return None
        column = self.lines[number].find(stripped, self.read[number])
        if column < 0:  # perhaps a cell of a table, in which the parser changes \\|
            escaped = stripped.replace("|", "\\|")
            column = self.lines[number].find(escaped, self.read[number])
            if column >= 0:
                self.read[number] = column + len(escaped)
            return None
        self.read[number] = column + len(stripped)
        return self.starts[number] + column - (len(content) - len(stripped))


def _inline_pieces(block: Token, lines: _SourceLines) -> Iterator[Piece]:
    offsets = lines.offsets(block)
    starts = list(accumulate((len(line) + 1 for line in block.content.split("\n")), initial=0))

    def source(start: int) -> int | None:
        line = bisect_right(starts, start) - 1
        offset = offsets[line]
        return None if offset is None else offset + start - starts[line]

    for token in block.children or ():
        if token.type == "image":
            yield Piece(_tag("img", token, ("src", "title"), token.content), source(token.meta["start"]), True)
        elif token.type == "html_inline":
            start = token.meta["start"]
            for line in PARSED_LINE.findall(token.content):
                yield Piece(line, source(start))
                start += len(line)
        elif token.type == "link_open":
            yield Piece(_tag("a", token, ("href", "title")))
        elif token.nesting:
            yield Piece(f"<{'/' * (token.nesting < 0)}{token.tag}>")
        else:
            yield Piece(escape(token.content) or "\n")  # a line break has no content


def _tag(name: str, token: Token, names: Sequence[str], alt: str = "") -> str:
    attributes = {key: str(token.attrs[key]) for key in names if key in token.attrs}
    if alt.strip():
        attributes["alt"] = alt
    return " ".join([f"<{name}", *(f'{key}="{escape(value)}"' for key, value in attributes.items())]) + ">"
