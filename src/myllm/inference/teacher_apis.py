"""The APIs of OpenAI and Ollama: making requests for captions, and reading the answers."""

import base64
import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from httpx2 import URL

# reasoning comes before the answer; its beginning may be missing, and its end if it was cut
REASONING = re.compile(r"^.*</think(?:ing)?>|<think(?:ing)?>.*$", re.DOTALL | re.IGNORECASE)
QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"), ("„", "“"), ("「", "」"), ("`", "`"))


@dataclass(frozen=True)
class Question:
    """What a teacher is asked about each picture."""

    model: str
    prompt: str
    n: int = 1
    """Number of captions to ask for."""
    temperature: float | None = None
    """Sampling temperature; None leaves it to the server."""


@dataclass(frozen=True)
class Choice:
    """A text in an answer."""

    content: Any
    finish_reason: Any = None
    """Why the text ends."""
    refusal: Any = None
    """What the model says if it refuses to answer."""

    @property
    def problem(self) -> str:
        """Why the text is not a caption, although the server did its work; '' if it may be one."""
        if self.finish_reason == "length":
            return (
                "the caption was cut at the server's limit of tokens; raise that limit, or ask for a shorter caption "
                "by --prompt"
            )
        if self.refusal or self.finish_reason == "content_filter":
            return f"the model refused: {_quoted(str(self.refusal or 'content_filter'))}"
        return ""


class Api(ABC):
    """An API of servers. Its methods that read an answer raise KeyError and the like for one of another form."""

    suffix: str
    """What the address of requests ends with."""
    models_suffix: str
    """What the address of the list of models ends with."""
    formats: tuple[str, ...]
    """Pillow's names of the formats of pictures that every server reads."""
    may_take_n: bool
    """Whether a request can ask for several captions; not every server gives them."""

    def __init__(self, url: URL) -> None:
        """url: address of requests, or what stands before `suffix`."""
        base = url.path.rstrip("/").removesuffix(self.suffix)
        self.url, self.models_url = (url.copy_with(path=base + end) for end in (self.suffix, self.models_suffix))

    @abstractmethod
    def body(self, question: Question, picture: tuple[str, bytes], n: int) -> dict[str, Any]:
        """Return the JSON that asks for n captions of a picture (media type, bytes)."""

    @abstractmethod
    def choices(self, answer: Any) -> list[Choice]:
        """Return the texts of an answer."""

    @abstractmethod
    def tokens(self, answer: Any) -> tuple[Any, Any]:
        """Return the numbers of tokens that the server read and wrote, if the answer has them."""

    @abstractmethod
    def models(self, answer: Any) -> list[str]:
        """Return the names in a list of models."""


class OpenAI(Api):
    """Chat completions."""

    suffix, models_suffix, may_take_n = "/chat/completions", "/models", True
    formats = ("JPEG", "PNG", "WEBP", "GIF")

    def body(self, question: Question, picture: tuple[str, bytes], n: int) -> dict[str, Any]:
        kind, content = picture
        data = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        parts = [{"type": "text", "text": question.prompt}, {"type": "image_url", "image_url": {"url": data}}]
        options = {"n": n if n > 1 else None, "temperature": question.temperature}
        set_options = {name: value for name, value in options.items() if value is not None}
        return {"model": question.model, "messages": [{"role": "user", "content": parts}], **set_options}

    def choices(self, answer: Any) -> list[Choice]:
        choices = [(choice["message"], choice.get("finish_reason")) for choice in answer["choices"]]
        return [Choice(message.get("content"), end, message.get("refusal")) for message, end in choices]

    def tokens(self, answer: Any) -> tuple[Any, Any]:
        usage = answer.get("usage") or {}
        return usage.get("prompt_tokens"), usage.get("completion_tokens")

    def models(self, answer: Any) -> list[str]:
        return [str(model["id"]) for model in answer["data"]]


class Ollama(Api):
    """Ollama's own API."""

    suffix, models_suffix, may_take_n = "/generate", "/tags", False
    formats = ("JPEG", "PNG")  # versions of 2025 refuse WebP

    def body(self, question: Question, picture: tuple[str, bytes], n: int) -> dict[str, Any]:
        image = base64.b64encode(picture[1]).decode()
        options = {} if question.temperature is None else {"options": {"temperature": question.temperature}}
        return {"model": question.model, "prompt": question.prompt, "images": [image], "stream": False, **options}

    def choices(self, answer: Any) -> list[Choice]:
        return [Choice(answer["response"], answer.get("done_reason"))]

    def tokens(self, answer: Any) -> tuple[Any, Any]:
        return answer.get("prompt_eval_count"), answer.get("eval_count")

    def models(self, answer: Any) -> list[str]:
        return [str(model["name"]) for model in answer["models"]]


def clean_caption(content: Any) -> str:
    """Return the text of a message, whole or in parts, on one line, without reasoning before it and quotes around it.

    Without text, '' is returned.
    """
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    text = " ".join(REASONING.sub("", "".join(text for text in texts if isinstance(text, str))).split())
    inner = text[1:-1].strip()
    is_quoted = any(
        len(text) > 1 and (text[0], text[-1]) == quotes and not {*quotes} & {*inner} for quotes in QUOTES
    )
    return inner if is_quoted else text


def has_several_sentences(caption: str) -> bool:
    """Return whether a caption has more than one sentence."""
    return re.search(r"[.!?]['\"”’)]*\s+\W*[A-Z]", caption) is not None


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a header Retry-After, which holds seconds or a date; None if it holds neither."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def error_message(text: str) -> str:
    """Return the text of a server's error, quoted: its message, or the beginning of its text without HTML's tags."""
    try:
        content = json.loads(text)
        content = content.get("error", content.get("detail", content.get("message", content)))
        text = str(content.get("message", content) if isinstance(content, dict) else content)
    except (ValueError, RecursionError, AttributeError):
        text = re.sub(r"<[^>]*>", " ", text)
    return _quoted(text)


def _quoted(text: str) -> str:
    return repr(" ".join(text.split())[:300])
