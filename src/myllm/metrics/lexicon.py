"""English words that name things and colours, by class, read from `things.txt` and `colours.txt`."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from myllm.metrics.ngrams import Words

# A word that can be a verb names a thing after one of these words, or after a colour.
_DETERMINERS = (
    "a an the this that these those his her its their my your our another each every some no any one two three four",
    "five six seven eight nine ten in on at of with by from into onto through over under near behind beside across",
    "along around past toward towards for and big large huge giant small little tiny long short tall wide old new",
    "wooden metal plastic wet",
)
_NOUN_FOLLOWS = frozenset(" ".join(_DETERMINERS).split())
_SINGULAR_FOLLOWS = frozenset(["a", "an", "this", "that", "another", "each", "every", "one"])
_ENDS_OF_PHRASES = ("in on at with from by into onto of off near next to for while", "as is are that who")
_PHRASE_ENDS = frozenset(" ".join(_ENDS_OF_PHRASES).split())


class Form(NamedTuple):
    """A word or phrase that names a thing of one of these classes; without classes it names no thing."""

    classes: frozenset[str]
    is_plural: bool
    is_verb_too: bool


class Mention(NamedTuple):
    """`words[start:stop]` of a caption names a thing of one of these classes."""

    classes: frozenset[str]
    start: int
    stop: int
    is_plural: bool


class Lexicon:
    """Classes of things, the words that name them, and the broader classes of each class.

    text: a list in the format that `things.txt` explains.
    """

    def __init__(self, text: str) -> None:
        self.forms: dict[str, Form] = {}
        self._longest: dict[str, int] = {}
        self._implied, self._parents = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        for line in text.splitlines():
            if line and not line.startswith("#"):
                head, _, words = line.partition(":")
                name, *parents = map(str.strip, re.split("[<,]", head))
                self._add(name, words)
                if name:
                    self._parents[name] |= {*parents}
        names = {*self._parents, *chain.from_iterable(self._parents.values())}
        self.broader = {name: frozenset(self._ancestors(name)) for name in names}
        """Each class with itself and all broader classes."""
        self._related = {
            name: broader | {narrower for narrower, ancestors in self.broader.items() if name in ancestors}
            for name, broader in self.broader.items()
        }

    def _add(self, name: str, words: str) -> None:
        classes = frozenset([name] if name else [])
        for word in map(str.strip, words.split(",")):
            if word.startswith("+"):
                self._implied[word[1:]] |= classes
                continue
            singular, slash, plural = word.lstrip("=~").partition("/")
            if slash and not plural:
                forms = {singular: True}
            elif word.startswith("="):
                forms = {singular: False}
            else:
                forms = {singular: False, plural or _plural(singular): True}
            for form, is_plural in forms.items():
                known = self.forms.get(form, Form(frozenset(), is_plural, False))
                self.forms[form] = Form(known.classes | classes, is_plural, word.startswith("~"))
                first, *rest = form.split()
                self._longest[first] = max(self._longest.get(first, 0), 1 + len(rest))

    def _ancestors(self, name: str) -> Iterator[str]:
        yield name
        for parent in self._parents.get(name, ()):
            yield from self._ancestors(parent)

    def find(self, words: Words) -> Iterator[tuple[Form, int, int]]:
        """Yield forms with start and stop; the longest form at an index wins, so that "hot dog" is not a dog."""
        index = 0
        while index < len(words):
            size = self._longest.get(words[index], 0)
            while size and (form := self.forms.get(" ".join(words[index : index + size]))) is None:
                size -= 1
            if size and form is not None:
                yield form, index, min(index + size, len(words))
            index += max(1, size)

    def mentions(self, words: Words) -> list[Mention]:
        """Return the mentions of a caption that are certain.

        A word that can be a verb counts only after an article, a colour or the like; one that can be a colour counts
        only as a noun ("an orange on a plate"). A singular noun directly before another noun is its attribute and does
        not count ("dog toy", "water bottle").
        """
        mentions: list[Mention] = []
        for form, start, stop in self.find(words):
            if form.is_verb_too and _is_verb(words, start, form.is_plural):
                continue
            if self is not colours() and _is_colour(words, start, stop):
                continue
            if mentions and mentions[-1].stop == start and not mentions[-1].is_plural:
                mentions.pop()
            mentions.append(Mention(form.classes, start, stop, form.is_plural))
        return [mention for mention in mentions if mention.classes]

    def supported(self, captions: Sequence[Words]) -> set[str]:
        """Return the classes that references name or imply, with all broader and narrower classes of those named."""
        named, implied = set[str](), set[str]()
        for words in captions:
            for form, _, _ in self.find(words):
                named |= form.classes
            for word in words:
                implied |= self._implied.get(word, set())
                if "-" in word:  # "snow-covered", "red-haired"
                    named.update(*(self.forms[part].classes for part in word.split("-") if part in self.forms))
        for name in named:
            implied |= self._implied.get(f"@{name}", set())
        related = chain.from_iterable(self._related[name] for name in named)
        return {*related, *chain.from_iterable(self.broader[name] for name in implied)}


def colour_mentions(words: Words) -> list[Mention]:
    """Return the colours that a caption names; "an orange on a plate" and "orange juice" are none."""
    return [
        Mention(form.classes, start, stop, False)
        for form, start, stop in colours().find(words)
        if form.classes and (stop - start > 1 or words[start] not in things().forms or _is_colour(words, start, stop))
    ]


def _is_verb(words: Words, start: int, is_plural: bool) -> bool:
    """Return whether a word that can be a noun or a verb is certainly not a noun here."""
    before = words[start - 1] if start else "a"
    if is_plural and before in _SINGULAR_FOLLOWS:  # "another watches"
        return True
    if before in colours().forms:  # "black sticks", but not "the man in black stands"
        return is_plural and start > 1 and words[start - 2] in ("in", "wearing")
    return before not in _NOUN_FOLLOWS


def _is_colour(words: Words, start: int, stop: int) -> bool:
    """Whether a word that can be a colour or a thing is a colour: not between an article and the end of its phrase."""
    if stop - start > 1 or words[start] not in colours().forms:
        return False
    before = words[start - 1] if start else ""
    after, following = [*words[stop : stop + 2], "", ""][:2]
    ends = not after or after in _PHRASE_ENDS or (after in ("and", "or") and following not in colours().forms)
    return not (before in _SINGULAR_FOLLOWS and ends)


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


@cache
def things() -> Lexicon:
    """Return the list of things, read once."""
    return Lexicon(Path(__file__).with_name("things.txt").read_text(encoding="utf-8"))


@cache
def colours() -> Lexicon:
    """Return the list of colours, read once."""
    return Lexicon(Path(__file__).with_name("colours.txt").read_text(encoding="utf-8"))
