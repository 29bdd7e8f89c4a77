"""Times training steps: ours compared with transformers' Seq2SeqTrainer, and with other versions of this project.

    python benchmarks/train.py [--cases frozen all photos-fast share jpeg] [--batch 4] [--rounds 3] [--device cuda]
    python benchmarks/train.py --cases photos-fast --before ../other-checkout

Each case has the same sizes, captions and precision for all; they take turns, a step at a time, in one command.

    frozen       a frozen ViT-S/16 and a decoder of the size of GPT-2 small. Ours reads stored features. transformers
                 can't store them, so its encoder runs, once for each caption; "given features" gives it the encoder's
                 output, as a program of one's own could
    all          the same model, all parts trained
    photos-fast  the preset, compared with --before
    share        the share of a step's time that is neither matrix product nor attention, by torch's profiler
    jpeg         the share of time that steps of `all` wait for pictures from files, with two workers

With one thread on a CPU, times are processor time, which other programs do not change. Pictures and captions are those
of --data, else drawn scenes.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers
from decode import processor
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import (
    GPT2Config,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

WORKERS = Path(__file__).parent / "workers"
sys.path.insert(0, str(WORKERS))

from training import Case, epochs, make_trainer, take_step  # noqa: E402 (a folder beside this file)

from myllm.data.batches import Batch  # noqa: E402

PHOTOGRAPHS = Path(__file__).parents[2] / "shared/data/flickr8k"
Steps = Callable[[], float]
"""Takes one step; returns its seconds."""
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
OTHER_PRODUCTS = ("attention", "convolution", "linear")
"""Parts of the names of torch's other operations that multiply matrices."""


class _Timer(TrainerCallback):  # type: ignore[misc]
    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.start, self.seconds = clock, 0.0, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = self.clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = self.clock() - self.start


def theirs(case: Case, batch: Batch, given_features: bool = False) -> Steps:
    """Return steps of transformers' trainer on a batch of ours: a picture is repeated for each of its captions."""
    encoder = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, GPT2Config())
    config.decoder_start_token_id = config.pad_token_id = config.decoder.eos_token_id
    model = VisionEncoderDecoderModel(config)
    if case.name == "frozen":
        model.encoder.requires_grad_(False)
    size, items = encoder.image_size, []
    for picture, (captions, lengths) in enumerate(zip(batch.tokens, batch.lengths.tolist(), strict=True)):
        if given_features and batch.features is not None:
            image = {"features": batch.features[0][picture]}
        elif batch.images is not None:
            image = {"pixel_values": batch.images[picture]}
        else:
            image = {"pixel_values": torch.randn(3, size, size)}
        items += [
            image | {"labels": caption[1 : length + 1]} for caption, length in zip(captions, lengths, strict=True)
        ]

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Any]:
        labels = torch.nn.utils.rnn.pad_sequence([row["labels"] for row in rows], True, -100)
        images = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "labels"}
        if "features" in images:
            return {"encoder_outputs": (images["features"],), "labels": labels}
        return images | {"labels": labels}

    timer = _Timer(case.clock)
    options = Seq2SeqTrainingArguments(
        case.config().out, per_device_train_batch_size=len(items), max_steps=1, learning_rate=1e-4, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        bf16=case.precision == "bf16", use_cpu=case.device == "cpu", dataloader_pin_memory=case.device != "cpu",
    )
    trainer = Seq2SeqTrainer(model, options, data_collator=collate, train_dataset=items, callbacks=[timer])
    trainer.remove_callback(transformers.PrinterCallback)

    def step() -> float:
        trainer.train()
        return timer.seconds

    return step


def ours(case: Case) -> tuple[Steps, Batch]:
    """Return steps of ours on one batch, and the batch."""
    trainer, clock = make_trainer(case), case.clock
    batch = next(epochs(trainer))

    def step() -> float:
        start = clock()
        take_step(trainer, batch)
        return clock() - start

    return step, batch


