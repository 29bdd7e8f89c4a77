"""OpenAI's official client works unchanged."""

import base64
import math
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
import torch

Png = Callable[[int], bytes]


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def messages(picture: bytes, text: str = "What is this?") -> Any:
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
    return [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": parts}]


def test_completion_is_the_caption(client: openai.OpenAI, server: Any, png: Png) -> None:
    answer = client.chat.completions.create(model="tiny", messages=messages(png(0)), max_tokens=300)
    expected = server.captioner.caption(png(0), max_new_tokens=24)
    assert answer.choices[0].message.content == expected.text and answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == ("length" if expected.ended_by == "length" else "stop")
    assert answer.usage is not None and answer.usage.completion_tokens == len(expected.token_logprobs)
    assert (answer.model, answer.object) == ("tiny", "chat.completion")


def test_completion_reads_the_newest_picture_and_no_text(client: openai.OpenAI, server: Any, png: Png) -> None:
    history = [*messages(png(0)), {"role": "assistant", "content": "A cat."}, *messages(png(1), "Like a dog:")]
    history.append({"role": "user", "content": "Shorter!"})
    answer = client.chat.completions.create(model="tiny", messages=history)
    assert answer.choices[0].message.content == server.captioner.caption(png(1)).text


def test_n_captions_are_beams_or_samples(client: openai.OpenAI, server: Any, png: Png) -> None:
    answer = client.chat.completions.create(model="tiny", messages=messages(png(0)), n=3)
    expected = server.captioner.caption(png(0), beams=3)
    assert [choice.message.content for choice in answer.choices] == [expected.text, *expected.alternatives]
    answer = client.chat.completions.create(
        model="tiny", messages=messages(png(0)), n=2, temperature=0.9, top_p=0.8, seed=4
    )
    options = {"do_sample": True, "temperature": 0.9, "top_p": 0.8, "num_return_sequences": 2}
    expected = server.captioner.caption(png(0), generator=torch.Generator().manual_seed(4), **options)
    assert [choice.message.content for choice in answer.choices] == [expected.text, *expected.alternatives]
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_each_of_n_captions_has_its_reason_and_its_tokens(client: openai.OpenAI, png: Png) -> None:
    options = {"beams": 4, "regex": "a|b|a red ball"}
    # in two tokens, there is room for "b" with its end, and for the beginning of "a red ball"
    answer = client.chat.completions.create(
        model="tiny", messages=messages(png(0)), n=4, max_tokens=2, extra_body=options
    )
    reasons = {choice.message.content: choice.finish_reason for choice in answer.choices}
    assert reasons["a red"] == "length" and reasons["b"] == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens == 2 * 4
    one = client.chat.completions.create(model="tiny", messages=messages(png(0)), max_tokens=2, extra_body=options)
    assert one.usage is not None and one.usage.completion_tokens == 2


def test_seeds_may_be_negative_and_minus_1_is_random(client: openai.OpenAI, png: Png) -> None:
    def caption(seed: Any) -> str | None:
        answer = client.chat.completions.create(
            model="tiny", messages=messages(png(0)), seed=seed, temperature=1, max_tokens=8
        )
        return answer.choices[0].message.content

    assert caption(-7) == caption(-7) != caption(-8) and caption(42) == caption(42.0)
    assert len({caption(-1) for _ in range(5)}) > 1


def test_temperature_0_and_own_options_are_those_of_the_captioner(
    client: openai.OpenAI, server: Any, png: Png
) -> None:
    own = {"beams": 2, "bad_words": ["a"]}
    answer = client.chat.completions.create(
        model="tiny", messages=messages(png(0)), temperature=0, extra_body={**own, "user_field_of_some_program": 1}
    )
    assert answer.choices[0].message.content == server.captioner.caption(png(0), **own).text


def test_streamed_chunks_are_the_completion(client: openai.OpenAI, png: Png) -> None:
    options = {"only_words": ["a", "red", "ball", "cube"], "min_new_tokens": 7}
    whole = client.chat.completions.create(model="tiny", messages=messages(png(2)), extra_body=options)
    for n in (1, 2):
        chunks = list(client.chat.completions.create(
            model="tiny", messages=messages(png(2)), n=n, extra_body=options, stream=True,
            stream_options={"include_usage": True},
        ))
        texts = [""] * n
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert n > 1 or (texts == [whole.choices[0].message.content] and len(chunks) > 4)
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 7 * n
        ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
        assert ends == ["length"] * n
        assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_are_left_out(client: openai.OpenAI, png: Png, stream: bool) -> None:
    options = {"only_words": ["a", "red", "ball"], "min_new_tokens": 7}
    whole = client.chat.completions.create(model="tiny", messages=messages(png(2)), extra_body=options)
    text = str(whole.choices[0].message.content)
    stop = text[len(text) // 2 :][:3]
    answer: Any = client.chat.completions.create(
        model="tiny", messages=messages(png(2)), stop=[stop], extra_body=options, stream=stream
    )
    if stream:
        cut = "".join(choice.delta.content or "" for chunk in answer for choice in chunk.choices)
    else:
        cut = answer.choices[0].message.content
    assert cut == text.partition(stop)[0]


def test_logprobs_are_those_of_the_tokens(client: openai.OpenAI, server: Any, png: Png) -> None:
    expected = server.captioner.caption(png(1), prefix="a red")
    answer = client.chat.completions.create(
        model="tiny", messages=messages(png(1)), logprobs=True, extra_body={"prefix": "a red"}
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    generated = expected.pieces[expected.prefix_length :]
    assert [bytes(token.bytes or []) for token in logprobs.content] == generated
    assert [token.logprob for token in logprobs.content] == pytest.approx(
        expected.token_logprobs[: len(generated)], abs=1e-4
    )
    assert all(math.isfinite(token.logprob) for token in logprobs.content)


def test_models_are_listed(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="model 'a/b' is not served; known are tiny"):
        client.models.retrieve("a/b")


@pytest.mark.parametrize(("fields", "message"), [
    ({"n": 0}, "n is 0"), ({"n": 40}, "n is 40; this server allows at most 16"), ({"max_tokens": 0}, "max_tokens is 0"),
    ({"temperature": -1}, "temperature is -1"), ({"temperature": "hot"}, "temperature is 'hot'"),
    ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
    ({"top_logprobs": 3}, "top_logprobs is not supported"), ({"seed": "x"}, "seed is 'x'"), ({"stop": [1]}, "stop"),
    ({"messages": "hello"}, "messages is missing or is no list"),
    ({"messages": [{"role": "user", "content": "no picture"}]}, "the request has no picture"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x/y"}}]}]}, "base64"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}] * 2}]}, "the request has 2 pictures"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]},
     "this server downloads no pictures"),
])
def test_wrong_requests_are_refused_in_words(
    server: Any, png: Png, fields: dict[str, Any], message: str
) -> None:
    body = {"model": "tiny", "messages": messages(png(0)), **fields}
    answer = httpx2.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI, png: Png) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'gpt-4o' is not served; known are tiny"):
        client.chat.completions.create(model="gpt-4o", messages=messages(png(0)))
    with pytest.raises(openai.BadRequestError, match="not a picture"):
        client.chat.completions.create(model="tiny", messages=messages(b"abc"))
    with pytest.raises(openai.BadRequestError, match="not a picture"):
        client.chat.completions.create(model="tiny", messages=messages(b"abc"), stream=True)
