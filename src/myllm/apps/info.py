"""`myllm info`: the contents of a captioner, its training, and signs that something is wrong with it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from myllm.apps.options import InfoOptions
from myllm.apps.printing import print_json, printable
from myllm.caption import describe_calibration
from myllm.checkpoints import lora, native
from myllm.checkpoints.build import TIED
from myllm.checkpoints.card import flatten
from myllm.checkpoints.formats import ADAPTER, NATIVE, find_format
from myllm.checkpoints.native import Checkpoint

PARTS = {"encoder": "encoder.", "projection": "enc_to_dec_proj.", "decoder": "decoder."}
GEOMETRY = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")


def info(options: InfoOptions) -> int:
    """Print each captioner's facts. Raises CheckpointError, with the reason, for one that cannot be opened."""
    for path in options.paths:
        facts = facts_of(path)
        if options.json:
            print_json(facts)
        else:
            print(facts_as_text(facts))
    return 0


def facts_of(source: str) -> dict[str, Any]:
    """Return all that `myllm info` prints, in types that JSON has."""
    form, path = find_format(source)
    checkpoint = form.read(path)
    if form is NATIVE:
        path = native.locate(path)
        content = native.read(path)
        kind = "folder of safetensors" if path.is_dir() else native.FILE_NAME
    else:  # dtype and size are those after loading
        content = {"model": checkpoint.model.state_dict(), "format_version": None}
        kind = form.name
        if form is ADAPTER:
            path = lora.locate(path) or path
    tensors: dict[str, Tensor] = {name: value for name, value in content["model"].items() if name not in TIED}
    config, encoder = checkpoint.model.config, checkpoint.model.encoder
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    facts = {
        "path": str(path), "kind": kind, "format_version": content["format_version"],
        "bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "model": {
            "backbone": config.vision.name, "image_size": list(encoder.preprocess.image_size),
            "image_tokens": encoder.n_tokens, "backbone_width": encoder.width, "mode": config.mode,
            **{name: getattr(config.text, name) for name in GEOMETRY},
        },
        "parts": {
            part: _size([tensor for name, tensor in tensors.items() if name.startswith(prefix)])
            for part, prefix in PARTS.items()
        },
        "dtype": sorted({
            str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.is_floating_point()
        }),
        "tokens": checkpoint.tokenizer.get_vocab_size(),
        "preprocess": asdict(checkpoint.preprocess),
        "decode": checkpoint.decode.changed(),
        "calibration": checkpoint.calibration and checkpoint.calibration.as_json(),
        "confidence": describe_calibration(checkpoint.calibration),
        "training_captions": 0 if checkpoint.index is None else len(checkpoint.index.lengths),
        "provenance": checkpoint.provenance,
        "suspicious": list(suspicions(checkpoint)),
        **({"adapter": adapter_facts(lora.read(path))} if form is ADAPTER else {}),
    }
    # tuples become lists; NaN and infinity, which JSON lacks, become null
    return json.loads(json.dumps(facts, default=str), parse_constant=lambda name: None)


def adapter_facts(adapter: lora.Adapter) -> dict[str, Any]:
    """Return the adapter's size, layers and base."""
    layers = adapter.layers.values()
    return {
        "ranks": sorted({len(layer.a) for layer in layers}), "scales": sorted({layer.scale for layer in layers}),
        "parameters": sum(layer.a.numel() + layer.b.numel() for layer in layers), "layers": list(adapter.layers),
        "base": adapter.base, "base_hash": adapter.base_hash,
    }


def suspicions(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield signs of a captioner that opens, but is probably not the intended one."""
    tokens, rows = checkpoint.tokenizer.get_vocab_size(), checkpoint.model.config.text.vocab_size
    if tokens < rows:
        yield f"the embedding has {rows:,} rows, the tokenizer {tokens:,} tokens: the other rows are unused"
    for name, parameter in checkpoint.model.named_parameters():
        if parameter.dim() in (2, 4) and parameter.numel() > 1 and bool(parameter.min() == parameter.max()):
            yield f"all values of {name} are equal: it was not trained, or was lost"
    if not checkpoint.provenance:
        yield "there is no record of its training"
    row = checkpoint.provenance.get("validation")
    cider, control = (row.get(name) if isinstance(row, dict) else None for name in ("CIDEr-D", "CIDEr-D_shuffled"))
    if isinstance(cider, float) and isinstance(control, float) and cider < 2 * control:
        yield (
            f"captions of shuffled pictures scored nearly as well (CIDEr-D {control:.3f} and {cider:.3f}): it hardly "
            "uses the pictures"
        )


def facts_as_text(facts: Mapping[str, Any]) -> str:
    """Return the facts as lines of text."""
    model = facts["model"]
    geometry = (
        f"{model['backbone']} at {model['image_size'][0]} x {model['image_size'][1]} pixels, {model['image_tokens']:,} "
        f"image tokens of {model['backbone_width']:,}; mode {model['mode']}; GPT of {model['n_layer']} blocks, "
        f"{model['n_head']} heads, width {model['n_embd']:,}, context {model['n_positions']:,}"
    )
    provenance = dict(facts["provenance"])
    figures = provenance.pop("validation", {})
    paragraphs = {
        "adapter": _adapter_lines(facts["adapter"]) if "adapter" in facts else [],
        "model": [geometry],
        **{
            part: [f"{size['parameters'] / 1e6:,.2f} M parameters, {_megabytes(size['bytes'])}"]
            for part, size in facts["parts"].items() if size["parameters"]
        },
        "stored in": [", ".join(facts["dtype"])],
        "tokenizer": [f"{facts['tokens']:,} tokens"],
        "pictures": [_pairs(facts["preprocess"])],
        "decoding": [_pairs(facts["decode"]) or "greedy search, the default"],
        "confidence": [facts["confidence"]],
        "retrieval": [f"{facts['training_captions']:,} captions of training pictures, readable in the file"]
        if facts["training_captions"] else [],
        "trained": _lines(provenance) or ["not recorded"],
        "figures": _lines({"validation": figures}) if figures else [],
        "suspicious": facts["suspicious"] or ["nothing"],
    }
    version = "" if facts["format_version"] is None else f", format {facts['format_version']}"
    head = f"{facts['path']}: {facts['kind']}{version}, {_megabytes(facts['bytes'])}"
    lines = [
        f"  {'' if index else name:<11} {line}" for name, part in paragraphs.items() for index, line in enumerate(part)
    ]
    return "\n".join(map(printable, [head, *lines]))


def _adapter_lines(facts: Mapping[str, Any]) -> list[str]:
    ranks, scales = (", ".join(f"{value:g}" for value in facts[name]) for name in ("ranks", "scales"))
    checked = f"with the weights that it was trained on (hash {facts['base_hash']})"
    unchecked = "with its present weights, since the adapter does not record which it was trained on"
    return [
        f"{facts['parameters'] / 1e6:,.2f} M parameters of rank {ranks}, scaled by {scales}, on {len(facts['layers'])} "
        f"layers, for example {facts['layers'][0]}",
        f"based on {facts['base']}, {checked if facts['base_hash'] else unchecked}; the lines below describe both",
    ]


def _size(tensors: Sequence[Tensor]) -> dict[str, int]:
    return {
        "parameters": sum(tensor.numel() for tensor in tensors if tensor.is_floating_point()),
        "bytes": sum(tensor.nbytes for tensor in tensors),
    }


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"


def _pairs(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())


def _lines(facts: Mapping[str, Any]) -> list[str]:
    """Return a line for each value, with dotted names for nested ones: 'data.train 6000'."""
    return [f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in flatten(facts, ".")]
