"""How fast are pictures loaded, and the features of a frozen backbone computed and read?

python benchmarks/features.py --data data
Seconds are of processor time, so that other programs matter little; each figure is the best of five turns.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from myllm.config import CaptionsConfig, VisionConfig
from myllm.data.batches import make_source, training_batches
from myllm.data.features import FeatureCache
from myllm.data.images import Preprocess
from myllm.data.records import Findings
from myllm.data.sources import read_records
from myllm.data.tokenizer import train_tokenizer
from myllm.inference.onnx_encoder import OnnxEncoder
from myllm.model.vision import ImageEncoder
from myllm.training_config import TrainConfig

COUNT = 64


def per_second(function: Callable[[], object]) -> float:
    """Return the pictures per second of processor time of a function that handles COUNT of them."""
    function()
    seconds = []
    for _ in range(5):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return COUNT / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder = ImageEncoder(VisionConfig(options.backbone, crop_pct=1.0)).eval()
    records = read_records(options.data, CaptionsConfig())[0][: 3 * COUNT]
    tokenizer = train_tokenizer([caption for record in records for caption in record.captions], 500)
    source = make_source(records, None, Preprocess(encoder.preprocess), tokenizer, 64, Findings())

    def load(augment: bool) -> Callable[[], object]:
        config = TrainConfig(workers=0, augment=augment, batch_size=COUNT // 2)
        return lambda: list(itertools.islice(training_batches(source, config).epoch(0), 2))

    images, index = source.images(range(COUNT)), torch.arange(COUNT)
    pixels = source.resized(range(COUNT)).numpy()
    onnx = OnnxEncoder(encoder, options.backbone)
    print(f"load a batch: {per_second(load(False)):.0f} pictures a second, augmented {per_second(load(True)):.0f}")
    print(f"normalise: {per_second(lambda: source.preprocess.normalise(pixels)):.0f}")
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        torch_rate, onnx_rate = per_second(lambda: encoder(images)), per_second(lambda: onnx(images))
        error = max(
            float((ours - values).abs().max() / values.abs().max())
            for ours, values in zip(onnx(images), encoder(images), strict=True)
        )
        print(f"encode: {torch_rate:.1f} by torch, {onnx_rate:.1f} by ONNX Runtime; largest difference {error:.1e}")
        pictures = [record.image for record in records[:COUNT]]
        features = FeatureCache(Path(folder), "key").features(pictures, source.images, onnx, Findings())
        print(f"read and verify features: {per_second(lambda: features.rows(index)):.0f}")


if __name__ == "__main__":
    main()
