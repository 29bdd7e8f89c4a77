"""Distil a captioner into a small one by `myllm label`, `train` and `evaluate`, on Flickr8k and without a network.

The teacher is a captioner of --preset, served by `myllm serve`. Students have its backbone and less than a quarter of
its decoder, and never see people's captions. Prints a row for each number of training pictures, and draws them as
docs/distil.png. With the same --folder, finished parts are not repeated.

    python benchmarks/distil.py --teacher runs/photos/run/captioner.pt --folder runs/distil
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k"
# pictures: epochs, so that few pictures are seen more often
SIZES = {500: 36, 1000: 24, 2000: 16, 6000: 8}
STUDENT = [
    "--text.n_layer=2", "--text.n_head=4", "--text.n_embd=128", "--text.dropout=0.1",
    "--max_minutes=60", "--next_runs=[]", "--val_images=100", "--views=3",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="captioner.pt or run folder of the teacher")
    parser.add_argument("--preset", choices=["photos", "photos-fast"], default="photos", help="the teacher's preset")
    parser.add_argument("--data", type=Path, default=FLICKR8K)
    parser.add_argument("--folder", type=Path, default=Path("runs/distil"))
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, default=Path("docs/distil.png"))
    arguments = parser.parse_args()
    if arguments.teacher is None or not arguments.data.is_dir():
        print("skipped: needs --teacher, a captioner, and --data, the folder of Flickr8k")
        return
    captions = label(arguments)
    words = ["score", "--predictions", str(captions), "--references", str(arguments.data), "--split", "val"]
    teacher = json.loads(myllm(*words, "--allow-missing", "--metrics", "CIDEr-D", "--json", "--quiet"))["CIDEr-D"]
    rows = [(size, *train_student(size, captions, arguments)) for size in sorted(arguments.sizes)]
    print(f"teacher: CIDEr-D {teacher:.3f} by people's captions\n")
    print("| pictures | CIDEr-D by people's captions | share of the teacher's | CIDEr-D by the teacher's captions |")
    print("|---|---|---|---|")
    for size, by_people, by_teacher in rows:
        print(f"| {size:,} | {by_people:.3f} | {by_people / teacher:.0%} | {by_teacher:.3f} |")
    draw([size for size, *_ in rows], [by_people for _, by_people, _ in rows], teacher, arguments.plot)


def label(arguments: argparse.Namespace) -> Path:
    """Return the teacher's captions of the validation pictures and of the first training pictures."""
    out = arguments.folder / "all" / "captions.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    names = [*names_in(arguments.data, "train")[: max(arguments.sizes)], *names_in(arguments.data, "val")]
    pictures = [str(arguments.data / "flickr30k_images" / name) for name in names]
    with served(arguments.teacher) as url:
        print(myllm("label", *pictures, "--teacher", url, "--n", "5", "--out", str(out)))
    return out


def names_in(data: Path, split: str) -> list[str]:
    return (data / "splits" / f"{split}.txt").read_text(encoding="utf-8").split()


def train_student(size: int, captions: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Return the CIDEr-D of a student of the first `size` pictures: by people's and by the teacher's captions."""
    data, mine = arguments.data, arguments.folder / str(size)
    (mine / "splits").mkdir(parents=True, exist_ok=True)
    shutil.copy(captions, mine / "captions.jsonl")
    (mine / "splits/train.txt").write_text("\n".join(names_in(data, "train")[:size]) + "\n", encoding="utf-8")
    shutil.copy(data / "splits/val.txt", mine / "splits/val.txt")
    run = arguments.folder / f"student-{size}"
    if not (run / "metrics.json").exists():
        start = ["--data", str(mine), "--preset", arguments.preset, *STUDENT, "--epochs", str(SIZES[size])]
        start += ["--seed", str(arguments.seed)]
        myllm("train", *(["--resume"] if (run / "last.pt").exists() else start), "--out", str(run), "--quiet")
    by_teacher = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["CIDEr-D"]
    words = ["evaluate", "--model", str(run), "--data", str(data), "--metrics", "CIDEr-D", "--json", "--quiet"]
    return json.loads(myllm(*words))["CIDEr-D"], by_teacher


@contextmanager
def served(teacher: Path) -> Iterator[str]:
    """Yield the address of a server that captions with the teacher."""
    words = [sys.executable, "-m", "myllm", "serve", "--model", str(teacher), "--decode.beams=5", "--port=0", "--quiet"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1] + "/v1"  # "Serving run on http://127.0.0.1:43211"
        server.terminate()


def myllm(*words: str) -> str:
    """Run `myllm` and return what it prints on standard output."""
    return subprocess.run([sys.executable, "-m", "myllm", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def draw(sizes: list[int], values: list[float], teacher: float, path: Path) -> None:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes: Any = figure.subplots()
    axes.plot(sizes, values, "o-", color="#1f5fa8", label="student")
    axes.axhline(teacher, color="#444444", label="teacher")
    axes.axhline(0.9 * teacher, color="#444444", linestyle=":", label="90 % of the teacher")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="pictures with the teacher's captions", ylabel="CIDEr-D by people's captions", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
