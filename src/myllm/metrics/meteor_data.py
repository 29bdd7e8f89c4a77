"""METEOR's data for English: stems, WordNet's synonyms, paraphrases, function words.

All but the stems come from the package pycocoevalcap: a jar, which is a zip file, and a table of paraphrases. They are
read; no Java is run.
"""

import gzip
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from myllm.errors import DataError, install_command

_JAR, _PARAPHRASES = "meteor-1.5.jar", "data/paraphrase-en.gz"
_INSTALL = f"install it with: {install_command('pycocoevalcap', 'snowballstemmer<3')}"
_BLOCK_BYTES = 1 << 20
_MAX_SLOTS = 1 << 27

LONGEST_PHRASE = 7
"""Words in the longest phrase of the table of paraphrases."""

# WordNet's rules from an inflected word to its base (manual page morphy(7WN)), in the jar's order: nouns, verbs,
# adjectives.
_ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""), ("er", ""), ("est", ""), ("er", "e"),
    ("est", "e"),
)


def missing_data() -> str | None:
    """Return why METEOR cannot be computed here, with the fix; None if it can."""
    folder = _folder()
    missing = [name for name in (_JAR, _PARAPHRASES) if folder is None or not (folder / name).is_file()]
    if missing:
        return f"its words and paraphrases ({missing[0]} of pycocoevalcap) are not here; {_INSTALL}"
    if find_spec("snowballstemmer") is None:
        return f"its stemmer (snowballstemmer) is not here; {_INSTALL}"
    if int(version("snowballstemmer").split(".")[0]) >= 3:
        return f"snowballstemmer {version('snowballstemmer')} gives other stems than METEOR's; {_INSTALL}"
    return None


def _folder() -> Path | None:
    spec = find_spec("pycocoevalcap")  # does not import it
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "meteor"


class English:
    """Stems, synonyms and function words of English. Raises DataError without its files."""

    def __init__(self) -> None:
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

        self.stem: Callable[[str], str] = cache(EnglishStemmer().stemWord)
        """Returns the stem by Porter's second stemmer, https://snowballstem.org/algorithms/english/stemmer.html."""
        self._synsets: dict[str, frozenset[str]] = {}

    def synsets(self, word: str) -> frozenset[str]:
        """Return WordNet's sets of synonyms that contain the word or its base; words that share one are synonyms."""
        if word not in self._synsets:
            forms = [word, *(self._bases[word] if word in self._bases else self._base(word))]
            self._synsets[word] = frozenset().union(*(self._listed_synsets.get(form, "").split() for form in forms))
        return self._synsets[word]

    def _base(self, word: str) -> list[str]:
        if len(word) > 2 and not word.endswith("ss"):
            for ending, other in _ENDINGS:
                if word.endswith(ending) and (base := word.removesuffix(ending) + other) in self._listed_synsets:
                    return [base]
        return []


def read_paraphrases(phrases: Iterable[str], count: int) -> dict[str, list[str]]:
    """Return, for each phrase, its paraphrases that are among `phrases`, too, in the table's order.

    The table has five million pairs, 272 MB of text. To save memory, only hashes of the phrases are kept, not the
    phrases. So the result may contain a few other pairs of the table, whose hashes are the same.

    count: about how many phrases there are.
    """
    slots = min(_MAX_SLOTS, 1 << max(16, (8 * count).bit_length()))
    marks, mask = bytearray(slots), slots - 1
    for phrase in phrases:
        marks[hash(phrase.encode()) & mask] = 1
    table = defaultdict[str, list[str]](list)
    with gzip.open(data_folder() / _PARAPHRASES) as file:
        lines, unfinished = list[bytes](), b""  # three lines for each pair: probability, phrase, paraphrase
        while block := file.read(_BLOCK_BYTES):
            *complete, unfinished = (unfinished + block).split(b"\n")
            lines += complete
            whole = len(lines) // 3 * 3
            for left, right in zip(lines[1:whole:3], lines[2:whole:3], strict=True):
                if marks[hash(left) & mask] and marks[hash(right) & mask]:
                    table[left.decode()].append(right.decode())
            del lines[:whole]
    return dict(table)


def data_folder() -> Path:
    """Return pycocoevalcap's folder of METEOR's files. Raises DataError if anything that METEOR needs is missing."""
    reason, folder = missing_data(), _folder()
    if reason or folder is None:
        raise DataError(f"METEOR cannot be computed: {reason}")
    return folder


def _lines(jar: zipfile.ZipFile, name: str) -> list[str]:
    return zipfile.Path(jar, name).read_text(encoding="utf-8").splitlines()


def _abbreviations(lines: Iterable[str]) -> Mapping[str, bool]:
    entries = (line.split() for line in lines if line.strip() and not line.startswith("#"))
    return {name: note == ["#NUMERIC_ONLY#"] for name, *note in entries}
