from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from myllm.config import END_OF_TEXT, CaptionsConfig
from myllm.data.records import Findings
from myllm.data.tokenizer import decode_tokens, encode_captions, end_token, gpt2_tokenizer, train_tokenizer
from myllm.errors import CheckpointError, ConfigError

CAPTIONS = ["a dog runs on the grass .", "two dogs run on grass .", "the dog sees a ball .", "a ball on the grass ."]
TOKENIZER = train_tokenizer(CAPTIONS, 300)


def test_train_tokenizer_does_not_depend_on_the_order_of_captions() -> None:
    again = train_tokenizer(list(reversed(CAPTIONS)), 300)
    assert again.to_str() == TOKENIZER.to_str()


def test_train_tokenizer_keeps_to_the_size_and_starts_with_the_end_token() -> None:
    assert 257 < TOKENIZER.get_vocab_size() <= 300
    assert end_token(TOKENIZER) == 0


def test_vocab_size_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="captions.vocab_size is 256; at least 257"):
        CaptionsConfig(vocab_size=256)
    assert train_tokenizer(CAPTIONS, CaptionsConfig(vocab_size=257).vocab_size).get_vocab_size() == 257


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: END_OF_TEXT not in text))
def test_decode_tokens_inverts_encode_captions(text: str) -> None:
    [ids] = encode_captions(TOKENIZER, [text], n_positions=10_000)
    assert decode_tokens(TOKENIZER, ids) == text


def test_encode_captions_puts_the_end_token_at_both_ends() -> None:
    [ids] = encode_captions(TOKENIZER, ["a dog"], n_positions=48)
    assert ids == [0, *TOKENIZER.encode("a dog").ids, 0]


def test_encode_captions_ignores_a_written_end_token() -> None:
    [ids] = encode_captions(TOKENIZER, [f"a dog{END_OF_TEXT}runs"], n_positions=48)
    assert ids.count(0) == 2
    assert decode_tokens(TOKENIZER, ids) == "a dog runs"


def test_encode_captions_cuts_and_reports_captions_longer_than_the_context() -> None:
    findings = Findings()
    rows = encode_captions(TOKENIZER, ["x" * 8, "y" * 30, "ab"], n_positions=6, findings=findings)
    assert [len(row) for row in rows] == [6, 6, 4]
    assert rows[0][-1] != 0 and rows[2][-1] == 0
    assert findings.cut_captions == [
        f"32 tokens, the context has 6: '{'y' * 30}'", "10 tokens, the context has 6: 'xxxxxxxx'",
    ]


def test_decode_tokens_stops_at_the_end_token() -> None:
    dog, cat = TOKENIZER.encode("a dog").ids, TOKENIZER.encode(" red").ids
    assert decode_tokens(TOKENIZER, [0, *dog, 0, *cat]) == decode_tokens(TOKENIZER, [*dog, 0, 0]) == "a dog"
    assert decode_tokens(TOKENIZER, [0, 0]) == decode_tokens(TOKENIZER, [0]) == decode_tokens(TOKENIZER, []) == ""


def test_gpt2_tokenizer_loads_a_saved_tokenizer(tmp_path: Path) -> None:
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    loaded = gpt2_tokenizer(str(tmp_path))
    assert encode_captions(loaded, CAPTIONS, 48) == encode_captions(TOKENIZER, CAPTIONS, 48)


def test_gpt2_tokenizer_refuses_a_folder_without_one(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds no merges.txt, and no tokenizer.json"):
        gpt2_tokenizer(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"version": "1.0"}'])
def test_gpt2_tokenizer_refuses_a_damaged_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="tokenizer.json: not a GPT-2 tokenizer"):
        gpt2_tokenizer(str(tmp_path))


def test_gpt2_tokenizer_refuses_a_vocabulary_without_the_end_token(tmp_path: Path) -> None:
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace(END_OF_TEXT, "</s>"))
    with pytest.raises(CheckpointError, match="has no token"):
        gpt2_tokenizer(str(tmp_path))
    with pytest.raises(CheckpointError, match="has no token"):
        end_token(Tokenizer.from_file(str(path)))


@pytest.mark.parametrize("repo", ["openai-community/gpt2", "not a repo/at all/", ""])
def test_gpt2_tokenizer_without_network_and_cache_names_the_fix(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="HF_GPT2_REPO or text.pretrained|holds no vocab.json"):
        gpt2_tokenizer(repo)
