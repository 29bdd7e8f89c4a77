"""Write the decoder as a GPT-2 of transformers, which `GPT.from_pretrained` reads."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from myllm.checkpoints.native import Checkpoint
from myllm.config import END_OF_TEXT, GPTConfig
from myllm.data.tokenizer import end_token
from myllm.files import atomic_folder, write_json
from myllm.model.gpt2_weights import GEOMETRY, transpose_conv1d
from myllm.model.weight_files import write_tensors


def decoder_config(text: GPTConfig, end: int) -> dict[str, Any]:
    """Return transformers' configuration of a decoder. end: id of the end token."""
    return {
        "model_type": "gpt2", "activation_function": "gelu_new" if text.gelu == "tanh" else "gelu",
        "bos_token_id": end, "eos_token_id": end,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop"), text.dropout), "attn_pdrop": 0.0,
        **{name: getattr(text, name) for name in ("layer_norm_epsilon", "vocab_size", *GEOMETRY)},
    }


def write_tokenizer(tokenizer: Tokenizer, n_positions: int, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, as transformers' AutoTokenizer loads them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": n_positions, **special}
    write_json(config, folder / "tokenizer_config.json")


def to_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the decoder as transformers' GPT2LMHeadModel, without cross-attention: a language model.

    Raises ConfigError if `folder` exists.
    """
    decoder = checkpoint.model.decoder
    tensors = {
        name: value for name, value in decoder.state_dict().items()
        if "crossattention." not in name and "ln_cross_attn." not in name and name != "lm_head.weight"  # tied
    }
    end = end_token(checkpoint.tokenizer)
    config = {"architectures": ["GPT2LMHeadModel"], **decoder_config(decoder.config, end)}
    with atomic_folder(folder) as out:
        write_tensors(transpose_conv1d(tensors), out / "model.safetensors")
        write_json(config, out / "config.json")
        write_tokenizer(checkpoint.tokenizer, decoder.config.n_positions, out)
