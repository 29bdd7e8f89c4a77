"""Kill training runs at random moments, resume them, and compare the result with runs that were never stopped.

Prints a row for each kind of run: kills, resumptions from last.previous.pt, and tensors that differ in any bit. Every
tenth kill also damages last.pt. Processes are forked from one that has imported everything, so that most kills hit the
training and not the imports.

    python benchmarks/kills.py --kills 200
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import myllm.apps.train  # noqa: F401  (imported before the fork)
from myllm.apps.cli import main
from myllm.training import run_state

TINY = [
    "--vision.name=vit_mini_conv8_64", "--vision.pretrained=false", "--text.n_layer=1", "--text.n_head=2",
    "--text.n_embd=32", "--text.n_positions=48", "--mode=last", "--captions.vocab_size=300", "--batch_size=8",
    "--captions_per_image=3", "--decode.max_new_tokens=6", "--lr=0.01", "--augment=false", "--devices=cpu",
    "--workers=0", "--save_minutes=0.005",
]
ERRORS = Path(tempfile.gettempdir()) / f"myllm-kills-{os.getpid()}.txt"
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Case:
    """A kind of run. In the options, BASE is a captioner that was trained before."""

    name: str
    options: str
    processes: int = 1


CASES = (
    Case("dropout, augmentation, workers", "--augment=true --workers=1 --text.dropout=0.2 --epochs=3"),
    Case("accumulation, hidden words, smoothing", "--accumulate=3 --word_dropout=0.2 --label_smoothing=0.1 --epochs=5"),
    Case("Muon, word presence, stages", "--optimizer=muon --word_presence_weight=1 --stages=[new,text,all] --epochs=4"),
    Case("average of weights, a rate for the backbone", "--ema=0.9 --vision_lr=0.001 --text.dropout=0.1 --epochs=5"),
    Case("self-critical training, average of weights", "--base=BASE --self_critical.samples=3 --ema=0.9 --epochs=4"),
    Case("frozen backbone, stored features of views", "--vision.frozen=true --views=3 --word_dropout=0.1 --epochs=6"),
    Case("adapters", "--base=BASE --lora.rank=2 --lora.dropout=0.1 --epochs=4"),
    Case("two processes, Muon, dropout", "--optimizer=muon --text.dropout=0.2 --word_dropout=0.1 --epochs=4", 2),
)


def start(words: Sequence[str], processes: int) -> list[multiprocessing.context.ForkProcess]:
    """Start `myllm WORDS`, in several processes as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def run(rank: int) -> None:
        if processes > 1:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            )
        torch.set_num_threads(1)
        with ERRORS.open("w") as errors, contextlib.redirect_stdout(errors), contextlib.redirect_stderr(errors):
            code = main(words)
        os._exit(code)

    started = [FORK.Process(target=run, args=(rank,)) for rank in range(processes)]
    for process in started:
        process.start()
    return started


def finish(words: Sequence[str], processes: int) -> None:
    """Run to the end. Raises RuntimeError if it fails."""
    for process in start(words, processes):
        process.join()
        if process.exitcode != 0:
            message = ERRORS.read_text(errors="replace")[-500:]
            raise RuntimeError(f"myllm {' '.join(words)} ended with {process.exitcode}: {message}")


def kill_once(words: Sequence[str], case: Case, seconds: float) -> bool:
    """Start the run, kill it after so many seconds, and return whether it was still running."""
    started = start(words, case.processes)
    started[0].join(seconds)
    was_running = started[0].is_alive()
    for process in started:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    return was_running


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return all weights and momenta of the last step, and the weights of the best epoch."""
    content, _ = run_state.load(folder)
    found = {f"last.{name}": value for name, value in content["objective"].items()}
    found |= {f"average.{name}": value for name, value in (content["average"] or {}).items()}
    for number, optimizer in enumerate(content["optimizers"]):
        for parameter, state in optimizer["state"].items():
            found |= {f"optimizer.{number}.{parameter}.{name}": value for name, value in state.items()}
    best = folder / "captioner.pt"
    if best.exists():
        weights = torch.load(best, weights_only=True)["model"]
        found |= {f"best.{name}": value for name, value in weights.items()}
    return found


def measure(case: Case, kills: int, data: Path, base: Path, folder: Path, rng: random.Random) -> tuple[int, int, int]:
    """Return the numbers of kills, of resumptions from the predecessor, and of tensors that differ."""
    reference = folder / "reference"
    options = case.options.replace("BASE", str(base)).split()
    words = ["train", "--data", str(data), *TINY, "--quiet", *options]
    if "--base" in case.options:
        words = ["train", "--data", str(data), "--devices=cpu", "--quiet", *options, "--batch_size=8",
                 "--augment=false", "--workers=0", "--save_minutes=0.005"]
    begin = time.monotonic()
    finish([*words, "--out", str(reference)], case.processes)
    duration, expected = time.monotonic() - begin, tensors(reference)
    done = damaged = differing = run = 0
    while done < kills:
        out = folder / f"run{run}"
        run += 1
        for _ in range(5):
            resume = [name for name in (run_state.FILE_NAME, run_state.PREVIOUS_NAME) if (out / name).exists()]
            again = ["train", "--out", str(out), "--resume", "--quiet", f"--workers={rng.randrange(2)}"]
            now = again if resume else [*words, "--out", str(out), "--overwrite"]
            if not kill_once(now, case, rng.uniform(0.0, duration)):
                break
            done += 1
            if len(resume) == 2 and rng.random() < 0.1 and (out / run_state.FILE_NAME).exists():
                content = bytearray((out / run_state.FILE_NAME).read_bytes())
                content[len(content) // 2] ^= 1
                (out / run_state.FILE_NAME).write_bytes(content)
                damaged += 1
        has_state = any((out / name).exists() for name in (run_state.FILE_NAME, run_state.PREVIOUS_NAME))
        finish(again if has_state else [*words, "--out", str(out), "--overwrite"], case.processes)
        result = tensors(out)
        assert result.keys() == expected.keys()
        differing += sum(not torch.equal(result[name], expected[name]) for name in expected)
    return done, damaged, differing


def run(kills: int, seed: int, cases: Sequence[Case]) -> int:
    """Measure all cases, print a row for each, and return the number of tensors that differ."""
    rng, total = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["MYLLM_CACHE"] = str(folder / "cache")
        data, base = folder / "scenes", folder / "base"
        finish(["scenes", "--out", str(data), "--count", "60", "--quiet"], 1)
        finish(["train", "--data", str(data), "--out", str(base), *TINY, "--epochs=1", "--quiet"], 1)
        print("| run | processes | kills | of these, last.pt damaged | tensors compared | tensors that differ |")
        print("|---|---|---|---|---|---|")
        for number, case in enumerate(cases):
            (folder / str(number)).mkdir()
            done, damaged, differing = measure(
                case, -(-kills // len(cases)), data, base, folder / str(number), rng
            )
            compared = len(tensors(folder / str(number) / "reference"))
            print(f"| {case.name} | {case.processes} | {done} | {damaged} | {compared} | {differing} |", flush=True)
            total += differing
    ERRORS.unlink(missing_ok=True)
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="measure only runs whose name contains this")
    arguments = parser.parse_args()
    chosen = [case for case in CASES if arguments.only in case.name]
    raise SystemExit(run(arguments.kills, arguments.seed, chosen) != 0)
