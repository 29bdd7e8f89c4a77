"""Hugging Face's VisionEncoderDecoder folders, such as vit-gpt2: an image encoder with GPT-2, read and written.

Tensors keep their values; query, key and value are one matrix here, and GPT-2's matrices are transposed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from myllm.checkpoints.build import build_model
from myllm.checkpoints.checks import check_tokenizer
from myllm.checkpoints.hf_encoders import from_timm, to_timm, vision_config, with_defaults
from myllm.checkpoints.hf_generation import generation_config, read_decode
from myllm.checkpoints.hf_gpt2 import decoder_config, write_tokenizer
from myllm.checkpoints.hf_image_processors import processor_config, read_preprocess
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, CaptionsConfig, GPTConfig
from myllm.data.tokenizer import end_token, gpt2_tokenizer
from myllm.errors import CheckpointError, ConfigError, reason
from myllm.files import atomic_folder, read_json, write_json
from myllm.model.gpt2_weights import GEOMETRY, gpt_config, transpose_conv1d
from myllm.model.weight_files import read_tensors, write_tensors
from myllm.option_checks import has_type

MODEL_TYPE = "vision-encoder-decoder"
HEAD = "decoder.lm_head.weight"


def matches(path: Path) -> bool:
    """Return whether a path is a folder of transformers, of any model; `from_folder` refuses the others."""
    config = path / "config.json"
    return config.is_file() and "model_type" in read_json(config)


def from_folder(folder: Path) -> Checkpoint:
    """Open transformers' files: config.json, weights in any form, tokenizer, image processor, generation options.

    What differs from transformers is listed in the provenance under "notes".
    Raises CheckpointError for missing and damaged files, and for parts that would compute something else here.
    """
    path, config = folder / "config.json", read_json(folder / "config.json")
    encoder, decoder = config.get("encoder"), config.get("decoder")
    if config.get("model_type") != MODEL_TYPE or not isinstance(encoder, dict) or not isinstance(decoder, dict):
        raise CheckpointError(
            f"{path}: model_type is {config.get('model_type')!r}; expected {MODEL_TYPE!r}, as of vit-gpt2"
        )
    if decoder.get("cross_attention_hidden_size") is not None:
        raise CheckpointError(f"{path}: decoder.cross_attention_hidden_size is set; only enc_to_dec_proj is supported")
    tokenizer = read_tokenizer(folder)
    try:
        encoder, tensors = with_defaults(encoder, path), read_tensors(folder)
        text = _decoder_config(decoder, HEAD in tensors, path)
        model = build_model(CaptionerConfig(vision_config(encoder), text, "last"), _to_state_dict(tensors, encoder))
        check_tokenizer(tokenizer, text.vocab_size)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {str(error).removeprefix(f'{path}: ')}") from error
    except Exception as error:  # an edited file can raise anything
        raise CheckpointError(f"{path}: no captioner can be built from it ({reason(error)})") from error
    preprocess, notes = read_preprocess(folder, model.encoder.preprocess, encoder["model_type"])
    decode, decode_notes = read_decode(folder, config, end_token(tokenizer), text.n_positions)
    provenance: dict[str, Any] = {"imported from": f"{MODEL_TYPE}: {encoder['model_type']} and {decoder['model_type']}"}
    if notes := [*notes, *decode_notes]:
        provenance["notes"] = notes
    return Checkpoint(model, tokenizer, preprocess, CaptionsConfig(), decode, provenance)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return a folder's tokenizer, with the tokens of added_tokens.json if it is vocab.json and merges.txt.

    Raises CheckpointError if a file is missing or damaged.
    """
    tokenizer, path = gpt2_tokenizer(str(folder)), folder / "added_tokens.json"
    if path.is_file() and not (folder / "tokenizer.json").is_file():
        added = read_json(path)
        if not all(has_type(number, int) for number in added.values()):
            raise CheckpointError(f"{path}: expected tokens with their numbers, as {{\"<new>\": 50257}}")
        for token, number in sorted(added.items(), key=lambda item: int(item[1])):
            tokenizer.add_tokens([token])
            if (next_number := tokenizer.token_to_id(token)) != number:
                expected = f"expected {next_number}, which follows the tokens of vocab.json"
                raise CheckpointError(f"{path}: {token!r} is number {number}; {expected}")
    return tokenizer


