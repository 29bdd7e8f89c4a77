"""The server that `benchmarks/serve.py` compares with: FastAPI and a model of transformers, a picture a request."""

import socket
import sys
from pathlib import Path
from threading import Lock

import torch
import transformers
import uvicorn
from fastapi import FastAPI, UploadFile

sys.path.insert(0, str(Path(__file__).parents[1]))
from folder import to_transformers

from myllm import Captioner
from myllm.data.tokenizer import decode_tokens, end_token


def main() -> None:
    transformers.logging.set_verbosity_error()
    captioner = Captioner.load(sys.argv[1])
    model, decode, end = to_transformers(captioner.model), captioner.decode, end_token(captioner.tokenizer)
    longest = min(decode.max_new_tokens, captioner.model.config.text.n_positions)
    app, lock = FastAPI(), Lock()

    @app.post("/v1/caption")
    def caption(image: UploadFile) -> dict[str, str]:
        pixels = captioner.preprocess(image.file.read())
        with lock, torch.inference_mode():  # all cores compute one picture
            [row] = model.generate(
                pixel_values=pixels[None], num_beams=decode.beams, max_new_tokens=longest,
                length_penalty=decode.length_penalty, early_stopping=decode.early_stopping, do_sample=False,
                decoder_start_token_id=end, eos_token_id=end, pad_token_id=end,
            ).tolist()
        tokens = row[1 : row.index(end, 1)] if end in row[1:] else row[1:]
        return {"caption": decode_tokens(captioner.tokenizer, tokens).strip()}

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
