"""Generation options of transformers as our decoding options, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from myllm.checkpoints.checks import dataclass_from_dict
from myllm.config import DecodeConfig
from myllm.errors import CheckpointError
from myllm.files import read_json

FILE_NAME = "generation_config.json"
# Options of the same name here and in transformers: always written, written if they differ from our defaults, and
# written if captions are sampled. Our `beams` is num_beams there.
ALWAYS = (
    "no_repeat_ngram_size", "repetition_penalty", "length_penalty", "early_stopping", "do_sample", "max_new_tokens",
)
OPTIONAL = ("min_new_tokens", "num_return_sequences", "num_beam_groups", "diversity_penalty", "stop_strings")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
LENGTHS = {"max_new_tokens": "max_length", "min_new_tokens": "min_length"}
TOKEN_IDS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
# They change the tokens and are not supported, except for values that have no effect: empty ones, and those given here.
UNSUPPORTED_SAMPLING: dict[str, Any] = {"epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": None}
UNSUPPORTED: dict[str, Any] = dict.fromkeys((
    "bad_words_ids", "begin_suppress_tokens", "constraints", "dola_layers", "exponential_decay_length_penalty",
    "force_words_ids", "forced_bos_token_id", "forced_eos_token_id", "sequence_bias", "suppress_tokens",
    "watermarking_config",
)) | {"guidance_scale": 1, "penalty_alpha": 0, "renormalize_logits": False}
# They change neither the tokens nor their scores.
WITHOUT_EFFECT = {
    "_from_model_config", "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight",
    "assistant_lookbehind", "cache_config", "cache_implementation", "compile_config", "continuous_batching_config",
    "disable_compile", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "is_assistant", "low_memory",
    "max_cache_len", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "output_attentions", "output_hidden_states", "output_logits", "output_scores", "prefill_chunk_size",
    "prompt_lookup_num_tokens", "remove_invalid_values", "return_dict_in_generate", "speculation_type",
    "target_lookbehind", "token_healing", "transformers_version", "use_cache", "use_mtp",
}
KNOWN = {
    "num_beams", *ALWAYS, *OPTIONAL, *SAMPLING, *LENGTHS.values(), *TOKEN_IDS, *UNSUPPORTED, *UNSUPPORTED_SAMPLING,
    *WITHOUT_EFFECT,
}
# defaults of transformers that differ from ours
DEFAULT_MAX_NEW_TOKENS, DEFAULT_TOP_K = 20, 50
# defaults of transformers' GPT2Config
GPT2_TOKEN_IDS = {"bos_token_id": 50256, "eos_token_id": 50256}


def read_decode(folder: Path, config: Mapping[str, Any], end: int, n_positions: int) -> tuple[DecodeConfig, list[str]]:
    """Return the decoding options that transformers' `generate` uses for a folder, and notes on differences.

    Generation options of config.json count only without a generation_config.json, as in transformers.
    config: content of config.json. end: id of the end token. n_positions: maximum length in tokens.
    Raises CheckpointError for options that would give other tokens than in transformers.
    """
    path = folder / FILE_NAME
    if path.is_file():
        values = read_json(path)
    else:
        top_level = {name: value for name, value in config.items() if value is not None}
        path, values = folder / "config.json", GPT2_TOKEN_IDS | config["decoder"] | top_level
        values = {name: value for name, value in values.items() if name in KNOWN}
    values = {name: value for name, value in values.items() if value is not None}
    is_sampled = values.get("do_sample") is True
    start = "decoder_start_token_id" if "decoder_start_token_id" in values else "bos_token_id"
    for name in (start, "eos_token_id"):
        if values.get(name, end) not in (end, [end]):
            raise CheckpointError(
                f"{path}: {name} is {values[name]!r:.100}; supported is {end}, the tokenizer's end of text"
            )
    for name, neutral in (UNSUPPORTED | (UNSUPPORTED_SAMPLING if is_sampled else {})).items():
        value = values.get(name)
        if value not in (None, [], {}, neutral):
            raise CheckpointError(
                f"{path}: {name} is {value!r:.100}, which is not supported; remove it to caption without it"
            )
    notes = []
    if unknown := sorted(values.keys() - KNOWN):
        notes.append(f"{path.name}: generation options that myllm does not have were left out: {', '.join(unknown)}")
    if "eos_token_id" not in values:
        notes.append(f"{path.name} has no eos_token_id; captions end at the tokenizer's end of text")
    options = _options(values, n_positions)
    if options.get("do_sample") is True and options.get("beams", 1) != 1:
        options = {name: value for name, value in options.items() if name not in ("do_sample", *SAMPLING)}
        notes.append(f"{path.name}: do_sample with num_beams {options['beams']}: beams are kept, sampling was dropped")
    try:
        return dataclass_from_dict(DecodeConfig, options), notes
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _options(values: Mapping[str, Any], n_positions: int) -> dict[str, Any]:
    """Return transformers' options under our names, with its defaults, and lengths that the context has room for."""
    options = {name: values[name] for name in (*ALWAYS, *OPTIONAL) if name in values}
    if "num_beams" in values:
        options["beams"] = values["num_beams"]
    if options.get("num_return_sequences") == 1:
        del options["num_return_sequences"]  # transformers' default; ours returns the other beams as alternatives
    if options.get("num_beam_groups", 1) == 1:
        options.pop("diversity_penalty", None)  # without effect
    if options.get("do_sample") is True:
        options |= {"top_k": DEFAULT_TOP_K} | {name: values[name] for name in SAMPLING if name in values}
    for name, hf_name in LENGTHS.items():
        if isinstance(values.get(hf_name), int) and values[hf_name]:
            options.setdefault(name, max(0, values[hf_name] - 1))  # transformers counts the start token
    options.setdefault("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
    if isinstance(options["max_new_tokens"], int):
        options["max_new_tokens"] = min(options["max_new_tokens"], n_positions)
        if isinstance(options.get("min_new_tokens"), int):
            options["min_new_tokens"] = min(options["min_new_tokens"], options["max_new_tokens"])
    return options


def generation_config(decode: DecodeConfig, end: int) -> dict[str, Any]:
    """Return transformers' generation_config.json with those of our decoding options that transformers has."""
    names = [*ALWAYS, *(name for name in OPTIONAL if name in decode.changed()), *(SAMPLING if decode.do_sample else ())]
    tokens = dict.fromkeys(("decoder_start_token_id", "eos_token_id", "pad_token_id"), end)
    return {"num_beams": decode.beams, **{name: getattr(decode, name) for name in names}, **tokens}


def unsupported_options(decode: DecodeConfig) -> list[str]:
    """Return a message for each decoding option in use that transformers' generation options cannot hold."""
    return [
        f"decode.{name} {value!r:.100} cannot be kept in Hugging Face format; captions in transformers will differ"
        for name, value in decode.changed().items() if name not in ("beams", *ALWAYS, *OPTIONAL, *SAMPLING)
    ]
