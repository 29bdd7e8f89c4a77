"""Ray Serve, for many machines: `serve run myllm.apps.ray_serve:app model=MODEL`.

Each replica answers the APIs of `myllm serve`, by the same code. Ray Serve divides the requests among the replicas,
forms the batches and bounds the queues.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from ray import serve
from ray.serve.config import BackpressureConfig

from myllm.apps.batching import Batcher, Job, Observer
from myllm.apps.http_errors import RETRY_SECONDS
from myllm.apps.parsing import parse
from myllm.apps.serve import find_key, make_served, open_models
from myllm.apps.serve_options import ServeOptions
from myllm.apps.server import make_app
from myllm.caption import Caption
from myllm.errors import ConfigError
from myllm.option_checks import Range

PROGRAM = "myllm serve"  # whose --help has the options
UNSUPPORTED = ("host", "port", "max_connections", "quiet")


@dataclass(frozen=True, kw_only=True)
class RayServeOptions(ServeOptions):
    """Serve captioners on all machines of a Ray cluster."""

    num_replicas: Annotated[int, Range.POSITIVE] = 1
    """Number of copies of the captioner, each on a processor core; with devices=cuda, each on a GPU."""


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """Return the application for options of `myllm serve` by name. Raises ConfigError."""
    words = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in arguments.items()]
    options = parse(PROGRAM, RayServeOptions, words)
    for name in UNSUPPORTED:
        if name in options.given_names:
            raise ConfigError(f"{name} does not work with Ray Serve; its own options and configuration file replace it")
    deployment = serve.deployment(
        name="captioner", num_replicas=options.num_replicas,
        max_ongoing_requests=2 * options.batch_size,  # a batch that is computed, and the next one
        max_queued_requests=options.max_queue, backpressure_config=BackpressureConfig(retry_after_s=RETRY_SECONDS),
        ray_actor_options={"num_cpus": 1, "num_gpus": int(options.devices.startswith("cuda"))},
    )
    return deployment(Replica).bind(options, find_key(options), os.getcwd())


class RayBatcher(Batcher):
    """A batcher without a queue and threads of its own: Ray Serve has them."""

    def __init__(self, threads: int, max_batch: int, max_places: int, observer: Observer) -> None:
        super().__init__(0, max_batch, sys.maxsize, observer)
        self.close()  # so that `_work` returns when all jobs are done
        self._tasks = set[asyncio.Task[None]]()
        self._run = serve.batch(max_batch_size=max_batch, batch_wait_timeout_s=0)(self._caption_all)

    def submit(self, job: Job) -> Future[Caption]:
        """Return the future of the job's caption."""
        task = asyncio.create_task(self._run(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job.future

    async def _caption_all(self, jobs: list[Job]) -> list[None]:
        """Caption what has come while the last batch was computed."""
        self._jobs = jobs
        await asyncio.to_thread(self._work)
        return [None] * len(jobs)


@serve.ingress()
class Replica:
    """A captioner with its HTTP application, in a process of Ray."""

    def __init__(self, options: RayServeOptions, key: str | None, folder: str) -> None:
        """folder: where relative paths begin, if this machine has it."""
        with suppress(OSError):
            os.chdir(folder)
        self.served = make_served(options, open_models(options, threads=1), key, RayBatcher)

    def __serve_build_asgi_app__(self) -> Any:
        return make_app(self.served)
