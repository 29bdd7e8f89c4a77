"""What every reader of captions yields, and the checks and files that all readers share."""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from myllm.data.stored import read_file
from myllm.errors import DataError
from myllm.files import Picture

MAX_TEXT_BYTES = 2**31
MAX_CHARACTERS = 100_000
MAX_QUOTED = 100
"""Number of characters of a file's content in a message."""
OTHER_SPLIT_NAMES = {"validation": "val", "valid": "val", "dev": "val", "restval": "train"}
SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|restval|validation|valid|val|dev|test)(?![a-z])")


class Row(NamedTuple):
    """A caption of a picture, as a file has them; names and captions are checked afterwards, see `checked_name`."""

    position: str
    """Where in the file it is, for messages: "line 3"."""
    image: Any
    """Name of the picture: its path relative to the data or to the folder of the pictures."""
    caption: Any
    """The caption."""
    split: str | None = None
    """Split that the file puts the picture into."""
    identity: Any = None
    """Number by which other files call the picture, such as COCO's id."""
    picture: Picture | None = None
    """Where the picture's bytes are, if the reader knows; otherwise the name is looked for."""


@dataclass(frozen=True)
class CaptionFile:
    """A file, or a folder of files, that may hold captions."""

    path: Path
    root: Path
    """The data folder that the file belongs to."""

    @cached_property
    def text(self) -> str:
        """Text of the file. Raises DataError if it is not UTF-8."""
        return decode_text(self.path)

    @cached_property
    def json(self) -> Any:
        """Content of a file that is JSON as a whole; None for other files, JSON lines among them."""
        if self.is_folder or not self.text.lstrip().startswith(("{", "[")):
            return None
        try:
            return parse_json(self.text, str(self.path))
        except DataError:
            if self.is_json_lines:
                return None
            raise

    @cached_property
    def is_json_lines(self) -> bool:
        """Whether the file has several lines, and the first is an object of names and values."""
        first, _, rest = self.text.lstrip().partition("\n")
        if not first.startswith("{") or not rest.strip():
            return False
        try:
            return isinstance(parse_json(first, ""), dict)
        except DataError:
            return False

    @cached_property
    def split(self) -> str | None:
        """Split that the file's name ends with or contains, as in captions_val2014.json; None without one."""
        words = SPLIT_IN_NAME.findall(self.path.stem.lower())
        return split_name(words[-1]) if words else None

    @property
    def is_folder(self) -> bool:
        """Whether this is the data folder itself, or an archive that is read like one."""
        return self.path == self.root

    @property
    def name(self) -> str:
        """Path relative to the data folder, or the name of the folder itself, for messages."""
        return self.path.relative_to(self.root).as_posix() if self.path != self.root else self.path.resolve().name


def decode_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark. Raises DataError for other or unreadable files."""
    content = read_file(path, MAX_TEXT_BYTES)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line:,} holds byte 0x{content[error.start]:02x}, which is not UTF-8; convert the file, "
            f"for example 'iconv -f {_guess_encoding(content)} -t UTF-8 {path.name} > utf8.csv', and put the result in "
            "its place"
        ) from None


def _guess_encoding(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    # 0x80 to 0x9f are quotes, dashes and the euro sign in Windows' encoding, and control characters in Latin 1
    not_utf8 = content.decode("utf-8", "surrogateescape")
    return "CP1252" if re.search("[\udc80-\udc9f]", not_utf8) else "LATIN1"


def parse_json(text: str, source: str) -> Any:
    """Return the content of JSON. source: the file, or its line, for messages. Raises DataError."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{source} is not JSON ({error})") from None
    except RecursionError:
        raise DataError(f"{source} is JSON that is nested too deeply for captions") from None


def objects(path: Path, value: Any, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the position and content of each object of a JSON list. Raises DataError if it is anything else."""
    if not isinstance(value, list):
        raise DataError(f"{path}: {what}s is {value!r:.50}; expected a list of objects")
    for number, entry in enumerate(value, 1):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {what} {number:,} is {entry!r:.50}; expected an object of names and values")
        yield f"{what} {number:,}", entry


def split_name(written: str) -> str:
    """Return our name of a split: validation, valid and dev are val, and Karpathy's restval is train."""
    return OTHER_SPLIT_NAMES.get(written.strip().lower(), written.strip())


def checked_name(path: Path, position: str, value: Any) -> str:
    """Return a picture's name with '/' and in NFC, or its id as text: 42, 42.0 and "42" are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise DataError(f"{path}: {position} calls its picture {value!r:.50}; expected a name or a whole number")
    return normal_name(printable(str(value)))


def normal_name(name: str) -> str:
    """Return a path with '/' between its parts, without './', and in Unicode NFC: macOS writes decomposed letters."""
    return PurePosixPath(unicodedata.normalize("NFC", name.strip()).replace("\\", "/")).as_posix()


def checked_caption(path: Path, position: str, name: str, value: Any) -> str:
    """Return a caption with blanks instead of line ends. Raises DataError if it is not a text, or far too long."""
    if not isinstance(value, str):
        content = "null" if value is None else f"{value!r:.50}"
        raise DataError(f"{path}: {position}, picture {name}: the caption is {content}; expected text (may be empty)")
    if len(value) > MAX_CHARACTERS:
        raise DataError(
            f"{path}: {position}, picture {name}: the caption has {len(value):,} characters; a caption has at most "
            f"{MAX_CHARACTERS:,}, so correct or remove it"
        )
    return re.sub(r"\s*[\r\n]+\s*", " ", printable(value).strip())


def shortened(content: str) -> str:
    """Return the content of a file as messages quote it: only its beginning and its end if it is long."""
    half = MAX_QUOTED // 2
    return content if len(content) <= MAX_QUOTED else f"{content[:half]} ... {content[-half:]}"


def printable(text: str) -> str:
    """Replace lone surrogates, which JSON can contain and no file or terminal can encode, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
