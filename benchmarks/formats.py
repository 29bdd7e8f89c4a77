"""Convert a captioner of real size to every format: seconds, megabytes, memory, and differences from other programs.

    python benchmarks/formats.py

ViT-B/16 and GPT-2 small with random weights, as transformers writes them, are imported, written in each format and
opened again, each time in a new process.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

IMAGE_SEED, TOKENS = 0, 20


def make(folder: Path) -> None:
    """Write a captioner of transformers, and the logits that it computes."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel, ViTConfig, ViTModel

    from myllm.data.tokenizer import train_tokenizer

    torch.manual_seed(0)
    decoder = GPT2LMHeadModel(GPT2Config(add_cross_attention=True, bos_token_id=0, eos_token_id=0))
    model = VisionEncoderDecoderModel(encoder=ViTModel(ViTConfig(), add_pooling_layer=False), decoder=decoder).eval()
    model.save_pretrained(folder / "original")
    tokenizer = train_tokenizer([], vocab_size=257)
    tokenizer.save(str(folder / "original/tokenizer.json"))
    expected = logits(lambda images, tokens: model(pixel_values=images, decoder_input_ids=tokens).logits)
    torch.save(expected, folder / "logits")


def logits(model: Callable) -> object:  # type: ignore[type-arg]
    """Return the logits of a model for fixed random images and tokens."""
    import torch

    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(IMAGE_SEED))
    with torch.inference_mode():
        return model(images, torch.arange(2 * TOKENS).view(2, TOKENS))


def largest_difference(folder: Path, computed: object) -> float:
    """Return the largest absolute difference of a logit from those of the original in transformers."""
    import torch

    expected = torch.load(folder / "logits", weights_only=True)
    return float((computed - expected).abs().max())


def open_here(source: str) -> Callable[[Path], float]:
    """Return a job that opens a captioner with myllm and compares logits."""

    def job(folder: Path) -> float:
        from myllm.checkpoints import formats

        model = formats.load(folder / source).model
        return largest_difference(folder, logits(lambda images, tokens: model(images, tokens[:, None])[:, 0]))

    return job


def open_in_transformers(source: str) -> Callable[[Path], float]:
    """Return a job that opens a captioner in transformers and compares logits."""

    def job(folder: Path) -> float:
        from transformers import VisionEncoderDecoderModel

        model = VisionEncoderDecoderModel.from_pretrained(folder / source).eval()
        computed = logits(lambda images, tokens: model(pixel_values=images, decoder_input_ids=tokens).logits)
        return largest_difference(folder, computed)

    return job


