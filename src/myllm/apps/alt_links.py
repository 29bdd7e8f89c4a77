"""The name of what a link leads to, for pictures that are all there is in a link."""

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from myllm.apps.alt_html import TEMPLATE_CODE, Element, has_bound_address
from myllm.apps.alt_pages import HTML_SUFFIXES, MARKDOWN_SUFFIXES, Page, PageFile, read_page
from myllm.apps.alt_wording import sentence
from myllm.data.images import PICTURE_SUFFIXES
from myllm.errors import DataError

INDEX_FILES = ("index.html", "index.htm", "index.md", "README.md")
DOCUMENT_SUFFIXES = frozenset(" ".join((
    ".pdf .doc .docx .odt .xls .xlsx .ods",
    ".ppt .pptx .odp .zip .csv .txt .epub",
)).split())
WORD = re.compile(r"[^\W\d_]{2,}|\d{1,4}(?!\d)")
# where letters and digits meet; so often only in codes, such as dQw4w9WgXcQ
CODE = re.compile(r"(?:.*?(?:[^\W\d_](?=\d)|\d(?=[^\W\d_]))){3}")


class Destinations:
    """Names the destinations of links; a page that several links lead to is read once."""

    def __init__(self) -> None:
        self._titles = dict[Path, str]()

    def name(self, link: Element, page: Page) -> tuple[str, str]:
        """Return the name of what a link leads to, and where the name is from; both are "" if there is none."""
        label, title, address = map(link.get, ("aria-label", "title", "href"))
        if TEMPLATE_CODE.search(label or title or address):
            return "", ""
        if label or title:
            return sentence(label or title), f"the link's {'aria-label' if label else 'title'}"
        if has_bound_address(link):
            return "", ""
        try:
            url = urlsplit(address)
        except ValueError:
            return "", ""
        if url.scheme in ("mailto", "tel"):
            verb, whom = "Email" if url.scheme == "mailto" else "Call", unquote(url.path)
            return (f"{verb} {whom}", "the link's address") if whom else ("", "")
        if url.scheme not in ("", "http", "https"):
            return "", ""
        if title := self._title(address, page):
            return sentence(title), "the title of the page that the link leads to"
        if url.path.lower().endswith((*PICTURE_SUFFIXES, ".svg")):
            return "Full-size picture", "the link leads to a picture"
        name = words_of_address(address)
        return sentence(name), "the link's address" if name else ""

    def _title(self, address: str, page: Page) -> str:
        """Return the title of a local page, or else its first heading; "" if there is none."""
        if address.startswith("#"):
            return ""
        try:
            path = page.local_path(address)
            if path.is_dir():
                path = next((path / name for name in INDEX_FILES if (path / name).is_file()), path)
            if path not in self._titles:
                self._titles[path] = _read_title(PageFile(path, page.file.root))
            return self._titles[path]
        except (DataError, OSError, ValueError):  # ValueError: a zero byte in the path
            return ""


def _read_title(file: PageFile) -> str:
    if file.path.suffix.lower() not in (*HTML_SUFFIXES, *MARKDOWN_SUFFIXES) or not file.path.is_file():
        return ""
    elements = [element for element in read_page(file).tree.root.descendants() if isinstance(element, Element)]
    named = (element.text.replace("\n", " ") for tag in ("title", "h1") for element in elements if element.tag == tag)
    return next((name for name in named if name and not TEMPLATE_CODE.search(name)), "")


def words_of_address(address: str) -> str:
    """Return the words of the last part of an address that has any, and its server; "" if there is neither."""
    url = urlsplit(address)
    server = (url.hostname or "").removeprefix("www.")
    parts = [unquote(part) for part in url.path.split("/") if part and part != ".."]
    if url.fragment and not parts:
        parts = [unquote(url.fragment)]
    for part in reversed(parts):
        suffix = PurePosixPath(part).suffix
        stem = part.removesuffix(suffix) if re.fullmatch(r"\.[a-zA-Z]{2,5}\d?", suffix) else part
        if CODE.match(stem):
            break
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
        words = WORD.findall(spaced)
        if any(word.isalpha() for word in words) and stem.lower() not in ("index", "default"):
            kind = suffix[1:].upper() if suffix.lower() in DOCUMENT_SUFFIXES else ""
            notes = ", ".join(filter(None, (kind, server)))  # icons of several networks may all lead to /our-name
            return " ".join(words) + (f" ({notes})" if notes else "")
    return server
