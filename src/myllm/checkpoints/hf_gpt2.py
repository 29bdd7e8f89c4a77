"""The decoder in GPT-2's own layout, for transformers; reading it is `GPT.from_pretrained`."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from myllm.checkpoints.native import Checkpoint
from myllm.config import END_OF_TEXT, GPTConfig
from myllm.data.tokenizer import end_token
from myllm.files import atomic_folder, write_json
from myllm.model.gpt2_weights import transpose_conv1d
from myllm.model.weight_files import write_tensors


def gpt2_facts(text: GPTConfig, end: int) -> dict[str, Any]:
    """transformers' configuration of the decoder."""
    return {
        "model_type": "gpt2", "activation_function": "gelu_new" if text.gelu == "tanh" else "gelu",
        "bos_token_id": end, "eos_token_id": end, "resid_pdrop": text.dropout, "embd_pdrop": text.dropout,
        "attn_pdrop": text.dropout,
        "layer_norm_epsilon": text.layer_norm_epsilon, "vocab_size": text.vocab_size,
        "n_positions": text.n_positions, "n_layer": text.n_layer, "n_head": text.n_head, "n_embd": text.n_embd,
    }


def write_tokenizer(tokenizer: Tokenizer, n_positions: int, folder: Path) -> None:
    """transformers' AutoTokenizer loads what this writes."""
    tokenizer.save(str(folder / "tokenizer.json"))
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": n_positions, **special}
    write_json(facts, folder / "tokenizer_config.json")


def to_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """The decoder as transformers' GPT2LMHeadModel: what it knows of language, without its looks at the picture.

    Raises ConfigError where `folder` is there already.
    """
    decoder = checkpoint.model.decoder
    text = {
        name: value for name, value in decoder.state_dict().items()
        if "crossattention." not in name and "ln_cross_attn." not in name and name != "lm_head.weight"  # tied
    }
    facts = {"architectures": ["GPT2LMHeadModel"], **gpt2_facts(decoder.config, end_token(checkpoint.tokenizer))}
    with atomic_folder(folder) as out:
        write_tensors(transpose_conv1d(text), out / "model.safetensors")
        write_json(facts, out / "config.json")
        write_tokenizer(checkpoint.tokenizer, decoder.config.n_positions, out)