def open_on_onnx_runtime(source: str) -> Callable[[Path], float]:
    """Return a job that opens an export on ONNX Runtime and compares logits."""

    def job(folder: Path) -> float:
        import torch

        from myllm.inference.onnx_captioner import OnnxCaptioner

        captioner = OnnxCaptioner.load(folder / source)
        past = {
            item.name: torch.zeros(2, item.shape[1], 0, item.shape[3]).numpy()
            for item in captioner.decoder.get_inputs()
            if item.name.startswith("past")
        }

        def model(images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            (image_kv,) = captioner.encoder.run(None, {"pixel_values": images.numpy()})
            inputs = {"input_ids": tokens.numpy(), "encoder_hidden_states": image_kv, **past}
            return torch.from_numpy(captioner.decoder.run(["logits"], inputs)[0])

        return largest_difference(folder, logits(model))

    return job


def caption(source: str) -> Callable[[Path], float]:
    """Return a job that opens a captioner and generates twenty tokens for a picture."""

    def job(folder: Path) -> float:
        from PIL import Image

        from myllm.apps.opening import open_captioner

        captioner = open_captioner(str(folder / source), "cpu", "auto")
        options = captioner.decode_options(max_new_tokens=TOKENS, min_new_tokens=TOKENS)
        (caption,) = captioner.caption_tensors([captioner.preprocess(Image.new("RGB", (640, 480), "orange"))], options)
        assert len(caption.tokens) == TOKENS
        return float("nan")

    return job


def write(source: str, file_format: str, out: str, *options: str) -> Callable[[Path], float]:
    """Return a job that converts a captioner by `myllm import` or `export`."""

    def job(folder: Path) -> float:
        from myllm.apps.cli import main

        words = ["import"] if file_format == "captioner.pt" else ["export", "--to", file_format]
        assert main([*words, *options, str(folder / source), "--out", str(folder / out), "--quiet"]) == 0
        return float("nan")

    return job


# name to the file that results and the job
CONVERSIONS: Mapping[str, tuple[str, Callable[[Path], float]]] = {
    "transformers' folder opened in myllm": ("original", open_here("original")),
    "imported as captioner.pt": ("ours.pt", write("original", "captioner.pt", "ours.pt")),
    "captioner.pt opened": ("ours.pt", open_here("ours.pt")),
    "captioner.pt opened, a picture captioned": ("ours.pt", caption("ours.pt")),
    "exported to safetensors": ("tensors", write("ours.pt", "safetensors", "tensors")),
    "safetensors opened": ("tensors", open_here("tensors")),
    "exported to safetensors, bfloat16": ("half", write("ours.pt", "safetensors", "half", "--dtype=bfloat16")),
    "safetensors, bfloat16, opened": ("half", open_here("half")),
    "exported to hf": ("hf", write("ours.pt", "hf", "hf")),
    "hf opened in transformers": ("hf", open_in_transformers("hf")),
    "exported to onnx": ("onnx", write("ours.pt", "onnx", "onnx")),
    "onnx opened on ONNX Runtime": ("onnx", open_on_onnx_runtime("onnx")),
    "onnx opened, a picture captioned": ("onnx", caption("onnx")),
    "exported to onnx, int8": ("int8", write("ours.pt", "onnx", "int8", "--precision=int8")),
    "int8 opened on ONNX Runtime": ("int8", open_on_onnx_runtime("int8")),
    "int8 opened, a picture captioned": ("int8", caption("int8")),
    "exported to onnx, int4": ("int4", write("ours.pt", "onnx", "int4", "--precision=int4")),
    "int4 opened on ONNX Runtime": ("int4", open_on_onnx_runtime("int4")),
    "int4 opened, a picture captioned": ("int4", caption("int4")),
}


def run(name: str, folder: Path) -> None:
    """Run one conversion in this process and print its figures; imports are not timed."""
    import transformers

    import myllm.inference.captioner  # noqa: F401

    transformers.logging.set_verbosity_error()
    before, start = peak(), perf_counter()
    difference = CONVERSIONS[name][1](folder)
    seconds = perf_counter() - start
    print(json.dumps([seconds, peak(), before, difference]))


def peak() -> int:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def megabytes(path: Path) -> float:
    """Return the size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversion", choices=CONVERSIONS, help="only this one, in this process")
    parser.add_argument("--make", action="store_true", help="only the captioner of transformers, in this process")
    parser.add_argument("--folder", type=Path, help="folder with the results of earlier conversions")
    arguments = parser.parse_args()
    if arguments.conversion:
        run(arguments.conversion, arguments.folder)
        return
    if arguments.make:
        make(arguments.folder)
        return
    with TemporaryDirectory(prefix="myllm-formats-") as name:
        # a process inherits the peak of its parent, so this one imports nothing large
        subprocess.run([sys.executable, __file__, "--make", "--folder", name], check=True)
        print("| conversion | seconds | file, MB | peak memory, MB (before) | largest difference of logits |")
        print("|---|---|---|---|---|")
        for conversion, (result, _) in CONVERSIONS.items():
            words = [sys.executable, __file__, "--conversion", conversion, "--folder", name]
            output = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
            seconds, peak_memory, before, difference = json.loads(output)
            size, error = megabytes(Path(name) / result), "" if difference != difference else f"{difference:.1e}"
            memory = f"{peak_memory:,} ({before:,})"
            print(f"| {conversion} | {seconds:.1f} | {size:,.0f} | {memory} | {error} |", flush=True)


if __name__ == "__main__":
    main()
