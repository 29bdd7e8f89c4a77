"""Our GPT-2 tokenizer, compared with transformers' from the same two files."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm.data.tokenizer import decode_tokens, encode_captions, end_token, gpt2_tokenizer

FOLDER = Path(__file__).parents[3] / "shared/data/gpt2_tokenizer"
FLICKR8K = Path(__file__).parents[3] / "shared/data/flickr8k/results.csv"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared")


@pytest.fixture(scope="module")
def tokenizers():
    from transformers import GPT2Tokenizer

    return gpt2_tokenizer(str(FOLDER)), GPT2Tokenizer.from_pretrained(str(FOLDER))


def test_gpt2_tokenizer_has_gpt2s_end_token(tokenizers) -> None:
    ours, reference = tokenizers
    assert end_token(ours) == reference.eos_token_id == 50256
    assert ours.get_vocab_size() == 50257


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_gpt2_tokenizer_encodes_any_text_as_transformers_and_decodes_it(tokenizers, text: str) -> None:
    ours, reference = tokenizers
    [ids] = encode_captions(ours, [text], n_positions=10_000)
    assert ids[1:-1] == reference(text)["input_ids"]
    assert decode_tokens(ours, ids) == text


@pytest.mark.skipif(not FLICKR8K.is_file(), reason="needs ../shared")
def test_gpt2_tokenizer_encodes_flickr8k_captions_as_transformers(tokenizers) -> None:
    ours, reference = tokenizers
    captions = [line.split("|")[2].strip() for line in FLICKR8K.read_text(encoding="utf-8").splitlines()[1:2001]]
    assert [ids[1:-1] for ids in encode_captions(ours, captions, 1024)] == reference(captions)["input_ids"]
