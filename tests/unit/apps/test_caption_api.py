"""`POST /v1/caption`: answers are those of the captioner itself, and every mistake has its status and reason."""

import base64
import copy
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
import torch

from myllm.option_checks import MAX_SEED

Png = Callable[[int], bytes]


@pytest.fixture
def client(server: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


def post(client: httpx2.Client, picture: bytes, **fields: Any) -> httpx2.Response:
    return client.post("/v1/caption", files={"image": picture}, data=fields)


def post_json(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    return client.post("/v1/caption", json=fields)


def events(response: httpx2.Response) -> list[tuple[str, Any]]:
    blocks = [block.split("\n") for block in response.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


OPTIONS: list[dict[str, Any]] = [
    {}, {"beams": 3}, {"beams": 2, "force_words": ["red", "ball"]}, {"bad_words": ["a", "red"], "max_new_tokens": 5},
    {"prefix": "a small", "early_stopping": "never", "beams": 2}, {"regex": "(a|two) [a-z]+"},
    {"do_sample": True, "temperature": 0.7, "num_return_sequences": 3, "seed": 5}, {"do_sample": True, "seed": 0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_caption_by_form_and_json_equals_the_captioners(
    client: httpx2.Client, server: Any, png: Png, options: dict[str, Any]
) -> None:
    decode = {name: value for name, value in options.items() if name != "seed"}
    generator = torch.Generator().manual_seed(options.get("seed", 0))
    expected = server.captioner.caption(png(1), generator=generator, **decode)
    image = base64.b64encode(png(1)).decode()
    answers = [
        post(client, png(1), **options), post_json(client, image=image, **options),
        post_json(client, image=f"data:image/png;base64,{image}", model="tiny", **options),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        content = answer.json()
        assert content["caption"] == expected.text and content["alternatives"] == expected.alternatives
        assert content["score"] == pytest.approx(expected.score, abs=1e-4)
        assert content["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
        assert content["ended_by"] == expected.ended_by and content["model"] == "tiny"
        assert [word["text"] for word in content["words"]] == [word.text for word in expected.words]
        assert content.get("missing", []) == list(expected.missing)


def test_commas_separate_the_words_of_a_form_but_not_stop_strings(client: httpx2.Client, png: Png) -> None:
    answers = [post(client, png(1), min_new_tokens=7, **fields).json() for fields in (
        {"only_words": ["a", "red", "ball"]}, {"only_words": "a, red,ball"}, {"only_words": ["a,red", "ball"]},
    )]
    assert answers[0]["caption"] and answers[1] == answers[2] == answers[0]
    stopped = post(client, png(1), regex="a, red ball", stop_strings=",").json()
    assert (stopped["caption"], stopped["ended_by"]) == ("a,", "stop")


@pytest.mark.parametrize("text", ["True", "true"])
def test_a_form_may_have_booleans_as_python_writes_them(client: httpx2.Client, png: Png, text: str) -> None:
    answer = post(client, png(1), attention=text, only_words="a, red")
    assert answer.status_code == 200 and answer.json()["attention"]


def test_captions_of_many_clients_at_once_equal_the_captioners(server: Any, png: Png) -> None:
    wanted = [(number % 10, 1 + number % 3) for number in range(60)]
    expected = {pair: server.captioner.caption(png(pair[0]), beams=pair[1]).text for pair in set(wanted)}

    def caption(pair: tuple[int, int]) -> str:
        return str(post(client, png(pair[0]), beams=pair[1]).json()["caption"])

    with httpx2.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(20) as pool:
        assert list(pool.map(caption, wanted)) == [expected[pair] for pair in wanted]


@pytest.mark.parametrize("beams", [1, 3])
def test_streamed_pieces_are_the_caption(client: httpx2.Client, server: Any, png: Png, beams: int) -> None:
    options = {"only_words": ["a", "red", "ball", "cube"], "beams": beams, "min_new_tokens": 7}
    answer = post(client, png(2), stream=True, **options)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *texts, (last, content) = events(answer)
    assert [name for name, _ in texts] == ["text"] * len(texts) and last == "caption"
    assert len(texts) == 1 if beams > 1 else len(texts) > 1
    assert "".join(text["text"] for _, text in texts) == content["caption"]
    assert content == post(client, png(2), **options).json()
    assert content["caption"] == server.captioner.caption(png(2), **options).text


@pytest.mark.parametrize("stream", [False, True])
def test_attention_has_a_map_for_each_word(client: httpx2.Client, server: Any, png: Png, stream: bool) -> None:
    options = {"only_words": ["a", "red", "ball"], "attention": True, "stream": stream}
    answer = post(client, png(3), **options)
    content = events(answer)[-1][1] if stream else answer.json()
    caption = server.captioner.caption(png(3), only_words=("a", "red", "ball"))
    maps = server.captioner.attention_maps(png(3), caption, longest=32).numpy()
    shape = content["attention"]["height"], content["attention"]["width"]
    assert shape == maps.shape[1:]
    expected = np.stack([maps[word.tokens].mean(0) for word in caption.words]) * maps[0].size
    cells = [np.frombuffer(base64.b64decode(word["map"]), np.uint8).reshape(shape) for word in content["words"]]
    peak = content["attention"]["peak"]
    assert peak == pytest.approx(expected.max(), rel=1e-3) and np.max(cells) == 255
    np.testing.assert_allclose(np.stack(cells) * peak / 255, expected, atol=peak / 255)


@pytest.mark.parametrize(("fields", "message"), [
    ({"beam": 2}, "unknown option 'beam'; did you mean beams"),
    ({"decode.beams": 2}, "unknown option 'decode.beams'; did you mean beams"),
    ({"beams": 0}, "beams is 0; it must be above 0"),
    ({"beams": "many"}, "beams is 'many'; expected a whole number"),
    ({"beams": [1, 2]}, "beams is given 2 times"),
    ({"beams": 17}, "beams is 17; this server allows at most 16"),
    ({"do_sample": True, "num_return_sequences": 17}, "num_return_sequences is 17; this server allows at most 16"),
    ({"temperature": "nan", "do_sample": True}, "temperature is 'nan'; expected a number"),
    ({"temperature": "NaN", "do_sample": True}, "temperature is nan; it must be between 0.001 and 1000"),
    ({"temperature": "1e999", "do_sample": True}, "temperature is inf; it must be"),
    ({"temperature": 0.5}, "change nothing without do_sample true"),
    ({"max_new_tokens": 1000}, "max_new_tokens 1000 is more than the model's context of 24 tokens"),
    ({"prefix": "a red ball " * 50}, "fills the model's context of 24 tokens"),
    ({"prefix": "x" * 20_000}, "more than 10,000 characters"),
    ({"regex": "(a"}, "regex"),
    ({"stop_strings": list("abcdefghijklmnopq")}, "stop_strings has 17 phrases; this server allows at most 16"),
    ({"force_words": ["a"] * 300, "beams": 2}, "force_words has 300 phrases; this server allows at most 16"),
    ({"regex": ".*" * 501}, "regex has 1,002 characters; this server allows at most 1,000"),
    ({"seed": -1}, f"seed is -1; expected a whole number from 0 to {MAX_SEED}"),
    ({"seed": "x"}, "seed is 'x'; expected"),
    ({"attention": "perhaps"}, "attention is 'perhaps'; expected true or false"),
])
def test_wrong_options_are_refused_in_words(
    client: httpx2.Client, png: Png, fields: dict[str, Any], message: str
) -> None:
    for stream in ({}, {"stream": True}):
        answer = post(client, png(0), **fields, **stream)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "bad_option") and message in error["message"]
        assert error["type"] == "invalid_request_error"


def test_rules_that_allow_no_token_are_an_error_also_after_the_first_piece(client: httpx2.Client, png: Png) -> None:
    options = {"regex": "a red", "min_new_tokens": 7}
    answer = post(client, png(0), **options)
    assert answer.status_code == 400 and "no token is allowed at position" in answer.json()["error"]["message"]
    streamed = events(post(client, png(0), stream=True, **options))
    assert [name for name, _ in streamed] == ["text"] * (len(streamed) - 1) + ["error"] and len(streamed) > 1
    assert streamed[-1][1] == answer.json()


@pytest.mark.parametrize(("content", "code", "message"), [
    (b"", "bad_request", "there is no picture"), (b"no picture", "bad_picture", "not a picture"),
    (b"\x89PNG\r\n\x1a\n" + bytes(50), "bad_picture", "image:"),
])
def test_bad_pictures_are_refused_in_words(client: httpx2.Client, content: bytes, code: str, message: str) -> None:
    answer = post(client, content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert message in answer.json()["error"]["message"]


def test_truncated_picture_is_refused(client: httpx2.Client, png: Png) -> None:
    answer = post(client, png(0)[:-200])
    assert answer.status_code == 400 and "damaged picture" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("fields", "message"), [
    ({}, "there is no picture"), ({"image": None}, "there is no picture"), ({"image": 5}, "a picture is int"),
    ({"image": "?"}, "not valid base64"), ({"image": ""}, "a picture is empty"),
    ({"image": "data:image/png,abc"}, "data URI is not in base64"),
])
def test_json_without_a_picture_is_refused(client: httpx2.Client, fields: dict[str, Any], message: str) -> None:
    answer = post_json(client, **fields)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


@pytest.mark.parametrize(("body", "kind", "status", "message"), [
    (b"{", "application/json", 400, "the body is not JSON"), (b"[]", "application/json", 400, "a JSON list"),
    (b'{"image": NaN}', "application/json", 400, "NaN is not a number in JSON"),
    (b"[" * 100_000, "application/json", 400, "the body is not JSON"),
    (b"\xff\xfe", "application/json", 400, "the body is not JSON"),
    (b"image=abc", "application/x-www-form-urlencoded", 415, "expected multipart/form-data or application/json"),
    (b"abc", "image/png", 415, "Content-Type is 'image/png'"), (b"abc", "", 415, "Content-Type is ''"),
    (b"abc", "multipart/form-data", 400, "Missing boundary"),
    (b"abc", "multipart/form-data; boundary=x", 400, "the form cannot be read"),
    (b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nhalf',
     "multipart/form-data; boundary=x", 400, "there is no picture"),
])
def test_bodies_of_a_wrong_form_are_refused(
    client: httpx2.Client, body: bytes, kind: str, status: int, message: str
) -> None:
    answer = client.post("/v1/caption", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status and message in answer.json()["error"]["message"]


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape", "punycode", "idna", "undefined", "hex", "utf-16"])
def test_texts_of_a_form_are_utf_8_whatever_charset_it_names(
    client: httpx2.Client, png: Png, charset: str
) -> None:
    prefix = "a +2AA- \\ud800 \xe9"
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="prefix"\r\n\r\n' + prefix.encode(),
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + png(0), b"--x--\r\n",
    ]
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    answer = client.post("/v1/caption", content=b"\r\n".join(parts), headers={"Content-Type": kind})
    assert answer.status_code == 200 and answer.json()["caption"].startswith(prefix), answer.text


def test_a_picture_in_a_text_field_is_refused_with_the_fix(client: httpx2.Client, png: Png) -> None:
    files = {"image": (None, base64.b64encode(png(0)))}
    answer = client.post("/v1/caption", files=files)
    assert answer.status_code == 400 and "`image` is a text field; send it as a file" in answer.text


def test_unknown_models_are_not_found_whatever_they_are_called(client: httpx2.Client, png: Png) -> None:
    for name in ("big", "../../etc/passwd", "tiny/../tiny", "x" * 10_000, "\x00"):
        answer = post(client, png(0), model=name)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_model")
        assert "known are tiny" in answer.json()["error"]["message"] and len(answer.text) < 400


def test_models_are_chosen_by_name(run_server: Callable[..., Any], png: Png) -> None:
    server = run_server(names=["one", "two"])
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        names = [post(client, png(0), **fields).json()["model"] for fields in ({}, {"model": "two"}, {"model": "one"})]
        assert names == ["one", "two", "one"]
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["one", "two"]


def test_limits_of_pixels_captions_and_tokens_are_kept(
    run_server: Callable[..., Any], served_captioner: Any, png: Png
) -> None:
    server = run_server(captioner=copy.copy(served_captioner), max_pixels=4_000, max_captions=2, max_tokens=5)
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        answer = post(client, png(0))
        assert answer.status_code == 400
        assert "its 4,096 pixels are above this server's limit of 4,000" in answer.json()["error"]["message"]
        for options in ({"beams": 3}, {"max_new_tokens": 6}):
            assert "this server allows at most" in post(client, png(0), **options).json()["error"]["message"]
        facts = client.get("/v1/models").json()
        assert facts["limits"] == {"bytes": 20 * 2**20, "pixels": 4_000, "captions": 2}
        assert facts["data"][0]["max_new_tokens"] == 5
