"""The model card of a captioner: what a stranger has to know before using it, from what the checkpoint itself knows."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from myllm.caption import Calibration
from myllm.config import DecodeConfig
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import count_parameters

# of a run's validation, what is a measure of the model, with the hub's name of it where the hub knows one
FIGURES = {"CIDEr-D": "cider", "val_perplexity": "perplexity", "val_loss": "loss", "distinct_captions": None}
CONTROL = "CIDEr-D_shuffled"
FIGURES_OF_RUN = ("validation", "captioned")


def model_card(
    model: VisionGPT2, decode: DecodeConfig, provenance: Mapping[str, Any], name: str,
    calibration: Calibration | None = None,
) -> str:
    """README.md of a captioner, with the metadata that the hub reads at its beginning."""
    data = provenance.get("data") if isinstance(provenance.get("data"), dict) else {}
    figures = _figures(provenance)
    folder = str((data or {}).get("folder") or "unnamed")
    results = [
        EvalResult(
            task_type="image-to-text", dataset_type=folder, dataset_name=folder, dataset_split="validation",
            metric_type=hub, metric_name=own, metric_value=figures[own],
        )
        for own, hub in FIGURES.items()
        if hub is not None and own in figures
    ]
    front = ModelCardData(
        library_name="myllm", pipeline_tag="image-to-text", tags=["image-captioning", "image-to-text"],
        model_name=name, eval_results=results or None,
    ).to_yaml()
    sections = {
        "What it is": _geometry(model),
        "What it was trained on": _origin(provenance),
        "How good it is": _told_figures(figures, provenance, decode),
        "What it is for": INTENDED,
        "Where it fails": LIMITS.format(confidence=_told_confidence(calibration)),
        "How to use it": USAGE,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{front.strip()}\n---\n\n# {_line(name)}: captions of pictures\n\n{body}\n"


INTENDED = (
    "Short descriptions of pictures like those it was trained on: alternative text that a person checks, search in a "
    "collection, labels for other training. Not for decisions about people, for anything that only a true sentence can "
    "answer for, or for pictures of another kind than its training pictures."
)
LIMITS = (
    "It says what captions of its training data would say. What they leave out, it leaves out; where they judge people "
    "by their looks, so may it. It names things that are not there, most often those that usually accompany what is, "
    "and it counts badly. Every caption comes with a confidence: {confidence}."
)
USAGE = """```bash
pip install myllm
myllm caption PICTURES --model THIS_FOLDER
myllm info THIS_FOLDER
```

```python
from myllm import Captioner

captioner = Captioner.load("THIS_FOLDER")
print(captioner.caption("dog.jpg").text)
```"""


def _told_confidence(calibration: Calibration | None) -> str:
    if calibration is None:
        return "how sure the model is, not whether it is right"
    on = calibration.calibrated_on
    pictures = _line(f"{on.get('pictures')} pictures of {on.get('data')}'s split {on.get('split')}")
    return (
        "the share of its telling words that people's captions of the picture can be expected to use, as learned from "
        f"{pictures}; of pictures of another kind it promises nothing"
    )


def _geometry(model: VisionGPT2) -> str:
    config, encoder = model.config, model.encoder
    rows, columns = encoder.preprocess.image_size
    parameters = count_parameters(model)
    reading = "the encoder block of its own depth" if config.mode == "layerwise" else "the encoder's last output"
    return (
        f"An image encoder, `{config.vision.name}` at {rows} x {columns} pixels ({encoder.n_tokens:,} image tokens), "
        f"and a GPT of {config.text.n_layer} blocks, {config.text.n_head} heads and width {config.text.n_embd} that "
        f"looks at {reading} by cross-attention. {parameters / 1e6:.1f} million parameters in all, "
        f"{config.text.vocab_size:,} tokens, texts of up to {config.text.n_positions:,} tokens."
    )


def _origin(provenance: Mapping[str, Any]) -> str:
    rows = list(flatten({key: value for key, value in provenance.items() if key not in FIGURES_OF_RUN}, ", "))
    if not rows:
        return "The checkpoint does not say. Ask whoever gave it to you before you rely on it."
    table = "\n".join(f"| {_line(name)} | {_line(str(value))} |" for name, value in rows)
    return f"As the checkpoint itself says:\n\n| | |\n|---|---|\n{table}"


def _told_figures(figures: Mapping[str, float], provenance: Mapping[str, Any], decode: DecodeConfig) -> str:
    if not figures:
        return "Nothing was measured when it was saved. `myllm evaluate` measures it on your own pictures."
    rows = "\n".join(f"| {name} | {figures[name]:.4g} |" for name in (*FIGURES, CONTROL) if name in figures)
    search = f"a beam of {decode.beams}" if decode.beams > 1 else "samples" if decode.do_sample else "greedy search"
    captioned = provenance.get("captioned")
    pictures = f"the first {captioned:,}" if isinstance(captioned, int) else "the first"
    return (
        f"| figure | |\n|---|---|\n{rows}\n\n"
        f"Measured while training, on validation pictures that were not trained on: the loss (in nats a token) and the "
        f"perplexity over all their captions, the rest over the captions of {pictures} of them, found by {search}. "
        "CIDEr-D is a fraction, its word frequencies those of the same references. CIDEr-D_shuffled scores the same "
        "captions beside other pictures: what it falls short of CIDEr-D is what the model sees. The checkpoint was "
        "chosen by these figures, so they flatter it a little."
    )


def _figures(provenance: Mapping[str, Any]) -> dict[str, float]:
    row = provenance.get("validation")
    known = {name: row.get(name) for name in (*FIGURES, CONTROL)} if isinstance(row, dict) else {}
    return {name: value for name, value in known.items() if isinstance(value, int | float) and math.isfinite(value)}


def flatten(facts: Mapping[str, Any], joint: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value with its name behind those of the groups that it is in: 'data, train' where joint is ', '."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from flatten(value, joint, f"{prefix}{name}{joint}")
        else:
            yield f"{prefix}{name}", value


def _line(text: str) -> str:
    """On one line of a table, and no markup of its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
