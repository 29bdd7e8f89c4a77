"""Makes a trainer with random weights, and takes steps in the checkout that PYTHONPATH names.

`benchmarks/train.py` imports it, and starts it to compare versions of the project: it then reads numbers of steps as
lines, and answers each with the seconds of these steps as JSON. It uses only names that every version has.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from inspect import signature
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor

from myllm.config import GPTConfig, VisionConfig
from myllm.data.batches import Batch, make_source
from myllm.data.images import Preprocess
from myllm.data.records import Findings, Record
from myllm.data.scenes import draw_scene
from myllm.data.tokenizer import train_tokenizer
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.presets import preset_config
from myllm.training.prepare import Prepared
from myllm.training.trainer import Trainer
from myllm.training_config import TrainConfig

VIT_S = VisionConfig("vit_small_patch16_224", pretrained=False)


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    name: str
    """frozen, all (parts), photos-fast, or jpeg: all parts, from files."""
    batch: int = 4
    """Pictures of a step, each with five captions."""
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 1
    data: str | None = None
    """Folder with results.csv and flickr30k_images; scenes are drawn without it."""

    @property
    def clock(self) -> Callable[[], float]:
        """Processor time of one thread, which other programs do not change; else seconds, when the GPU is ready."""
        if self.device == "cpu":
            return process_time if self.threads == 1 else perf_counter
        return lambda: (torch.cuda.synchronize(), perf_counter())[1]

    def config(self) -> TrainConfig:
        options: dict[str, Any] = {"out": mkdtemp(), "devices": self.device, "precision": self.precision}
        if self.name == "photos-fast":
            return preset_config("photos-fast", **options, batch_size=self.batch)
        return TrainConfig(
            **options, vision=replace(VIT_S, frozen=self.name == "frozen"), text=GPTConfig(n_positions=1024),
            mode="last", batch_size=self.batch, lr=1e-4, augment=self.name == "jpeg", workers=2,
        )


@dataclass(frozen=True)
class RandomFeatures:
    """Features as a source has them, of pictures that do not exist."""

    values: Tensor
    """(pictures, S, C)."""

    def rows(self, index: Tensor) -> tuple[Tensor, ...]:
        return (self.values[index],)


class Silent:
    """A reporter that reports nothing."""

    def step(self, report: object) -> None: ...

    def epoch(self, row: object, samples: object) -> None: ...

    def warn(self, message: str) -> None: ...


def read_pictures(data: str | None, count: int) -> list[tuple[Path, tuple[str, ...]]]:
    """Return the paths and captions of up to `count` pictures, drawn if there is no folder."""
    if data is None:
        folder = Path(mkdtemp())
        drawn = [draw_scene(0, "train", number) for number in range(count)]
        for number, (picture, _) in enumerate(drawn):
            picture.resize((224, 224)).save(folder / f"{number}.jpg")
        return [(folder / f"{number}.jpg", scene.captions) for number, (_, scene) in enumerate(drawn)]
    captions: dict[Path, list[str]] = {}
    for line in (Path(data) / "results.csv").read_text(encoding="utf-8").splitlines()[1:]:
        name, _, text = line.split("|")
        captions.setdefault(Path(data, "flickr30k_images", name), []).append(text.strip().lower())
    return [(path, tuple(texts)) for path, texts in list(captions.items())[:count]]


def make_trainer(case: Case) -> Trainer:
    """Return a trainer with random weights, and random features or pixels unless the pictures are read."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    config, findings = case.config(), Findings()
    known = {field.name for field in fields(Record)}
    # many captions, so that the tokenizer has all its words
    records = [
        Record(**{name: value for name, value in facts.items() if name in known})
        for facts in ({"name": path.name, "image": path, "captions": texts}
                      for path, texts in read_pictures(case.data, 6000 if case.data else 400))
    ]
    tokenizer = train_tokenizer([text for record in records for text in record.captions], config.captions.vocab_size)
    vocab_size = tokenizer.get_vocab_size() if case.name == "photos-fast" else GPTConfig().vocab_size
    config = replace(config, text=replace(config.text, vocab_size=vocab_size))
    model = VisionGPT2(config.captioner)
    records, preprocess = records[: 40 * case.batch], Preprocess(model.encoder.preprocess)
    height, width = preprocess.size
    pixels = None
    if case.name == "all":
        pixels = torch.randint(256, (len(records), 3, height, width), dtype=torch.uint8)
    source = make_source(records, pixels, preprocess, tokenizer, config.text.n_positions, findings)
    if config.vision.frozen:
        shape = len(records), model.encoder.n_tokens, model.encoder.width
        source = replace(source, features=RandomFeatures(torch.randn(shape)))
    facts = {
        "config": config, "model": model, "tokenizer": tokenizer, "preprocess": model.encoder.preprocess,
        "train": source, "val": source, "findings": findings, "fingerprint": "", "fingerprints": {},
    }
    needed = {field.name for field in fields(Prepared)}
    trainer = Trainer(config, Prepared(**{name: facts[name] for name in facts.keys() & needed}), Silent())
    trainer.objective.train()
    return trainer


def take_step(trainer: Trainer, batch: Batch) -> None:
    """Take an optimizer step as the run does."""
    counts = {"tokens": int(batch.lengths.sum()), "pictures": len(batch.index)}
    wanted = signature(trainer._step).parameters
    trainer._step([batch], **{name: count for name, count in counts.items() if name in wanted})
    trainer.state.step += 1


def epochs(trainer: Trainer) -> Iterator[Batch]:
    """Yield the batches of one epoch after another."""
    for number in range(1_000_000):
        yield from trainer.batches.epoch(number)


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    trainer = make_trainer(case)
    batches, clock = epochs(trainer), case.clock
    for line in sys.stdin:
        start = clock()
        for _ in range(int(line)):
            take_step(trainer, next(batches))
        print(json.dumps(clock() - start), flush=True)


if __name__ == "__main__":
    main()
