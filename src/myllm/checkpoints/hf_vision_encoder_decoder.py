"""Hugging Face's VisionEncoderDecoder folders, vit-gpt2 among them: an image encoder with GPT-2, both ways.

Tensors keep their values: query, key and value stand in one matrix here, and GPT-2's matrices are turned.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from myllm.checkpoints.build import build_model
from myllm.checkpoints.checks import check_tokenizer, dataclass_from_dict
from myllm.checkpoints.hf_encoders import from_timm, square, to_timm, vision_config
from myllm.checkpoints.hf_gpt2 import gpt2_facts, write_tokenizer
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, CaptionsConfig, DecodeConfig, PreprocessConfig
from myllm.data.images import INTERPOLATIONS
from myllm.data.tokenizer import end_token, gpt2_tokenizer
from myllm.errors import CheckpointError, ConfigError, reason
from myllm.files import atomic_folder, read_json, write_json
from myllm.model.gpt2_weights import gpt_config, transpose_conv1d
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import read_tensors, write_tensors

MODEL_TYPE = "vision-encoder-decoder"
# by the numbers that image processors write
RESAMPLES = {int(one): name for name, one in INTERPOLATIONS.items()}


def matches(path: Path) -> bool:
    """Whether this is a folder of transformers; of which model, `from_folder` checks."""
    place = path / "config.json"
    return place.is_file() and "model_type" in read_json(place)


def from_folder(folder: Path) -> Checkpoint:
    """A captioner from transformers' files: config.json, weights in any form, tokenizer, and what else there is.

    Raises CheckpointError for what is missing or damaged, and for parts that would compute something else here.
    """
    place, facts = folder / "config.json", read_json(folder / "config.json")
    parts = [facts.get(name) for name in ("encoder", "decoder")]
    if facts.get("model_type") != MODEL_TYPE or not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(
            f"{place}: model_type is {facts.get('model_type')!r}; expected {MODEL_TYPE!r}, as vit-gpt2"
        )
    encoder, decoder = (dict(part) for part in parts if isinstance(part, dict))
    if decoder.get("cross_attention_hidden_size") is not None:
        raise CheckpointError(f"{place}: decoder.cross_attention_hidden_size is set; only enc_to_dec_proj is supported")
    tokenizer = gpt2_tokenizer(str(folder))
    try:
        config = CaptionerConfig(vision_config(encoder, place), gpt_config(decoder, place), "last")
        model = build_model(config, _ours(read_tensors(folder), encoder))
        check_tokenizer(tokenizer, config.text.vocab_size)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {str(error).removeprefix(f'{place}: ')}") from error
    except Exception as error:  # an edited file can raise anything
        raise CheckpointError(f"{place}: no captioner that can be built here ({reason(error)})") from error
    return Checkpoint(
        model, tokenizer, _preprocess(folder, model.encoder.preprocess), CaptionsConfig(),
        _decode_defaults(folder, facts, tokenizer, config.text.n_positions),
        {"imported from": f"{MODEL_TYPE}: {encoder['model_type']} and {decoder['model_type']}"},
    )


def _ours(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Tensor]:
    """transformers' tensors under our names and in our layout; `facts` is its configuration of the encoder.

    Raises CheckpointError for those that have no place here.
    """
    encoder = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
    timm, unknown = to_timm(encoder)
    if facts["model_type"] == "beit" and facts.get("use_mean_pooling", True) and "cls_token" in timm:
        width = timm["cls_token"].shape[-1]  # a norm of pooled tokens, often left out
        timm = {"fc_norm.weight": torch.ones(width), "fc_norm.bias": torch.zeros(width)} | timm
    others = {
        name: value for name, value in tensors.items()
        # masks, which older versions kept
        if not name.startswith("encoder.") and not name.endswith((".attn.bias", ".masked_bias", "attention.bias"))
    }
    if unknown:
        raise CheckpointError(f"encoder.{unknown[0]} has no counterpart here ({len(unknown)} tensors in all)")
    return {f"encoder.backbone.{name}": value for name, value in timm.items()} | transpose_conv1d(others)


def _preprocess(folder: Path, own: PreprocessConfig) -> PreprocessConfig:
    """How transformers' image processor makes what the encoder takes; ViTImageProcessor's way where none is said."""
    place = folder / "preprocessor_config.json"
    half: dict[str, Any] = {"size": own.image_size[0], "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    facts = read_json(place) if place.is_file() else half
    try:
        size, crop = facts.get("size", own.image_size[0]), facts.get("crop_size", own.image_size[0])
        side = square([crop["height"], crop["width"]] if isinstance(crop, dict) else crop, "crop_size")
        if isinstance(size, dict) and "shortest_edge" in size:
            scaled, mode = int(size["shortest_edge"]), "center"
        else:
            scaled = square([size["height"], size["width"]] if isinstance(size, dict) else size, "size")
            mode = "squash"
        if not facts.get("do_center_crop", "crop_size" in facts):
            side = scaled
        if not facts.get("do_normalize", True):
            facts |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        if side != own.image_size[0]:
            raise ConfigError(f"gives {side} pixels a side; the encoder takes {own.image_size[0]}")
        if not math.isclose(facts.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-3):
            raise ConfigError(f"rescale_factor is {facts['rescale_factor']}; supported is 1 / 255")
        if facts.get("resample", 2) not in RESAMPLES:
            raise ConfigError(f"resample is {facts['resample']}; supported are {', '.join(map(str, RESAMPLES))}")
        return PreprocessConfig(
            own.image_size, tuple(facts["image_mean"]), tuple(facts["image_std"]),
            RESAMPLES[facts.get("resample", 2)], side / scaled, mode,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place}: no image processor that is known here ({reason(error)})") from error


def _decode_defaults(folder: Path, facts: Mapping[str, Any], tokenizer: Tokenizer, n_positions: int) -> DecodeConfig:
    """transformers' defaults of generation under our names."""
    place = folder / "generation_config.json"
    given = {**facts["decoder"], **facts, **(read_json(place) if place.is_file() else {})}
    end = end_token(tokenizer)
    for name in ("decoder_start_token_id", "eos_token_id"):
        ids = given.get(name) if isinstance(given.get(name), list) else [given.get(name)]
        if any(one not in (None, end) for one in ids or ()):
            raise CheckpointError(f"{folder}: {name} is {given[name]}; supported is {end}, the tokenizer's end of text")
    same = (
        "no_repeat_ngram_size", "repetition_penalty", "length_penalty", "early_stopping", "do_sample", "temperature",
        "top_p", "top_k", "max_new_tokens", "min_new_tokens",
    )
    chosen = {name: given[name] for name in same if given.get(name) is not None}
    if given.get("num_beams"):
        chosen["beams"] = given["num_beams"]
    for ours, theirs in {"max_new_tokens": "max_length", "min_new_tokens": "min_length"}.items():
        if isinstance(given.get(theirs), int) and given[theirs]:
            chosen.setdefault(ours, max(0, given[theirs] - 1))  # the begin token counts there
    if not chosen.get("do_sample"):
        chosen = {name: value for name, value in chosen.items() if name not in ("temperature", "top_p", "top_k")}
    if isinstance(chosen.get("max_new_tokens"), int):
        chosen["max_new_tokens"] = min(chosen["max_new_tokens"], n_positions)
    try:
        return dataclass_from_dict(DecodeConfig, chosen)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{place}: {error}") from error


