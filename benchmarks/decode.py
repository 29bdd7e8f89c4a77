"""Times captioning, pictures in to tokens out, beside other libraries that hold the same weights.

    python benchmarks/decode.py [--batches 1 8 32] [--beams 1 4] [--routes transformers onnx ...] [--rounds 5]

ViT-B/16 and GPT-2 small with random weights write 32 tokens a picture. Routes take turns in one process, so that all
see the same machine; a peer that isn't installed is left out and said so. optimum asks for an older transformers, so
these two take an environment of their own:

    pip install -e . "transformers<4.58" "optimum[onnxruntime]" optimum-intel openvino

The floor is what this machine could reach: the decoder's weights read once a step, or its products where these take
longer, and the encoder's products.
"""

import argparse
import importlib.util
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from myllm.decoding.generate import generate
from myllm.inference.onnx_stepper import OnnxStepper, Precision
from myllm.inference.torch_steppers import ModelStepper
from myllm.model.gpt2_weights import transpose_conv1d
from myllm.model.vision_gpt2 import VisionGPT2

END, LENGTH = 50256, 32
Route = Callable[[Tensor, int], list[list[int]]]
"""Pictures (B, 3, 224, 224) and the number of beams -> the tokens of a caption for each."""


@dataclass
class Weights:
    """A captioner of transformers, and the same tensors under our names."""

    theirs: Any
    ours: VisionGPT2

    @classmethod
    def random(cls, seed: int = 0) -> "Weights":
        torch.manual_seed(seed)
        encoder = ViTModel(ViTConfig(layer_norm_eps=1e-6), add_pooling_layer=False)
        decoder = GPT2LMHeadModel(GPT2Config(add_cross_attention=True))
        theirs = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
        ours = VisionGPT2(
            CaptionerConfig(VisionConfig("vit_base_patch16_224", pretrained=False), GPTConfig(), "last")
        ).eval()
        ours.encoder.backbone.load_state_dict(timm_names(encoder.state_dict()))
        ours.decoder.load_state_dict(transpose_conv1d(decoder.state_dict()))
        return cls(theirs, ours)

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


def theirs_generate(model: Any) -> Route:
    def route(images: Tensor, beams: int) -> list[list[int]]:
        found = model.generate(
            pixel_values=images, num_beams=beams, min_new_tokens=LENGTH, max_new_tokens=LENGTH, do_sample=False,
            decoder_start_token_id=END, eos_token_id=END, pad_token_id=END,
        )
        return [row[1:] for row in found.tolist()]

    return route


def ours_generate(stepper: Any, encode: Callable[[Tensor], Any]) -> Route:
    def route(images: Tensor, beams: int) -> list[list[int]]:
        decode = DecodeConfig(beams=beams, min_new_tokens=LENGTH, max_new_tokens=LENGTH)
        return [best[0].tokens for best in generate(SearchRequest(stepper, encode(images), len(images), END, decode))]

    return route


def ours_torch(weights: Weights) -> Route:
    return ours_generate(ModelStepper(weights.ours, 1 + LENGTH), weights.ours.encode)


def ours_onnx(weights: Weights, precision: Precision) -> Route:
    stepper = OnnxStepper(weights.ours, precision)
    return ours_generate(stepper, weights.ours.encode)


def compiled(weights: Weights) -> Route:
    model = VisionEncoderDecoderModel.from_pretrained(weights.folder.name).eval()
    model.encoder = torch.compile(model.encoder)
    model.decoder.forward = torch.compile(model.decoder.forward, dynamic=True)
    return theirs_generate(model)


def optimum_onnxruntime(weights: Weights) -> Route:
    from optimum.onnxruntime import ORTModelForVision2Seq

    return theirs_generate(ORTModelForVision2Seq.from_pretrained(weights.folder.name, export=True))


def optimum_openvino(weights: Weights) -> Route:
    from optimum.intel import OVModelForVision2Seq

    # fp32, as the others. What optimum-intel 1.27 exports with a cache fails at its second step in OpenVINO 2026.4
    folder, exact = weights.folder.name, {"INFERENCE_PRECISION_HINT": "f32"}
    return theirs_generate(OVModelForVision2Seq.from_pretrained(folder, export=True, use_cache=False, ov_config=exact))


ROUTES: Mapping[str, Callable[[Weights], Route]] = {
    "transformers": lambda weights: theirs_generate(weights.theirs),
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
    """What this machine's memory and arithmetic give, with the threads that torch has."""

    bandwidth: float
    """Bytes read in a second, of as many as the decoder's weights."""
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
            ours.encode(torch.zeros(1, 3, 224, 224))
        encoding = batch * counter.get_total_flops() / self.rate
        read = weight_bytes(ours)
        return encoding + LENGTH * max(read / self.bandwidth, batch * beams * read / 2 / self.rate)


def weight_bytes(ours: VisionGPT2) -> int:
    """Of the linear layers that a step of the decoder reads: all but the projection of the picture's tokens."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()

    weights = Weights.random()
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
        except Exception as error:  # whatever a peer fails with, the others are still worth their figures
            print(f"{name} is left out: {type(error).__name__}: {str(error).splitlines()[0][:150]}")

    print("\n| pictures x beams | route | ms, median (least to most) | times as fast as transformers | same captions |")
    print("|---|---|---|---|---|")
    for batch in arguments.batches:
        images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(batch))
        for beams in arguments.beams:
            compare(routes, images, beams, arguments.rounds)
            print(f"| {batch} x {beams} | floor | {1000 * machine.floor(weights.ours, batch, beams):,.0f} | | |")


@torch.inference_mode()
def compare(routes: dict[str, Route], images: Tensor, beams: int, rounds: int) -> None:
    """Prints a row for each route; those that fail here are told and left out from here on."""
    written: dict[str, list[list[int]]] = {}
    for name, route in list(routes.items()):
        try:
            written[name] = route(images, beams)  # the first time is slower: packing, compiling
        except Exception as error:  # as above
            print(f"| {len(images)} x {beams} | {name} | fails: {str(error).strip()[:150]!r} | | |")
            del routes[name]
    times: dict[str, list[float]] = {name: [] for name in routes}
    for _ in range(rounds):
        for name, route in routes.items():
            times[name].append(seconds(lambda route=route: route(images, beams)))
    for name, taken in times.items():
        ratios = sorted(them / us for us, them in zip(taken, times["transformers"], strict=True))
        same = sum(ours == theirs for ours, theirs in zip(written[name], written["transformers"], strict=True))
        milliseconds = f"{1000 * median(taken):,.0f} ({1000 * min(taken):,.0f} to {1000 * max(taken):,.0f})"
        ratio = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {len(images)} x {beams} | {name} | {milliseconds} | {ratio} | {same} of {len(images)} |", flush=True)


if __name__ == "__main__":
    main()
