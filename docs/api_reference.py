"""Write the reference of the names that `myllm` exports as HTML pages, from their docstrings: `make docs`.

    python docs/api_reference.py build/api
"""

import sys
from pathlib import Path

import pdoc
from pdoc.render_helpers import markdown_extensions

import myllm


def main(folder: Path) -> None:
    for name in myllm.__all__:
        exported = getattr(myllm, name)
        setattr(myllm, name, exported)  # pdoc reads only attributes that are loaded
        if isinstance(exported, type):
            show_inherited_members(exported)
    markdown_extensions["breaks"] = {"on_newline": True}  # a line for each argument, as in the docstring
    pdoc.render.configure(footer_text=f"MyLLM {myllm.__version__}")
    pdoc.pdoc("myllm", r"!myllm\.", output_directory=folder)


def show_inherited_members(exported: type) -> None:
    """Make a class own what it inherits from our classes; pdoc leaves that out if they are not exported."""
    for base in exported.__mro__[1:]:
        for name, member in vars(base).items() if base.__module__.startswith("myllm.") else ():
            if not name.startswith("_") and name not in vars(exported):
                setattr(exported, name, member)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
