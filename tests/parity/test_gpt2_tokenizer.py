"""Our GPT-2 tokenizer against transformers' own, made from the same two files."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm.data.tokenizer import decode_tokens, encode_captions, end_token, gpt2_tokenizer

FOLDER = Path(__file__).parents[3] / "shared/data/gpt2_tokenizer"
FLICKR8K = Path(__file__).parents[3] / "shared/data/flickr8k/results.csv"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared")


@pytest.fixture(scope="module")
def both():
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer.from_pretrained(str(FOLDER))
    return gpt2_tokenizer(str(FOLDER)), theirs


def test_the_end_token_is_gpt2s(both) -> None:
    assert end_token(both[0]) == both[1].eos_token_id == 50256
    assert both[0].get_vocab_size() == 50257


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_has_the_same_ids_and_comes_back(both, text: str) -> None:
    ours, theirs = both
    [ids] = encode_captions(ours, [text], n_positions=10_000)
    assert ids[1:-1] == theirs(text)["input_ids"]
    assert decode_tokens(ours, ids) == text


@pytest.mark.skipif(not FLICKR8K.is_file(), reason="needs ../shared")
def test_captions_of_photographs_have_the_same_ids(both) -> None:
    ours, theirs = both
    captions = [line.split("|")[2].strip() for line in FLICKR8K.read_text(encoding="utf-8").splitlines()[1:2001]]
    assert [ids[1:-1] for ids in encode_captions(ours, captions, 1024)] == theirs(captions)["input_ids"]
