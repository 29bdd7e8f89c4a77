"""Lists the files of the web page: the one that `myllm serve` shows and the one that `myllm export --to web` writes."""

from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parent
SUFFIXES = (".css", ".html", ".js")


def page_files(engine: Literal["browser", "server"]) -> dict[str, Path]:
    """Return {name: path} of the page's files.

    engine: what captions the pictures. Each has its own `engine.js`, with the same functions, and the files it needs.
    """
    paths = [*FOLDER.iterdir(), *(FOLDER / engine).iterdir()]
    return {path.name: path for path in sorted(paths) if path.suffix in SUFFIXES}
