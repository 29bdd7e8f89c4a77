"""Pages are found and read in their own encoding, and filled in with every other byte unchanged."""

import codecs
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from myllm.apps.alt_html import Picture
from myllm.apps.alt_pages import Page, PageFile, difference, filled, find_pages, read_page, write_filled
from myllm.errors import DataError, MyLLMError


def page_of(folder: Path, content: bytes, name: str = "page.html") -> Page:
    (folder / name).write_bytes(content)
    return read_page(PageFile(folder / name, folder))


def all_filled(page: Page, text: str) -> bytes:
    texts: dict[Picture, str] = dict.fromkeys(page.tree.pictures, text)
    return filled(page, texts)


CONTENTS = [
    b"<p>\xc3\xa9<img src=a>\r\n\0<img\tsrc=b></p",
    codecs.BOM_UTF8 + b"<img src=a>\r<IMG SRC=b>\n\n",
    b"<meta charset=iso-8859-1><p>\xe9\x93<img src=a>",
    b"<meta charset=windows-1252><p>\x81\xe9<img src=a>",
    b"<?xml version='1.0' encoding='koi8-r'?><p>\xc1<img src=a/>",
    b"<meta http-equiv=content-type content='text/html; charset=Shift_JIS'>\x83\x65<img src=a>",
    # what browsers read although the declared charset lacks it, and names that only browsers know
    b"<meta charset=gb2312>\xe9F<img src=a>",
    b"<meta charset=shift_jis>\x87@<img src=a>",
    b"<meta charset=Windows-31J>\x87@<img src=a>",
    b"<meta charset=euc-kr>\x8cc<img src=a>",
    b"<meta charset=tis-620>\x80<img src=a>",
    b"<meta charset=unicode>\xc3\xa9<img src=a>",
]


@pytest.mark.parametrize("content", CONTENTS)
def test_filled_page_differs_only_in_the_inserted_attributes(tmp_path: Path, content: bytes) -> None:
    new = all_filled(page_of(tmp_path, content), "A dog")
    assert new.count(b' alt="A dog"') == len(re.findall(b"<img", content, re.IGNORECASE))
    assert new.replace(b' alt="A dog"', b"") == content


@pytest.mark.parametrize(("mark", "encoding"), [(codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")])
def test_filled_page_in_utf16_keeps_its_mark(tmp_path: Path, mark: bytes, encoding: str) -> None:
    new = all_filled(page_of(tmp_path, mark + "é<img src=a>\r\n".encode(encoding)), "A dog")
    assert new == mark + 'é<img alt="A dog" src=a>\r\n'.encode(encoding)


def test_filled_text_is_escaped_and_characters_that_the_encoding_lacks_become_references(tmp_path: Path) -> None:
    new = all_filled(page_of(tmp_path, b"<meta charset=latin1><img src=a>"), 'Łódź "1 & 2" <é>')
    assert new.endswith(b'<img alt="&#321;\xf3d&#378; &quot;1 &amp; 2&quot; &lt;\xe9&gt;" src=a>')


def test_filled_markdown_is_read_back_as_the_text(tmp_path: Path) -> None:
    text = "A [dog] *and* `cat` | 1 < 2 & _x_ \\"
    new = all_filled(page_of(tmp_path, "é ![](a.png)\r\n".encode(), "page.md"), text)
    [picture] = page_of(tmp_path, new, "page.md").tree.pictures
    assert new.startswith("é ![".encode()) and new.endswith(b"](a.png)\r\n")
    assert picture.element.attributes["alt"].replace("\\", "") == text.replace("\\", "")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<p>\n\xe9<img>", "line 2 holds byte 0xe9, which is not utf-8; declare the page's charset"),
        (b"<meta charset=klingon><img>", "declares the unknown charset klingon"),
        (b"<meta charset=rot13><img>", "declares the unknown charset rot13"),
        ("<img src=a>".encode("utf-16-le"), "a binary file, or UTF-16 without a byte order mark"),
        (b"\x89PNG\r\n\x1a\n\0\0", "line 1 holds byte 0x89"),
        (b"<meta charset=utf-7>+AGE-<img>", "cannot be written back unchanged"),
    ],
)
def test_page_that_cannot_be_read_exactly_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=re.escape(reason)):
        page_of(tmp_path, content)


def test_page_that_is_too_large_is_refused_without_reading_it(tmp_path: Path) -> None:
    with (tmp_path / "page.html").open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(DataError, match="larger than the limit"):
        read_page(PageFile(tmp_path / "page.html", tmp_path))


def test_written_page_keeps_its_permissions_and_the_link_to_it(tmp_path: Path) -> None:
    page_of(tmp_path, b"<img src=a>", "real.html")
    (tmp_path / "real.html").chmod(0o640)
    (tmp_path / "link.html").symlink_to("real.html")
    write_filled(read_page(PageFile(tmp_path / "link.html", tmp_path)), b"new")
    assert (tmp_path / "link.html").is_symlink() and (tmp_path / "real.html").read_bytes() == b"new"
    assert (tmp_path / "real.html").stat().st_mode & 0o777 == 0o640


