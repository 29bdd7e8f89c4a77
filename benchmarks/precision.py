"""Measures int8 and bf16: a captioner's metrics, the share of captions that stay the same, pictures a second.

    python benchmarks/precision.py --model captioner --data data [--split val] [--precisions int8] [--beams 1 10]
"""

import argparse
import itertools
from pathlib import Path
from time import perf_counter

from myllm import Captioner
from myllm.data.sources import read_records
from myllm.data.splits import split_records
from myllm.metrics.score import score_captions

FIGURES = ("BLEU-4", "CIDEr-D")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="captioner")
    parser.add_argument("--data", default="data")
    parser.add_argument("--split", default="val")
    parser.add_argument("--precisions", nargs="+", default=["int8", "bf16"], help="compared with auto, which is exact")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    arguments = parser.parse_args()
    if not Path(arguments.model).exists() or not Path(arguments.data).exists():
        print(f"left out: needs a trained captioner and its data; {arguments.model} or {arguments.data} does not exist")
        return
    exact: list[str] = []  # captions of precision auto
    print(f"| beams | precision | {' | '.join(FIGURES)} | the same captions | pictures a second |")
    print("|---|---|---|---|---|---|")
    for beams, precision in itertools.product(arguments.beams, ("auto", *arguments.precisions)):
        captioner = Captioner.load(arguments.model, precision=precision)
        records, findings = read_records(Path(arguments.data), captioner.captions)
        records = split_records(records, findings)[arguments.split]
        captioner.caption_batch([record.image for record in records[:32]], beams=beams)  # the first time is slower
        start = perf_counter()
        texts = [caption.text for caption in captioner.caption_batch([record.image for record in records], beams=beams)]
        rate = len(records) / (perf_counter() - start)
        figures = score_captions(texts, [record.captions for record in records], metrics=("BLEU", "CIDEr")).corpus
        exact = texts if precision == "auto" else exact
        same = sum(map(str.__eq__, texts, exact)) / len(texts)
        row = [f"{figures[name]:.4f}" for name in FIGURES]
        print(f"| {beams} | {precision} | {' | '.join(row)} | {same:.1%} | {rate:.0f} |", flush=True)


if __name__ == "__main__":
    main()
