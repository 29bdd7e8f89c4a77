"""Compare our figures with pycocoevalcap's, which papers report, on the same words."""

import csv
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from myllm.metrics.ptb import ptb_tokenize
from myllm.metrics.score import score_words

FLICKR8K = Path(__file__).parents[3] / "shared/data/flickr8k/results.csv"

Words = list[str]
Corpus = list[tuple[Words, list[Words]]]
Figures = dict[str, tuple[float, list[float]]]

words = st.lists(st.sampled_from(["a", "the", "dog", "cat", "runs", "red", "on", "grass"]), max_size=12)
# pycocoevalcap's BLEU and CIDEr fail if all references have no words; for ROUGE-L see below.
pictures = st.tuples(words, st.lists(words.filter(bool), min_size=1, max_size=5))
corpora = st.lists(pictures, min_size=1, max_size=8)


def ours(corpus: Corpus) -> Figures:
    candidates, references = [candidate for candidate, _ in corpus], [captions for _, captions in corpus]
    figures = score_words(candidates, references, ("BLEU", "ROUGE-L", "CIDEr"))
    return {name: (figure.corpus, figure.per_image.tolist()) for name, figure in figures.items()}


def pycocoevalcap_figures(corpus: Corpus) -> Figures:
    candidates = {i: [" ".join(candidate)] for i, (candidate, _) in enumerate(corpus)}
    references = {i: [" ".join(caption) for caption in captions] for i, (_, captions) in enumerate(corpus)}
    bleu = zip(*Bleu(4).compute_score(references, candidates, verbose=0), strict=True)
    figures = {f"BLEU-{n}": (corpus_score, each) for n, (corpus_score, each) in enumerate(bleu, 1)}
    # pycocoevalcap's CIDEr is CIDEr-D
    for name, scorer in (("ROUGE-L", Rouge()), ("CIDEr", Cider()), ("CIDEr-D", Cider())):
        corpus_score, each = scorer.compute_score(references, candidates)
        figures[name] = (float(corpus_score), each.tolist())
    return figures


def assert_equal(left: Figures, right: Figures) -> None:
    assert left.keys() == right.keys()
    for name, (corpus_score, each) in right.items():
        assert left[name][0] == pytest.approx(corpus_score, rel=0, abs=1e-9), name
        assert left[name][1] == pytest.approx(each, rel=0, abs=1e-9), name


@given(corpora)
def test_drawn_captions_score_as_in_pycocoevalcap(corpus: Corpus) -> None:
    assert_equal(ours(corpus), pycocoevalcap_figures(corpus))


@pytest.mark.parametrize(
    "corpus",
    [
        pytest.param([("", ["a dog runs"]), ("a cat", ["a cat sits"])], id="empty candidate"),
        pytest.param([("", ["a dog"]), ("", ["a cat"])], id="empty candidates only"),
        pytest.param([("dog", ["dog"]), ("a cat", ["a cat"])], id="shorter than the n-grams"),
        pytest.param([("x y z", ["a dog"]), ("u", ["a cat", "the cat"])], id="nothing in common"),
        pytest.param([("the the the the", ["the cat the"]), ("a", ["a b"])], id="repeated words"),
        pytest.param([("a b c", ["a b", "a b c d"]), ("a b c", ["a b c d", "a b"])], id="equally close"),
        pytest.param([("a dog runs on grass", ["a dog runs on grass"])], id="one picture"),
    ],
)
def test_edge_cases_score_as_in_pycocoevalcap(corpus: list[tuple[str, list[str]]]) -> None:
    split = [(candidate.split(), [caption.split() for caption in captions]) for candidate, captions in corpus]
    assert_equal(ours(split), pycocoevalcap_figures(split))


@pytest.mark.skipif(not FLICKR8K.exists(), reason="Flickr8k is not here")
def test_three_hundred_flickr8k_pictures_score_as_in_pycocoevalcap() -> None:
    captions = defaultdict(list)
    with FLICKR8K.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE):
            captions[row[0]].append(ptb_tokenize(row[2]))
    chosen = list(captions.values())[1:301]  # 0 is the header
    assert {len(five) for five in chosen} == {5}
    corpus = [(candidate, others) for candidate, *others in chosen]
    assert_equal(ours(corpus), pycocoevalcap_figures(corpus))


@pytest.mark.parametrize("candidate", ["", "a", "a dog"])
@pytest.mark.parametrize("references", [[""], ["", "a dog"], ["a dog", "a"]])
def test_rouge_of_captions_without_words_equals_pycocoevalcaps(candidate: str, references: list[str]) -> None:
    """As of captions of emoji, which the tokenizer drops."""
    result = score_words([candidate.split()], [[text.split() for text in references]], ("ROUGE-L",))["ROUGE-L"]
    assert result.corpus == pytest.approx(Rouge().calc_score([candidate], references))
