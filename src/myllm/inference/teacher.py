"""A server with a vision-language model that captions pictures: requests in threads, retries, usage."""

import json
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from myllm.data.images import server_picture
from myllm.errors import ConfigError, DataError, MyLLMError, reason
from myllm.inference.teacher_apis import Api, Ollama, OpenAI, Question, clean_caption, error_message, retry_after

T = TypeVar("T")
MAX_ANSWER_BYTES = 2**24
MAX_BACKOFF, MAX_RETRY_AFTER = 60.0, 3600.0
MAX_CONNECT_SECONDS = 15.0
MIN_REPORTED_WAIT = 10.0
TEMPORARY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
# what to do about answers that every further request would get, too; a gateway refuses single pictures by 403 and 404
FIXES = {
    401: "check the key: it is read from the variable OPENAI_API_KEY, or from the one that --key-variable names",
    402: "the account has no credit; top it up, or give another --teacher",
    403: "check that the key permits --model: it is read from OPENAI_API_KEY, or from what --key-variable names",
    404: "check --model and the address of --teacher, such as http://localhost:8000/v1 for the API of OpenAI, or "
         "http://localhost:11434/api/generate for Ollama",
}


@dataclass
class Usage:
    """What was sent and received so far; tokens are those that the server reports."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class Unanswered(Exception):
    """A picture got no caption; the message is the reason."""


class Stopped(Exception):
    """The run is to stop, so nothing is asked again."""


class _Refused(Unanswered):
    """The server refused a request for its content, so that asking again is of no use."""


class _RefusedAtFirst(MyLLMError):
    """A 403 or 404 before the first caption: the key or the model is wrong, or only this picture is refused."""

    refusal = ""
    """What the server answered, without advice."""


class _FailedTry(Exception):
    """A try that may be repeated; the message is the reason."""

    wait: float | None = None
    """Seconds that the server asks to wait."""


class _Unreachable(_FailedTry):
    """No connection could be made."""


class Teacher:
    """A server with a vision-language model. Threads may share it.

    The key is sent to the host of `url` only: redirects are not followed, and messages never contain it.
    """

    def __init__(
        self, url: str, key: str = "", ollama_key: str = "", timeout: float = 120.0, tries: int = 5,
        first_wait: float = 1.0
    ) -> None:
        """Send nothing yet; call `connect` before anything else.

        key, ollama_key: for the API of OpenAI, for the API of Ollama.
        timeout: seconds that an answer may take. tries: requests for a caption until its picture is given up.
        first_wait: seconds before the second try; each further wait is twice as long. Raises ConfigError.
        """
        if not re.fullmatch(r"[!-~]*", key):
            raise ConfigError("the key for --teacher has blanks or characters that no key has; set its variable again")
        self._keys, self._key = {OpenAI: key, Ollama: ollama_key}, ollama_key
        self.timeout, self.tries, self.first_wait = timeout, tries, first_wait
        self.stop = threading.Event()
        """Set it to begin no further request."""
        self.on_wait: Callable[[float], object] = lambda seconds: None
        """Called in any thread with the seconds of a long wait that the server asks for."""
        self.has_answered = False
        """Whether key and model were accepted, so that 403 and 404 refuse only their picture."""
        self.usage = Usage()
        self._lock = threading.Lock()
        self._not_before, self._was_reached = 0.0, False
        limits, seconds = httpx2.Limits(), httpx2.Timeout(timeout, connect=min(timeout, MAX_CONNECT_SECONDS))
        self._client = httpx2.Client(timeout=seconds, limits=limits, follow_redirects=False)  # limits: no maximum
        self._url = _address(url)
        self._api: Api
        self._takes_n: bool | None = None
        """Whether the server gives several captions at once; None: not known yet."""

    def connect(self) -> "Teacher":
        """Find out which API the server has: nothing is sent if the address shows it. Raises MyLLMError."""
        self._api = self._find_api(self._url)
        self._key = self._keys[type(self._api)]
        self._takes_n = None if self._api.may_take_n else False
        return self

    def _find_api(self, url: httpx2.URL) -> OpenAI | Ollama:
        path = url.path.rstrip("/")
        if path.endswith(("/api", "/api/generate")):
            return Ollama(url)
        if path:
            return OpenAI(url)
        ollama = Ollama(url.copy_with(path="/api"))
        try:
            with self._in_form_of_its_api():
                ollama.models(self._send("GET", ollama.models_url))
        except _Unreachable as error:
            raise MyLLMError(f"--teacher {error}; start the server, or correct the address") from error
        except (_FailedTry, MyLLMError, Unanswered):
            return OpenAI(url.copy_with(path="/v1"))
        return ollama

    @property
    def name(self) -> str:
        """Address that captions are asked from, for messages."""
        return _without_query(self._api.url)

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of pictures, by Pillow's names, that can be sent as they are."""
        return self._api.formats

    def only_model(self) -> str:
        """Return the model of a server that has only one. Raises MyLLMError and Stopped."""
        url = self._api.models_url

        def list_models() -> list[str]:
            with self._in_form_of_its_api():
                return self._api.models(self._send("GET", url))

        try:
            models = self._with_tries(list_models)
        except Unanswered as error:
            raise MyLLMError(f"{_without_query(url)} lists no models ({error}); name one by --model") from error
        if len(models) != 1:
            listed = f"serves {', '.join(models[:20])}" if models else "serves no model"
            raise MyLLMError(f"--teacher {self.name} {listed}; name one by --model")
        return models[0]

    def captions(self, picture: tuple[str, bytes], question: Question) -> list[str]:
        """Return the distinct captions of a picture (media type, bytes), in the order of the answers.

        A server that gives fewer than `question.n` at once is asked several times. If some of these requests fail, the
        captions of the others are returned. Raises Unanswered if all do, MyLLMError if each further one would fail, and
        Stopped.
        """
        texts, answered, n_was_refused = list[str](), 0, False
        while answered < question.n:
            n = question.n - answered if self._takes_n is not False and not n_was_refused else 1
            try:
                choices = self._with_tries(lambda n=n: self._ask(picture, question, n))  # type: ignore[misc]
            except Unanswered as error:
                if isinstance(error, _Refused) and n > 1 and self._takes_n is None:
                    n_was_refused = True  # or the picture is
                    continue
                if not texts:
                    raise
                break
            if n > 1:
                self._takes_n = len(choices) > 1
            elif n_was_refused and self._takes_n is None:
                self._takes_n = False
            texts += filter(None, choices[:n])
            answered += len(choices)
        return list(dict.fromkeys(texts))

    def _ask(self, picture: tuple[str, bytes], question: Question, n: int) -> list[str]:
        """Send one request and return its captions, of which at least one is not empty."""
        with self._lock:
            self.usage.requests += 1
        answer = self._send("POST", self._api.url, self._api.body(question, picture, n))
        with self._in_form_of_its_api():
            used = [count if isinstance(count, int) else 0 for count in self._api.tokens(answer)]
            with self._lock:
                self.usage.tokens_in += used[0]
                self.usage.tokens_out += used[1]
            choices = self._api.choices(answer)
            texts = ["" if choice.problem else clean_caption(choice.content) for choice in choices]
        self.has_answered = True
        if not any(texts):
            for choice in choices:
                if choice.problem:  # it would be the same, and cost as much, the next time
                    raise Unanswered(f"{self.name}: {choice.problem}")
            raise _FailedTry(f"{self.name} answered without a text")
        return texts

    @contextmanager
    def _in_form_of_its_api(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise _FailedTry(f"the server answered in another form than its API's (no {reason(error)})") from error

    def _with_tries(self, send: Callable[[], T]) -> T:
        """Return what `send` returns, after at most `tries` calls. Raises Unanswered, Stopped and MyLLMError."""
        number = 1
        while True:
            self._wait(self._not_before - time.monotonic())
            try:
                return send()
            except _FailedTry as error:
                failed = error
            if failed.wait is not None:
                self._let_all_wait(min(failed.wait, MAX_RETRY_AFTER))
            if number == self.tries:
                break
            # also with Retry-After, which may be 0, or stay the same however busy the server is
            self._wait(min(MAX_BACKOFF, self.first_wait * 2 ** (number - 1)) * random.uniform(0.5, 1.0))
            number += 1
        message = f"{failed} ({self.tries} tries)" if self.tries > 1 else str(failed)
        if isinstance(failed, _Unreachable) and not self._was_reached:
            raise MyLLMError(f"--teacher {message}; start the server, or correct the address")
        raise Unanswered(message)

    def _let_all_wait(self, seconds: float) -> None:
        """Let every thread begin no request for some seconds."""
        now = time.monotonic()
        with self._lock:
            extension = now + seconds - max(now, self._not_before)
            self._not_before = max(self._not_before, now + seconds)
        if extension >= MIN_REPORTED_WAIT:  # once, not for each thread
            self.on_wait(seconds)

    def _wait(self, seconds: float) -> None:
        if seconds > 0 and self.stop.wait(seconds):
            raise Stopped

    def _send(self, method: str, url: httpx2.URL, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON that the server answers. Raises _FailedTry, _Refused, and MyLLMError."""
        address = _without_query(url)
        try:
            response, text = self._exchange(method, url, body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _Unreachable(f"{address} cannot be reached ({reason(error)})") from error
        except httpx2.TimeoutException as error:
            raise _FailedTry(f"{address} did not answer within {self.timeout:g} seconds") from error
        except httpx2.HTTPError as error:
            raise _FailedTry(f"{address} cut the connection ({reason(error)})") from error
        self._was_reached = True
        status = response.status_code
        if status >= 300:
            self._raise_for_status(address, response, text)
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            raise _FailedTry(f"{address} answered with something else than JSON: {error_message(text)}") from None
        if isinstance(answer, dict) and answer.get("error"):  # gateways send errors with status 200, too
            raise _FailedTry(f"{address} answered with an error: {error_message(text)}")
        return answer

    def _raise_for_status(self, address: str, response: httpx2.Response, text: str) -> None:
        status = response.status_code
        if status < 400:
            location = self._without_key(response.headers.get("Location", "another address"))
            raise MyLLMError(
                f"{address} answered {status}, a redirect to {location}; redirects are not followed, because pictures "
                "and key go to the named host only: if you trust that address, give it as --teacher"
            )
        phrase = f" {HTTPStatus(status).phrase}" if status in list(HTTPStatus) else ""
        message = f"{address} answered {status}{phrase}: {error_message(text)}"
        if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            if self.has_answered:
                raise _Refused(message)
            error = _RefusedAtFirst(f"{message}. {FIXES[status]}")
            error.refusal = message
            raise error
        if status in FIXES:
            unsent = "no key was sent; " if status == HTTPStatus.UNAUTHORIZED and not self._key else ""
            raise MyLLMError(f"{message}. {unsent}{FIXES[status]}")
        if status not in TEMPORARY and status < 500:
            raise _Refused(message)
        failed = _FailedTry(message)
        failed.wait = retry_after(response.headers.get("Retry-After"))
        raise failed

    def _exchange(self, method: str, url: httpx2.URL, body: Mapping[str, Any] | None) -> tuple[httpx2.Response, str]:
        """Return a response and its text without the key. The time limit holds for all of it, not for each part."""
        deadline, content = time.monotonic() + self.timeout, bytearray()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        with self._client.stream(method, url, json=body, headers=headers) as response:
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the answer is too slow")
                if len(content) > MAX_ANSWER_BYTES:
                    raise _FailedTry(f"{_without_query(url)} sent more than {MAX_ANSWER_BYTES:,} bytes")
        return response, self._without_key(content.decode(errors="replace"))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


Result = list[str] | Unanswered | DataError
"""Captions of a picture, or why there are none."""


def ask_all(
    teacher: Teacher, question: Question, pictures: Sequence[tuple[str, Path]], max_side: int, threads: int
) -> Iterator[tuple[str, Result]]:
    """Yield the name and the captions of each picture (name, path), in the order of the answers.

    No more than `threads` pictures are asked about and not yet yielded and dealt with, so that a kill loses no more.
    If `teacher.stop` is set, or an error ends the run, no further picture is asked about, and the answers in hand are
    yielded; then the error is raised: MyLLMError.
    """
    waiting, in_hand = iter(pictures), 0
    to_ask = queue.SimpleQueue[tuple[str, Path] | None]()
    results = queue.SimpleQueue[tuple[str, list[str] | BaseException]]()

    def work() -> None:
        while picture := to_ask.get():
            name, path = picture
            try:
                results.put((name, teacher.captions(server_picture(path, max_side, teacher.formats), question)))
            except BaseException as error:  # yielded or raised below
                results.put((name, error))

    for _ in range(min(threads, len(pictures))):
        threading.Thread(target=work, daemon=True).start()
    error: BaseException | None = None
    try:
        while True:
            if isinstance(error, _RefusedAtFirst) and teacher.has_answered:
                error = None  # only that picture was refused
            while in_hand < threads and not error and not teacher.stop.is_set() and (picture := next(waiting, None)):
                to_ask.put(picture)
                in_hand += 1
            if not in_hand:
                break
            name, result = results.get()
            in_hand -= 1
            if isinstance(result, _RefusedAtFirst):
                error = error or result
                yield name, Unanswered(result.refusal)
            elif isinstance(result, (list, Unanswered, DataError)):
                yield name, result
            elif not isinstance(result, Stopped):
                error = result
                teacher.stop.set()
    finally:
        for _ in range(threads):
            to_ask.put(None)
    if error:
        raise error


def _address(url: str) -> httpx2.URL:
    """Return the address of a server. Raises ConfigError."""
    try:
        address = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        address = httpx2.URL("")
    if address.scheme not in ("http", "https") or not address.host:
        raise ConfigError(f"--teacher is {url!r}; expected an address like http://localhost:8000/v1")
    if address.userinfo:
        raise ConfigError("--teacher has a name or password in its address; give the key in a variable, --key-variable")
    return address


def _without_query(url: httpx2.URL) -> str:
    return str(url.copy_with(query=None))
