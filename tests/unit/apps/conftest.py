"""Servers in this process, on ports of their own."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from myllm.apps.server import Served
    from myllm.checkpoints.native import Checkpoint


@pytest.fixture(scope="session", autouse=True)
def client_defaults() -> Iterator[None]:
    """Let all clients share a TLS context, which takes 70 ms to make, and wait for more than the usual 5 seconds."""
    from httpx2._config import DEFAULT_TIMEOUT_CONFIG
    from httpx2._transports import default

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default, "create_ssl_context", cache(default.create_ssl_context))
        for name in ("connect", "read", "write", "pool"):
            patch.setattr(DEFAULT_TIMEOUT_CONFIG, name, 200.0)
        yield


@pytest.fixture(scope="session")
def png() -> Callable[[int], bytes]:
    """png(number): the file of a drawn scene."""
    from myllm.data.scenes import draw_scene

    def draw(number: int) -> bytes:
        file = io.BytesIO()
        draw_scene(0, "val", number)[0].save(file, "PNG")
        return file.getvalue()

    return draw


class Running:
    """A server that runs: its address, its parts, and the captioner that it serves."""

    def __init__(self, port: int, served: "Served") -> None:
        self.port, self.served = port, served
        self.url = f"http://127.0.0.1:{port}"
        self.captioner: Any = served.service.models[0].captioner


@contextmanager
def running(captioner: Any, names: list[str], **options: Any) -> Iterator[Running]:
    from pathlib import Path

    from myllm.apps.caption_service import ServedModel
    from myllm.apps.serve import HttpServer, listening_socket, make_served
    from myllm.apps.serve_options import ServeOptions

    key = options.pop("api_key", None)
    serve_options = ServeOptions(port=0, quiet=True, **options)
    models = [ServedModel(name, captioner, Path("/nowhere"), 0, "0123") for name in names]
    with listening_socket(serve_options) as listener:
        served = make_served(serve_options, models, key)
        server = HttpServer(served, serve_options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield Running(listener.getsockname()[1], served)
        server.stop()
        thread.join(60)
        served.service.close()


@pytest.fixture(scope="module")
def served_captioner(tiny_checkpoint: "Checkpoint") -> Any:
    """The captioner of the servers: in torch, for the CPU."""
    import torch

    from myllm.inference.captioner import Captioner

    return Captioner(tiny_checkpoint, torch.device("cpu"))


@pytest.fixture(scope="module")
def run_server(served_captioner: Any) -> Iterator[Callable[..., Running]]:
    """run_server(names=["tiny"], captioner=..., **options): a server with options of `myllm serve`."""
    with ExitStack() as stack:

        def run(names: list[str] | None = None, captioner: Any = None, **options: Any) -> Running:
            return stack.enter_context(running(captioner or served_captioner, names or ["tiny"], **options))

        yield run


@pytest.fixture(scope="module")
def server(run_server: Callable[..., Running]) -> Running:
    """A server with the usual options."""
    return run_server()
