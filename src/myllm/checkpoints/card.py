"""Write a captioner's model card from what its checkpoint records."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from myllm.caption import Calibration
from myllm.config import DecodeConfig
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import count_parameters

# Columns of a run's metrics, with the hub's name for each if it has one.
METRICS = {"CIDEr-D": "cider", "val_perplexity": "perplexity", "val_loss": "loss", "distinct_captions": None}
CONTROL = "CIDEr-D_shuffled"
VALIDATION_KEYS = ("validation", "captioned")

INTENDED = (
    "Short descriptions of pictures like those it was trained on: alternative text that a person checks, search in a "
    "collection, labels for other training. Not for decisions about people, for answers that must be true, or for "
    "pictures of another kind than its training pictures."
)
LIMITS = (
    "It describes the same kinds of things as the captions of its training data, and leaves out others. If they judge "
    "people by their looks, it may do so, too. It names things that are not in the picture, most often those that "
    "usually accompany the things in it, and it counts badly. Every caption comes with a confidence: {confidence}."
)
USAGE = """```bash
pip install 'myllm-captioner[train]'
myllm caption PICTURES --model THIS_FOLDER
myllm info THIS_FOLDER
```

```python
from myllm import Captioner

captioner = Captioner.load("THIS_FOLDER")
print(captioner.caption("dog.jpg").text)
```"""

READABLE_CAPTIONS = "It keeps the captions of its training pictures: whoever has the files can read them."


def model_card(
    model: VisionGPT2, decode: DecodeConfig, provenance: Mapping[str, Any], name: str,
    calibration: Calibration | None = None,
) -> str:
    """Return README.md of a captioner, with the metadata that the hub reads at its beginning."""
    data = provenance.get("data")
    folder = str((data.get("folder") if isinstance(data, dict) else None) or "unnamed")
    metrics = _validation_metrics(provenance)
    results = [
        EvalResult(
            task_type="image-to-text", dataset_type=folder, dataset_name=folder, dataset_split="validation",
            metric_type=hub_name, metric_name=metric, metric_value=metrics[metric],
        )
        for metric, hub_name in METRICS.items() if hub_name is not None and metric in metrics
    ]
    front = ModelCardData(
        library_name="myllm", pipeline_tag="image-to-text", tags=["image-captioning", "image-to-text"],
        model_name=name, eval_results=results or None,
    ).to_yaml()
    sections = {
        "What it is": _geometry(model), "What it was trained on": _origin(provenance, decode),
        "How good it is": _quality(metrics, provenance, decode.without_retrieval()), "What it is for": INTENDED,
        "Where it fails": LIMITS.format(confidence=_confidence(calibration)), "How to use it": USAGE,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{front.strip()}\n---\n\n# {_one_line(name)}: captions of pictures\n\n{body}\n"


def _confidence(calibration: Calibration | None) -> str:
    if calibration is None:
        return "how sure the model is, not whether it is right"
    origin = calibration.calibrated_on
    pictures = _one_line(f"{origin.get('pictures')} pictures of {origin.get('data')}'s split {origin.get('split')}")
    return (
        "the expected share of its content words that people's captions of the picture use too, as learned from "
        f"{pictures}; it does not hold for pictures of another kind"
    )


def _geometry(model: VisionGPT2) -> str:
    config, encoder = model.config, model.encoder
    rows, columns = encoder.preprocess.image_size
    source = "the encoder block of the same depth" if config.mode == "layerwise" else "the encoder's last output"
    return (
        f"An image encoder, `{config.vision.name}` at {rows} x {columns} pixels ({encoder.n_tokens:,} image tokens), "
        f"and a GPT of {config.text.n_layer} blocks, {config.text.n_head} heads and width {config.text.n_embd} that "
        f"reads {source} by cross-attention. {count_parameters(model) / 1e6:.1f} million parameters in all, "
        f"{config.text.vocab_size:,} tokens, texts of up to {config.text.n_positions:,} tokens."
    )


def _origin(provenance: Mapping[str, Any], decode: DecodeConfig) -> str:
    rows = list(flatten({key: value for key, value in provenance.items() if key not in VALIDATION_KEYS}, ", "))
    if not rows:
        return "The checkpoint does not record it. Ask whoever gave it to you before you rely on it."
    table = "\n".join(f"| {_one_line(name)} | {_one_line(str(value))} |" for name, value in rows)
    readable = f"\n\n{READABLE_CAPTIONS}" if decode.rank_by == "retrieval" else ""
    return f"As recorded in the checkpoint:\n\n| | |\n|---|---|\n{table}{readable}"


def _quality(metrics: Mapping[str, float], provenance: Mapping[str, Any], decode: DecodeConfig) -> str:
    if not metrics:
        return "Nothing was measured when it was saved. `myllm evaluate` measures it on your own pictures."
    rows = "\n".join(f"| {name} | {metrics[name]:.4g} |" for name in (*METRICS, CONTROL) if name in metrics)
    search = f"a beam of {decode.beams}" if decode.beams > 1 else "samples" if decode.do_sample else "greedy search"
    captioned = provenance.get("captioned")
    pictures = f"the first {captioned:,}" if isinstance(captioned, int) else "the first"
    return (
        f"| figure | |\n|---|---|\n{rows}\n\n"
        f"Measured during training on validation pictures that were not trained on: loss (nats per token) and "
        f"perplexity over all their captions, the rest over the captions of {pictures} of them, found by {search}. "
        "CIDEr-D is not multiplied by 100; its word frequencies are those of the same references. CIDEr-D_shuffled "
        "scores the same captions against other pictures: the difference from CIDEr-D is due to seeing the picture. "
        "The checkpoint was chosen by these figures, so they are slightly too good."
    )


def _validation_metrics(provenance: Mapping[str, Any]) -> dict[str, float]:
    row = provenance.get("validation")
    metrics = {name: row.get(name) for name in (*METRICS, CONTROL)} if isinstance(row, dict) else {}
    return {name: value for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)}


def flatten(values: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values under joined names, such as ("data, train", 6000) if `separator` is ", "."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, separator, f"{prefix}{name}{separator}")
        else:
            yield f"{prefix}{name}", value


def _one_line(text: str) -> str:
    """Return the text on one line, with Markdown's table and HTML characters escaped."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
