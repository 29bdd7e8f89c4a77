"""Peak memory of `myllm caption` when most pictures have captions already: a thousand names, and a million.

Names are links to a few scenes; the log has a row for each but the last ones, which are captioned. Draws
docs/memory.png.

    python benchmarks/caption_memory.py --model runs/demo --names 1000 10000 100000 1000000
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from myllm.data.scenes import draw_scene

LEFT = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/demo")
    parser.add_argument("--names", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--plot", type=Path, default=Path("docs/memory.png"))
    arguments = parser.parse_args()
    if not Path(arguments.model).exists():
        print(f"skipped: {arguments.model} does not exist; give a captioner by --model")
        return
    peaks = []
    print("| names in one folder | finished | captioned | peak memory, MB | seconds |\n|---|---|---|---|---|")
    for count in arguments.names:
        captioned, megabytes, seconds = measure(arguments.model, count)
        peaks.append(megabytes)
        print(f"| {count:,} | {count - LEFT:,} | {captioned:,} | {megabytes:,.0f} | {seconds:.0f} |", flush=True)
    draw(arguments.names, peaks, arguments.plot)


def measure(model: str, count: int) -> tuple[int, float, float]:
    """Return the number of pictures captioned, the peak of resident memory in MB, and seconds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary) / "pictures", Path(temporary) / "out.jsonl"
        folder.mkdir()
        draw_scene(seed=0, part="train", number=0)[0].save(Path(temporary) / "scene.png")
        for number in range(count):
            if number % 50_000 == 0:  # a file has no more links on some file systems
                source = folder / f"{number:08d}.png"
                source.write_bytes((Path(temporary) / "scene.png").read_bytes() + str(number).encode())
            else:
                os.link(source, folder / f"{number:08d}.png")
        command = [sys.executable, "-m", "myllm", "caption", str(folder), "--model", model, "--out", str(out)]
        # a first run writes the facts, and the form of a row
        subprocess.run([*command[:4], str(folder / "00000000.png"), *command[5:]], check=True)
        row = json.loads(out.read_text(encoding="utf-8"))
        with out.open("w", encoding="utf-8") as file:
            for number in range(count - LEFT):
                # other hashes than the pictures', as they would be of other pictures
                name = {"image": str(folder / f"{number:08d}.png"), "digest": f"{number:032x}"}
                file.write(json.dumps({**row, **name}) + "\n")
        with subprocess.Popen(command) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        captioned = sum(1 for _ in out.open(encoding="utf-8")) - (count - LEFT)
        return captioned, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def draw(names: list[int], peaks: list[float], path: Path) -> None:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes: Any = figure.subplots()
    axes.plot(names, peaks, "o-", color="#1f5fa8")
    axes.set_xscale("log")
    axes.set_xticks(names, [f"{count:,}" for count in names])
    axes.minorticks_off()
    axes.set(xlabel="pictures, nearly all finished", ylabel="peak memory, MB", ylim=(0, None))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
