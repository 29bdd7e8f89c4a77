import io
import runpy
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from myllm.errors import ConfigError, DataError, MyLLMError
from myllm.inference import teacher as module
from myllm.inference.teacher import Stopped, Teacher, Unanswered, ask_all
from myllm.inference.teacher_apis import Question

SERVER = runpy.run_path(str(Path(__file__).parents[2] / "fixtures/teacher_server.py"))
Reply, openai, caption_of, right = (SERVER[name] for name in ("Reply", "openai", "caption_of", "right"))
KEY = "sk-secret-1234567890"
ONE, THREE = Question("tiny-vlm", "What is this?"), Question("tiny-vlm", "What is this?", n=3)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "PNG")
    return file.getvalue()


PICTURE = ("image/png", png())
Connect = Callable[..., Teacher]


@pytest.fixture
def connect(teacher_server: Any) -> Connect:
    """connect(url of the server by default, **arguments): a teacher that waits for milliseconds between tries."""

    def make(url: str = "", **arguments: Any) -> Teacher:
        return Teacher(url or teacher_server.url, first_wait=0.01, **arguments).connect()

    return make


def test_teacher_sends_prompt_and_picture_in_openais_form(teacher_server: Any, connect: Connect) -> None:
    assert connect(key=KEY).captions(PICTURE, ONE) == [caption_of(PICTURE[1])]
    [request] = teacher_server.log
    assert request.path == "/v1/chat/completions" and request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.body["model"] == "tiny-vlm" and set(request.body) == {"model", "messages"}
    assert request.body["messages"][0]["content"][0] == {"type": "text", "text": "What is this?"}
    assert (request.media_type, request.image) == PICTURE


def test_teacher_sends_ollamas_form_once_for_each_caption(teacher_server: Any, connect: Connect) -> None:
    texts = connect(f"{teacher_server.root}/api/generate").captions(PICTURE, THREE)
    assert texts == [f"{caption_of(PICTURE[1])} {number}" for number in (1, 2, 3)]
    body = teacher_server.log[0].body
    assert body["prompt"] == "What is this?" and body["stream"] is False and teacher_server.log[0].image == PICTURE[1]
    assert [request.path for request in teacher_server.log] == ["/api/generate"] * 3


def test_teacher_sends_the_temperature_to_both_apis(teacher_server: Any, connect: Connect) -> None:
    question = Question("tiny-vlm", "?", temperature=0.7)
    connect().captions(PICTURE, question)
    connect(f"{teacher_server.root}/api").captions(PICTURE, question)
    assert [request.body.get("temperature") for request in teacher_server.log] == [0.7, None]
    assert teacher_server.log[1].body["options"] == {"temperature": 0.7}


@pytest.mark.parametrize(
    ("ending", "has_ollama", "path"),
    [
        ("", False, "/v1/chat/completions"), ("/", True, "/api/generate"), ("/v1/", True, "/v1/chat/completions"),
        ("/v1/chat/completions", True, "/v1/chat/completions"), ("/api", False, "/api/generate"),
        ("/openrouter/api/v1", False, "/openrouter/api/v1/chat/completions"),
    ],
)
def test_teacher_finds_the_api_by_the_address_or_by_asking(
    teacher_server: Any, connect: Connect, ending: str, has_ollama: bool, path: str
) -> None:
    teacher_server.has_ollama = has_ollama
    connect(teacher_server.root + ending).captions(PICTURE, ONE)
    assert [request.path for request in teacher_server.log] == [path]


def test_teacher_takes_the_only_model_and_names_several(teacher_server: Any, connect: Connect) -> None:
    assert connect().only_model() == connect(teacher_server.root).only_model() == "tiny-vlm"
    teacher_server.models = ["llava", "qwen"]
    with pytest.raises(MyLLMError, match="serves llava, qwen; name one by --model"):
        connect().only_model()


def test_teacher_asks_once_for_n_captions_of_a_server_that_gives_them(teacher_server: Any, connect: Connect) -> None:
    teacher, caption = connect(), caption_of(PICTURE[1])
    assert teacher.captions(PICTURE, THREE) == [caption, f"{caption} 1", f"{caption} 2"]
    assert [request.body["n"] for request in teacher_server.log] == [3]


def test_teacher_asks_several_times_if_the_server_ignores_n(teacher_server: Any, connect: Connect) -> None:
    teacher_server.reply = lambda request: openai(f"caption {request.number}")
    teacher = connect()
    assert teacher.captions(PICTURE, THREE) == ["caption 1", "caption 2", "caption 3"]
    assert teacher.captions(PICTURE, THREE) == ["caption 4", "caption 5", "caption 6"]
    assert [request.body.get("n") for request in teacher_server.log] == [3, None, None, None, None, None]


