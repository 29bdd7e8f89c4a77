"""Captions to token ids and back, with GPT-2's tokenizer or a byte-level BPE trained on the captions."""

import itertools
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from myllm.config import END_OF_TEXT
from myllm.data.records import Findings
from myllm.errors import CheckpointError, tokenizer_errors

# Otherwise tokenizers warns, in each worker process, that it was forked after threads had been used.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
GPT2_FILES = ("vocab.json", "merges.txt")


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE of at most `vocab_size` tokens (257 or more), which encodes any text without loss."""
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )
    # sorted, because the merges must not depend on the order of the captions
    tokenizer.train_from_iterator(sorted(captions), trainer)
    return tokenizer


def gpt2_tokenizer(folder_or_repo: str) -> Tokenizer:
    """Load GPT-2's tokenizer from a folder or hub repository: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Raises CheckpointError with the fix if they are missing or damaged.
    """
    folder = Path(folder_or_repo)
    files = _files_in(folder) if folder.is_dir() else _files_of_hub(folder_or_repo)
    try:
        names = [str(file) for file in files]
        tokenizer = Tokenizer.from_file(*names) if len(names) == 1 else _byte_level(models.BPE.from_file(*names))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{files[0]}: not a GPT-2 tokenizer ({error}); fetch the file again") from None
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise CheckpointError(f"{files[0]}: has no token {END_OF_TEXT}, which begins and ends captions; is it GPT-2's?")
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def no_tokenizer() -> Tokenizer:
    """Return an empty tokenizer, for weights that came without one; `end_token` raises an error for it."""
    return Tokenizer(models.BPE())


def encode_captions(
    tokenizer: Tokenizer, captions: Sequence[str], n_positions: int, findings: Findings | None = None
) -> list[list[int]]:
    """Return the ids of `<|endoftext|>` caption `<|endoftext|>` for each caption, at most `n_positions` of each.

    A longer caption is cut, without an end token because the text does not end there, and listed in `findings`.
    """
    end = end_token(tokenizer)
    rows = []
    # a caption that contains the text of the end token must not end there
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
    if findings is not None:  # longest first, which shows what context would be long enough
        findings.cut_captions.sort(key=lambda line: -int(line.split()[0]))
    return rows


def decode_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text up to the first end token. An end token at the beginning, which starts captions, is skipped."""
    end = end_token(tokenizer)
    is_marked = len(ids) > 0 and ids[0] == end
    text_ids = list(itertools.takewhile(lambda token: token != end, ids[is_marked:]))
    with tokenizer_errors():
        return str(tokenizer.decode(text_ids, skip_special_tokens=False))


def end_token(tokenizer: Tokenizer) -> int:
    """Return the id of the token that begins and ends a caption. Raises CheckpointError if there is none."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is not None:
        return int(end)
    if tokenizer.get_vocab_size():
        raise CheckpointError(f"the tokenizer has no token {END_OF_TEXT}, which begins and ends a caption")
    raise CheckpointError(
        "this captioner has no tokenizer, because it was made from weights only. Set HF_GPT2_REPO to the GPT-2 that it "
        f"was trained with (openai-community/gpt2, or a folder with {' and '.join(GPT2_FILES)}), and open or import "
        "the weights again"
    )


def _byte_level(model: models.BPE) -> Tokenizer:
    """Return a tokenizer with GPT-2's byte-level steps; like GPT-2's, it adds no blank before the text."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _files_in(folder: Path) -> list[Path]:
    if (folder / "tokenizer.json").is_file():
        return [folder / "tokenizer.json"]
    missing = [name for name in GPT2_FILES if not (folder / name).is_file()]
    if missing:
        names = " and no ".join(missing)
        raise CheckpointError(f"{folder}: holds no {names}, and no tokenizer.json instead; copy GPT-2's there")
    return [folder / name for name in GPT2_FILES]


def _files_of_hub(repo: str) -> list[Path]:
    from huggingface_hub import hf_hub_download  # here, because captioning needs no hub

    try:
        with suppress(Exception):  # older repositories have only the two files; without network these fail too
            return [Path(hf_hub_download(repo, "tokenizer.json"))]
        return [Path(hf_hub_download(repo, name)) for name in GPT2_FILES]
    except Exception as error:  # network errors have no common base class
        raise CheckpointError(
            f"GPT-2's tokenizer: {repo!r} is not a folder here and the hub cannot be reached ({type(error).__name__}). "
            f"Connect once, or set HF_GPT2_REPO or text.pretrained to a folder with {' and '.join(GPT2_FILES)}"
        ) from error
