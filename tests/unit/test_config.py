import inspect
import math
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from myllm.config import (
    CaptionerConfig,
    CaptionsConfig,
    DecodeConfig,
    GPTConfig,
    LoraConfig,
    TrainConfig,
    VisionConfig,
    nearest,
)
from myllm.errors import ConfigError
from myllm.presets import PRESETS

GROUPS = {
    "vision": VisionConfig, "text": GPTConfig, "captions": CaptionsConfig, "lora": LoraConfig, "decode": DecodeConfig,
}


def built(preset: str) -> TrainConfig:
    options = PRESETS[preset]
    return TrainConfig(**{key: GROUPS[key](**value) if key in GROUPS else value for key, value in options.items()})


@pytest.mark.parametrize("preset", list(PRESETS))
def test_each_preset_is_a_valid_configuration(preset: str) -> None:
    assert built(preset).captioner.vision.name == PRESETS[preset]["vision"]["name"]


def test_the_seeds_preset_is_the_seeds_recipe() -> None:
    seed = built("seed")
    assert (seed.vision.name, seed.mode, seed.epochs, seed.batch_size, seed.lr, seed.stages) == (
        "vit_base_patch16_224", "layerwise", 10, 32, 1e-4, ("new", "text", "all"),
    )
    text = seed.text
    assert (text.vocab_size, text.n_embd, text.n_head, text.n_layer, text.n_positions, text.dropout) == (
        50257, 768, 12, 12, 1024, 0.1,
    )
    assert seed.decode.max_new_tokens == 50 and seed.captions.lowercase and seed.schedule == "onecycle"


@pytest.mark.parametrize("one", [TrainConfig, *GROUPS.values()])
def test_each_option_has_its_help_and_cannot_be_changed(one: Any) -> None:
    source = inspect.getsource(one)
    for field in fields(one):
        if not is_dataclass(field.type) and field.name != "mode":
            after = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
            assert after.strip().startswith('"""'), field.name
    with pytest.raises(AttributeError):
        setattr(one(), fields(one)[0].name, 1)


@pytest.mark.parametrize(
    ("one", "option", "value"),
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
def test_what_cannot_work_is_refused_by_name(one: Any, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        one(**{option: value})


@pytest.mark.parametrize(("n_embd", "n_head", "offered"), [(33, 2, 32), (100, 12, 96), (3, 4, 4)])
def test_a_width_that_heads_do_not_divide_is_refused_with_one_that_they_do(
    n_embd: int, n_head: int, offered: int
) -> None:
    with pytest.raises(ConfigError, match=f"text.n_embd {n_embd} is not divisible .*; take n_embd {offered} or"):
        GPTConfig(n_embd=n_embd, n_head=n_head)


def test_sampling_and_beams_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"decode.do_sample with decode.beams 2"):
        DecodeConfig(do_sample=True, beams=2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"beams": 4, "force_words": ("Dog",), "bad_words": ("cat", "dog")}, "both have 'dog'"),
        ({"beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "divided into decode.num_beam_groups 3"),
        ({"beams": 4, "num_beam_groups": 2}, "num_beam_groups 2 and decode.diversity_penalty 0.0"),
        ({"beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "force_words": ("a",)}, "one group"),
        ({"beams": 4, "num_return_sequences": 5}, "num_return_sequences 5 with decode.beams 4"),
    ],
)
def test_options_that_exclude_each_other_are_both_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        DecodeConfig(**options)


def test_words_may_be_a_list_or_a_single_one() -> None:
    assert DecodeConfig(bad_words=["a", "b"]) == DecodeConfig(bad_words=("a", "b"))  # type: ignore[arg-type]
    assert DecodeConfig(stop_strings="ab").stop_strings == ("ab",)  # type: ignore[arg-type]


def test_the_captioners_part_is_the_runs() -> None:
    config = TrainConfig(mode="last", text=GPTConfig(n_layer=3))
    assert config.captioner == CaptionerConfig(config.vision, config.text, "last")


def test_nearest_offers_what_is_near_and_nothing_else() -> None:
    assert nearest("epoch", ["epochs", "lr", "mode"]) == "; did you mean epochs?"
    assert nearest("zzz", ["epochs", "lr"]) == ""
