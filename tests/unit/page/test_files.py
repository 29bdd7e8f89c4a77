"""The files of the web page fit together, with either engine."""

import re
from typing import Literal

import pytest

from myllm.page.files import page_files

# each engine lacks one: answers of the server have their heat maps, and the browser needs no key
OPTIONAL = {"browser": {"useKey"}, "server": {"findMaps"}}


@pytest.mark.parametrize("engine", ["browser", "server"])
def test_an_engine_has_every_function_that_the_page_uses(engine: Literal["browser", "server"]) -> None:
    sources = {name: path.read_text(encoding="utf-8") for name, path in page_files(engine).items()}
    used = set(re.findall(r"\bengine\.(\w+)", sources["page.js"])) - {"js"}
    exported = set(re.findall(r"^export (?:const|(?:async )?function) (\w+)", sources["engine.js"], re.MULTILINE))
    assert used - exported == OPTIONAL[engine] and exported <= used


@pytest.mark.parametrize("engine", ["browser", "server"])
def test_every_file_that_a_file_names_is_there(engine: Literal["browser", "server"]) -> None:
    files = page_files(engine)
    text = "".join(path.read_text(encoding="utf-8") for path in files.values())
    named = set(re.findall(r"""(?:from '\./|Worker\('|src="|href=")([\w.]+)['"]""", text))
    assert named <= set(files) and {"index.html", "style.css", "engine.js"} <= set(files)
    assert all(path.suffix != ".py" for path in files.values())
