"""Takes a captioner of real size through every form: seconds, megabytes, memory, and what another program says of it.

    python benchmarks/formats.py

ViT-B/16 and GPT-2 small with random weights, as transformers writes them, are imported, written in each form and opened
again, each time in a process of its own.
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
    """A captioner of transformers, and logits that it gives."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel, ViTConfig, ViTModel

    from myllm.data.tokenizer import train_tokenizer

    torch.manual_seed(0)
    decoder = GPT2LMHeadModel(GPT2Config(add_cross_attention=True, bos_token_id=0, eos_token_id=0))
    model = VisionEncoderDecoderModel(encoder=ViTModel(ViTConfig(), add_pooling_layer=False), decoder=decoder).eval()
    model.save_pretrained(folder / "theirs")
    tokenizer = train_tokenizer([], vocab_size=257)
    tokenizer.save(str(folder / "theirs/tokenizer.json"))
    said = logits(lambda images, tokens: model(pixel_values=images, decoder_input_ids=tokens).logits)
    torch.save(said, folder / "said")


def logits(model: Callable) -> object:  # type: ignore[type-arg]
    import torch

    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(IMAGE_SEED))
    with torch.inference_mode():
        return model(images, torch.arange(2 * TOKENS).view(2, TOKENS))


def off(folder: Path, found: object) -> float:
    """The largest difference of a logit from what transformers said of the original."""
    import torch

    expected = torch.load(folder / "said", weights_only=True)
    return float((found - expected).abs().max())


def ours(source: str) -> Callable[[Path], float]:
    """Open it here."""

    def job(folder: Path) -> float:
        from myllm.checkpoints import formats

        model = formats.load(folder / source).model
        return off(folder, logits(lambda images, tokens: model(images, tokens[:, None])[:, 0]))

    return job


def theirs(source: str) -> Callable[[Path], float]:
    """Open it in transformers."""

    def job(folder: Path) -> float:
        from transformers import VisionEncoderDecoderModel

        model = VisionEncoderDecoderModel.from_pretrained(folder / source).eval()
        return off(folder, logits(lambda images, tokens: model(pixel_values=images, decoder_input_ids=tokens).logits))

    return job


def runtimes(source: str) -> Callable[[Path], float]:
    """Open it on ONNX Runtime."""

    def job(folder: Path) -> float:
        import torch

        from myllm.inference.onnx_captioner import OnnxCaptioner

        captioner = OnnxCaptioner.load(folder / source)
        past = {
            one.name: torch.zeros(2, one.shape[1], 0, one.shape[3]).numpy()
            for one in captioner.decoder.get_inputs()
            if one.name.startswith("past")
        }

        def model(images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            (seen,) = captioner.encoder.run(None, {"pixel_values": images.numpy()})
            fed = {"input_ids": tokens.numpy(), "encoder_hidden_states": seen, **past}
            return torch.from_numpy(captioner.decoder.run(["logits"], fed)[0])

        return off(folder, logits(model))

    return job


def caption(source: str) -> Callable[[Path], float]:
    """Open it and write twenty tokens for a picture."""

    def job(folder: Path) -> float:
        from PIL import Image

        from myllm.apps.caption import open_captioner

        captioner = open_captioner(str(folder / source), "cpu", "auto")
        options = captioner.decode_options(max_new_tokens=TOKENS, min_new_tokens=TOKENS)
        (told,) = captioner.caption_tensors([captioner.preprocess(Image.new("RGB", (640, 480), "orange"))], options)
        assert len(told.tokens) == TOKENS
        return float("nan")

    return job


def write(source: str, form: str, out: str, *options: str) -> Callable[[Path], float]:
    def job(folder: Path) -> float:
        from myllm.apps.cli import main

        words = ["import"] if form == "captioner.pt" else ["export", "--to", form]
        assert main([*words, *options, str(folder / source), "--out", str(folder / out), "--quiet"]) == 0
        return float("nan")

    return job


# what is done, to which result, and how
JOURNEYS: Mapping[str, tuple[str, Callable[[Path], float]]] = {
    "transformers' folder opened here": ("theirs", ours("theirs")),
    "imported as captioner.pt": ("ours.pt", write("theirs", "captioner.pt", "ours.pt")),
    "captioner.pt opened": ("ours.pt", ours("ours.pt")),
    "captioner.pt opened, a picture captioned": ("ours.pt", caption("ours.pt")),
    "exported to safetensors": ("tensors", write("ours.pt", "safetensors", "tensors")),
    "safetensors opened": ("tensors", ours("tensors")),
    "exported to safetensors, bfloat16": ("half", write("ours.pt", "safetensors", "half", "--dtype=bfloat16")),
    "safetensors, bfloat16, opened": ("half", ours("half")),
    "exported to hf": ("hf", write("ours.pt", "hf", "hf")),
    "hf opened in transformers": ("hf", theirs("hf")),
    "exported to onnx": ("onnx", write("ours.pt", "onnx", "onnx")),
    "onnx opened on ONNX Runtime": ("onnx", runtimes("onnx")),
    "onnx opened, a picture captioned": ("onnx", caption("onnx")),
    "exported to onnx, int8": ("int8", write("ours.pt", "onnx", "int8", "--precision=int8")),
    "int8 opened on ONNX Runtime": ("int8", runtimes("int8")),
    "int8 opened, a picture captioned": ("int8", caption("int8")),
    "exported to onnx, int4": ("int4", write("ours.pt", "onnx", "int4", "--precision=int4")),
    "int4 opened on ONNX Runtime": ("int4", runtimes("int4")),
    "int4 opened, a picture captioned": ("int4", caption("int4")),
}


def run(name: str, folder: Path) -> None:
    """One journey in this process, with what takes time before it, imports, left out."""
    import transformers

    import myllm.inference.captioner  # noqa: F401

    transformers.logging.set_verbosity_error()
    before, began = peak(), perf_counter()
    difference = JOURNEYS[name][1](folder)
    seconds = perf_counter() - began
    print(json.dumps([seconds, peak(), before, difference]))


def peak() -> int:
    """MB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def megabytes(place: Path) -> float:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journey", choices=JOURNEYS, help="only this one, in this process")
    parser.add_argument("--make", action="store_true", help="only the captioner of transformers, in this process")
    parser.add_argument("--folder", type=Path, help="where the files of earlier journeys are")
    arguments = parser.parse_args()
    if arguments.journey:
        run(arguments.journey, arguments.folder)
        return
    if arguments.make:
        make(arguments.folder)
        return
    with TemporaryDirectory(prefix="myllm-formats-") as name:
        # a process begins with the peak of the one that started it, so this one stays small
        subprocess.run([sys.executable, __file__, "--make", "--folder", name], check=True)
        print("| journey | seconds | file, MB | memory at most, MB (before) | logits off transformers' by at most |")
        print("|---|---|---|---|---|")
        for journey, (result, _) in JOURNEYS.items():
            words = [sys.executable, __file__, "--journey", journey, "--folder", name]
            told = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
            seconds, most, before, difference = json.loads(told)
            size, seen = megabytes(Path(name) / result), "" if difference != difference else f"{difference:.1e}"
            print(f"| {journey} | {seconds:.1f} | {size:,.0f} | {most:,} ({before:,}) | {seen} |", flush=True)


if __name__ == "__main__":
    main()
