"""What the options of OpenAI's and Ollama's APIs mean for a captioner. Both have one meaning of temperature."""

from collections.abc import Mapping, Sequence
from typing import Any

from myllm.apps.http_errors import ApiError
from myllm.config import DecodeConfig
from myllm.option_checks import MAX_SEED, has_type

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


def sampling_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoding options for the options of `SAMPLING` that a client gives.

    Temperature 0 and no option at all are the captioner's own way of decoding, without chance; else it samples.
    """
    values = {name: options[name] for name in SAMPLING if options.get(name) is not None}
    if not values:
        return {}
    defaults = {name: getattr(DecodeConfig, name) for name in SAMPLING}
    if values.get("temperature") == 0:
        return {"do_sample": False, **defaults}
    return {"do_sample": True, "beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, **defaults, **values}


def several_captions(options: Mapping[str, Any], count: int, default: DecodeConfig) -> dict[str, Any]:
    """Return the options for `count` different captions: samples if it samples, else the best beams.

    default: the captioner's own options.
    """
    if options.get("do_sample", default.do_sample):
        return {**options, "num_return_sequences": count}
    return {**options, "beams": max(count, options.get("beams", default.beams)), "num_return_sequences": count}


def own_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of our own decoding options that a client gives, except those that `sampling_options` reads."""
    known = DecodeConfig.__dataclass_fields__.keys() - {*SAMPLING}
    return {name: value for name, value in options.items() if name in known and value is not None}


def whole_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with 50 for 50.0: some languages have one type of number."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in options.items()
    }


def signed_seed(seed: Any) -> Any:
    """Return a client's seed as `CaptionRequest.seed`: -1 is none, and other negative ones become positive."""
    if seed == -1:
        return None
    return seed + MAX_SEED + 1 if has_type(seed, int) and -MAX_SEED <= seed < 0 else seed


def refuse_unsupported(options: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise ApiError for an option that would change captions, but that no captioner has."""
    for name in names:
        if options.get(name):
            raise ApiError(400, "bad_option", f"{name} is not supported; leave it out")


def without_stops(text: str, stops: Sequence[str]) -> str:
    """Return the text up to the first of the stop strings, which these APIs leave out."""
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text)
