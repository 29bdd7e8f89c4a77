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

LINE = re.compile(r"([^\r\n]*)(?:\r\n?|\n|$)")
PARSED_LINE = re.compile(r"[^\n]*\n|[^\n]+")


class Piece(NamedTuple):
    """A piece of HTML, and where it comes from."""

    html: str
    source: int | None = None
    """Offset in the page's text of the same characters, or of a Markdown picture; None if there is no such place."""
    is_markdown_picture: bool = False


def markdown_pieces(text: str) -> list[Piece]:
    """Return the HTML of a Markdown page: CommonMark with tables. Pictures without alternative text have no `alt`."""
    parser = MarkdownIt("commonmark", {"html": True, "maxNesting": 100}).enable("table")
    parser.inline.ruler.at("image", _with_start(image))
    parser.inline.ruler.at("html_inline", _with_start(html_inline))
    lines = _SourceLines(text)
    pieces = list[Piece]()
    for token in parser.parse(text):
        if token.type == "inline":
            pieces += _inline_pieces(token, lines)
        elif token.type == "html_block":
            pieces += map(Piece, PARSED_LINE.findall(token.content), lines.offsets(token))
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

    def offsets(self, token: Token) -> list[int | None]:
        """Return the offset in the page of each line of a token's content; None for a line that was changed."""
        first = token.map[0] if token.map else 0
        return [self._offset(first + index, line) for index, line in enumerate(token.content.split("\n"))]

    def _offset(self, number: int, content: str) -> int | None:
        stripped = content.lstrip(" ")  # a tab before it may have become spaces
        column = self.lines[number].find(stripped, self.read[number]) if number < len(self.lines) else -1
        if column < 0:
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
