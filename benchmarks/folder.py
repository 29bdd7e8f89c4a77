"""Time captioning of a folder end to end, from picture files to JSONL, and compare with other loops.

    python benchmarks/folder.py --model runs/photos-fast [--pictures 1000] [--beams 1 4] [--precision auto bf16]
    python benchmarks/folder.py --random --pictures 128       ViT-B/16 and GPT-2 small with random weights
    python benchmarks/folder.py --model runs/photos-fast --camera 60     JPEGs of 12 megapixels

`bare` captions pictures that are decoded already, with all cores for each batch. `transformers` is what a competent
user writes: batches of 32, pictures decoded by a DataLoader with 2 workers, and the same weights and pixels.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, VisionEncoderDecoderModel, ViTConfig
from transformers.modeling_outputs import BaseModelOutput

from myllm import Captioner, CaptionerConfig, GPTConfig, VisionConfig, VisionGPT2
from myllm.batched import batched
from myllm.checkpoints.native import Checkpoint
from myllm.data.tokenizer import decode_tokens, end_token, train_tokenizer
from myllm.device import count_cores
from myllm.inference.bulk import BulkCaptioner
from myllm.model.gpt2_weights import transpose_conv1d

Route = Callable[[], Iterator[str]]
BATCH, LENGTH = 32, 20
FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k" / "flickr30k_images"
THREADS = count_cores()


@dataclass(frozen=True)
class Item:
    """A picture to caption."""

    picture: Path


class Encoder(PreTrainedModel):  # type: ignore[misc]
    """Our encoder behind the interface of transformers."""

    config_class, main_input_name = ViTConfig, "pixel_values"

    def __init__(self, ours: VisionGPT2) -> None:
        super().__init__(ViTConfig(hidden_size=ours.config.text.n_embd))
        self.ours = deepcopy(ours)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.ours.image_tokens(self.ours.encoder(pixel_values))[0])


class Pictures(Dataset[Tensor]):
    """Preprocessed pictures, for a DataLoader."""

    def __init__(self, captioner: Captioner, paths: Sequence[Path]) -> None:
        self.captioner, self.paths = captioner, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.captioner.preprocess(self.paths[index])


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


def transformers_route(captioner: Captioner, paths: Sequence[Path]) -> Route:
    model, decode, end = to_transformers(captioner.model), captioner.decode, end_token(captioner.tokenizer)
    longest = min(decode.max_new_tokens, captioner.model.config.text.n_positions)

    def route() -> Iterator[str]:
        torch.set_num_threads(THREADS)
        loader = DataLoader(Pictures(captioner, paths), BATCH, num_workers=2)
        for pixels, batch in zip(loader, batched(paths, BATCH), strict=True):
            output = model.generate(
                pixel_values=pixels, num_beams=decode.beams, max_new_tokens=longest,
                min_new_tokens=decode.min_new_tokens or None, length_penalty=decode.length_penalty,
                no_repeat_ngram_size=decode.no_repeat_ngram_size, early_stopping=decode.early_stopping,
                do_sample=False, decoder_start_token_id=end, eos_token_id=end, pad_token_id=end,
            )
            for path, row in zip(batch, output.tolist(), strict=True):
                tokens = row[1 : row.index(end, 1)] if end in row[1:] else row[1:]
                yield json.dumps({"image": str(path), "caption": decode_tokens(captioner.tokenizer, tokens).strip()})

    return route


def bare_route(captioner: Captioner, paths: Sequence[Path]) -> Route:
    pixels = [captioner.preprocess(path) for path in paths]

    def route() -> Iterator[str]:
        torch.set_num_threads(THREADS)
        for batch, names in zip(batched(pixels, BATCH), batched(paths, BATCH), strict=True):
            for path, caption in zip(names, captioner.caption_tensors(batch, captioner.decode), strict=True):
                yield json.dumps({"image": str(path), "caption": caption.text})

    return route


def bulk_route(captioner: Captioner, paths: Sequence[Path]) -> Route:
    """What `myllm caption` does; its captioner computes with one thread."""

    def route() -> Iterator[str]:
        torch.set_num_threads(1)
        bulk: BulkCaptioner[Item] = BulkCaptioner(captioner, BATCH, THREADS)
        for results in bulk.caption(map(Item, paths)):
            for result in results:
                assert result.caption is not None, result.error
                yield json.dumps({"image": str(result.item.picture), "caption": result.caption.text})

    return route


def load(arguments: argparse.Namespace, precision: str, threads: int, beams: int) -> Captioner:
    torch.set_num_threads(threads)
    if not arguments.random:
        captioner = Captioner.load(arguments.model, "cpu", precision)
        captioner.decode = captioner.decode_options(beams=beams)
        return captioner
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a small red ball"], 300)
    vision = VisionConfig("vit_base_patch16_224", pretrained=False)
    model = VisionGPT2(CaptionerConfig(vision, GPTConfig(), "last")).eval()
    checkpoint = Checkpoint(model, tokenizer, model.encoder.preprocess)
    captioner = Captioner(checkpoint, torch.device("cpu"), "fp32" if precision == "auto" else precision)
    captioner.decode = captioner.decode_options(beams=beams, min_new_tokens=LENGTH, max_new_tokens=LENGTH)
    return captioner


def camera_pictures(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write JPEGs of 12 megapixels with a camera's noise."""
    random, enlarged = np.random.default_rng(0), []
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + random.integers(-6, 7, pixels.shape[:2])[..., None]).clip(0, 255).astype(np.uint8)
        enlarged.append(folder / f"{number}.jpg")
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=90)
        enlarged[-1].write_bytes(file.getvalue())
    return enlarged


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="captioner")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--folder", type=Path, default=FLICKR8K)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--camera", type=int, default=0)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--precision", nargs="+", default=["auto"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.folder.exists() or not (arguments.random or Path(arguments.model).exists()):
        print(f"skipped: needs a captioner and pictures; {arguments.model} or {arguments.folder} does not exist")
        return
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        paths = sorted(arguments.folder.glob("*.jpg"))[: arguments.camera or arguments.pictures]
        paths = camera_pictures(paths, Path(temporary)) if arguments.camera else paths
        print(f"{len(paths):,} pictures in batches of {BATCH}, {THREADS} cores\n")
        print("| beams | program | pictures a second, median (min to max) | / transformers | / bare | same captions |")
        print("|---|---|---|---|---|---|")
        for beams in arguments.beams:
            exact = load(arguments, "auto", THREADS, beams)
            routes = {"bare": bare_route(exact, paths)}
            if not arguments.ours_only:
                routes["transformers"] = transformers_route(exact, paths)
            for precision in arguments.precision:
                routes[f"myllm caption, {precision}"] = bulk_route(load(arguments, precision, 1, beams), paths)
            compare(routes, len(paths), beams, arguments.rounds)


def compare(routes: dict[str, Route], count: int, beams: int, rounds: int) -> None:
    """Print a row for each route; routes take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in routes}
    captions: dict[str, list[str]] = {}
    for number in range(-1, rounds):  # the first turn is a warm-up
        for name, route in routes.items():
            start = perf_counter()
            lines = list(route())
            if number >= 0:
                seconds[name].append(perf_counter() - start)
            captions[name] = [json.loads(line)["caption"] for line in lines]
    for name, times in seconds.items():
        rates = [f"{count / value:.1f}" for value in (median(times), max(times), min(times))]
        ratios = []
        for other in ("transformers", "bare"):
            pairs = zip(seconds.get(other, []), times, strict=False)
            ratios.append(f"{median([first / second for first, second in pairs] or [float('nan')]):.2f}")
        same = sum(map(str.__eq__, captions[name], captions["bare"])) / count
        row = f"{rates[0]} ({rates[1]} to {rates[2]}) | {ratios[0]} | {ratios[1]} | {same:.1%}"
        print(f"| {beams} | {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