def test_teacher_asks_several_times_if_the_server_refuses_n(teacher_server: Any, connect: Connect) -> None:
    refusal = Reply({"error": {"message": "n must be 1"}}, 400)
    teacher_server.reply = lambda request: refusal if "n" in request.body else openai(f"caption {request.number}")
    assert connect().captions(PICTURE, THREE) == ["caption 2", "caption 3", "caption 4"]


def test_teacher_still_asks_for_n_at_once_after_a_picture_that_is_refused(
    teacher_server: Any, connect: Connect
) -> None:
    bad, teacher = ("image/png", b"bad"), connect()
    refusal = Reply({"error": {"message": "invalid picture"}}, 400)
    teacher_server.reply = lambda request: refusal if request.image == b"bad" else right(request)
    with pytest.raises(Unanswered, match="invalid picture"):
        teacher.captions(bad, THREE)
    for _ in range(2):
        assert len(teacher.captions(PICTURE, THREE)) == 3
    assert [request.body.get("n") for request in teacher_server.log] == [3, None, 3, 3]


def choice(content: str | None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """Return a choice of OpenAI's API."""
    return {"message": {"content": content, **message}, "finish_reason": finish_reason}


@pytest.mark.parametrize(
    ("failed", "words"),
    [
        (choice("A dog runs over the", "length"), "cut at the server's limit of tokens; raise .* --prompt"),
        (choice("<think>It may be", "length"), "cut at the server's limit"),
        (choice(None, refusal="I can't\nhelp."), r'the model refused: "I can\'t help."'),
        (choice("", "content_filter"), "the model refused: 'content_filter'"),
        (choice("A dog", "content_filter"), "the model refused: 'content_filter'"),
    ],
)
def test_teacher_keeps_no_cut_or_refused_caption_and_does_not_pay_for_it_again(
    teacher_server: Any, connect: Connect, failed: dict[str, Any], words: str
) -> None:
    teacher_server.reply_in_order(Reply({"choices": [failed]}), Reply({"choices": [failed, choice("A dog.")]}))
    teacher = connect()
    with pytest.raises(Unanswered, match=words):
        teacher.captions(PICTURE, THREE)
    assert len(teacher_server.log) == 1
    assert teacher.captions(PICTURE, Question("tiny-vlm", "?", n=2)) == ["A dog."]


def test_teacher_keeps_no_cut_caption_of_ollama(teacher_server: Any, connect: Connect) -> None:
    teacher_server.reply = lambda request: Reply({"response": "A dog runs over the", "done_reason": "length"})
    with pytest.raises(Unanswered, match="cut at the server's limit"):
        connect(f"{teacher_server.root}/api").captions(PICTURE, ONE)


@pytest.mark.parametrize("content", [{"error": {"message": "no GPU is free"}}, {"error": "no GPU is free"}])
def test_teacher_reports_an_error_that_is_sent_with_status_200(
    teacher_server: Any, connect: Connect, content: Any
) -> None:
    teacher_server.reply = lambda request: Reply(content)
    with pytest.raises(Unanswered, match=r"completions answered with an error: 'no GPU is free' \(2 tries\)"):
        connect(tries=2).captions(PICTURE, ONE)


def test_teacher_returns_distinct_captions_only(teacher_server: Any, connect: Connect) -> None:
    teacher_server.reply = lambda request: openai("a dog", " a dog\n", "a cat")
    assert connect().captions(PICTURE, THREE) == ["a dog", "a cat"]


@pytest.mark.parametrize(
    "failure",
    [
        Reply({"error": "overloaded"}, 500), Reply({"error": "slow down"}, 429), Reply({}, 503), Reply({}, 408),
        Reply(b"<html>hello</html>"), Reply({"choices": []}), Reply({"wrong": 1}), Reply([1]), Reply(b"null"),
        Reply({"choices": [{"message": None}]}), openai(""), openai(None), openai(' "" \n'),
        openai("cut in the middle"),
    ],
    ids=lambda reply: str(reply.content)[:30] + str(reply.status),
)
def test_teacher_asks_again_after_a_failure(teacher_server: Any, connect: Connect, failure: Any) -> None:
    failure.cut = "cut" in str(failure.content)
    teacher_server.reply_in_order(failure, failure)
    assert connect().captions(PICTURE, ONE) == [caption_of(PICTURE[1])]
    assert len(teacher_server.log) == 3


def test_teacher_gives_up_after_its_tries_and_says_why(teacher_server: Any, connect: Connect) -> None:
    teacher_server.reply = lambda request: Reply(b"<html><h1>Bad\ngateway</h1></html>", 502)
    with pytest.raises(Unanswered, match=r"completions answered 502 Bad Gateway: 'Bad gateway' \(4 tries\)"):
        connect(tries=4).captions(PICTURE, ONE)
    assert len(teacher_server.log) == 4


def test_teacher_keeps_captions_of_a_picture_whose_later_requests_fail(teacher_server: Any, connect: Connect) -> None:
    failure = Reply({}, 500)
    teacher_server.reply = lambda request: openai(f"caption {request.number}") if request.number < 3 else failure
    assert connect(tries=2).captions(PICTURE, THREE) == ["caption 1", "caption 2"]


def test_teacher_does_not_repeat_a_request_that_is_refused(teacher_server: Any, connect: Connect) -> None:
    teacher_server.reply = lambda request: Reply({"error": {"message": "picture too large"}}, 413)
    with pytest.raises(Unanswered, match="answered 413 .*: 'picture too large'"):
        connect().captions(PICTURE, ONE)
    assert len(teacher_server.log) == 1


def test_teacher_pauses_before_the_next_try_even_if_retry_after_is_0(teacher_server: Any, connect: Connect) -> None:
    teacher_server.reply = lambda request: Reply({}, 429, {"Retry-After": "0"})
    teacher = connect()
    teacher.stop.set()  # ends every pause
    with pytest.raises(Stopped):
        teacher.captions(PICTURE, ONE)
    assert teacher.usage.requests == 1


@pytest.mark.parametrize("seconds", [True, False])
def test_teacher_waits_as_long_as_retry_after_says(teacher_server: Any, connect: Connect, seconds: bool) -> None:
    start = time.monotonic()
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    teacher_server.reply_in_order(Reply({}, 429, {"Retry-After": "0.5" if seconds else date}))
    assert connect().captions(PICTURE, ONE) == [caption_of(PICTURE[1])]
    assert time.monotonic() - start >= 0.5


def test_teacher_waits_in_every_thread_if_one_is_asked_to(teacher_server: Any, connect: Connect) -> None:
    teacher_server.reply_in_order(Reply({}, 429, {"Retry-After": "600"}))
    teacher = connect()
    teacher.stop.set()  # so that a wait ends at once, by Stopped
    stopped = list[Stopped]()

    def ask() -> None:
        with pytest.raises(Stopped) as error:
            teacher.captions(PICTURE, ONE)
        stopped.append(error.value)

    for _ in range(2):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert len(stopped) == 2 and len(teacher_server.log) == 1


@pytest.mark.parametrize(("seconds", "reports"), [("600", [600.0]), ("99999", [3600.0]), ("0.1", [])])
def test_teacher_reports_a_long_wait_once_for_all_threads(
    teacher_server: Any, connect: Connect, seconds: str, reports: list[float]
) -> None:
    both, reported = threading.Barrier(2, timeout=200), list[float]()

    def reply(request: Any) -> Any:
        if request.number > 2:
            return right(request)
        both.wait()
        return Reply({}, 429, {"Retry-After": seconds})

    teacher_server.reply, teacher = reply, connect()
    teacher.on_wait = reported.append
    teacher.stop.set()  # so that a wait ends at once

    def ask() -> None:
        with suppress(Stopped):
            teacher.captions(PICTURE, ONE)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reported == reports


def test_teacher_stops_waiting_when_it_is_told_to(teacher_server: Any, connect: Connect) -> None:
    teacher_server.reply = lambda request: Reply({}, 429, {"Retry-After": "999999999"})
    teacher = connect()
    threading.Timer(0.2, teacher.stop.set).start()
    with pytest.raises(Stopped):
        teacher.captions(PICTURE, ONE)
    assert len(teacher_server.log) == 1


def test_teacher_does_not_wait_for_a_server_that_stalls(teacher_server: Any, connect: Connect) -> None:
    teacher_server.reply_in_order(Reply({}, seconds=30), Reply({}, seconds=30))
    with pytest.raises(Unanswered, match=r"did not answer within 0.2 seconds \(2 tries\)"):
        connect(timeout=0.2, tries=2).captions(PICTURE, ONE)


def test_teacher_limits_the_time_of_an_answer_that_comes_byte_by_byte(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        def drip() -> None:
            client, _ = server.accept()
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(100):
                try:
                    client.sendall(b" ")
                except OSError:
                    break
                time.sleep(0.05)

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(Unanswered, match=r"did not answer within 0.3 seconds"):
            connect(f"http://127.0.0.1:{server.getsockname()[1]}/v1", timeout=0.3, tries=1).captions(PICTURE, ONE)
        thread.join()


def test_teacher_limits_the_size_of_an_answer(
    teacher_server: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 1000)
    teacher_server.reply = lambda request: openai("word " * 300)
    with pytest.raises(Unanswered, match="sent more than 1,000 bytes"):
        connect(tries=1).captions(PICTURE, ONE)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "Unauthorized: 'no'. no key was sent; check the key"), (402, "top it up"), (403, "key permits --model"),
     (404, "Not Found: 'no'. check --model and the address")],
)
def test_teacher_ends_the_run_for_what_every_request_would_get(
    teacher_server: Any, connect: Connect, status: int, words: str
) -> None:
    teacher_server.reply = lambda request: Reply({"error": {"message": "no"}}, status)
    with pytest.raises(MyLLMError) as error:
        connect().captions(PICTURE, ONE)
    assert str(error.value).startswith(f"{teacher_server.url}/chat/completions answered {status} ")
    assert words in str(error.value) and len(teacher_server.log) == 1


