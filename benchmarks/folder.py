"""Time captioning end to end, from picture files to JSONL, and compare with transformers.

    python benchmarks/folder.py --model captioner --data data [--beams 1 5] [--rounds 3]

transformers runs the same weights and the same encoder on the same pixels; only the decoding differs.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, VisionEncoderDecoderModel, ViTConfig
from transformers.modeling_outputs import BaseModelOutput

from myllm import Captioner
from myllm.apps.caption import caption_files
from myllm.batched import batched
from myllm.data.sources import read_records
from myllm.data.splits import split_records
from myllm.data.tokenizer import decode_tokens, end_token
from myllm.model.gpt2_weights import transpose_conv1d
from myllm.model.vision_gpt2 import VisionGPT2

Route = Callable[[list[Path]], Iterator[str]]
BATCH = 32


class Encoder(PreTrainedModel):  # type: ignore[misc]
    """Our encoder behind the interface of transformers."""

    config_class, main_input_name = ViTConfig, "pixel_values"

    def __init__(self, ours: VisionGPT2) -> None:
        super().__init__(ViTConfig(hidden_size=ours.config.text.n_embd))
        self.ours = deepcopy(ours)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.ours.image_tokens(self.ours.encoder(pixel_values))[0])


def to_transformers(ours: VisionGPT2) -> Any:
    """Return a VisionEncoderDecoderModel with the weights of a captioner."""
    text = ours.config.text
    decoder = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=text.vocab_size, n_positions=text.n_positions, n_embd=text.n_embd, n_layer=text.n_layer,
            n_head=text.n_head, layer_norm_epsilon=text.layer_norm_epsilon, add_cross_attention=True,
        )
    )
    model = VisionEncoderDecoderModel(encoder=Encoder(ours), decoder=decoder).eval()
    # transformers initializes all weights, those of the copied encoder too
    model.encoder.ours.load_state_dict(ours.state_dict())
    decoder.load_state_dict(transpose_conv1d(ours.decoder.state_dict()))
    return model


def transformers_route(captioner: Captioner, beams: int) -> Route:
    model, decode, end = to_transformers(captioner.model), captioner.decode, end_token(captioner.tokenizer)
    longest = min(decode.max_new_tokens, captioner.model.config.text.n_positions)

    def route(paths: list[Path]) -> Iterator[str]:
        for batch in batched(paths, BATCH):
            output = model.generate(
                pixel_values=torch.stack([captioner.preprocess(path) for path in batch]), num_beams=beams,
                max_new_tokens=longest, length_penalty=decode.length_penalty, early_stopping=decode.early_stopping,
                do_sample=False, decoder_start_token_id=end, eos_token_id=end, pad_token_id=end,
            )
            for path, row in zip(batch, output.tolist(), strict=True):
                tokens = row[1 : row.index(end, 1)] if end in row[1:] else row[1:]
                yield json.dumps({"image": str(path), "caption": decode_tokens(captioner.tokenizer, tokens).strip()})

    return route


def myllm_route(captioner: Captioner, beams: int) -> Route:
    captioner.decode = captioner.decode_options(beams=beams)

    def route(paths: list[Path]) -> Iterator[str]:
        for batch in batched(paths, BATCH):
            yield from (json.dumps(row) for row in caption_files(captioner, batch))

    return route


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="captioner")
    parser.add_argument("--data", default="data")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not Path(arguments.model).exists() or not Path(arguments.data).exists():
        print(f"skipped: needs a trained captioner and its data; {arguments.model} or {arguments.data} does not exist")
        return
    transformers.logging.set_verbosity_error()
    loaded = {precision: Captioner.load(arguments.model, precision=precision) for precision in ("auto", "int8")}
    records, findings = read_records(Path(arguments.data), loaded["auto"].captions)
    paths = [record.image for record in split_records(records, findings)["val"]]
    print(f"{len(paths):,} photographs in batches of {BATCH}, {torch.get_num_threads()} threads\n")
    print("| beams | program | pictures per second, median (min to max) | speedup | same captions | words |")
    print("|---|---|---|---|---|---|")
    for beams in arguments.beams:
        routes = {"transformers": transformers_route(loaded["auto"], beams)}
        routes |= {f"myllm {name}": myllm_route(captioner, beams) for name, captioner in loaded.items()}
        compare(routes, paths, beams, arguments.rounds)


def compare(routes: dict[str, Route], paths: list[Path], beams: int, rounds: int) -> None:
    """Print a row for each route."""
    seconds: dict[str, list[float]] = {name: [] for name in routes}
    captions: dict[str, list[str]] = {}
    for route in routes.values():
        list(route(paths[:BATCH]))  # warm-up
    for _ in range(rounds):
        for name, route in routes.items():
            start = perf_counter()
            lines = list(route(paths))
            seconds[name].append(perf_counter() - start)
            captions[name] = [json.loads(line)["caption"] for line in lines]
    for name, times in seconds.items():
        rates = [f"{len(paths) / value:.1f}" for value in (median(times), max(times), min(times))]
        ratio = median(other / time for other, time in zip(seconds["transformers"], times, strict=True))
        same = sum(map(str.__eq__, captions[name], captions["transformers"])) / len(paths)
        words = sum(len(caption.split()) for caption in captions[name]) / len(paths)
        row = f"{rates[0]} ({rates[1]} to {rates[2]}) | {ratio:.2f} | {same:.1%} | {words:.1f}"
        print(f"| {beams} | {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
