"""Our METEOR against pycocoevalcap's, which runs the jar of Denkowski and Lavie in Java.

Where Java is missing, what it gave some hard pictures stands in: tests/fixtures/meteor.tsv, a candidate, its references
and the score of each picture, the corpus's on the last line.
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

# Words and phrases that the four stages match with each other, in many ways at once.
SAID = [
    ["a", "a", "the", "the", "an", "two", "its", "of", "on", "in", "and", "is", "are", "at", "with", ",", "'s"],
    ["dog", "dogs", "puppy", "man", "men", "man 's", "guy", "person", "people", "child", "children", "kids", "boys"],
    ["run", "runs", "running", "ran", "jumps over", "jumping over", "leaps over", "is seated on", "sits on", "rests"],
    ["photo", "photograph", "picture", "an image of", "pictures of", "bike", "bicycle", "bicycles", "car", "cars"],
    ["in front of", "before", "next to", "close to", "alongside", "on top of", "over", "a lot of", "many", "lots of"],
    ["as well as", "and also", "a number of", "several", "group of", "sofa", "couch", "t-shirt", "tee shirt", "u.s."],
    ["small", "little", "big", "large", "larger", "biggest", "happily", "happy", "happiness", "3.5", "1,000", "no. 5"],
]
GLUE = ["", "", "", "", "'", "''", "``", "'s", "-", "--", ".", "...", ",", ", ", '"', "é", "&", "$", "’", "–", "5"]


def phrased(chance: random.Random) -> Picture:
    """Many ways to match, which the search has to choose between."""
    rows = chance.sample(SAID[1:], chance.randint(1, 3)) + SAID[:1]

    def caption() -> Words:
        return [word for _ in range(chance.randint(1, 9)) for word in chance.choice(chance.choice(rows)).split()]

    return caption(), [caption() for _ in range(chance.randint(1, 5))]


def repeated(chance: random.Random) -> Picture:
    """More paths than the search keeps."""
    words = chance.choice([["a", "b"], ["the", "dog", "a", "cat"], ["a", "man", "men", "person", "runs", "run"]])

    def caption() -> Words:
        return chance.choices(words, k=chance.randint(0, 16))

    return caption(), [caption() for _ in range(chance.randint(1, 3))]


def glued(chance: random.Random) -> Picture:
    """Words that the jar cuts or mends once more."""
    words = [word for row in SAID for phrase in row for word in phrase.split()]

    def caption() -> Words:
        pieces = (
            chance.choice(GLUE) + chance.choice(words) + chance.choice(GLUE) + chance.choice(GLUE) for _ in range(6)
        )
        text = chance.choice([" ", " ", ""]).join(pieces)
        return text.split() if chance.random() < 0.5 else ptb_tokenize(text)

    first, second, third = caption(), caption(), caption()
    return first, [second, third, [*first[:3], *second[2:]]]


def inflected(words: list[str]) -> Callable[[random.Random], Picture]:
    """Words of WordNet, and what their stems and bases may be."""
    endings = ["", "", "", "s", "es", "ed", "ing", "er", "est", "ly", "ful", "ies", "men", "'s"]

    def make(chance: random.Random) -> Picture:
        candidate = chance.choices(words, k=chance.randint(2, 8))
        return candidate, [
            [word[: chance.choice([None, None, -1])] + chance.choice(endings) for word in candidate] for _ in range(3)
        ]

    return make


def paraphrased(pairs: list[tuple[Words, Words]]) -> Callable[[random.Random], Picture]:
    """Phrases of the table, and their paraphrases in another order."""

    def make(chance: random.Random) -> Picture:
        random_captions = [chance.choice([pair, pair[::-1]]) for pair in chance.choices(pairs, k=chance.randint(1, 5))]
        candidate = [word for phrase, _ in random_captions for word in phrase]
        reference = [word for _, phrase in chance.sample(random_captions, len(random_captions)) for word in phrase]
        return candidate, [reference, [word for word in reference if chance.random() < 0.8]]

    return make


def pictures(kind: Callable[[random.Random], Picture], count: int, seed: int) -> list[Picture]:
    chance = random.Random(seed)
    return [kind(chance) for _ in range(count)]


@pytest.fixture(scope="module")
def jar(program: Callable[[str], str]) -> Iterator[Jar]:
    """jar(pictures): what Java gives them together, and each."""
    program("java")  # what the jar said of the pictures in meteor.tsv stands in for it
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
        f"{' '.join(candidate)!r} for {[*map(' '.join, captions)]}: ours {ours}, the jar's {jar_scores}"
        for (candidate, captions), ours, jar_scores in zip(judged, figure.per_image.tolist(), each, strict=True)
        if abs(ours - jar_scores) > 1e-12
    ]
    assert differences == []


def recorded() -> tuple[list[Picture], tuple[float, list[float]]]:
    *rows, (corpus,) = (line.split("\t") for line in RECORDED.read_text(encoding="utf-8").splitlines())
    judged = [(candidate.split(), [caption.split() for caption in captions]) for candidate, *captions, _ in rows]
    return judged, (float(corpus), [float(row[-1]) for row in rows])


def test_recorded_pictures_score_as_by_the_jar() -> None:
    """Stands in for the tests below where there is no Java."""
    judged, expected = recorded()
    assert len(judged) > 200
    assert_equal(judged, expected)


@pytest.mark.slow
def test_the_record_is_what_the_jar_gives(jar: Jar) -> None:
    judged, expected = recorded()
    assert jar(judged) == expected


@pytest.mark.slow
def test_drawn_pictures_score_as_by_the_jar(jar: Jar) -> None:
    judged = [picture for kind in (phrased, repeated, glued) for picture in pictures(kind, 500, seed=1)]
    assert_equal(judged, jar(judged))


@pytest.mark.slow
def test_words_of_wordnet_score_as_by_the_jar(jar: Jar) -> None:
    with zipfile.ZipFile(FILES / wrapper.METEOR_JAR) as files:
        known = files.read("synonym/english.synsets").decode().split("\n")[:-1:2]
        irregular = files.read("synonym/english.exceptions").decode().split()
    judged = pictures(inflected(known), 500, seed=2) + pictures(inflected(irregular), 500, seed=3)
    assert_equal(judged, jar(judged))


@pytest.mark.slow
def test_phrases_of_the_table_score_as_by_the_jar(jar: Jar) -> None:
    with gzip.open(FILES / "data/paraphrase-en.gz", "rt", encoding="utf-8") as file:
        lines = itertools.islice(file, 0, 6_000_000)
        pairs = [
            (phrase.split(), paraphrase.split())
            for number, (_, phrase, paraphrase) in enumerate(zip(lines, lines, lines, strict=True))
            if number % 1000 == 0
        ]
    judged = pictures(paraphrased(pairs), 1000, seed=4)
    assert_equal(judged, jar(judged))


@pytest.mark.slow
@pytest.mark.needs_data
def test_the_validation_split_of_flickr8k_scores_as_by_the_jar(jar: Jar, shared_data: Path) -> None:
    names = set((shared_data / "splits/val.txt").read_text(encoding="utf-8").split())
    captions = defaultdict(list)
    with (shared_data / "results.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE):
            if row[0] in names:
                captions[row[0]].append(ptb_tokenize(row[2]))
    judged = [(first, others) for first, *others in captions.values()]
    assert len(judged) == 1000
    assert_equal(judged, jar(judged))