def test_teacher_ends_the_run_if_no_server_is_there(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    for path in ("", "/v1"):
        with pytest.raises(MyLLMError, match="cannot be reached .*start the server, or correct the address"):
            connect(url + path, tries=2).captions(PICTURE, ONE)


def test_teacher_sends_nothing_to_where_a_redirect_leads(teacher_server: Any, connect: Connect) -> None:
    other = SERVER["TeacherServer"]()
    location = f"http://localhost:{other.server_port}/v1/chat/completions"
    teacher_server.reply = lambda request: Reply({}, 307, {"Location": location})
    with pytest.raises(MyLLMError, match=f"a redirect to {location}; .* give it as --teacher"):
        connect(key=KEY).captions(PICTURE, ONE)
    other.close()
    assert other.log == []


@pytest.mark.parametrize("status", [200, 302, 400, 401, 500])
def test_teacher_never_repeats_the_key_that_a_server_repeats(
    teacher_server: Any, connect: Connect, status: int
) -> None:
    content = {"error": {"message": f"Bearer {KEY}"}} if status > 200 else f"<p>{KEY}</p>".encode()
    teacher_server.reply = lambda request: Reply(content, status, {"Location": f"http://x/{KEY}"})
    with pytest.raises((MyLLMError, Unanswered)) as error:
        connect(key=KEY, tries=1).captions(PICTURE, ONE)
    assert KEY not in str(error.value) and ("***" in str(error.value))


def test_teacher_gives_ollama_no_key_that_is_for_openai(teacher_server: Any, connect: Connect) -> None:
    teacher_server.has_ollama = True
    connect(teacher_server.root, key=KEY).captions(PICTURE, ONE)
    connect(teacher_server.root, key=KEY, ollama_key="for ollama".replace(" ", "-")).captions(PICTURE, ONE)
    assert [request.headers.get("Authorization") for request in teacher_server.log] == [None, "Bearer for-ollama"]


def test_teacher_refuses_a_key_with_line_ends_without_printing_it() -> None:
    with pytest.raises(ConfigError) as error:
        Teacher("http://localhost/v1", key=f"{KEY}\nX: y")
    assert "no key has" in str(error.value) and KEY not in str(error.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "nonsense", "http://[::1", ""])
