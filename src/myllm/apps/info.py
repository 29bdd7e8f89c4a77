"""`myllm info`: what is in a captioner, how it came to be, and what about it should make one wonder."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from myllm.apps.options import InfoOptions
from myllm.caption import describe_calibration
from myllm.checkpoints import lora, native
from myllm.checkpoints.build import TIED
from myllm.checkpoints.card import flatten
from myllm.checkpoints.formats import ADAPTER, NATIVE, find_format
from myllm.checkpoints.native import Checkpoint
from myllm.config import DecodeConfig

PARTS = {"encoder": "encoder.", "projection": "enc_to_dec_proj.", "decoder": "decoder."}
GEOMETRY = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")


def info(paths: Sequence[str], options: InfoOptions, _: Mapping[str, Any]) -> int:
    """Print each captioner's facts. Raises CheckpointError for one that can't be opened, which says why."""
    for path in paths:
        facts = facts_of(path)
        print(json.dumps(facts, ensure_ascii=False) if options.json else told(facts))
    return 0


def facts_of(source: str) -> dict[str, Any]:
    """All that `myllm info` tells, in plain values."""
    form, place = find_format(source)
    checkpoint = form.read(place)
    if form is NATIVE:
        place = native.locate(place)
        content = native.read(place)
        kind = "folder of safetensors" if place.is_dir() else native.FILE_NAME
    else:  # as it is once it is read; how its own program stores it is that one's matter
        content = {"model": checkpoint.model.state_dict(), "format_version": None}
        kind = form.name
        if form is ADAPTER:
            place = lora.locate(place) or place
    tensors: dict[str, Tensor] = {name: value for name, value in content["model"].items() if name not in TIED}
    config, encoder, standard = checkpoint.model.config, checkpoint.model.encoder, asdict(DecodeConfig())
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    return {
        "path": str(place),
        "kind": kind,
        "format_version": content["format_version"],
        "bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "model": {
            "backbone": config.vision.name, "image_size": list(encoder.preprocess.image_size),
            "image_tokens": encoder.n_tokens, "backbone_width": encoder.width, "mode": config.mode,
            **{name: getattr(config.text, name) for name in GEOMETRY},
        },
        "parts": {
            part: _size([value for name, value in tensors.items() if name.startswith(prefix)])
            for part, prefix in PARTS.items()
        },
        "dtype": sorted({str(one.dtype).removeprefix("torch.") for one in tensors.values() if one.is_floating_point()}),
        "tokens": checkpoint.tokenizer.get_vocab_size(),
        "preprocess": _plain(asdict(checkpoint.preprocess)),
        "decode": {name: value for name, value in _plain(asdict(checkpoint.decode)).items()
                   if value != _plain(standard[name])},
        "calibration": checkpoint.calibration and _plain(checkpoint.calibration.as_json()),
        "confidence": describe_calibration(checkpoint.calibration),
        "provenance": _plain(checkpoint.provenance),
        "suspicious": list(suspicions(checkpoint)),
        **({"adapter": adapter_facts(lora.read(place))} if form is ADAPTER else {}),
    }


def adapter_facts(adapter: lora.Adapter) -> dict[str, Any]:
    """What an adapter is, beside the captioner that it makes of its base."""
    layers = adapter.layers.values()
    return {
        "ranks": sorted({len(one.a) for one in layers}), "scales": sorted({one.scale for one in layers}),
        "parameters": sum(one.a.numel() + one.b.numel() for one in layers), "layers": list(adapter.layers),
        "base": adapter.base, "base_hash": adapter.base_hash,
    }


def suspicions(checkpoint: Checkpoint) -> Iterator[str]:
    """What can be opened and used, and still is probably not what was meant."""
    tokens, rows = checkpoint.tokenizer.get_vocab_size(), checkpoint.model.config.text.vocab_size
    if tokens < rows:
        yield f"the embedding has {rows:,} rows, the tokenizer {tokens:,} tokens: the rest stands for nothing"
    for name, parameter in checkpoint.model.named_parameters():
        if parameter.dim() in (2, 4) and parameter.numel() > 1 and bool(parameter.min() == parameter.max()):
            yield f"{name} holds one number alone: it was never trained, or was lost"
    if not checkpoint.provenance:
        yield "nothing tells how it was trained"
    row = checkpoint.provenance.get("validation")
    cider, control = (row.get(name) if isinstance(row, dict) else None for name in ("CIDEr-D", "CIDEr-D_shuffled"))
    if isinstance(cider, float) and isinstance(control, float) and cider < 2 * control:
        yield (
            f"captions of shuffled pictures scored nearly as well (CIDEr-D {control:.3f} beside {cider:.3f}): "
            "it hardly looked at the pictures"
        )


def told(facts: Mapping[str, Any]) -> str:
    """The facts for people."""
    model, sizes = facts["model"], facts["parts"]
    geometry = (
        f"{model['backbone']} at {model['image_size'][0]} x {model['image_size'][1]} pixels, {model['image_tokens']:,} "
        f"image tokens of {model['backbone_width']:,}; mode {model['mode']}; GPT of {model['n_layer']} blocks, "
        f"{model['n_head']} heads, width {model['n_embd']:,}, context {model['n_positions']:,}"
    )
    rows = [("adapter", line) for line in _told_adapter(facts["adapter"])] if "adapter" in facts else []
    rows.append(("model", geometry))
    rows += [
        (part, f"{size['parameters'] / 1e6:,.2f} M parameters, {_megabytes(size['bytes'])}")
        for part, size in sizes.items()
        if size["parameters"]
    ]
    rows += [
        ("stored in", ", ".join(facts["dtype"])),
        ("tokenizer", f"{facts['tokens']:,} tokens"),
        ("pictures", _told_fields(facts["preprocess"])),
        ("decoding", _told_fields(facts["decode"]) or "the standard: greedy search"),
    ]
    rows.append(("confidence", facts["confidence"]))
    provenance = dict(facts["provenance"])
    figures = provenance.pop("validation", {})
    rows += [("trained", line) for line in _told_lines(provenance)] or [("trained", "the checkpoint does not say")]
    rows += [("figures", line) for line in _told_lines({"validation": figures})] if figures else []
    rows += [("suspicious", line) for line in facts["suspicious"]] or [("suspicious", "nothing")]
    version = "" if facts["format_version"] is None else f", format {facts['format_version']}"
    head = f"{facts['path']}: {facts['kind']}{version}, {_megabytes(facts['bytes'])}"
    shown = [f"  {'' if at and rows[at - 1][0] == name else name:<11} {text}" for at, (name, text) in enumerate(rows)]
    return "\n".join(_printable(line) for line in [head, *shown])


def _told_adapter(facts: Mapping[str, Any]) -> list[str]:
    ranks, scales = (", ".join(f"{one:g}" for one in facts[name]) for name in ("ranks", "scales"))
    checked = f"with the weights that it was trained on (hash {facts['base_hash']})"
    unchecked = "with whatever weights that has now, as it does not say which it was trained on"
    return [
        f"{facts['parameters'] / 1e6:,.2f} M parameters of rank {ranks}, scaled by {scales}, on {len(facts['layers'])} "
        f"layers, {facts['layers'][0]} for one",
        f"stands on {facts['base']}, {checked if facts['base_hash'] else unchecked}; all below is of both together",
    ]


def _size(tensors: Sequence[Tensor]) -> dict[str, int]:
    return {
        "parameters": sum(value.numel() for value in tensors if value.is_floating_point()),
        "bytes": sum(value.numel() * value.element_size() for value in tensors),
    }


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"


def _told_fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())


def _told_lines(facts: Mapping[str, Any]) -> list[str]:
    """A line for each value, those of a group within its name: 'data.train 6000'."""
    return [f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in flatten(facts, ".")]


def _plain(value: Any) -> Any:
    """What JSON knows: lists for tuples, and null for what is no number."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def _printable(line: str) -> str:
    """A stranger's file may hold characters that move the terminal's cursor or colour its text."""
    return "".join(one if one.isprintable() else " " for one in line)
