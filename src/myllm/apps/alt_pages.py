"""HTML and Markdown files: find and read them, and fill in alternative texts with every other byte unchanged."""

import codecs
import html
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import diff_bytes, unified_diff
from functools import cached_property
from pathlib import Path
from posixpath import normpath
from urllib.parse import unquote, urlsplit

from myllm.apps.alt_html import Picture, Tree, parse
from myllm.apps.alt_markdown import Piece, front_matter, markdown_pieces, title_pieces
from myllm.errors import DataError, MyLLMError
from myllm.files import atomic_write, read_data

HTML_SUFFIXES, MARKDOWN_SUFFIXES = (".html", ".htm", ".xhtml"), (".md", ".markdown")
SKIPPED_FOLDERS = ("node_modules",)
MAX_PAGE_BYTES = 2**24
BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
CHARSET = re.compile(
    rb"""<meta\b[^>]*?\bcharset\s*=\s*["']?\s*([\w.:-]+)|<\?xml\b[^>]*?\bencoding\s*=\s*["']([\w.:-]+)""", re.IGNORECASE
)
# what browsers take for these (https://encoding.spec.whatwg.org)
READ_AS = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "big5": "big5hkscs", "euc_kr": "cp949", "iso-8859-8-i": "iso8859-8",
    **dict.fromkeys(("utf-16", "utf-16-le", "utf-16-be", "unicode"), "utf-8"),
    **dict.fromkeys(("gb2312", "gbk", "x-gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "x-sjis", "windows-31j"), "cp932"),
    **dict.fromkeys(("iso8859-11", "tis-620", "windows-874"), "cp874"),
}
# characters that mean something in a Markdown text
MARKDOWN_MARKS = re.compile(r"([\\`*_\[\]<>&|$~])")


@dataclass(frozen=True)
class PageFile:
    """An HTML or Markdown file, and the folder that addresses like /img/dog.jpg start from."""

    path: Path
    root: Path


@dataclass(frozen=True)
class Page:
    """A page that was read."""

    file: PageFile
    content: bytes = field(repr=False)
    mark: bytes
    """Its byte order mark."""
    encoding: str
    text: str = field(repr=False)
    """Its content after the mark."""

    @property
    def path(self) -> Path:
        """The page's file."""
        return self.file.path

    @cached_property
    def tree(self) -> Tree:
        """Its elements."""
        if self.path.suffix.lower() in MARKDOWN_SUFFIXES:
            return parse(markdown_pieces(self.text), self.text)
        end, title = front_matter(self.text)
        return parse([*title_pieces(title), Piece(self.text[end:], end)], self.text)

    def local_path(self, address: str) -> Path:
        """Return the file that an address on the page leads to, without a query. Raises DataError if it is elsewhere.

        The file need not exist.
        """
        try:
            base, url = urlsplit(self.tree.base), urlsplit(address.replace("\\", "/"))  # as browsers do
        except ValueError as error:
            raise DataError(f"its address cannot be read ({error})") from None
        start = url if url.scheme or url.netloc else base
        if start.netloc or start.scheme in ("http", "https"):
            raise DataError("it is on another server; web addresses are not downloaded")
        if start.scheme:
            raise DataError(f"its address begins with {start.scheme}:")
        if not url.path:
            raise DataError("it has no address")
        raw = url.path if url.path.startswith("/") else base.path[: base.path.rfind("/") + 1] + url.path
        folder = self.path.parent
        if raw.startswith("/"):
            folder, raw = self.file.root, normpath(raw)  # ".." does not lead out of a site
        decoded, literal = (
            folder / path.lstrip("/") for path in (unquote(raw, errors="surrogateescape").replace("\0", "\ufffd"), raw)
        )
        return literal if not _exists(decoded) and _exists(literal) else decoded


def find_pages(words: Sequence[str]) -> Iterator[PageFile | DataError]:
    """Yield the pages of the given files and folders, each once, and an error for each that cannot be listed.

    Raises DataError for a word that is neither a page nor a folder with pages.
    """
    known = set[Path]()
    for word in words:
        for file in _pages_of(word):
            key = file.path.resolve() if isinstance(file, PageFile) else None
            if key is None or key not in known:
                yield file
            known |= {key} if key is not None else set()


def _pages_of(word: str) -> Iterator[PageFile | DataError]:
    path = Path(word)
    if "://" in word:
        raise DataError(f"{word}: web addresses are not downloaded; save the page with its pictures and give its path")
    if not _exists(path):
        raise DataError(f"{word}: no such file or folder")
    suffixes = (*HTML_SUFFIXES, *MARKDOWN_SUFFIXES)
    if not path.is_dir():
        if path.suffix.lower() not in suffixes:
            raise DataError(f"{word}: not a page; expected a name that ends in {', '.join(suffixes)}, or a folder")
        yield PageFile(path, path.parent)
        return
    errors, count = list[OSError](), 0
    for folder, folders, files in os.walk(path, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SKIPPED_FOLDERS)
        for file in (Path(folder, name) for name in sorted(files) if Path(name).suffix.lower() in suffixes):
            count += 1
            yield PageFile(file, path) if file.is_file() else DataError(f"{file}: not a file, or a broken link")
    yield from (DataError(f"{error.filename}: cannot be read ({error.strerror})") for error in errors)
    if not count and not errors:
        raise DataError(f"{word}: no pages in this folder or its subfolders; looked for {', '.join(suffixes)}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False


def read_page(file: PageFile) -> Page:
    """Return a page's text, read in the encoding that it declares. Raises DataError if that cannot be done exactly."""
    content = read_data(file.path, MAX_PAGE_BYTES)
    mark, encoding = next(((mark, name) for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), (b"", ""))
    if not encoding:
        is_html = file.path.suffix.lower() in HTML_SUFFIXES
        encoding = _declared_encoding(file.path, content) if is_html else "utf-8"
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start + len(mark)) + 1
        raise DataError(
            f"{file.path}: line {line:,} holds byte 0x{error.object[error.start]:02x}, which is not {error.encoding}; "
            "declare the page's charset (<meta charset=...>) or convert the page to UTF-8"
        ) from None
    if text.count("\0") > len(text) / 10:
        raise DataError(f"{file.path}: a binary file, or UTF-16 without a byte order mark; expected text")
    if mark + text.encode(encoding) != content:
        raise DataError(f"{file.path}: its {encoding} cannot be written back unchanged; convert the page to UTF-8")
    return Page(file, content, mark, encoding, text)


def _declared_encoding(path: Path, content: bytes) -> str:
    match = CHARSET.search(content[:1024])
    if match is None:
        return "utf-8"
    label = (match[1] or match[2]).decode()
    try:
        name = codecs.lookup(READ_AS.get(label.lower(), label)).name
        b"a".decode(name)  # raises LookupError for rot13 and others that are not of text
    except (LookupError, ValueError):
        raise DataError(f"{path}: declares the unknown charset {label}; convert the page to UTF-8") from None
    name = READ_AS.get(name, name)
    # browsers read the five bytes that have no meaning in cp1252 as control characters
    return "latin-1" if name == "cp1252" and re.search(rb"[\x81\x8d\x8f\x90\x9d]", content) else name


def filled(page: Page, texts: Mapping[Picture, str]) -> bytes:
    """Return the page's content with alternative texts inserted; everything else stays as it is."""
    inserted = dict[int, str]()
    for picture, text in texts.items():
        assert picture.insert_at is not None
        markdown, attribute = MARKDOWN_MARKS.sub(r"\\\1", text), f' alt="{html.escape(text)}"'
        inserted[picture.insert_at] = markdown if picture.is_markdown else attribute
    parts, start = list[str](), 0
    for offset in sorted(inserted):
        parts += [page.text[start:offset], inserted[offset]]
        start = offset
    return page.mark + "".join([*parts, page.text[start:]]).encode(page.encoding, "xmlcharrefreplace")


def write_filled(page: Page, content: bytes) -> None:
    """Replace the page's file. Raises MyLLMError if it was changed since it was read, or cannot be written."""
    path = page.path.resolve()  # of a symbolic link, the file behind it
    if read_data(path, MAX_PAGE_BYTES) != page.content:
        raise MyLLMError(f"{page.path}: was changed by another program, and is left as it is; run the command again")
    with atomic_write(path, mode=path.stat().st_mode & 0o7777) as file:
        file.write(content)


def difference(page: Page, content: bytes) -> bytes:
    """Return a unified diff from the page to its new content, in the page's encoding; UTF-16 as UTF-8."""
    versions = (page.content, content)
    if page.encoding.startswith("utf-16"):
        versions = (page.text.encode(), content[len(page.mark) :].decode(page.encoding).encode())
    before, after = (re.findall(rb"[^\n]*\n|[^\n]+", version) for version in versions)
    name = _name_in_diff(page.path)
    lines = diff_bytes(unified_diff, before, after, name, name)
    return b"".join(line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n" for line in lines)


def _name_in_diff(path: Path) -> bytes:
    """Return a path as patch and git read it: relative, quoted if it is unusual, and with a tab after blanks."""
    name = os.fsencode(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    if re.search(rb'[\0-\x1f\x7f]|^[ "]', name):
        return b'"' + re.sub(rb'[\0-\x1f\x7f"\\]', lambda match: b"\\%03o" % ord(match[0]), name) + b'"'
    return name + b"\t" * (b" " in name)
