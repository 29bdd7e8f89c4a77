"""Times captioning, from pictures to tokens, against other libraries with the same weights and against other versions.

    python benchmarks/decode.py [--batches 1 8 32] [--beams 1 4] [--routes transformers onnx ...] [--rounds 5]
    python benchmarks/decode.py --before ../other-checkout [--small]

ViT-B/16 and GPT-2 small with random weights write 32 tokens for each picture; --small takes a tiny model, to try the
benchmark in a minute. Routes take turns in one process, so that all meet the same machine; a library that is not
installed is reported and left out. optimum needs an older transformers, so it takes an environment of its own:

    pip install -e . "transformers<4.58" "optimum[onnxruntime]" optimum-intel openvino

With --before, this checkout and the other one caption in turn, each in a process of its own, through `Captioner`.

The floor is what this machine could reach: in each step the decoder's weights are read once, or multiplied if that
takes longer; the encoder's products come on top.
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel, ViTConfig, ViTModel

from myllm.config import CaptionerConfig, DecodeConfig, GPTConfig, VisionConfig
from myllm.decoding.engine import SearchRequest
from myllm.decoding.search import generate
from myllm.inference.onnx_stepper import OnnxStepper, Precision
from myllm.inference.torch_steppers import ModelStepper
from myllm.model.gpt2_weights import transpose_conv1d
from myllm.model.vision_gpt2 import VisionGPT2

LENGTH = 32
WORKER = Path(__file__).parent / "workers/captions.py"
Route = Callable[[Tensor, int], list[list[int]]]
"""Pictures (B, 3, 224, 224) and the number of beams -> the tokens of a caption for each."""


@dataclass(frozen=True)
class Geometry:
    """Widths, depths and heads, the same for encoder and decoder."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    vocab_size: int = 50257
    image_size: int = 224

    @property
    def end(self) -> int:
        return self.vocab_size - 1

    @property
    def vision(self) -> dict[str, int]:
        return {"embed_dim": self.width, "depth": self.depth, "num_heads": self.heads}

    @property
    def text(self) -> dict[str, int]:
        return {"vocab_size": self.vocab_size, "n_layer": self.depth, "n_head": self.heads, "n_embd": self.width}


FULL, SMALL = Geometry(), Geometry(width=96, depth=2, heads=4, vocab_size=3000, image_size=64)


@dataclass
class Weights:
    """A captioner of transformers, and the same tensors under our names."""

    theirs: Any
    ours: VisionGPT2
    end: int

    @classmethod
    def random(cls, geometry: Geometry, seed: int = 0) -> "Weights":
        torch.manual_seed(seed)
        vision = ViTConfig(
            layer_norm_eps=1e-6, hidden_size=geometry.width, num_hidden_layers=geometry.depth,
            num_attention_heads=geometry.heads, intermediate_size=4 * geometry.width, image_size=geometry.image_size,
        )
        encoder = ViTModel(vision, add_pooling_layer=False)
        decoder = GPT2LMHeadModel(GPT2Config(add_cross_attention=True, **geometry.text))
        theirs = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
        backbone = VisionConfig(
            "vit_base_patch16_224", pretrained=False, image_size=geometry.image_size, geometry=geometry.vision
        )
        ours = VisionGPT2(CaptionerConfig(backbone, GPTConfig(**geometry.text), "last")).eval()
        ours.encoder.backbone.load_state_dict(timm_names(encoder.state_dict()))
        ours.decoder.load_state_dict(transpose_conv1d(decoder.state_dict()))
        return cls(theirs, ours, geometry.end)

    @cached_property
    def folder(self) -> TemporaryDirectory[str]:
        """transformers' files, for peers that read them."""
        folder = TemporaryDirectory(prefix="myllm-bench-")
        self.theirs.save_pretrained(folder.name)
        return folder