def _decoder_config(values: Mapping[str, Any], has_head: bool, path: Path) -> GPTConfig:
    """Return the decoder's geometry; missing values are GPT-2 small's, as in transformers.

    has_head: whether the weights have a head of their own. `build_model` checks that it equals the token embedding.
    """
    values = {name: getattr(GPTConfig, name) for name in ("vocab_size", *GEOMETRY)} | dict(values)
    if values.get("tie_word_embeddings") is False:
        if not has_head:
            raise CheckpointError(f"{path}: decoder.tie_word_embeddings is false, but the weights lack {HEAD}")
        del values["tie_word_embeddings"]
    return gpt_config(values, path)


def _to_state_dict(tensors: Mapping[str, Tensor], encoder_config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return transformers' tensors under our names and in our layout. Raises CheckpointError for unknown ones."""
    encoder = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
    timm, unknown = to_timm(encoder)
    if unknown:
        raise CheckpointError(f"encoder.{unknown[0]} has no counterpart in myllm ({len(unknown)} tensors in all)")
    if encoder_config["model_type"] == "beit" and encoder_config["use_mean_pooling"] and "cls_token" in timm:
        width = timm["cls_token"].shape[-1]  # the norm of pooled tokens is often left out, and unused by captions
        timm = {"fc_norm.weight": torch.ones(width), "fc_norm.bias": torch.zeros(width)} | timm
    others = {
        name: value for name, value in tensors.items()
        # causal masks, which older versions stored
        if not name.startswith("encoder.") and not name.endswith((".attn.bias", ".masked_bias", "attention.bias"))
    }
    return {f"encoder.backbone.{name}": value for name, value in timm.items()} | transpose_conv1d(others)


def to_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """Write what transformers' VisionEncoderDecoderModel, AutoTokenizer and AutoImageProcessor load.

    `hf_generation.unsupported_options` lists the decoding options that are lost. Raises ConfigError if the model cannot
    be exported to that format, naming the part, and if `folder` exists.
    """
    model = checkpoint.model
    if model.config.mode != "last":
        raise ConfigError(
            f"mode {model.config.mode}: in Hugging Face format every decoder block reads the encoder's last output. "
            "Train with --mode last, or export to safetensors"
        )
    if model.encoder.mirrored or model.encoder.finer:
        option = "mirrored" if model.encoder.mirrored else f"feature_maps {model.config.vision.feature_maps}"
        raise ConfigError(
            f"vision.{option}: in Hugging Face format the decoder reads only the picture's last feature map; export to "
            "safetensors"
        )
    if checkpoint.preprocess.crop_mode == "border":
        raise ConfigError(
            "preprocess.crop_mode border: no image processor of transformers adds a border; export to safetensors"
        )
    encoder_config, encoder = from_timm(model.encoder, model.config.vision.name)
    decoder = {
        name: value for name, value in model.state_dict().items()
        if not name.startswith("encoder.") and name != HEAD  # tied
    }
    tensors = {f"encoder.{name}": value for name, value in encoder.items()} | transpose_conv1d(decoder)
    with atomic_folder(folder) as out:
        write_tensors(tensors, out / "model.safetensors")
        write_tokenizer(checkpoint.tokenizer, model.config.text.n_positions, out)
        for name, values in config_files(checkpoint, encoder_config).items():
            write_json(values, out / f"{name}.json")


def config_files(checkpoint: Checkpoint, encoder: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return {name: contents} of transformers' JSON files. encoder: transformers' configuration of the encoder."""
    end = end_token(checkpoint.tokenizer)
    decoder = {"is_decoder": True, "add_cross_attention": True, **decoder_config(checkpoint.model.config.text, end)}
    config = {
        "architectures": ["VisionEncoderDecoderModel"], "model_type": MODEL_TYPE, "is_encoder_decoder": True,
        "decoder_start_token_id": end, "eos_token_id": end, "pad_token_id": end, "tie_word_embeddings": False,
        "encoder": dict(encoder), "decoder": decoder,
    }
    files = {"config": config, "generation_config": generation_config(checkpoint.decode, end)}
    if checkpoint.preprocess.crop_mode != "border":  # which no image processor of transformers does
        files["preprocessor_config"] = processor_config(checkpoint.preprocess)
    return files
