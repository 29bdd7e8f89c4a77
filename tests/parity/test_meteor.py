"""Our METEOR compared with pycocoevalcap's, which runs the jar of Denkowski and Lavie in Java.

Without Java, only recorded scores of the jar for some hard pictures are compared. tests/fixtures/meteor.tsv has them: a
line for each picture with a candidate, its references and the score, and the score of the corpus on the last line.
"""

import csv
import gzip
import itertools
import random
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pycocoevalcap.meteor import meteor as wrapper

from myllm.metrics.meteor import meteor
from myllm.metrics.ptb import ptb_tokenize
from myllm.metrics.result import MetricResult

RECORDED = Path(__file__).parents[1] / "fixtures/meteor.tsv"
FILES = Path(wrapper.__file__).parent

Words = list[str]
Picture = tuple[Words, list[Words]]
Jar = Callable[[list[Picture]], tuple[float, list[float]]]

# Words and phrases that METEOR's four stages match with each other, often in several ways.
PHRASES = [
    ["a", "a", "the", "the", "an", "two", "its", "of", "on", "in", "and", "is", "are", "at", "with", ",", "'s"],
    ["dog", "dogs", "puppy", "man", "men", "man 's", "guy", "person", "people", "child", "children", "kids", "boys"],
    ["run", "runs", "running", "ran", "jumps over", "jumping over", "leaps over", "is seated on", "sits on", "rests"],
    ["photo", "photograph", "picture", "an image of", "pictures of", "bike", "bicycle", "bicycles", "car", "cars"],
    ["in front of", "before", "next to", "close to", "alongside", "on top of", "over", "a lot of", "many", "lots of"],
    ["as well as", "and also", "a number of", "several", "group of", "sofa", "couch", "t-shirt", "tee shirt", "u.s."],
    ["small", "little", "big", "large", "larger", "biggest", "happily", "happy", "happiness", "3.5", "1,000", "no. 5"],
]
ATTACHED = ["", "", "", "", "'", "''", "``", "'s", "-", "--", ".", "...", ",", ", ", '"', "é", "&", "$", "’", "–", "5"]


def phrased(chance: random.Random) -> Picture:
    """Return captions that match in many ways, between which the search has to choose."""
    rows = chance.sample(PHRASES[1:], chance.randint(1, 3)) + PHRASES[:1]

    def caption() -> Words:
        return [word for _ in range(chance.randint(1, 9)) for word in chance.choice(chance.choice(rows)).split()]

    return caption(), [caption() for _ in range(chance.randint(1, 5))]


def repeated(chance: random.Random) -> Picture:
    """Return captions that match in more ways than the search keeps."""
    words = chance.choice([["a", "b"], ["the", "dog", "a", "cat"], ["a", "man", "men", "person", "runs", "run"]])

    def caption() -> Words:
        return chance.choices(words, k=chance.randint(0, 16))

    return caption(), [caption() for _ in range(chance.randint(1, 3))]


def punctuated(chance: random.Random) -> Picture:
    """Return words with characters attached, some of which the jar tokenizes again."""
    words = [word for row in PHRASES for phrase in row for word in phrase.split()]

    def caption() -> Words:
        pieces = (
            chance.choice(ATTACHED) + chance.choice(words) + chance.choice(ATTACHED) + chance.choice(ATTACHED)
            for _ in range(6)
        )
        text = chance.choice([" ", " ", ""]).join(pieces)
        return text.split() if chance.random() < 0.5 else ptb_tokenize(text)

    first, second, third = caption(), caption(), caption()
    return first, [second, third, [*first[:3], *second[2:]]]


def inflected(words: list[str]) -> Callable[[random.Random], Picture]:
    """Return a function that draws words of WordNet, and references with other endings of these words."""
    endings = ["", "", "", "s", "es", "ed", "ing", "er", "est", "ly", "ful", "ies", "men", "'s"]

    def make(chance: random.Random) -> Picture:
        candidate = chance.choices(words, k=chance.randint(2, 8))
        return candidate, [
            [word[: chance.choice([None, None, -1])] + chance.choice(endings) for word in candidate] for _ in range(3)
        ]

    return make


def paraphrased(pairs: list[tuple[Words, Words]]) -> Callable[[random.Random], Picture]:
    """Return a function that draws phrases of the table, and references with their paraphrases in another order."""

    def make(chance: random.Random) -> Picture:
        drawn = [chance.choice([pair, pair[::-1]]) for pair in chance.choices(pairs, k=chance.randint(1, 5))]
        candidate = [word for phrase, _ in drawn for word in phrase]
        reference = [word for _, phrase in chance.sample(drawn, len(drawn)) for word in phrase]
        return candidate, [reference, [word for word in reference if chance.random() < 0.8]]

    return make