def test_page_that_was_changed_since_it_was_read_is_left_as_it_is(tmp_path: Path) -> None:
    page = page_of(tmp_path, b"<img src=a>")
    page.path.write_bytes(b"mine")
    with pytest.raises(MyLLMError, match="was changed by another program"):
        write_filled(page, b"new")
    assert page.path.read_bytes() == b"mine"


@pytest.mark.parametrize("tool", ["git apply", "patch"])
@pytest.mark.parametrize(
    "name",
    ["page.html", "my page.html", "a folder/é.html", " page.html", 'a\n"b".html', '"a".html', "caf\udce9 a.html"],
)
@pytest.mark.parametrize(
    "content", [b"<img src=a>", b"a\r\nb\x0cc\n\xe9 <img src=a>\n\n" + b"x\n" * 20 + b"<img src=b>"]
)
def test_difference_is_what_patch_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[[str], str], content: bytes, name: str, tool: str
) -> None:
    command = [*tool.split(), "-p0"]
    program(command[0])
    monkeypatch.chdir(tmp_path)
    content = b"<meta charset=latin1>" + content
    Path(name).parent.mkdir(exist_ok=True)
    for folder in (Path(), tmp_path):  # a path that is not relative, too
        page = page_of(folder, content, name)
        new = all_filled(page, "A dog")
        subprocess.run(command, input=difference(page, new), check=True)
        assert Path(name).read_bytes() == new != content


def test_pages_of_a_folder_are_found_once_and_hidden_folders_and_links_to_folders_are_left_out(tmp_path: Path) -> None:
    for name in ("b.md", "a.HTM", "sub/c.markdown", ".git/d.html", "node_modules/e.html", "f.txt", "new\nline.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub/loop").symlink_to(tmp_path)
    (tmp_path / "self.html").symlink_to("self.html")
    os.mkfifo(tmp_path / "pipe.html")
    pages = list(find_pages([str(tmp_path), str(tmp_path / "b.md")]))
    names = [page.path.relative_to(tmp_path).as_posix() for page in pages if isinstance(page, PageFile)]
    assert names == ["a.HTM", "b.md", "new\nline.html", "sub/c.markdown"]
    errors = [str(page) for page in pages if isinstance(page, DataError)]
    assert [Path(error.partition(":")[0]).name for error in errors] == ["pipe.html", "self.html"]


@pytest.mark.parametrize(
    ("word", "reason"),
    [("nowhere", "no such file"), ("empty", "no pages in this folder"), ("a.txt", "not a page"), ("x" * 300, "no such"),
     ("https://example.org/", "web addresses are not downloaded")],
)
def test_path_without_pages_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("a.txt").touch()
    with pytest.raises(DataError, match=reason):
        list(find_pages([word]))


@pytest.mark.parametrize(
    ("base", "address", "expected"),
    [
        ("", "a.jpg", "sub/a.jpg"), ("", "../a%20b.jpg?v=1#x", "sub/../a b.jpg"), ("", "/img/a.jpg", "img/a.jpg"),
        ("", "/../a.jpg", "a.jpg"), ("", "../../a.jpg", "sub/../../a.jpg"), ("", "caf%E9.jpg", "sub/caf\udce9.jpg"),
        ("pics/", "a.jpg", "sub/pics/a.jpg"), ("/pics/x.html", "a.jpg", "pics/a.jpg"), ("../", "a.jpg", "sub/../a.jpg"),
        ("", "pics\\a.jpg", "sub/pics/a.jpg"), ("", "100%25.jpg", "sub/100%.jpg"), ("", "50%20.jpg", "sub/50%20.jpg"),
    ],
)
def test_address_leads_to_a_file_below_the_page_the_base_or_the_site(
    tmp_path: Path, base: str, address: str, expected: str
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/50%20.jpg").touch()  # the name itself has a percent sign
    (tmp_path / "sub/page.html").write_text(f"<base href='{base}'>")
    page = read_page(PageFile(tmp_path / "sub/page.html", tmp_path))
    assert str(page.local_path(address)) == f"{tmp_path}/{expected}"


@pytest.mark.parametrize(
    ("base", "address", "reason"),
    [("", "https://example.org/a.jpg", "another server"), ("", "//example.org/a.jpg", "another server"),
     ("https://example.org/", "a.jpg", "another server"), ("", "file:///a.jpg", "begins with file:"),
     ("", "http://[", "cannot be read"), ("", "?a", "no address")],
)
def test_address_elsewhere_is_refused(tmp_path: Path, base: str, address: str, reason: str) -> None:
    page = page_of(tmp_path, f"<base href='{base}'>".encode())
    with pytest.raises(DataError, match=reason):
        page.local_path(address)