def to_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """The files that transformers' VisionEncoderDecoderModel, AutoTokenizer and AutoImageProcessor load.

    Raises ConfigError where the model can't be said in that form, naming what can, and where `folder` is there already.
    """
    model = checkpoint.model
    if model.config.mode != "last":
        raise ConfigError(
            f"mode {model.config.mode}: in Hugging Face's form every decoder block reads the encoder's last output. "
            "Train with --mode last, or export to safetensors"
        )
    encoder_facts, encoder = from_timm(model.encoder, model.config.vision.name)
    state = _theirs(model, encoder)
    with atomic_folder(folder) as out:
        write_tensors(state, out / "model.safetensors")
        write_tokenizer(checkpoint.tokenizer, model.config.text.n_positions, out)
        for name, facts in json_facts(checkpoint, encoder_facts).items():
            write_json(facts, out / f"{name}.json")


def _theirs(model: VisionGPT2, encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under transformers' names and in its layout; the encoder's as they are given."""
    found = {f"encoder.{name}": value for name, value in encoder.items()}
    others = {
        name: value for name, value in model.state_dict().items()
        if not name.startswith("encoder.") and name != "decoder.lm_head.weight"  # tied
    }
    return found | transpose_conv1d(others)


def json_facts(checkpoint: Checkpoint, encoder: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """transformers' JSON files by name."""
    text, end = checkpoint.model.config.text, end_token(checkpoint.tokenizer)
    decoder = {"is_decoder": True, "add_cross_attention": True, **gpt2_facts(text, end)}
    config = {
        "architectures": ["VisionEncoderDecoderModel"], "model_type": MODEL_TYPE, "is_encoder_decoder": True,
        "decoder_start_token_id": end, "eos_token_id": end, "pad_token_id": end, "tie_word_embeddings": False,
        "encoder": dict(encoder), "decoder": decoder,
    }
    decode, ids = checkpoint.decode, {"decoder_start_token_id": end, "eos_token_id": end, "pad_token_id": end}
    same = ("max_new_tokens", "no_repeat_ngram_size", "repetition_penalty", "length_penalty", "early_stopping")
    drawn = ("temperature", "top_k", "top_p") if decode.do_sample else ()
    generation = {name: getattr(decode, name) for name in (*same, *drawn)}
    generation |= {"num_beams": decode.beams, "do_sample": decode.do_sample, **ids}
    return {
        "config": config, "generation_config": generation,
        "preprocessor_config": _processor_facts(checkpoint.preprocess),
    }


def _processor_facts(own: PreprocessConfig) -> dict[str, Any]:
    side, scaled = own.image_size[0], math.floor(own.image_size[0] / own.crop_pct)
    resample = int(INTERPOLATIONS[own.interpolation])
    facts = {
        "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "resample": resample,
        "image_mean": list(own.mean), "image_std": list(own.std),
    }
    if own.crop_mode == "squash" and scaled == side:
        return facts | {"image_processor_type": "ViTImageProcessor", "size": {"height": side, "width": side}}
    size = {"height": scaled, "width": scaled} if own.crop_mode == "squash" else {"shortest_edge": scaled}
    crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
    kind = "DeiTImageProcessor" if own.crop_mode == "squash" else "CLIPImageProcessor"
    return facts | crop | {"image_processor_type": kind, "size": size}
