"""Configurations: defaults, presets, and every value that cannot work refused by name."""

import inspect
import math
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from myllm.config import (
    CaptionerConfig,
    CaptionsConfig,
    DecodeConfig,
    GPTConfig,
    LoraConfig,
    PreprocessConfig,
    VisionConfig,
    nearest,
)
from myllm.errors import ConfigError
from myllm.presets import PRESETS, preset_config
from myllm.training_config import TrainConfig

GROUPS = {
    "vision": VisionConfig, "text": GPTConfig, "captions": CaptionsConfig, "lora": LoraConfig, "decode": DecodeConfig,
}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_each_preset_is_a_valid_configuration(preset: str) -> None:
    assert preset_config(preset).captioner.vision.name == PRESETS[preset]["vision"]["name"]


def test_preset_vit_gpt2_is_the_recipe_of_the_original_script() -> None:
    config = preset_config("vit-gpt2")
    assert (config.vision.name, config.mode, config.epochs, config.batch_size, config.lr, config.stages) == (
        "vit_base_patch16_224", "layerwise", 10, 32, 1e-4, ("new", "text", "all"),
    )
    text = config.text
    assert (text.vocab_size, text.n_embd, text.n_head, text.n_layer, text.n_positions, text.dropout) == (
        50257, 768, 12, 12, 1024, 0.1,
    )
    assert config.decode.max_new_tokens == 50 and config.captions.lowercase and config.schedule == "onecycle"


@pytest.mark.parametrize("config", [TrainConfig, *GROUPS.values()])
def test_each_option_has_help_and_is_frozen(config: Any) -> None:
    source = inspect.getsource(config)
    for field in fields(config):
        if not is_dataclass(field.type):
            after = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
            assert after.strip().startswith('"""'), field.name
    with pytest.raises(AttributeError):
        setattr(config(), fields(config)[0].name, 1)


@pytest.mark.parametrize(
    ("config", "option", "value"),
    [
        (VisionConfig, "image_size", 0),
        (VisionConfig, "crop_pct", -1.0),
        (GPTConfig, "n_layer", 0),
        (GPTConfig, "dropout", 1.0),
        (GPTConfig, "dropout", -0.1),
        (GPTConfig, "n_positions", 2),
        (CaptionsConfig, "vocab_size", 256),
        (LoraConfig, "rank", -1),
        (LoraConfig, "alpha", 0.0),
        (LoraConfig, "dropout", 1.0),
        (LoraConfig, "targets", ()),
        (DecodeConfig, "beams", 0),
        (DecodeConfig, "beams", 10_000),
        (DecodeConfig, "temperature", math.nan),
        (DecodeConfig, "temperature", math.inf),
        (DecodeConfig, "top_p", math.nan),
        (DecodeConfig, "min_p", 1.0),
        (DecodeConfig, "typical_p", 0.0),
        (DecodeConfig, "min_new_tokens", 51),
        (DecodeConfig, "no_repeat_ngram_size", -1),
        (DecodeConfig, "repetition_penalty", 0.0),
        (DecodeConfig, "top_k", -1),
        (DecodeConfig, "top_p", 0.0),
        (DecodeConfig, "top_p", 1.1),
        (DecodeConfig, "temperature", 0.5),
        (DecodeConfig, "max_new_tokens", 0),
        (DecodeConfig, "contrastive_weight", -1.0),
        (DecodeConfig, "contrastive_weight", math.nan),
        (DecodeConfig, "num_return_sequences", 0),
        (DecodeConfig, "num_return_sequences", 2),
        (DecodeConfig, "num_beam_groups", 2),
        (DecodeConfig, "diversity_penalty", 1.0),
        (DecodeConfig, "rank_by", "consensus"),
        (DecodeConfig, "bad_words", ("",)),
        (DecodeConfig, "only_words", ("...",)),
        (DecodeConfig, "force_words", ("dog",)),
        (DecodeConfig, "stop_strings", ("",)),
        (TrainConfig, "epochs", 0),
        (TrainConfig, "max_steps", 0),
        (TrainConfig, "max_minutes", 0.0),
        (TrainConfig, "lr", 0.0),
        (TrainConfig, "accumulate", -1),
        (TrainConfig, "patience", 0),
        (TrainConfig, "label_smoothing", 1.0),
        (TrainConfig, "word_dropout", 1.0),
        (TrainConfig, "workers", -1),
        (TrainConfig, "word_presence_weight", -1.0),
        (TrainConfig, "lora", LoraConfig(rank=8)),
        (TrainConfig, "stages", ()),
        (TrainConfig, "stages", ("new", "vision")),
    ],
)
def test_config_names_an_option_that_cannot_work(config: Any, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        config(**{option: value})


def is_number(kind: Any) -> bool:
    return bool({int, float} & {kind, *get_args(kind)})


CONFIGS = (TrainConfig, PreprocessConfig, *GROUPS.values())
NUMBERS = [
    (config, name) for config in CONFIGS for name, kind in get_type_hints(config).items() if is_number(kind)
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e6, -math.inf, 10**23, "3", [1], True])
@pytest.mark.parametrize(("config", "option"), NUMBERS)
def test_config_refuses_nan_and_numbers_out_of_range_by_name(config: Any, option: str, value: Any) -> None:
    if isinstance(getattr(config(), option), tuple):
        value = (value, value, value)
    with pytest.raises(ConfigError, match=rf"\b{option} is "):
        config(**{option: value})


