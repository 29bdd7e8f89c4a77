"""Choose fonts for figures whose text matplotlib's own font cannot draw, such as Chinese or Thai captions."""

import logging
from contextlib import suppress
from functools import cache

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

DEFAULT_FAMILY = "DejaVu Sans"  # comes with matplotlib
LAST_LATIN = "\u024f"
LAST_RESORT = "Last Resort"  # draws a box for every character there is

logger = logging.getLogger(__name__)
_reported: set[str] = set()


def set_fonts(figure: Figure) -> None:
    """Give each text that is not Latin fonts of this machine that have its characters.

    Such texts are set upright, because the slanted face of a font often lacks these characters. If no font has a
    character, a warning that names it is logged, once in a process.
    """
    texts = [text for text in figure.findobj(Text) if max(text.get_text(), default="") > LAST_LATIN]
    characters = {character for text in texts for character in text.get_text() if not character.isspace()}
    families = _family_by_character() if characters else {}
    missing = characters - families.keys()
    if missing and not _reported:
        _reported.update(missing)
        logger.warning(
            "no font on this machine has %s%s; pictures show boxes instead: install a font for this script, "
            "such as Noto Sans", " ".join(sorted(missing)[:5]), " ..." * (len(missing) > 5),
        )
    for text in texts:
        others = sorted({families[character] for character in characters & families.keys()} - {DEFAULT_FAMILY})
        text.set_fontfamily([DEFAULT_FAMILY, *others])
        text.set_fontstyle("normal")


@cache
def _family_by_character() -> dict[str, str]:
    """Return a font family for each character that a font of this machine has; matplotlib's own font comes first."""
    # matplotlib keeps a list of fonts on disk, which lacks those that were installed since
    listed = {font.fname for font in font_manager.fontManager.ttflist}
    for path in sorted(font_manager.findSystemFonts()):
        if path not in listed:
            # a font may be damaged, or have fixed sizes only, like many emoji fonts
            with suppress(OSError, RuntimeError, NotImplementedError):
                font_manager.fontManager.addfont(path)
    fonts = {
        font.name: font.fname
        for font in reversed(font_manager.fontManager.ttflist)
        if font.style == "normal" and LAST_RESORT not in font.name
    }
    bundled = matplotlib.get_data_path()
    families: dict[str, str] = {}
    for name in sorted(fonts, key=lambda name: (name != DEFAULT_FAMILY, fonts[name].startswith(bundled))):
        with suppress(OSError, RuntimeError):  # removed or damaged since it was listed
            for code in FT2Font(fonts[name]).get_charmap():
                families.setdefault(chr(code), name)
    return families
