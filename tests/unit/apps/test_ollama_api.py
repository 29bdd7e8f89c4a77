"""Ollama's official client works unchanged, and so do the requests of PhotoPrism."""

import base64
from collections.abc import Callable
from typing import Any

import httpx2
import ollama
import pytest
import torch

from myllm.config import VERSION

Png = Callable[[int], bytes]


@pytest.fixture
def client(server: Any) -> ollama.Client:
    return ollama.Client(host=server.url)


def test_generate_is_the_caption_whole_and_in_pieces(client: ollama.Client, server: Any, png: Png) -> None:
    options = {"only_words": ["a", "red", "ball"], "min_new_tokens": 6, "num_predict": 6}
    expected = server.captioner.caption(png(0), only_words=("a", "red", "ball"), min_new_tokens=6, max_new_tokens=6)
    answer = client.generate("tiny", "What is this?", images=[png(0)], options=options)
    assert (answer.response, answer.done, answer.done_reason) == (expected.text, True, "length")
    assert answer.eval_count == 6 and answer.total_duration and answer.model == "tiny"
    parts = list(client.generate("tiny:latest", "What?", images=[png(0)], options=options, stream=True))
    assert "".join(part.response or "" for part in parts) == expected.text and len(parts) > 3
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_chat_reads_the_newest_picture(client: ollama.Client, server: Any, png: Png) -> None:
    history = [
        {"role": "user", "content": "What?", "images": [png(0)]}, {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And this?", "images": [png(1)]}, {"role": "user", "content": "Shorter!"},
    ]
    expected = server.captioner.caption(png(1)).text
    assert client.chat("tiny", history).message.content == expected
    parts = list(client.chat("tiny", history, stream=True))
    assert "".join(part.message.content or "" for part in parts) == expected


def test_options_of_ollama_are_those_of_the_captioner(client: ollama.Client, server: Any, png: Png) -> None:
    sampling = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01}
    options = {**sampling, "seed": 3, "repeat_penalty": 1.5, "num_ctx": 99}
    decode = {**sampling, "repetition_penalty": 1.5, "do_sample": True}
    expected = server.captioner.caption(png(0), generator=torch.Generator().manual_seed(3), **decode)
    assert client.generate("tiny", "?", images=[png(0)], options=options).response == expected.text
    answer = client.generate("tiny", "?", images=[png(0)], options={"temperature": 0, "num_predict": -1})
    assert answer.response == server.captioner.caption(png(0)).text


def test_numbers_may_be_written_as_floats_and_seed_minus_1_is_random(
    client: ollama.Client, server: Any, png: Png
) -> None:
    def caption(**options: Any) -> str | None:
        return client.generate("tiny", "?", images=[png(0)], options={"temperature": 1.0, **options}).response

    decode = {"temperature": 1, "top_k": 20, "max_new_tokens": 8, "do_sample": True}
    expected = server.captioner.caption(png(0), generator=torch.Generator().manual_seed(42), **decode)
    assert caption(seed=42.0, num_predict=8.0, top_k=20.0) == expected.text
    assert len({caption(seed=-1, num_predict=-1.0) for _ in range(5)}) > 1


def test_stream_null_is_the_default(server: Any, png: Png) -> None:
    body = {"model": "tiny", "prompt": "?", "images": [base64.b64encode(png(0)).decode()], "stream": None}
    answer = httpx2.post(f"{server.url}/api/generate", json=body)
    assert answer.headers["content-type"].startswith("application/x-ndjson")


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_are_left_out(client: ollama.Client, png: Png, stream: bool) -> None:
    options = {"only_words": ["a", "red", "ball"], "min_new_tokens": 7}
    text = str(client.generate("tiny", "?", images=[png(2)], options=options).response)
    stop = text[len(text) // 2 :][:3]
    answer: Any = client.generate("tiny", "?", images=[png(2)], options={**options, "stop": [stop]}, stream=stream)
    cut = "".join(part.response for part in answer) if stream else answer.response
    assert cut == text.partition(stop)[0]


def test_what_clients_ask_about_models_is_answered(client: ollama.Client, server: Any) -> None:
    [model] = client.list().models
    assert model.model == "tiny" and model.modified_at is not None
    assert "vision" in (client.show("tiny").capabilities or [])
    assert client.generate("tiny").done_reason == "load"  # a program that wants the model to be loaded
    assert httpx2.get(f"{server.url}/api/version").json() == {"version": VERSION}


def test_requests_of_photoprism_are_answered(server: Any, png: Png) -> None:
    # internal/ai/vision/api_request.go: what Models with `Engine: ollama` in vision.yml send
    body = {
        "id": "8a1cbc0c-1f27-4d6c-9b0f-0a1d5d0c3f51", "model": "tiny:latest", "stream": False, "suffix": "",
        "prompt": "Create a caption with exactly one sentence in the active voice.",
        "options": {"temperature": 0.1, "seed": 5}, "images": [base64.b64encode(png(0)).decode()],
    }
    answer = httpx2.post(f"{server.url}/api/generate", json=body).json()
    generator = torch.Generator().manual_seed(5)
    expected = server.captioner.caption(png(0), generator=generator, do_sample=True, temperature=0.1)
    assert answer["response"] == expected.text and answer["done"] is True and "error" not in answer


@pytest.mark.parametrize(("fields", "status", "message"), [
    ({"model": "big"}, 404, "model 'big' is not served"), ({"images": []}, 400, "the request has no picture"),
    ({"images": ["?"]}, 400, "not valid base64"), ({"images": "abc"}, 400, "images must be a list"),
    ({"images": ["YWJj", "YWJj"]}, 400, "the request has 2 pictures"),
    ({"format": "json"}, 400, "format is not supported"), ({"options": [1]}, 400, "options must be an object"),
    ({"options": {"mirostat": 1}}, 400, "mirostat is not supported"),
    ({"options": {"temperature": -1}}, 400, "temperature is -1"),
    ({"options": {"num_predict": 0}}, 400, "num_predict is 0"),
    ({"images": ["YWJj"]}, 400, "not a picture"),
])
def test_wrong_requests_are_refused_in_ollamas_form(
    server: Any, png: Png, fields: dict[str, Any], status: int, message: str
) -> None:
    body = {"model": "tiny", "prompt": "?", "images": [base64.b64encode(png(0)).decode()], **fields}
    answer = httpx2.post(f"{server.url}/api/generate", json=body)
    assert answer.status_code == status and message in answer.json()["error"]


def test_errors_are_those_that_the_client_knows(client: ollama.Client, png: Png) -> None:
    with pytest.raises(ollama.ResponseError, match="not served") as raised:
        client.generate("big", "?", images=[png(0)])
    assert raised.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="not a picture"):
        list(client.generate("tiny", "?", images=[b"abcabc"], stream=True))
