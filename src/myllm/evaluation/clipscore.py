"""CLIPScore and RefCLIPScore (Hessel et al. 2021, https://aclanthology.org/2021.emnlp-main.595) by a named CLIP.

Scores of two different CLIPs are not comparable, so report the CLIP's name, too. The paper uses OpenAI's ViT-B/32.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from myllm.batched import batched
from myllm.data.images import load_image
from myllm.errors import ConfigError, reason
from myllm.files import Picture
from myllm.metrics.result import Floats, MetricResult, mean_of
from myllm.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

PROMPT = "A photo depicts "  # before captions and references, as in the authors' program
WEIGHT = 2.5  # scales the cosines of ViT-B/32 to about 0 to 1
BATCH_SIZE = 32


@dataclass(frozen=True)
class Clip:
    """Functions that embed N pictures or N texts: (N, D) float32."""

    embed_pictures: Callable[[list[Image.Image]], "torch.Tensor"]
    embed_texts: Callable[[list[str]], "torch.Tensor"]


def clip_scores(
    name: str, pictures: Sequence[Picture], captions: Sequence[str], references: Sequence[Sequence[str]],
    device: "torch.device | str" = "cpu", progress: Progress = no_progress
) -> dict[str, MetricResult]:
    """Return CLIPScore and RefCLIPScore of one caption, and at least one reference, of each picture.

    CLIPScore:    2.5 max(cos(picture, caption), 0); uses no reference.
    RefCLIPScore: the harmonic mean of CLIPScore and the largest max(cos(caption, reference), 0).

    name: `transformers:FOLDER` or `transformers:HUB_ID`; `open_clip:ARCHITECTURE/WEIGHTS`, with a tag or a file of
        weights; `open_clip:local-dir:FOLDER`; or `open_clip:hf-hub:ID`.
    Raises ConfigError for a CLIP that cannot be opened and DataError for a picture that cannot be read.
    """
    clip = load_clip(name, device)
    picture_cosines: list[Floats] = []
    reference_cosines: list[Floats] = []
    for rows in batched(zip(pictures, captions, references, strict=True), BATCH_SIZE):
        picture_vectors = _unit(clip.embed_pictures([load_image(path) for path, _, _ in rows]))
        caption_vectors = _embed(clip, [caption for _, caption, _ in rows])
        reference_vectors = _embed(clip, [reference for _, _, group in rows for reference in group])
        groups = np.split(reference_vectors, np.cumsum([len(group) for _, _, group in rows])[:-1])
        picture_cosines += list((picture_vectors * caption_vectors).sum(axis=1))
        reference_cosines += [(group @ vector).max() for group, vector in zip(groups, caption_vectors, strict=True)]
        progress("scoring with CLIP", len(picture_cosines), len(pictures))
    score = WEIGHT * np.maximum(picture_cosines, 0)
    similarity = np.maximum(reference_cosines, 0)
    total = np.maximum(score + similarity, np.finfo(np.float64).tiny)  # avoids 0 / 0
    return {"CLIPScore": mean_of(score), "RefCLIPScore": mean_of(2 * score * similarity / total)}


def load_clip(name: str, device: "torch.device | str" = "cpu") -> Clip:
    """Load a CLIP by a name as in `clip_scores`. Raises ConfigError with the fix."""
    library, _, source = name.partition(":")
    if library not in LIBRARIES or not source:
        raise ConfigError(
            f"CLIP {name!r}: expected transformers:FOLDER_OR_ID or open_clip:ARCHITECTURE/TAG_OR_FILE, "
            "such as transformers:openai/clip-vit-base-patch32"
        )
    package, load = LIBRARIES[library]
    try:
        module = import_module(library)
    except ImportError as error:
        install = f"{sys.executable} -m pip install {package}"
        raise ConfigError(f"CLIP {name!r}: {reason(error)}; install it with: {install}") from None
    try:
        return load(module, source, device)
    except ConfigError:
        raise
    except Exception as error:  # both libraries and their downloads raise almost anything
        raise ConfigError(
            f"CLIP {name!r}: cannot be opened ({reason(error)}); give a local folder or file, or run once with network "
            "access to download it"
        ) from error


def _load_transformers(transformers: Any, source: str, device: "torch.device | str") -> Clip:
    import torch

    processor = transformers.AutoProcessor.from_pretrained(source)
    model, loaded = transformers.AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise ConfigError(f"CLIP transformers:{source}: {type(model).__name__} does not embed pictures and texts")
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])
        raise ConfigError(f"CLIP transformers:{source}: {len(missing)} weights are missing, such as {missing[0]}")
    model.eval().to(device)
    # CLIP reads a text up to its end token; SigLIP and others were trained on padded texts.
    padding = "longest" if model.config.model_type == "clip" else "max_length"
    length = model.config.text_config.max_position_embeddings

    def embed_pictures(images: list[Image.Image]) -> "torch.Tensor":
        inputs = processor(images=images, return_tensors="pt").to(device)
        return _pooled(model.get_image_features(**inputs))

    def embed_texts(texts: list[str]) -> "torch.Tensor":
        inputs = processor(text=texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        return _pooled(model.get_text_features(**inputs.to(device)))

    return Clip(torch.inference_mode()(embed_pictures), torch.inference_mode()(embed_texts))


def _pooled(output: Any) -> "torch.Tensor":
    return getattr(output, "pooler_output", output)  # transformers 4 returned the tensor itself


def _load_open_clip(library: Any, source: str, device: "torch.device | str") -> Clip:
    import torch

    if source.startswith(("hf-hub:", "local-dir:")):
        architecture, weights = source, None
    else:
        architecture, _, weights = source.partition("/")
        if not weights:
            known = ", ".join(library.list_pretrained_tags_by_model(architecture)) or "none known"
            raise ConfigError(
                f"CLIP open_clip:{source}: weights are not named; expected open_clip:{architecture}/TAG_OR_FILE; "
                f"known tags: {known}"
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="QuickGELU mismatch")  # the weights belong to another network
        model, prepare = library.create_model_from_pretrained(architecture, weights, device=device)
    tokenize = library.get_tokenizer(architecture)
    model.eval()

    def embed_pictures(images: list[Image.Image]) -> "torch.Tensor":
        return model.encode_image(torch.stack([prepare(image) for image in images]).to(device))

    def embed_texts(texts: list[str]) -> "torch.Tensor":
        return model.encode_text(tokenize(texts).to(device))

    return Clip(torch.inference_mode()(embed_pictures), torch.inference_mode()(embed_texts))


LIBRARIES: dict[str, tuple[str, Callable[[Any, str, "torch.device | str"], Clip]]] = {
    "transformers": ("transformers", _load_transformers),
    "open_clip": ("open_clip_torch", _load_open_clip),
}
"""By module: its package, and a function that loads a CLIP."""


def _embed(clip: Clip, texts: Sequence[str]) -> Floats:
    """Return the unit vectors of N texts: (N, D)."""
    batches = batched((PROMPT + text for text in texts), BATCH_SIZE)
    return np.concatenate([_unit(clip.embed_texts(batch)) for batch in batches])


def _unit(embeddings: "torch.Tensor") -> Floats:
    vectors = embeddings.float().cpu().numpy().astype(np.float64)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
