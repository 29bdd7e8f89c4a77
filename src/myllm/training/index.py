"""The index of a captioner's training pictures, which `decode.rank_by` retrieval searches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from myllm.checkpoints import native
from myllm.config import DecodeConfig
from myllm.data.batches import CaptionSource, evaluation_batches
from myllm.decoding.retrieval import CaptionIndex
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.progress import Progress, no_progress


def save_index(
    path: Path, train: CaptionSource, decode: DecodeConfig, device: torch.device, progress: Progress = no_progress
) -> None:
    """Add the index of the training pictures to captioner.pt, and make `decode` its decoding defaults.

    Raises CheckpointError if the file cannot be read.
    """
    checkpoint = native.load(path)
    index = build_index(checkpoint.model.to(device), train, progress)
    native.save(replace(checkpoint, decode=decode, index=index), path)


@torch.inference_mode()
def build_index(model: VisionGPT2, source: CaptionSource, progress: Progress = no_progress) -> CaptionIndex:
    """Return the index of all pictures of a source, as they are, not augmented."""
    device, means = next(model.parameters()).device, []
    for batch in evaluation_batches(source, batch_size=32, workers=0).epoch(0):
        batch = batch.to(device)
        features = batch.features if batch.features is not None else model.encoder(batch.images)
        means.append(model.image_kv(model.image_tokens(features)).means().cpu().numpy())
        progress("indexing training pictures", sum(map(len, means)), len(source.records))
    captions = [
        [[token for token in source.ids[caption] if token != source.end] for caption in record.captions]
        for record in source.records
    ]
    return CaptionIndex.build(np.concatenate(means), captions)
