"""Peak memory of captioning, ours and transformers', each in a separate process: ViT-B/16 and GPT-2 small.

    python benchmarks/memory.py [--batch 32] [--beams 4]
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

END, LENGTH = 50256, 32


def transformers_captions() -> Callable[[Tensor, int], object]:
    from transformers import GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel, ViTConfig, ViTModel

    decoder = GPT2LMHeadModel(GPT2Config(add_cross_attention=True))
    model = VisionEncoderDecoderModel(encoder=ViTModel(ViTConfig(), add_pooling_layer=False), decoder=decoder).eval()
    return lambda images, beams: model.generate(
        pixel_values=images, num_beams=beams, min_new_tokens=LENGTH, max_new_tokens=LENGTH, do_sample=False,
        decoder_start_token_id=END, eos_token_id=END, pad_token_id=END,
    )


def our_captions(precision: str) -> Callable[[Tensor, int], object]:
    from myllm.config import CaptionerConfig, DecodeConfig, GPTConfig, VisionConfig
    from myllm.decoding.engine import SearchRequest
    from myllm.decoding.generate import generate
    from myllm.inference.onnx_stepper import OnnxStepper
    from myllm.inference.torch_steppers import ModelStepper
    from myllm.model.vision_gpt2 import VisionGPT2

    vision = VisionConfig("vit_base_patch16_224", pretrained=False)
    model = VisionGPT2(CaptionerConfig(vision, GPTConfig(), "last")).eval()
    is_torch = precision == "torch"
    stepper = ModelStepper(model, 1 + LENGTH) if is_torch else OnnxStepper(model, precision)  # type: ignore[arg-type]

    def caption(images: Tensor, beams: int) -> object:
        decode = DecodeConfig(beams=beams, min_new_tokens=LENGTH, max_new_tokens=LENGTH)
        return generate(SearchRequest(stepper, model.encode(images), len(images), END, decode))

    return caption


ROUTES: Mapping[str, Callable[[], Callable[[Tensor, int], object]]] = {
    "transformers": transformers_captions,
    "torch": lambda: our_captions("torch"),
    "onnx (the default)": lambda: our_captions("fp32"),
    "onnx-int8": lambda: our_captions("int8"),
}


def peak() -> int:
    """Return the peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--route", choices=ROUTES, help="measure only this route, in this process")
    arguments = parser.parse_args()
    if arguments.route:
        with torch.inference_mode():
            caption = ROUTES[arguments.route]()
            ready = peak()
            caption(torch.randn(arguments.batch, 3, 224, 224), arguments.beams)
        print(f"{ready} {peak()}")
        return
    print(f"| {arguments.batch} x {arguments.beams} | peak MB until ready | peak MB | relative to transformers |")
    print("|---|---|---|---|")
    baseline = 0
    for name in ROUTES:
        command = [sys.executable, __file__, "--route", name, "--batch", str(arguments.batch), "--beams"]
        output = subprocess.run([*command, str(arguments.beams)], capture_output=True, text=True, check=True).stdout
        ready, total = map(int, output.split()[-2:])
        baseline = baseline or total
        print(f"| {name} | {ready:,} | {total:,} | {total / baseline:.2f} |", flush=True)


if __name__ == "__main__":
    main()
