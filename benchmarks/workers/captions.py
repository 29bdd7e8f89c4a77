"""Captions random pictures over and over in the checkout that PYTHONPATH names; `benchmarks/decode.py` starts it.

Reads requests as JSON lines, {"batch", "beams", "length"}, and answers each with {"seconds", "tokens"}. It uses only
names that every version of the project has, so that versions can be compared.
"""

import json
import sys
from time import perf_counter

import torch

from myllm import Captioner, CaptionerConfig, DecodeConfig, GPTConfig, VisionConfig, VisionGPT2
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionsConfig
from myllm.data.tokenizer import train_tokenizer


def main() -> None:
    geometry = json.loads(sys.argv[1])
    torch.set_num_threads(geometry["threads"])
    torch.manual_seed(0)
    vision = VisionConfig(
        "vit_base_patch16_224", pretrained=False, image_size=geometry["image_size"], geometry=geometry["vision"]
    )
    model = VisionGPT2(CaptionerConfig(vision, GPTConfig(**geometry["text"]), "last")).eval()
    tokenizer = train_tokenizer(["a small red ball"], 300)
    preprocess = model.encoder.preprocess
    checkpoint = Checkpoint(model, tokenizer, preprocess, CaptionsConfig(), DecodeConfig(), {})
    captioner = Captioner(checkpoint, torch.device("cpu"))
    for line in sys.stdin:
        request = json.loads(line)
        images = torch.randn(
            request["batch"], 3, *preprocess.image_size, generator=torch.Generator().manual_seed(request["batch"])
        )
        length = request["length"]
        decode = DecodeConfig(beams=request["beams"], min_new_tokens=length, max_new_tokens=length)
        start = perf_counter()
        captions = captioner.caption_tensors(images, decode)
        seconds = perf_counter() - start
        print(json.dumps({"seconds": seconds, "tokens": [caption.tokens for caption in captions]}), flush=True)


if __name__ == "__main__":
    main()
