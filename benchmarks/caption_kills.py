"""Kill `myllm caption` at random moments until it has captioned a folder, then check every file that it wrote.

The folder has copies of Flickr8k's pictures, or scenes, and planted bad ones. Prints how often it was killed, and
whether each good picture has exactly one caption, each bad one is listed, and no text file is empty or differs from its
row.

    python benchmarks/caption_kills.py --model runs/demo --pictures 20000 --kills 100 --to txt
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import myllm.apps.caption
import myllm.inference.captioner  # noqa: F401  (imported before the fork)
from myllm.apps.cli import main as run_myllm
from myllm.data.scenes import draw_scene

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k" / "flickr30k_images"
BAD = (b"", b"no picture", b"<html></html>", b"\xff\xd8\xff\xe0 cut")
FORK = multiprocessing.get_context("fork")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/demo")
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--bad", type=int, default=50)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--to", default="jsonl", choices=["jsonl", "txt"])
    parser.add_argument("--seconds", type=float, default=12.0, help="maximum time until a kill")
    arguments = parser.parse_args()
    if not Path(arguments.model).exists():
        print(f"skipped: {arguments.model} does not exist; give a captioner by --model")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        good, bad = make_pictures(folder / "pictures", arguments.pictures, arguments.bad)
        out = folder / "texts" if arguments.to == "txt" else folder / "captions.jsonl"
        words = ["caption", str(folder / "pictures"), "--model", arguments.model, "--devices=cpu", "--quiet"]
        kills = caption_with_kills([*words, "--to", arguments.to, "--out", str(out)], arguments)
        log = out / ".myllm-captions.jsonl" if arguments.to == "txt" else out
        report(log, good, bad, kills)
        if arguments.to == "txt":
            report_texts(log, out)


def make_pictures(folder: Path, count: int, bad: int) -> tuple[set[str], set[str]]:
    """Write pictures into subfolders; return the paths of the good and of the bad ones. Copies of a picture differ."""
    sources = [path.read_bytes() for path in sorted(FLICKR8K.glob("*.jpg"))]
    if not sources:
        folder.mkdir()
        for number in range(500):
            draw_scene(seed=0, part="train", number=number)[0].save(folder / "scene.jpg", quality=95)
            sources.append((folder / "scene.jpg").read_bytes())
        shutil.rmtree(folder)
    paths = [folder / f"{number // 1000:03d}" / f"{number:06d}.jpg" for number in range(count)]
    chance = random.Random(0)
    chosen = set(chance.sample(paths, bad))
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        # a comment at the end makes each copy another file with the same picture
        content = sources[number % len(sources)] + str(number // len(sources)).encode()
        path.write_bytes(chance.choice(BAD) if path in chosen else content)
    return {str(path) for path in paths if path not in chosen}, set(map(str, chosen))


def caption_with_kills(words: list[str], arguments: argparse.Namespace) -> int:
    """Run the command until it ends by itself; kill it at random moments before. Return the number of kills."""
    chance, kills = random.Random(1), 0
    while True:
        # forked, so that kills hit the captioning more often than the imports
        process = FORK.Process(target=_run, args=(words,))
        process.start()
        if kills < arguments.kills:
            # short runs are killed while files are made
            time.sleep(arguments.seconds * chance.random() ** 2)
            os.kill(process.pid or 0, signal.SIGKILL) if process.is_alive() else None
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        print(f"\r{kills} kills", end="", file=sys.stderr, flush=True)
        if process.exitcode == 0:
            print(file=sys.stderr)
            return kills
        assert process.exitcode == -signal.SIGKILL, process.exitcode


def _run(words: list[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(run_myllm(words))


def report(log: Path, good: set[str], bad: set[str], kills: int) -> None:
    """Print how the rows agree with the pictures."""
    lines = log.read_bytes().split(b"\n")
    captioned = Counter(json.loads(line)["image"] for line in lines[:-1])
    errors = Path(f"{log}.errors.jsonl").read_text(encoding="utf-8").splitlines()
    failed = Counter(json.loads(line)["image"] for line in errors)
    print(f"{kills} kills, {len(good):,} good and {len(bad):,} bad pictures\n")
    print("| | pictures |\n|---|---|")
    print(f"| good, with exactly one caption | {sum(captioned[image] == 1 for image in good):,} |")
    print(f"| good, without a caption | {len(good - captioned.keys()):,} |")
    print(f"| with several captions | {sum(count > 1 for count in captioned.values()):,} |")
    print(f"| bad, listed exactly once | {sum(failed[image] == 1 for image in bad):,} |")
    print(f"| listed or captioned, but should not be | {len((captioned.keys() | failed.keys()) - good - bad):,} |")
    print(f"| torn lines | {int(lines[-1] != b'')} |")


def report_texts(log: Path, out: Path) -> None:
    rows = {row["sidecar"]: row["caption"] for row in map(json.loads, log.read_text(encoding="utf-8").splitlines())}
    texts = {str(path): path.read_text(encoding="utf-8") for path in out.rglob("*.txt")}
    print(f"| empty text files | {sum(not text.strip() for text in texts.values()):,} |")
    same = sum(texts.get(path) == f"{caption}\n" for path, caption in rows.items())
    print(f"| text files that are as their row says | {same:,} of {len(rows):,} |")


if __name__ == "__main__":
    main()
