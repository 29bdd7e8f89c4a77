"""The documents are right: commands run, excerpts are those of the code, links and messages exist."""

import ast
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from myllm.apps.cli import main, parse_verb, split_group

ROOT = Path(__file__).parents[2]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]
NEEDS = ("network", "gpu", "data", "server", "cluster")
TEACHER = "http://localhost:8123/v1"  # what a block with the need "server" starts


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language and text, the line before it, and the file named last above it."""

    language: str
    text: str
    before: str
    source: str | None


def fences(page: Path) -> Iterator[Fence]:
    before, source, opened = "", None, None
    block: list[str] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if opened is None and line.startswith("```"):
            opened, block = line.removeprefix("```").strip(), []
        elif opened is not None and line == "```":
            yield Fence(opened, "\n".join(block), before, source)
            opened, before = None, ""
        elif opened is not None:
            block.append(line)
        elif line:
            before = line
            named = re.fullmatch(r"`(src/\S+)`:", line)
            source = named[1] if named else source
    assert opened is None, f"{page.name}: a fence is not closed"


def need_of(fence: Fence) -> str | None:
    marked = re.fullmatch(r"<!-- needs: (\w+) -->", fence.before)
    return marked[1] if marked else None


def myllm_commands(script: str) -> Iterator[list[str]]:
    """Yield the words of each `myllm ...` line, without variables set before it and without here-documents."""
    script = re.sub(r"<<'(\w+)'\n.*?\n\1$", "", script, flags=re.DOTALL | re.MULTILINE)
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            words.pop(0)
        if words and words[0].rpartition("/")[2] == "myllm":
            yield words[1:]


def parse_only(words: list[str]) -> None:
    """Raise ConfigError if `myllm WORDS` is wrong usage; run nothing."""
    if words[0].startswith("-"):
        assert words[0] in ("--help", "--version"), words
        return
    group, words = split_group(words)
    name, options = group + words[0], words[1:]
    if "--config" in options:  # a file that an earlier command on the page writes
        index = options.index("--config")
        del options[index : index + 2]
    if not {"-h", "--help"} & set(options):
        parse_verb(name, options)


BASH = [(page, fence) for page in PAGES for fence in fences(page) if fence.language == "bash"]
RUNNABLE = [(page, fence.text) for page, fence in BASH if need_of(fence) is None]
EXCERPTS = [fence for fence in fences(ROOT / "docs/model.md") if fence.language == "python"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_docs_commands_parse_and_their_needs_are_known(page: Path) -> None:
    for fence in fences(page):
        if fence.language == "bash":
            assert need_of(fence) in (None, *NEEDS)
            for words in myllm_commands(fence.text):
                parse_only(words)


def test_docs_commands_with_a_wrong_option_are_noticed() -> None:
    (words,) = myllm_commands("A=1 .venv/bin/myllm train --preset \\\n  photos --epoks 3  # a mistake")
    assert words == ["train", "--preset", "photos", "--epoks", "3"]
    with pytest.raises(ValueError, match="unknown option --epoks; did you mean --epochs"):
        parse_only(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_docs_benchmarks_have_the_options_that_they_are_given(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for name, words in re.findall(r"python (benchmarks/\w+\.py)([^`\n]*)", text):
        known = re.findall(r'add_argument\(\s*"(--[\w-]+)"', (ROOT / name).read_text(encoding="utf-8"))
        assert {word for word in words.split() if word.startswith("--")} <= {*known}, f"{name}{words}"


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({page for page, _ in RUNNABLE}), ids=lambda page: page.name)
def test_docs_commands_of_a_page_run_one_after_another(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher_server: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    script = "\n".join(text for other, text in RUNNABLE if other == page).replace("\\\n", " ")
    script = script.replace(TEACHER, teacher_server.url)
    for number, part in enumerate(re.split(r"^(myllm .*)$", script, flags=re.MULTILINE)):
        if number % 2:  # in this process, because each new one imports torch for seconds
            assert main(shlex.split(part, comments=True)[1:]) == 0, part
        else:  # what stands between two commands
            subprocess.run(["bash", "-euo", "pipefail", "-c", part], check=True)


@pytest.mark.parametrize("number", range(len(EXCERPTS)))
def test_docs_excerpts_are_in_the_file_named_above_them(number: int) -> None:
    excerpt = EXCERPTS[number]
    assert excerpt.source is not None
    code = (ROOT / excerpt.source).read_text(encoding="utf-8")
    matches = [f"\n{textwrap.indent(excerpt.text, ' ' * depth)}\n" in code for depth in (0, 4, 8, 12)]
    assert any(matches), f"docs/model.md: not in {excerpt.source}:\n{excerpt.text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_docs_links_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_docs_links_lead_to_headings_that_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s:]*\.md|)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if link[1] not in headings(page.parent / link[0] if link[0] else page)] == []


def headings(page: Path) -> set[str]:
    """Return the names that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def string_literals() -> str:
    """Return every string of the source as one text, f-strings with '...' for their expressions."""
    literals = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                literals.append("".join(p.value if isinstance(p, ast.Constant) else "..." for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                literals.append(node.value)
    return "\n".join(literals)


@pytest.mark.parametrize(
    ("page", "title", "least"), [("training.md", "Messages and their causes", 30), ("formats.md", "Checks when", 8),
     ("without-torch.md", "Messages and their causes", 5)]
)
def test_docs_messages_are_those_of_the_program(page: str, title: str, least: int) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(f"## {title}")[2]
    phrases = re.findall("`(.*?)`", "\n".join(re.findall(r"^\| (.*?) \|", text, re.MULTILINE)))
    assert len(phrases) > least
    assert [phrase for phrase in phrases if phrase not in string_literals()] == []