def pictures(kind: Callable[[random.Random], Picture], count: int, seed: int) -> list[Picture]:
    chance = random.Random(seed)
    return [kind(chance) for _ in range(count)]


@pytest.fixture(scope="module")
def jar(program: Callable[[str], str]) -> Iterator[Jar]:
    """jar(pictures): the score of the corpus and the score of each picture, computed in Java."""
    program("java")  # skips the test if Java is missing
    scorer = wrapper.Meteor()

    def score(judged: list[Picture]) -> tuple[float, list[float]]:
        candidates = {number: [" ".join(candidate)] for number, (candidate, _) in enumerate(judged)}
        references = {number: [*map(" ".join, captions)] for number, (_, captions) in enumerate(judged)}
        return scorer.compute_score(references, candidates)

    yield score
    scorer.meteor_p.kill()
    scorer.meteor_p.wait()


def ours(judged: list[Picture]) -> MetricResult:
    return meteor([candidate for candidate, _ in judged], [captions for _, captions in judged])["METEOR"]


def assert_equal(judged: list[Picture], expected: tuple[float, list[float]]) -> None:
    corpus, each = expected
    figure = ours(judged)
    assert figure.corpus == pytest.approx(corpus, rel=0, abs=1e-12)
    differences = [
        f"{' '.join(candidate)!r} for {[*map(' '.join, captions)]}: our score {score}, the jar's {jar_score}"
        for (candidate, captions), score, jar_score in zip(judged, figure.per_image.tolist(), each, strict=True)
        if abs(score - jar_score) > 1e-12
    ]
    assert differences == []


def recorded() -> tuple[list[Picture], tuple[float, list[float]]]:
    *rows, (corpus,) = (line.split("\t") for line in RECORDED.read_text(encoding="utf-8").splitlines())
    judged = [(candidate.split(), [caption.split() for caption in captions]) for candidate, *captions, _ in rows]
    return judged, (float(corpus), [float(row[-1]) for row in rows])


@pytest.mark.slow
def test_meteor_equals_the_recorded_scores_of_the_jar() -> None:
    """The tests below need Java; this one does not."""
    judged, expected = recorded()
    assert len(judged) > 200
    assert_equal(judged, expected)


@pytest.mark.slow
def test_the_jar_gives_the_recorded_scores(jar: Jar) -> None:
    judged, expected = recorded()
    assert jar(judged) == expected


def words_of_the_jar() -> tuple[list[str], list[str]]:
    """Return the words with synonyms, and those with irregular forms."""
    with zipfile.ZipFile(FILES / wrapper.METEOR_JAR) as files:
        known = files.read("synonym/english.synsets").decode().split("\n")[:-1:2]
        return known, files.read("synonym/english.exceptions").decode().split()


def some_paraphrases() -> list[tuple[Words, Words]]:
    """Return every thousandth of two million phrases with its paraphrase."""
    with gzip.open(FILES / "data/paraphrase-en.gz", "rt", encoding="utf-8") as file:
        lines = itertools.islice(file, 0, 6_000_000)
        return [
            (phrase.split(), paraphrase.split())
            for number, (_, phrase, paraphrase) in enumerate(zip(lines, lines, lines, strict=True))
            if number % 1000 == 0
        ]


@pytest.mark.slow
def test_meteor_equals_the_jar_for_drawn_captions(jar: Jar) -> None:
    """In one call, because ours and the jar read the table of paraphrases for each."""
    known, irregular = words_of_the_jar()
    judged = [picture for kind in (phrased, repeated, punctuated) for picture in pictures(kind, 300, seed=1)]
    judged += pictures(inflected(known), 300, seed=2) + pictures(inflected(irregular), 300, seed=3)
    judged += pictures(paraphrased(some_paraphrases()), 500, seed=4)
    assert_equal(judged, jar(judged))


@pytest.mark.slow
@pytest.mark.needs_data
def test_meteor_equals_the_jar_on_the_validation_split_of_flickr8k(jar: Jar, shared_data: Path) -> None:
    names = set((shared_data / "splits/val.txt").read_text(encoding="utf-8").split())
    captions = defaultdict(list)
    with (shared_data / "results.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE):
            if row[0] in names:
                captions[row[0]].append(ptb_tokenize(row[2]))
    judged = [(first, others) for first, *others in captions.values()]
    assert len(judged) == 1000
    assert_equal(judged, jar(judged))
