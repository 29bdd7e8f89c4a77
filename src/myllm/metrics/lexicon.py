"""Words that name things and colours, by class: the lists of `things.txt` and `colours.txt`, which explain it."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from myllm.metrics.ngrams import Words

# Before a word that may be a verb, one of these makes it a thing; so does a colour.
_DETERMINERS = (
    "a an the this that these those his her its their my your our another each every some no any one two three four",
    "five six seven eight nine ten in on at of with by from into onto through over under near behind beside across",
    "along around past toward towards for and big large huge giant small little tiny long short tall wide old new",
    "wooden metal plastic wet",
)
_NOUN_FOLLOWS = frozenset(" ".join(_DETERMINERS).split())


class Form(NamedTuple):
    """A word, or several, that name a thing of one of these classes; none where they are no thing."""

    classes: frozenset[str]
    is_plural: bool
    is_verb_too: bool


class Mention(NamedTuple):
    """Words start to stop of a caption name a thing of one of these classes."""

    classes: frozenset[str]
    start: int
    stop: int
    is_plural: bool


class Lexicon:
    """Classes of things, the words that name them, and which class is a broader word for which."""

    def __init__(self, text: str) -> None:
        self.forms: dict[str, Form] = {}
        self._longest: dict[str, int] = {}
        self._implied: dict[str, frozenset[str]] = {}
        self._parents: dict[str, frozenset[str]] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                head, _, words = line.partition(":")
                name, _, parents = head.partition("<")
                self._add(name.strip(), words)
                if name.strip():
                    broader = frozenset(parent.strip() for parent in parents.split(",") if parent.strip())
                    self._parents[name.strip()] = self._parents.get(name.strip(), frozenset()) | broader
        self._parents |= {name: frozenset() for name in chain(*self._parents.values()) if name not in self._parents}
        self.broader = {name: frozenset(self._ancestors(name)) for name in self._parents}
        """Each class with all that are broader."""
        self._related = {
            name: own | {other for other, theirs in self.broader.items() if name in theirs}
            for name, own in self.broader.items()
        }

    def _add(self, name: str, words: str) -> None:
        classes = frozenset([name] if name else [])
        for word in map(str.strip, words.split(",")):
            if word.startswith("+"):
                self._implied[word[1:]] = self._implied.get(word[1:], frozenset()) | classes
                continue
            singular, slash, plural = word.lstrip("=~").partition("/")
            if slash and not plural:
                forms = {singular: True}
            elif word.startswith("="):
                forms = {singular: False}
            else:
                forms = {singular: False, plural or _plural(singular): True}
            for form, is_plural in forms.items():
                before = self.forms.get(form, Form(frozenset(), is_plural, False))
                self.forms[form] = Form(before.classes | classes, is_plural, word.startswith("~"))
                first, *rest = form.split()
                self._longest[first] = max(self._longest.get(first, 0), 1 + len(rest))

    def _ancestors(self, name: str) -> Iterator[str]:
        yield name
        for parent in self._parents[name]:
            yield from self._ancestors(parent)

    def find(self, words: Words) -> Iterator[tuple[Form, int, int]]:
        """Forms with where they start and stop, the longest at each place: "hot dog" is no dog."""
        place = 0
        while place < len(words):
            size = self._longest.get(words[place], 0)
            while size and (form := self.forms.get(" ".join(words[place : place + size]))) is None:
                size -= 1
            if size and form is not None:
                yield form, place, min(place + size, len(words))
            place += max(1, size)

    def mentions(self, words: Words) -> list[Mention]:
        """What a caption names for sure.

        A word that may be a verb needs an article, a colour or the like before it; a singular one right before
        another is its attribute ("dog toy", "water bottle").
        """
        found: list[Mention] = []
        for form, start, stop in self.find(words):
            before = words[start - 1] if start else "a"
            if form.is_verb_too and before not in _NOUN_FOLLOWS and before not in colours().forms:
                continue
            if found and found[-1].stop == start and not found[-1].is_plural:
                found.pop()
            found.append(Mention(form.classes, start, stop, form.is_plural))
        return [mention for mention in found if mention.classes]

    def supported(self, captions: Sequence[Words]) -> set[str]:
        """Classes that references leave possible: those they name, however loosely, all broader and all narrower."""
        named: set[str] = set()
        implied: set[str] = set()
        for words in captions:
            for form, _, _ in self.find(words):
                named |= form.classes
            for word in words:
                if word in self._implied:
                    implied |= self._implied[word]
                if "-" in word:  # "snow-covered", "red-haired"
                    named.update(*(self.forms[part].classes for part in word.split("-") if part in self.forms))
        for name in named:
            implied |= self._implied.get(f"@{name}", frozenset())
        related = chain.from_iterable(self._related[name] for name in named)
        return {*related, *chain.from_iterable(self.broader[name] for name in implied)}


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


@cache
def things() -> Lexicon:
    """The noun list, read once."""
    return Lexicon(Path(__file__).with_name("things.txt").read_text(encoding="utf-8"))


@cache
def colours() -> Lexicon:
    """The colour list, read once."""
    return Lexicon(Path(__file__).with_name("colours.txt").read_text(encoding="utf-8"))