def test_teacher_refuses_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="expected an address like http://localhost:8000/v1"):
        Teacher(url)


def test_teacher_refuses_an_address_with_a_password_and_does_not_print_it() -> None:
    with pytest.raises(ConfigError, match="--key-variable") as error:
        Teacher(f"http://me:{KEY}@localhost/v1")
    assert KEY not in str(error.value)


def test_teacher_counts_requests_and_the_tokens_that_the_server_reports(teacher_server: Any, connect: Connect) -> None:
    teacher_server.reply_in_order(Reply({}, 500), Reply({"choices": [{"message": {"content": "a"}}], "usage": None}))
    teacher = connect()
    for _ in range(2):
        teacher.captions(PICTURE, ONE)
    assert vars(teacher.usage) == {"requests": 3, "tokens_in": 100, "tokens_out": 10}


@pytest.fixture
def pictures(tmp_path: Path) -> list[tuple[str, Path]]:
    """Twelve small pictures with their names, the third of them broken."""
    for number in range(12):
        Image.new("RGB", (4, 3), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "02.png").write_bytes(b"no picture")
    return [(path.name, path) for path in sorted(tmp_path.iterdir())]


def test_ask_all_yields_captions_of_each_picture_and_why_there_are_none(
    teacher_server: Any, connect: Connect, pictures: list[tuple[str, Path]]
) -> None:
    results = dict(ask_all(connect(), ONE, pictures, max_side=100, threads=4))
    assert isinstance(results.pop("02.png"), DataError) and len(teacher_server.log) == 11
    assert results == {name: [caption_of(path.read_bytes())] for name, path in pictures if name != "02.png"}


