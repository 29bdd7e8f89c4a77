"""`myllm serve`: captioners over HTTP, until Ctrl-C or SIGTERM."""

import asyncio
import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn
from PIL import Image

from myllm.apps.batching import Batcher
from myllm.apps.caption_service import CaptionService, Limits, ServedModel
from myllm.apps.connections import BoundedConnection
from myllm.apps.console import Display
from myllm.apps.opening import open_captioner
from myllm.apps.remote_pictures import RemotePictures
from myllm.apps.request_bodies import BodyReader
from myllm.apps.serve_options import ServeOptions
from myllm.apps.server import Served, make_app
from myllm.apps.server_log import log_as_json
from myllm.apps.server_metrics import Metrics
from myllm.device import count_cores
from myllm.errors import ConfigError
from myllm.signals import caught_signals

KEY_VARIABLE = "MYLLM_API_KEY"
MAX_THREADS = 8  # Python's own part of the work keeps about so many busy
MAX_TOTAL_BYTES = 2**30  # of all requests that are in memory
MAX_DOWNLOAD_SECONDS = 10.0
SWITCH_SECONDS = 0.0005
GRACE_SECONDS = 0.2
BACKLOG, OTHER_FILES = 512, 256
"""Connections that are accepted at once, before they are counted; files of everything else."""
PRIVATE_HOSTS = ("127.0.0.1", "localhost", "::1")


def serve(options: ServeOptions) -> int:
    """Serve until a signal comes; then answer what has been received, and end."""
    display = Display(options.quiet, json=True)
    key = find_key(options)
    with listening_socket(options) as listener:
        models = open_models(options, threads=max(1, count_cores() // MAX_THREADS))
        served = make_served(options, models, key)
        server = HttpServer(served, options)
        if key is None and options.host not in PRIVATE_HOSTS:
            display.warn(f"all who reach {options.host} may use this server; set {KEY_VARIABLE} to require a key")
        log_as_json(logging.WARNING if options.quiet else logging.INFO)
        sys.setswitchinterval(SWITCH_SECONDS)  # so that requests are answered while Python computes
        allow_files(options.max_connections + BACKLOG + OTHER_FILES)
        with caught_signals(server.stop):
            server.run(sockets=[listener])
        served.service.close()
    return 0


def find_key(options: ServeOptions) -> str | None:
    """Return the key that clients must send; None if they need none."""
    return (options.api_key or os.environ.get(KEY_VARIABLE, "")).strip() or None


def open_models(options: ServeOptions, threads: int) -> list[ServedModel]:
    """Open the captioners; `threads` compute a batch. Raises ConfigError for two of one name, and CheckpointError."""
    models = dict[str, ServedModel]()
    for text in [options.model] if isinstance(options.model, str) else options.model:
        name, path = named_path(text)
        if name in models:
            raise ConfigError(f"--model {text}: a model of the name {name!r} is given already; write NAME={path}")
        captioner = open_captioner(path, options.devices, options.precision, threads=threads)
        captioner.decode = captioner.decode_options(**options.decode_changes)
        # makes what is made at first use, for one picture and for several, and finds damaged weights
        picture = captioner.preprocess(Image.new("RGB", (64, 64)))
        for count in (1, 2):
            captioner.caption_tensors([picture] * count, captioner.decode)
        models[name] = ServedModel(name, captioner, Path(path), int(time.time()), captioner.weights_hash())
    return list(models.values())


def allow_files(count: int) -> None:
    """Let this process have so many open files, if the system permits it."""
    try:
        import resource
    except ImportError:  # on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = max(soft, count if hard == resource.RLIM_INFINITY else min(count, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit_defaults(model: ServedModel, options: ServeOptions) -> None:
    """Bring a model's decoding defaults within the limits of requests. Raises ConfigError."""
    decode = model.captioner.decode
    if max(decode.beams, decode.num_return_sequences or 1) > options.max_captions:
        raise ConfigError(f"--max_captions {options.max_captions} is less than the beams or captions of {model.name!r}")
    if options.max_tokens is not None and decode.max_new_tokens > options.max_tokens:
        model.captioner.decode = replace(decode, max_new_tokens=options.max_tokens)


def named_path(text: str) -> tuple[str, str]:
    """Return name and path of a captioner: those of NAME=PATH, or the path with the name of its file or folder."""
    name, equals, path = text.partition("=")
    if equals and name and not Path(text).exists():
        return name, path
    location = Path(text)
    if location.exists():
        location = location.resolve()
    return location.parent.name if location.name == "captioner.pt" else location.name, text


def make_served(
    options: ServeOptions, models: Sequence[ServedModel], key: str | None, batcher_class: type[Batcher] = Batcher
) -> Served:
    """Return the parts of the application, with the threads that compute running."""
    for model in models:
        limit_defaults(model, options)
    threads = min(count_cores(), MAX_THREADS)
    metrics = Metrics()
    # a GPU computes one batch at a time; a second thread would only take pictures away from the next batch
    has_gpu = any(str(getattr(model.captioner, "device", "cpu")) != "cpu" for model in models)
    batcher = batcher_class(1 if has_gpu else threads, options.batch_size, options.max_queue, metrics)
    metrics.watch(batcher)
    limits = Limits(options.max_pixels, options.max_captions, options.max_tokens, options.timeout)
    bodies = BodyReader(options.max_bytes, options.timeout, MAX_TOTAL_BYTES, lambda: batcher.is_full)
    remote = RemotePictures(options.allow_urls, options.max_bytes, min(options.timeout, MAX_DOWNLOAD_SECONDS))
    return Served(CaptionService(models, batcher, limits, threads), bodies, remote, metrics, key, options.cors)


class HttpServer(uvicorn.Server):
    """Prints its address when it listens, and loses nothing that has arrived when it is stopped."""

    def __init__(self, served: Served, options: ServeOptions) -> None:
        self.served = served
        BoundedConnection.max_connections = options.max_connections
        super().__init__(uvicorn.Config(
            make_app(served), http=BoundedConnection, ws="none", lifespan="off", log_config=None, access_log=False,
            backlog=BACKLOG, timeout_keep_alive=int(BoundedConnection.idle_seconds),
            timeout_graceful_shutdown=int(2 * options.timeout) + 1, server_header=False,
        ))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`."""
        yield

    def stop(self) -> None:
        """Answer what has been received, then end."""
        self.should_exit = self.served.is_stopping = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        names = ", ".join(model.name for model in self.served.service.models)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            print(f"Serving {names} on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await asyncio.sleep(GRACE_SECONDS)  # requests that have arrived are read; without it, uvicorn drops them
        await super().shutdown(sockets)


def listening_socket(options: ServeOptions) -> socket.socket:
    """Return a socket that is bound to the address, so that one in use is noticed before models are loaded."""
    listener = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as error:
        listener.close()
        is_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        hint = "give another --port, or 0 for a free one" if is_port else "give an address of this machine as --host"
        place = f"--host {options.host} --port {options.port}"
        raise ConfigError(f"{place}: {error.strerror or error}; {hint}") from error
    return listener
