"""Captions as token ids and back: a byte-level BPE of one's own, or GPT-2's."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from myllm.config import END_OF_TEXT
from myllm.data.records import Findings
from myllm.errors import CheckpointError, ConfigError, tokenizer_errors

# Otherwise tokenizers warns, in each worker process, that it was forked after threads had been used.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# 256 bytes and the end of text: with these any text can be written.
SMALLEST_VOCAB = 257
GPT2_FILES = ("vocab.json", "merges.txt")


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens. Any text comes back from it as it was."""
    if vocab_size < SMALLEST_VOCAB:
        raise ConfigError(
            f"captions.vocab_size is {vocab_size}; a tokenizer of bytes needs at least {SMALLEST_VOCAB}: "
            f"256 bytes and {END_OF_TEXT}"
        )
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )
    # sorted: what is learned depends on the captions, not on their order
    tokenizer.train_from_iterator(sorted(captions), trainer)
    return tokenizer


def gpt2_tokenizer(folder_or_repo: str) -> Tokenizer:
    """GPT-2's tokenizer from `tokenizer.json`, or `vocab.json` and `merges.txt`, in a folder or a hub repository.

    Raises CheckpointError where they are missing or damaged, with the way out.
    """
    folder = Path(folder_or_repo)
    files = _files_in(folder) if folder.is_dir() else _files_of_hub(folder_or_repo)
    try:
        if len(files) == 1:
            tokenizer = Tokenizer.from_file(str(files[0]))
        else:
            tokenizer = _byte_level(models.BPE.from_file(*map(str, files)))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{files[0]}: no tokenizer of GPT-2's form ({error}); fetch the file again") from None
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise CheckpointError(f"{files[0]}: has no token {END_OF_TEXT}, which begins and ends captions; is it GPT-2's?")
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def no_tokenizer() -> Tokenizer:
    """Stands in for one where weights came alone. It has no token; where one is asked for, `end_token` tells that."""
    return Tokenizer(models.BPE())


def encode_captions(
    tokenizer: Tokenizer, captions: Sequence[str], n_positions: int, findings: Findings | None = None
) -> list[list[int]]:
    """`<|endoftext|>` caption `<|endoftext|>` as ids for each caption, at most `n_positions` of them.

    A longer caption is cut and goes into `findings`; it has no end then, as it did not end there.
    """
    end = end_token(tokenizer)
    rows = []
    # written out in a caption, the end token would end it
    texts = [caption.replace(END_OF_TEXT, " ") for caption in captions]
    with tokenizer_errors():
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    for caption, encoding in zip(captions, encodings, strict=True):
        row = [end, *encoding.ids, end]
        if len(row) > n_positions:
            if findings is not None:
                findings.cut_captions.append(f"{len(row)} tokens, the context has {n_positions}: {caption[:60]!r}")
            row = row[:n_positions]
        rows.append(row)
    if findings is not None:  # the longest first: it tells how long a context would do
        findings.cut_captions.sort(key=lambda line: -int(line.split()[0]))
    return rows


def decode_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text up to the first end token; one that stands at the beginning is where captions begin, and is skipped."""
    end = end_token(tokenizer)
    ids = list(ids)
    if ids[:1] == [end]:
        ids = ids[1:]
    if end in ids:
        ids = ids[: ids.index(end)]
    with tokenizer_errors():
        return str(tokenizer.decode(ids, skip_special_tokens=False))


def end_token(tokenizer: Tokenizer) -> int:
    """The id that begins and ends a caption."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None and not tokenizer.get_vocab_size():
        raise CheckpointError(
            "this captioner has no tokenizer, which tells its tokens' text: it was made from weights alone. Set "
            "HF_GPT2_REPO to the GPT-2 that it was trained with (openai-community/gpt2, or a folder with "
            f"{' and '.join(GPT2_FILES)}), and open or import the weights again"
        )
    if end is None:
        raise CheckpointError(f"the tokenizer has no token {END_OF_TEXT}, which begins and ends a caption")
    return int(end)


def _byte_level(model: models.BPE) -> Tokenizer:
    """As in GPT-2: no blank is put before the text, so that it comes back as it was."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _files_in(folder: Path) -> list[Path]:
    if (folder / "tokenizer.json").is_file():
        return [folder / "tokenizer.json"]
    missing = [name for name in GPT2_FILES if not (folder / name).is_file()]
    if missing:
        what = " and no ".join(missing)
        raise CheckpointError(f"{folder}: holds no {what}, and no tokenizer.json instead; copy GPT-2's there")
    return [folder / name for name in GPT2_FILES]


def _files_of_hub(repo: str) -> list[Path]:
    try:
        try:
            return [Path(hf_hub_download(repo, "tokenizer.json"))]
        except Exception:  # older repositories have the two files alone; if the hub is away, these fail too
            return [Path(hf_hub_download(repo, name)) for name in GPT2_FILES]
    except Exception as error:  # the network's errors have no common base below this
        raise CheckpointError(
            f"GPT-2's tokenizer: {repo!r} is no folder here and not in reach on the hub ({type(error).__name__}). "
            f"Connect once, or set HF_GPT2_REPO or text.pretrained to a folder with {' and '.join(GPT2_FILES)}"
        ) from error