def test_ask_all_gives_ollama_no_format_that_it_may_not_read(
    teacher_server: Any, connect: Connect, tmp_path: Path
) -> None:
    path = tmp_path / "a.webp"
    Image.new("RGB", (4, 3)).save(path)
    for url in (teacher_server.url, f"{teacher_server.root}/api"):
        assert len(list(ask_all(connect(url), ONE, [("a", path)], max_side=100, threads=1))) == 1
    formats = [Image.open(io.BytesIO(request.image)).format for request in teacher_server.log]
    assert formats == ["WEBP", "JPEG"]


def test_ask_all_sends_several_requests_at_once_and_no_more(
    teacher_server: Any, connect: Connect, pictures: list[tuple[str, Path]]
) -> None:
    present, most, barrier = set[int](), list[int](), threading.Barrier(4, timeout=200)

    def reply(request: Any) -> Any:
        present.add(request.number)
        most.append(len(present))
        if request.number <= 4:
            barrier.wait()  # passes only if four requests are there at once
        present.discard(request.number)
        return right(request)

    teacher_server.reply = reply
    assert len(list(ask_all(connect(), ONE, pictures, max_side=100, threads=4))) == 12
    assert max(most) == 4


def test_ask_all_ends_with_the_answers_in_hand_and_then_raises(
    teacher_server: Any, connect: Connect, pictures: list[tuple[str, Path]]
) -> None:
    barrier, teacher = threading.Barrier(2, timeout=200), connect()

    def reply(request: Any) -> Any:
        barrier.wait()
        if request.number == 1:
            return Reply({"error": "wrong key"}, 401)
        assert teacher.stop.wait(200)  # is answered after the run has ended
        return right(request)

    teacher_server.reply = reply
    results = list[str]()
    with pytest.raises(MyLLMError, match="wrong key"):
        for name, _ in ask_all(teacher, ONE, pictures[3:], max_side=100, threads=2):
            results.append(name)
    assert len(results) == 1 and len(teacher_server.log) == 2


def test_ask_all_asks_about_the_next_picture_when_an_answer_was_dealt_with(
    teacher_server: Any, connect: Connect, pictures: list[tuple[str, Path]]
) -> None:
    for done, _ in enumerate(ask_all(connect(), ONE, pictures[3:], max_side=100, threads=3)):
        time.sleep(0.05)
        assert len(teacher_server.log) <= done + 3


@pytest.mark.parametrize("status", [403, 404])
@pytest.mark.parametrize("refused", [0, 1, 4])
def test_ask_all_continues_after_a_picture_that_is_refused(
    teacher_server: Any, connect: Connect, pictures: list[tuple[str, Path]], status: int, refused: int
) -> None:
    name, path = pictures[3:][refused]
    both = threading.Barrier(2, timeout=200)

    def reply(request: Any) -> Any:
        if request.number <= 2:
            both.wait()
        if request.image != path.read_bytes():
            return right(request)
        return Reply({"error": "moderated"}, status)

    teacher_server.reply = reply
    results = dict(ask_all(connect(), ONE, pictures[3:], max_side=100, threads=2))
    failure = results.pop(name)
    assert isinstance(failure, Unanswered) and str(failure).endswith(": 'moderated'")
    assert len(results) == 8 and all(isinstance(result, list) for result in results.values())


def test_ask_all_yields_the_picture_that_was_refused_first_before_the_run_ends(
    teacher_server: Any, connect: Connect, pictures: list[tuple[str, Path]]
) -> None:
    teacher_server.reply = lambda request: Reply({"error": "moderated"}, 403)
    results = ask_all(connect(), ONE, pictures, max_side=100, threads=1)
    name, failure = next(results)
    assert name == "00.png" and str(failure).endswith("403 Forbidden: 'moderated'")
    with pytest.raises(MyLLMError, match="'moderated'. check that the key permits --model"):
        next(results)
    assert len(teacher_server.log) == 1