def test_config_checks_every_number() -> None:
    assert len(NUMBERS) > 40 and (TrainConfig, "weight_decay") in NUMBERS and (PreprocessConfig, "std") in NUMBERS


@pytest.mark.parametrize(
    ("config", "option", "value"),
    [
        (GPTConfig, "n_head", 4.0), (GPTConfig, "gelu", "swish"), (VisionConfig, "geometry", 3),
        (VisionConfig, "image_size", 20_000), (PreprocessConfig, "image_size", (20_000, 20_000)),
        (PreprocessConfig, "mean", ("a", 0.5, 0.5)), (PreprocessConfig, "mean", (0.5, 0.5)),
        (PreprocessConfig, "std", (0.5, 0.0, 0.5)),
        (DecodeConfig, "beams", 4.0), (DecodeConfig, "length_penalty", 1000.0), (DecodeConfig, "temperature", 1e-45),
        (DecodeConfig, "num_return_sequences", 10_000), (DecodeConfig, "early_stopping", "always"),
        (DecodeConfig, "bad_words", 3), (TrainConfig, "text", 5), (TrainConfig, "seed", -1),
        (CaptionerConfig, "mode", 1),
    ],
)
def test_config_names_a_value_of_another_type_or_size(config: Any, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"\b{option}\b"):
        config(**{option: value})


@pytest.mark.parametrize(("n_embd", "n_head", "suggested"), [(33, 2, 32), (100, 12, 96), (3, 4, 4)])
def test_n_embd_not_divisible_by_n_head_is_refused_with_a_width_that_is(
    n_embd: int, n_head: int, suggested: int
) -> None:
    with pytest.raises(ConfigError, match=f"text.n_embd {n_embd} is not divisible .*; take n_embd {suggested} or"):
        GPTConfig(n_embd=n_embd, n_head=n_head)


def test_decode_refuses_sampling_with_beams() -> None:
    with pytest.raises(ConfigError, match=r"decode.do_sample with decode.beams 2"):
        DecodeConfig(do_sample=True, beams=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 4, "force_words": ("Dog",), "bad_words": ("cat", "dog")}, "both have 'dog'"),
        ({"beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "not divisible by decode.num_beam_groups 3"),
        ({"beams": 4, "num_beam_groups": 2}, "num_beam_groups 2 and decode.diversity_penalty 0.0"),
        ({"beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "force_words": ("a",)}, "one group"),
        ({"beams": 4, "num_return_sequences": 5}, "num_return_sequences 5 with decode.beams 4"),
    ],
)
def test_decode_names_both_of_two_options_that_exclude_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecodeConfig(**options)


def test_decode_takes_words_as_a_list_or_a_single_word() -> None:
    assert DecodeConfig(bad_words=["a", "b"]) == DecodeConfig(bad_words=("a", "b"))  # type: ignore[arg-type]
    assert DecodeConfig(stop_strings="ab").stop_strings == ("ab",)  # type: ignore[arg-type]


def test_captioner_of_a_run_has_its_vision_text_and_mode() -> None:
    config = TrainConfig(mode="last", text=GPTConfig(n_layer=3))
    assert config.captioner == CaptionerConfig(config.vision, config.text, "last")


def test_nearest_suggests_similar_words_only() -> None:
    assert nearest("epoch", ["epochs", "lr", "mode"]) == "; did you mean epochs?"
    assert nearest("zzz", ["epochs", "lr"]) == ""
