"""Find published GPT-2 weights, check their geometry, and convert their tensors to the names and layout of our GPT."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor

from myllm.config import GPTConfig
from myllm.errors import CheckpointError, ConfigError, reason
from myllm.files import read_json
from myllm.model.weight_files import read_tensors

GEOMETRY = ("n_positions", "n_layer", "n_head", "n_embd")
# Options that pretrained weights determine; training takes vocab_size from the tokenizer.
FITTED = (*GEOMETRY, "layer_norm_epsilon", "gelu")
# transformers' Conv1D keeps these as (in, out); torch's Linear keeps (out, in)
CONV1D_WEIGHTS = (".c_attn.weight", ".q_attn.weight", ".c_proj.weight", ".c_fc.weight")


def read_gpt2_state(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a GPT-2 folder in Hugging Face's layout as a state dict of our GPT.

    expected: a state dict of our GPT, which gives the names and shapes. Raises CheckpointError if a tensor is missing
    or has another shape.
    """
    tensors = {
        f"transformer.{name.removeprefix('transformer.')}": value
        for name, value in transpose_conv1d(read_tensors(folder)).items()
    }
    state = {}
    for name, parameter in expected.items():
        tensor = tensors.get("transformer.wte.weight" if name == "lm_head.weight" else name)
        if tensor is None or tensor.shape != parameter.shape:
            problem = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise CheckpointError(f"{folder}: {name} is {problem}; expected shape {tuple(parameter.shape)}")
        state[name] = tensor
    return state


def check_same_geometry(
    config: GPTConfig, pretrained: GPTConfig, names: Sequence[str] = ("vocab_size", *FITTED)
) -> None:
    """Raise ConfigError if the decoder's options `names` differ from those of the pretrained GPT-2."""
    for name in names:
        value, expected = getattr(config, name), getattr(pretrained, name)
        if value != expected:
            raise ConfigError(
                f"text.{name} is {value}, but the pretrained GPT-2 has {expected}; set --text.{name} {expected}"
            )


def fit_to_pretrained(config: GPTConfig) -> GPTConfig:
    """Return `config` with options that were left at their defaults set to the geometry of its pretrained weights.

    Raises ConfigError if an option was set to another value, and CheckpointError as `GPT.from_pretrained` does.
    """
    if not config.pretrained:
        return config
    pretrained = gpt2_config(gpt2_folder(config.pretrained))
    changed = [name for name in FITTED if getattr(config, name) != getattr(GPTConfig, name)]
    check_same_geometry(config, pretrained, changed)
    return replace(config, **{name: getattr(pretrained, name) for name in FITTED})


def named_gpt2() -> str | None:
    """Return the hub id or folder in HF_GPT2_REPO; None if that is not set."""
    return os.environ.get("HF_GPT2_REPO") or None


def gpt2_folder(source: str | bool) -> Path:
    """Return the local folder of a GPT-2. `source` is a folder, or a hub id whose files are downloaded or cached.

    If `source` is True, it is taken from HF_GPT2_REPO. Raises CheckpointError if the files cannot be had.
    """
    repo = source if isinstance(source, str) else named_gpt2() or "openai-community/gpt2"
    if Path(repo).is_dir():
        return Path(repo)
    patterns = ["config.json", "model.safetensors", "pytorch_model.bin", "vocab.json", "merges.txt", "tokenizer.json"]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except (OSError, HFValidationError, ValueError) as error:
        raise CheckpointError(
            f"GPT-2 {repo!r}: no such folder, not in the Hugging Face cache, and not received from the hub "
            f"({reason(error)}). Set HF_GPT2_REPO to a folder that has config.json, model.safetensors, "
            "vocab.json and merges.txt, or train from scratch with --text.pretrained false"
        ) from error


def transpose_conv1d(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return GPT-2's tensors with the Conv1D weights transposed: from transformers' layout to ours, or back."""
    return {
        name: value.T.contiguous() if name.endswith(CONV1D_WEIGHTS) and value.dim() == 2 else value
        for name, value in tensors.items()
    }


def gpt2_config(folder: Path) -> GPTConfig:
    """Return the configuration of a GPT-2 folder in Hugging Face's layout. Raises CheckpointError as `gpt_config`."""
    path = folder / "config.json"
    return gpt_config(read_json(path), path)


def gpt_config(values: Mapping[str, Any], path: Path) -> GPTConfig:
    """Return our configuration of a GPT-2 for transformers' configuration `values`, read from `path`.

    Raises CheckpointError if it is incomplete, or describes a model that our GPT computes differently.
    """
    width = values.get("n_embd", 0)
    expected = {
        "model_type": ("gpt2",), "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu"),
        "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "tie_word_embeddings": (True,),
        "n_inner": (None, 4 * width if isinstance(width, int) else 0),
    }
    for name, allowed in expected.items():
        if values.get(name, allowed[0]) not in allowed:
            raise CheckpointError(f"{path}: {name} is {values[name]!r}; expected {allowed[0]!r}")
    try:
        return GPTConfig(
            **{name: values[name] for name in ("vocab_size", *GEOMETRY)}, dropout=values.get("resid_pdrop", 0.1),
            layer_norm_epsilon=values.get("layer_norm_epsilon", 1e-5),
            gelu="none" if values.get("activation_function") == "gelu" else "tanh",
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not the configuration of a GPT-2 ({error})") from error
