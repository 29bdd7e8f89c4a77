"""The options of `myllm serve`."""

import re
from dataclasses import dataclass, field
from typing import Annotated

from myllm.apps.options import Captioning
from myllm.errors import ConfigError
from myllm.option_checks import Range

MAX_PORT = 65_535
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@*A-Z]+")
"""What browsers send as `Origin`, which --cors is compared with: 'null' is that of a local file."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions(Captioning):
    """Serve captioners over HTTP: a web page, our own API, and the APIs of OpenAI and Ollama."""

    model: tuple[str, ...] | str = "captioner"
    """The captioner: captioner.pt, a run folder, a folder of safetensors, an ONNX export, or a hub id (user/name).
    Give --model several times to serve several. Requests choose one by the name of its file or folder, or by NAME if
    it is given as NAME=PATH."""
    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 serves only this machine, 0.0.0.0 serves others, too."""
    port: Annotated[int, Range.AT_LEAST_0] = 8000
    """Port to listen on; 0 takes a free one, which is printed."""
    api_key: str | None = field(default=None, repr=False)
    """Key that clients must send as `Authorization: Bearer KEY`. Other users of this machine can see it in the list of
    processes; the environment variable MYLLM_API_KEY is safer."""
    cors: tuple[str, ...] = ()
    """Sites whose pages may call this server from a browser, like https://photos.example; '*' allows all. By default,
    only the server's own page may."""
    max_queue: Annotated[int, Range.POSITIVE] = 256
    """Maximum number of pictures that wait or are being downloaded or captioned; further requests are answered 503."""
    max_connections: Annotated[int, Range.POSITIVE] = 1000
    """Maximum number of open connections; further ones are answered 503."""
    timeout: Annotated[float, Range.POSITIVE] = 30.0
    """Seconds within which a request must arrive, and within which it is answered."""
    max_bytes: Annotated[int, Range.POSITIVE] = 20 * 2**20
    """Maximum size of a request in bytes."""
    max_pixels: Annotated[int, Range.POSITIVE] = 80_000_000
    """Maximum size of a picture in pixels."""
    max_captions: Annotated[int, Range.BEAMS] = 16
    """Maximum number of beams or samples of a request."""
    max_tokens: Annotated[int | None, Range.POSITIVE] = None
    """Maximum length of a caption in tokens; the captioner's own limit if not given."""
    allow_urls: bool = False
    """Download pictures from addresses in requests, but not from this machine or private networks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.port > MAX_PORT:
            raise ConfigError(f"--port is {self.port}; it must be at most {MAX_PORT}")
        for site in self.cors:
            if not ORIGIN.fullmatch(site):
                form = "a site in small letters without a path, like https://photos.example, or '*'"
                raise ConfigError(f"--cors has {site!r}; expected {form}")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("--api_key is empty; leave it out to serve without a key")