def timm_names(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of transformers' ViT as timm has it."""
    renamed = {
        # in versions that peers may still ask for
        "encoder.layer.": "layers.", "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj", "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
        # as today
        "embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj", "layers": "blocks",
        "layernorm_before": "norm1", "layernorm_after": "norm2", "o_proj": "proj", "attention": "attn",
        "layernorm": "norm",
    }
    ours: dict[str, Tensor] = {}
    for name, value in theirs.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        ours[name] = value
    for query in [name for name in ours if ".q_proj." in name]:
        parts = [ours.pop(query.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        ours[query.replace("q_proj", "qkv")] = torch.cat(parts)
    return ours


def theirs_generate(model: Any, end: int) -> Route:
    def route(images: Tensor, beams: int) -> list[list[int]]:
        tokens = model.generate(
            pixel_values=images, num_beams=beams, min_new_tokens=LENGTH, max_new_tokens=LENGTH, do_sample=False,
            decoder_start_token_id=end, eos_token_id=end, pad_token_id=end,
        )
        return [row[1:] for row in tokens.tolist()]

    return route


def ours_generate(stepper: Any, weights: Weights) -> Route:
    def route(images: Tensor, beams: int) -> list[list[int]]:
        decode = DecodeConfig(beams=beams, min_new_tokens=LENGTH, max_new_tokens=LENGTH)
        request = SearchRequest(stepper, weights.ours.encode(images), len(images), weights.end, decode)
        return [hypotheses[0].tokens for hypotheses in generate(request)]

    return route


def ours_torch(weights: Weights) -> Route:
    return ours_generate(ModelStepper(weights.ours, 1 + LENGTH), weights)


def ours_onnx(weights: Weights, precision: Precision) -> Route:
    return ours_generate(OnnxStepper(weights.ours, precision), weights)


def compiled(weights: Weights) -> Route:
    model = VisionEncoderDecoderModel.from_pretrained(weights.folder.name).eval()
    model.encoder = torch.compile(model.encoder)
    model.decoder.forward = torch.compile(model.decoder.forward, dynamic=True)
    return theirs_generate(model, weights.end)


def optimum_onnxruntime(weights: Weights) -> Route:
    from optimum.onnxruntime import ORTModelForVision2Seq

    return theirs_generate(ORTModelForVision2Seq.from_pretrained(weights.folder.name, export=True), weights.end)


def optimum_openvino(weights: Weights) -> Route:
    from optimum.intel import OVModelForVision2Seq

    # fp32 like the others. What optimum-intel 1.27 exports with a cache fails at its second step in OpenVINO 2026.4
    folder, exact = weights.folder.name, {"INFERENCE_PRECISION_HINT": "f32"}
    model = OVModelForVision2Seq.from_pretrained(folder, export=True, use_cache=False, ov_config=exact)
    return theirs_generate(model, weights.end)


ROUTES: Mapping[str, Callable[[Weights], Route]] = {
    "transformers": lambda weights: theirs_generate(weights.theirs, weights.end),
    "transformers-compiled": compiled,
    "optimum-onnxruntime": optimum_onnxruntime,
    "optimum-openvino": optimum_openvino,
    "torch": ours_torch,
    "onnx": lambda weights: ours_onnx(weights, "fp32"),
    "onnx-int8": lambda weights: ours_onnx(weights, "int8"),
}
NEEDED = {"optimum-onnxruntime": "optimum.onnxruntime", "optimum-openvino": "optimum.intel"}


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def seconds(job: Callable[[], object]) -> float:
    start = perf_counter()
    job()
    return perf_counter() - start


@dataclass(frozen=True)
class Machine:
    """Speed of this machine's memory and arithmetic, with the threads that torch has."""

    bandwidth: float
    """Bytes read in a second, from an array as large as the decoder's weights."""
    rate: float
    """Floating-point operations in a second, in fp32 products of the encoder's shape."""

    @classmethod
    def measured(cls, weight_bytes: int) -> "Machine":
        weights = torch.ones(weight_bytes // 4)
        rows, first, second = torch.randn(8 * 197, 768), torch.randn(768, 3072), torch.randn(3072, 768)
        reading = min(seconds(weights.sum) for _ in range(10))
        products = min(seconds(lambda: rows @ first @ second) for _ in range(10))
        return cls(weight_bytes / reading, 2 * 2 * rows.numel() * 3072 / products)

    def floor(self, ours: VisionGPT2, batch: int, beams: int) -> float:
        with FlopCounterMode(display=False) as counter:
            ours.encode(torch.zeros(1, 3, *ours.encoder.preprocess.image_size))
        encoding = batch * counter.get_total_flops() / self.rate
        read = weight_bytes(ours)
        return encoding + LENGTH * max(read / self.bandwidth, batch * beams * read / 2 / self.rate)


def weight_bytes(ours: VisionGPT2) -> int:
    """Bytes of the linear layers that a step of the decoder reads: all but the projection of the picture's tokens."""
    read = {
        name: part for name, part in ours.decoder.named_modules()
        if isinstance(part, nn.Linear) and not name.endswith("crossattention.c_attn")
    }
    return sum(4 * part.weight.numel() for part in read.values())


def processor() -> str:
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    named = dict(line.replace("\t", "").split(": ", 1) for line in facts.splitlines() if ": " in line)
    units = [unit for unit in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if unit in facts]
    return f"{named.get('model name', platform.processor())} ({' '.join(units)}), {torch.get_num_threads()} threads"


class Checkout:
    """A version of the project in a process of its own, that captions when asked to."""

    def __init__(self, folder: Path, geometry: Geometry, threads: int) -> None:
        facts = {**asdict(geometry), "vision": geometry.vision, "text": geometry.text, "threads": threads}
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(facts)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(folder.resolve() / "src")},
        )

    def caption(self, batch: int, beams: int) -> dict[str, Any]:
        """Return {"seconds", "tokens"}."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps({"batch": batch, "beams": beams, "length": LENGTH}), file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        self.process.communicate()


def compare_checkouts(before: Path, geometry: Geometry, arguments: argparse.Namespace) -> None:
    """Print a row for each batch size and number of beams: the times of both versions, which caption in turn."""
    checkouts = [Checkout(folder, geometry, arguments.threads) for folder in (before, Path(__file__).parents[1])]
    print("| pictures x beams | ms before: median (minimum) | now | now / before | same captions |")
    print("|---|---|---|---|---|")
    for batch in arguments.batches:
        for beams in arguments.beams:
            first, second = (checkout.caption(batch, beams)["tokens"] for checkout in checkouts)
            pairs = [
                [checkout.caption(batch, beams)["seconds"] for checkout in checkouts] for _ in range(arguments.rounds)
            ]
            times = [f"{1000 * median(taken):,.1f} ({1000 * min(taken):,.1f})" for taken in zip(*pairs, strict=True)]
            ratio = median(now / earlier for earlier, now in pairs)
            same = sum(map(list.__eq__, first, second))
            print(f"| {batch} x {beams} | {' | '.join(times)} | {ratio:.2f} | {same} of {batch} |", flush=True)
    for checkout in checkouts:
        checkout.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--before", type=Path, help="another checkout of this project, to compare with instead")
    parser.add_argument("--small", action="store_true", help="a tiny model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()

    geometry = SMALL if arguments.small else FULL
    if arguments.before is not None:
        print(f"{processor()}; torch {torch.__version__}\n")
        compare_checkouts(arguments.before, geometry, arguments)
        return
    weights = Weights.random(geometry)
    machine = Machine.measured(weight_bytes(weights.ours))
    print(
        f"{processor()}; reads {machine.bandwidth / 1e9:.1f} GB/s, multiplies {machine.rate / 1e9:.0f} GFLOPS; "
        f"torch {torch.__version__}, transformers {transformers.__version__}\n"
    )
    routes: dict[str, Route] = {}
    for name in dict.fromkeys(["transformers", *arguments.routes]):
        if name in NEEDED and not is_installed(NEEDED[name]):
            print(f"{name} is left out: {NEEDED[name]} is not installed")
            continue
        try:
            start = perf_counter()
            routes[name] = ROUTES[name](weights)
            print(f"{name} is ready after {perf_counter() - start:.1f} s")
        except Exception as error:  # a library that fails must not hide the figures of the others
            print(f"{name} is left out: {type(error).__name__}: {str(error).splitlines()[0][:150]}")

    print("\n| pictures x beams | route | ms, median (range) | times as fast as transformers | same captions |")
    print("|---|---|---|---|---|")
    size = geometry.image_size
    for batch in arguments.batches:
        images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
        for beams in arguments.beams:
            compare_routes(routes, images, beams, arguments.rounds)
            print(f"| {batch} x {beams} | floor | {1000 * machine.floor(weights.ours, batch, beams):,.0f} | | |")


@torch.inference_mode()
def compare_routes(routes: dict[str, Route], images: Tensor, beams: int, rounds: int) -> None:
    """Print a row for each route; report those that fail, and remove them from `routes`."""
    written: dict[str, list[list[int]]] = {}
    for name, route in list(routes.items()):
        try:
            written[name] = route(images, beams)  # the first time is slower: packing, compiling
        except Exception as error:  # as in main
            print(f"| {len(images)} x {beams} | {name} | fails: {str(error).strip()[:150]!r} | | |")
            del routes[name]
    times: dict[str, list[float]] = {name: [] for name in routes}
    for _ in range(rounds):
        for name, route in routes.items():
            times[name].append(seconds(lambda route=route: route(images, beams)))
    for name, taken in times.items():
        ratios = sorted(theirs / ours for ours, theirs in zip(taken, times["transformers"], strict=True))
        same = sum(ours == theirs for ours, theirs in zip(written[name], written["transformers"], strict=True))
        milliseconds = f"{1000 * median(taken):,.0f} ({1000 * min(taken):,.0f} to {1000 * max(taken):,.0f})"
        ratio = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {len(images)} x {beams} | {name} | {milliseconds} | {ratio} | {same} of {len(images)} |", flush=True)


if __name__ == "__main__":
    main()
