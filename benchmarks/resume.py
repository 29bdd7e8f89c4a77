"""Stop a training in the middle of an epoch and resume it in a new process, with accelerate and with MyLLM.

Prints the items of the epoch in the order in which each training saw them: never stopped, and stopped and resumed.
accelerate is used as its documentation says: save_state, then load_state and skip_first_batches.

    python benchmarks/resume.py
"""

import contextlib
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from myllm.apps.cli import main
from myllm.apps.train import _Recorder
from myllm.training.watch import StepReport

ITEMS, BATCH, STOP_AFTER = 16, 2, 3


def with_accelerate(folder: Path, stop_after: int | None, resume: bool) -> list[int]:
    """Return the items that an epoch of training sees, from its beginning or after `STOP_AFTER` batches."""
    import accelerate

    accelerate.utils.set_seed(0)
    accelerator = accelerate.Accelerator(cpu=True)
    model: Any = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    loader: Any = DataLoader(torch.arange(ITEMS), batch_size=BATCH, shuffle=True)  # type: ignore[arg-type]
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if resume:
        accelerator.load_state(str(folder))
        loader = accelerator.skip_first_batches(loader, STOP_AFTER)
    seen: list[int] = []
    for number, batch in enumerate(loader, 1):
        accelerator.backward(model(batch[:, None].float()).sum())
        optimizer.step()
        optimizer.zero_grad()
        seen += batch.tolist()
        if number == stop_after:
            accelerator.save_state(str(folder))
            break
    return seen


def with_myllm(folder: Path, stop_after: int | None, resume: bool) -> list[int]:
    """Return the same of `myllm train` on as many pictures."""
    data, seen = folder / "data", list[int]()

    def step(self: _Recorder, report: StepReport) -> None:
        seen.extend(report.index)
        if report.step == stop_after:
            raise SystemExit  # as if the process was killed; the state was saved after the step before

    _Recorder.step = step  # type: ignore[method-assign]
    begin = ["--data", str(data), "--vision.name=vit_mini_conv8_64", "--vision.pretrained=false", "--text.n_layer=1",
             "--text.n_head=1", "--text.n_embd=16", "--mode=last", "--captions.vocab_size=300", "--epochs=1",
             f"--batch_size={BATCH}", "--devices=cpu", "--save_minutes=1e-9"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        main(["train", "--out", str(folder / "run"), "--quiet", *(["--resume"] if resume else begin)])
    return seen


def draw_pictures(folder: Path) -> None:
    """Write a data folder of `ITEMS` training pictures and one for validation."""
    (folder / "flickr30k_images").mkdir(parents=True)
    (folder / "splits").mkdir()
    names = [f"{number:02}.png" for number in range(ITEMS + 1)]
    for number, name in enumerate(names):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / "flickr30k_images" / name)
    rows = [f"{name}| 0| picture {number}" for number, name in enumerate(names)]
    (folder / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *rows]) + "\n")
    (folder / "splits/val.txt").write_text(f"{names[-1]}\n")


def in_new_process(function: Any, *arguments: Any) -> list[int]:
    """Return what the function returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()  # type: ignore[no-any-return]


def compare() -> None:
    """Print a table."""
    print("| library | run | items in the order of training | |\n|---|---|---|---|")
    for name, function in (("accelerate", with_accelerate), ("MyLLM", with_myllm)):
        with tempfile.TemporaryDirectory() as temporary:
            folders = [Path(temporary) / part for part in ("whole", "stopped")]
            for folder in folders:
                draw_pictures(folder / "data")
            whole = in_new_process(function, folders[0], None, False)
            first = in_new_process(function, folders[1], STOP_AFTER, False)[: BATCH * STOP_AFTER]
            rest = in_new_process(function, folders[1], None, True)
        if name == "MyLLM":
            first = first[: len(whole) - len(rest)]
        resumed = [*first, *rest]
        twice = len(resumed) - len(set(resumed))
        verdict = "the same" if resumed == whole else f"{twice} items twice, {ITEMS - len(set(resumed))} never"
        print(f"| {name} | never stopped | {' '.join(map(str, whole))} | |")
        print(f"| | stopped and resumed | {' '.join(map(str, first))} / {' '.join(map(str, rest))} | {verdict} |")


if __name__ == "__main__":
    compare()
