"""The pictures that pages show: find the file behind an element, and see whether a caption can describe it."""

import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import numpy as np
from PIL import Image

from myllm.apps.alt_html import Element
from myllm.apps.alt_pages import Page
from myllm.data.images import PICTURE_SUFFIXES, load_image
from myllm.errors import DataError

# attributes of scripts that load a picture when it comes into view
LAZY = ("data-src", "data-lazy-src", "data-original")
LAZY_SETS = ("data-srcset", "data-lazy-srcset")
COMPLEX_WORDS = frozenset(" ".join((
    "chart charts graph graphs plot diagram flowchart histogram infographic screenshot screenshots screencast map",
    "schematic uml wireframe mockup table dashboard architecture timeline heatmap",
)).split())
SPACERS = frozenset(" ".join((
    "spacer blank transparent pixel",
    "shim clear empty dot 1x1",
)).split())
# The flattest of 600 photographs of Flickr8k has 0.41 (0.46 in grey). The charts and screenshots in docs/ have 0.68 and
# more, as JPEG files 0.54 and more; grids of photographs have 0.3.
FLAT_SHARE = 0.5
MEASURED_SIDE = 512
SPACER_SIDE = 2


def shown_address(element: Element) -> str:
    """Return the address of an element's picture for messages, shortened if it holds the picture itself."""
    address = element.get("src") or next(_addresses(element), "") or element.get("href") or f"<{element.tag}>"
    return address if not address.startswith("data:") else f"{address[:40]}..."


def find_picture(element: Element, page: Page) -> Path | bytes:
    """Return the first file of a picture that shows something, or its content if its address holds that.

    If all its files show nothing, as spacers do, return the first. Raises FileNotFoundError if there is no file, and
    DataError if a file cannot be used, with the reason.
    """
    addresses, spacers, errors = list(dict.fromkeys(_addresses(element))), list[Path | bytes](), list[Exception]()
    for address in addresses:
        try:
            picture = _data_content(address) if address.startswith("data:") else _local_file(address, page)
            if len(addresses) == 1 or not spacer_by_pixels(load_image(picture, min_side=SPACER_SIDE + 1)):
                return picture
            spacers.append(picture)
        except (DataError, OSError, ValueError) as error:
            errors.append(error)
    if spacers and not errors:
        return spacers[0]
    raise errors[0] if errors else DataError("it has no address")


def _addresses(element: Element) -> Iterator[str]:
    """Yield the addresses that a browser may load, for a <picture> those of its sources last.

    If a script loads pictures later, only theirs: src is a placeholder until then.
    """
    sources = list[Element]()
    if element.parent is not None and element.parent.tag == "picture":
        sources += (child for child in element.parent.children if isinstance(child, Element) and child.tag == "source")
    lazy = [*filter(None, map(element.get, LAZY)), *_addresses_of_sets([element, *sources], LAZY_SETS)]
    yield from lazy
    if not lazy:
        yield from _addresses_of_sets([element], ["srcset"])
        yield from filter(None, [element.get("src")])
        yield from _addresses_of_sets(sources, ["srcset"])
        others = (value for name, value in element.attributes.items() if name.startswith("data-"))
        yield from (value for value in others if path_of(value).lower().endswith(tuple(PICTURE_SUFFIXES)))


def _addresses_of_sets(elements: Iterable[Element], names: Sequence[str]) -> Iterator[str]:
    for element, name in product(elements, names):
        yield from (part.split()[0] for part in re.split(r",\s+|,$", element.get(name)) if part.split())


def _local_file(address: str, page: Page) -> Path:
    if urlsplit(address).path.lower().endswith((".svg", ".svgz")):
        raise DataError("an SVG drawing cannot be captioned")
    path = page.local_path(address)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name that is too long
        pass
    raise FileNotFoundError(f"there is no file {path}")


def _data_content(address: str) -> bytes:
    kind, _, data = address.removeprefix("data:").partition(",")
    if "svg" in kind:
        raise DataError("an SVG drawing cannot be captioned")
    try:
        return b64decode(unquote(data)) if kind.endswith(";base64") else unquote_to_bytes(data)
    except ValueError:
        raise DataError("its address holds damaged data") from None


def spacer_by_size(element: Element) -> str:
    """Return why an element shows nothing if its attributes give such a size, and its style none; else ""."""
    if re.search("width|height", element.get("style").lower()):
        return ""
    sizes = [re.match(r"\d+", element.get(name)) for name in ("width", "height")]
    if any(size is not None and int(size[0]) == 0 for size in sizes):
        return "it is 0 pixels wide or high"
    is_tiny = all(size is not None and int(size[0]) <= 1 for size in sizes)
    return "it is 1 x 1 pixel" if is_tiny else ""


def spacer_by_name(element: Element) -> str:
    """Return why an element whose file is missing shows nothing, if all its names are those of spacers; else ""."""
    names = {PurePosixPath(path_of(address)).stem.lower() for address in _addresses(element)}
    return "its name is that of a spacer" if names and names <= SPACERS else ""


def path_of(address: str) -> str:
    """Return the path of an address without percent signs; "" if there is none."""
    try:
        return "" if address.startswith("data:") else unquote(urlsplit(address).path)
    except ValueError:
        return ""


def spacer_by_pixels(image: Image.Image) -> str:
    """Return why an RGB picture shows nothing; else ""."""
    if min(image.size) <= SPACER_SIDE:
        return f"it is {image.width} x {image.height} pixels"
    is_plain = len(image.getcolors(maxcolors=1) or ()) == 1
    return "it has one colour only" if is_plain else ""


def complexity(image: Image.Image, name: str) -> str:
    """Return why a caption cannot replace an RGB picture, by the words of its file name and its pixels; else ""."""
    stem = Path(name).stem
    words = re.findall(r"[a-z]+", f"{stem} {re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', stem)}".lower())
    if word := next(filter(COMPLEX_WORDS.__contains__, words), ""):
        return f'"{word}" in its name: it needs a longer description'
    if flat_share(image) >= FLAT_SHARE:
        return "it looks like a chart, a screenshot or a drawing, with large areas of one colour"
    return ""


def flat_share(image: Image.Image) -> float:
    """Return the share of an RGB picture's pixels that equal both the next pixel to the right and the one below."""
    small = image.copy()
    small.thumbnail((MEASURED_SIDE, MEASURED_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small)
    here = pixels[:-1, :-1]
    is_flat = (here == pixels[:-1, 1:]).all(-1) & (here == pixels[1:, :-1]).all(-1)
    return float(is_flat.mean())