def compare(routes: dict[str, Steps], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each route's steps, taken in turn."""
    for step in routes.values():
        step()  # the first is slower
    times: dict[str, list[float]] = {name: [] for name in routes}
    for _ in range(rounds):
        for name, step in routes.items():
            times[name].append(step())
    return times


def print_rows(case: Case, times: dict[str, list[float]], captions: int) -> None:
    """Print a row for each route; ratios are of the times of one round, compared with the last route."""
    *_, last = times.values()
    for name, taken in times.items():
        ratios = sorted(seconds / reference for seconds, reference in zip(taken, last, strict=True))
        print(
            f"| {case.name} | {case.precision} | {name} | {median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f}) "
            f"| {captions / median(taken):.1f} | {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
            flush=True,
        )


def compare_with_transformers(case: Case, rounds: int) -> None:
    step, batch = ours(case)
    routes = {"transformers": theirs(case, batch)}
    if case.name == "frozen":
        routes["transformers, given features"] = theirs(case, batch, given_features=True)
    print_rows(case, compare({**routes, "myllm": step}, rounds), int((batch.lengths > 0).sum()))


def checkout_steps(folder: Path, case: Case) -> Iterator[float]:
    """Yield the seconds of one step after another of a checkout, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, str(WORKERS / "training.py"), json.dumps(case.__dict__)], text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(folder.resolve() / "src")},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        while True:
            print(1, file=process.stdin, flush=True)
            yield float(process.stdout.readline())
    finally:
        process.communicate()


def compare_checkouts(case: Case, before: Path | None, rounds: int) -> None:
    folders = {"before": before, "now": Path(__file__).parents[1]}
    steps = {name: checkout_steps(folder, case) for name, folder in folders.items() if folder is not None}
    times = compare({name: iterator.__next__ for name, iterator in steps.items()}, rounds)
    print_rows(case, times, 5 * case.batch)
    for iterator in steps.values():
        iterator.close()  # type: ignore[attr-defined]


def print_share(case: Case) -> None:
    """Print the share of a step that is neither matrix product nor attention, and its largest parts."""
    trainer = make_trainer(case)
    batches = epochs(trainer)
    take_step(trainer, next(batches))
    activities = {ProfilerActivity.CPU, ProfilerActivity.CPU if case.device == "cpu" else ProfilerActivity.CUDA}
    with profile(activities=activities) as profiled:
        for _ in range(2):
            take_step(trainer, next(batches))
    field = "self_cpu_time_total" if case.device == "cpu" else "self_device_time_total"
    times = {event.key.removeprefix("aten::"): getattr(event, field) for event in profiled.key_averages()}
    total = sum(times.values())
    others = {
        name: seconds / total for name, seconds in times.items()
        if name not in PRODUCTS and not any(part in name for part in OTHER_PRODUCTS)
    }
    largest = sorted(others.items(), key=lambda item: -item[1])[:6]
    parts = ", ".join(f"{name} {share:.1%}" for name, share in largest)
    print(f"{case.name}, {case.precision}: {sum(others.values()):.1%} is neither product nor attention ({parts})")


def print_waiting(case: Case, steps: int) -> None:
    """Print the share of the seconds in which steps wait for pictures from files."""
    trainer = make_trainer(case)
    batches = epochs(trainer)
    take_step(trainer, next(batches))
    waited, start = 0.0, perf_counter()
    for _ in range(steps):
        asked = perf_counter()
        batch = next(batches)
        waited += perf_counter() - asked
        take_step(trainer, batch)
        if case.device != "cpu":
            torch.cuda.synchronize()
    total = perf_counter() - start
    print(f"jpeg, {case.precision}: {waited / total:.1%} of {total / steps:.2f} s a step are waiting for pictures")


def print_rates() -> None:
    """Print how fast this processor multiplies in fp32 and bf16."""
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(1024, 768).to(dtype), torch.randn(768, 3072).to(dtype)
        seconds = []
        for _ in range(5):
            start = perf_counter()
            left @ right
            seconds.append(perf_counter() - start)
        rates.append(2 * left.numel() * 3072 / min(seconds) / 1e9)
    print(f"{processor()}; products: {rates[0]:.0f} GFLOPS in fp32, {rates[1]:.0f} in bf16")


def main() -> None:
    names = ["frozen", "all", "photos-fast", "share", "jpeg"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--batch", type=int, default=4, help="pictures of a step; photos-fast has its own 64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", default=str(PHOTOGRAPHS) if PHOTOGRAPHS.exists() else None)
    parser.add_argument("--before", type=Path, help="another checkout of this project, for photos-fast")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    print_rates()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("| case | precision | route | seconds a step: median (range) | captions a second | time / myllm's |")
    print("|---|---|---|---|---|---|")
    for precision in arguments.precision:
        facts = (precision, arguments.device, arguments.threads, arguments.data)
        for name in [name for name in names[:2] if name in arguments.cases]:
            compare_with_transformers(Case(name, arguments.batch, *facts), arguments.rounds)
        if "photos-fast" in arguments.cases:
            compare_checkouts(Case("photos-fast", 64, *facts), arguments.before, arguments.rounds)
        if "share" in arguments.cases:
            print_share(Case("photos-fast", 64, *facts))
            print_share(Case("all", arguments.batch, *facts))
        if "jpeg" in arguments.cases:
            print_waiting(Case("jpeg", arguments.batch, *facts), arguments.rounds)


if __name__ == "__main__":
    main()
