"""Load `myllm serve` with many clients, and compare it with the offline batch and with a server of transformers.

    python benchmarks/serve.py --model runs/photos-fast [--pictures FOLDER] [--requests 2000] [--clients 64]
    python benchmarks/serve.py --model runs/photos-fast --soak 20       minutes of load, with the server's memory

Every caption is compared with the offline one. The rows of the first run are those of docs/serve.md. `transformers` is
what a competent user writes: FastAPI, a model of transformers' classes with the same weights, a picture a request.
"""

import argparse
import asyncio
import http.client
import json
import os
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlsplit

from myllm import Captioner
from myllm.apps.serve import allow_files
from myllm.device import count_cores
from myllm.inference.bulk import BulkCaptioner

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k" / "flickr30k_images"
PEER = Path(__file__).parent / "workers" / "transformers_server.py"
LONE, OFFLINE_BATCH = 50, 32
QUEUE, MAX_IDLE = 16, 10_000


@dataclass(frozen=True)
class Item:
    """A picture to caption."""

    picture: Path


@dataclass(frozen=True)
class Plan:
    """Requests from clients that each wait for their answer."""

    requests: int
    clients: int
    rate: float | None = None
    """Requests in a second; None for as many as are answered."""
    left: float = 0.0
    """Share of clients that leave before their answer."""
    junk: float = 0.0
    """Share of requests without a picture."""


@dataclass
class Load:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    lost: int = 0
    junk_answers: list[int] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers in a second."""
        return len(self.seconds) / (self.end - self.begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="captioner to serve")
    parser.add_argument("--pictures", type=Path, default=FLICKR8K)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--soak", type=float, help="minutes of load, with the server's memory each minute")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="measure transformers, too")
    arguments = parser.parse_args()
    if arguments.model is None or not arguments.pictures.is_dir():
        print("skipped: needs --model, a captioner, and --pictures, a folder of pictures")
        return
    paths = sorted(arguments.pictures.iterdir())[: min(arguments.requests, 500)]
    bodies = [form(path.read_bytes()) for path in paths]
    captions, offline, bare = measure_offline(arguments.model, paths)
    if arguments.soak:
        soak(arguments.model, bodies, captions, arguments.clients, arguments.soak)
        return
    with served(arguments.model) as (url, process):
        plan = Plan(arguments.requests, arguments.clients)
        asyncio.run(load(url, bodies, captions, replace(plan, requests=2 * plan.clients)))  # warm up
        lone = asyncio.run(load(url, bodies, captions, Plan(LONE, 1)))
        busy = asyncio.run(load(url, bodies, captions, plan))
        half = asyncio.run(load(url, bodies, captions, replace(plan, rate=busy.rate / 2)))
        before = decode_steps(url)
        mixed = asyncio.run(load(url, bodies, captions, replace(plan, left=0.1, junk=0.05)))
        steps, unwanted = (after - earlier for after, earlier in zip(decode_steps(url), before, strict=True))
        idle = idle_share(process.pid)
    print("| | |\n|---|---|")
    print(f"| offline, `myllm caption`'s loop | {offline:.1f} captions/s |")
    print(f"| {arguments.clients} clients | {busy.rate:.1f} captions/s, {busy.rate / offline:.2f} of offline |")
    above = median(lone.seconds) - bare
    print(f"| lone request above the bare call | {1000 * above:.1f} ms above {1000 * bare:.1f} ms |")
    p50, p99 = (quantiles(half.seconds, n=100)[index] for index in (49, 98))
    print(f"| at half load: p50, p99, p99 / p50 | {1000 * p50:.0f} ms, {1000 * p99:.0f} ms, {p99 / p50:.1f} |")
    print(f"| steps for clients that had left | {unwanted / (steps + unwanted):.2%} |")
    print(f"| with 10 % that leave and 5 % junk | {mixed.rate:.1f} captions/s |")
    runs = lone, busy, half, mixed
    print(f"| wrong captions, lost requests | {sum(run.wrong for run in runs)}, {sum(run.lost for run in runs)} |")
    print(f"| answers to junk | {sorted(set(mixed.junk_answers))} |")
    print(f"| idle | {idle:.2%} of a core |")
    asyncio.run(print_refusals(arguments.model, bodies))
    if arguments.peer:
        with served(arguments.model, peer=True) as (url, _):
            asyncio.run(load(url, bodies, None, Plan(20, 4)))
            peer = asyncio.run(load(url, bodies, None, replace(plan, requests=min(300, plan.requests))))
        print(f"| transformers, a picture a request | {peer.rate:.1f} captions/s; ours {busy.rate / peer.rate:.1f} x |")


def measure_offline(model: str, paths: Sequence[Path]) -> tuple[list[str], float, float]:
    """Return the captions, captions in a second by the loop of `myllm caption`, and the seconds of a bare call."""
    import torch

    captioner = Captioner.load(model)
    content = [path.read_bytes() for path in paths[:LONE]]
    captioner.caption(content[0])
    times = []
    for picture in content:
        begin = time.perf_counter()
        captioner.caption(picture)
        times.append(time.perf_counter() - begin)
    torch.set_num_threads(max(1, count_cores() // 8))
    captioner = Captioner.load(model)  # whose sessions compute with so many threads
    bulk: BulkCaptioner[Item] = BulkCaptioner(captioner, OFFLINE_BATCH, min(8, count_cores()))
    begin = time.perf_counter()
    results = [result for results in bulk.caption(map(Item, paths)) for result in results]
    rate = len(results) / (time.perf_counter() - begin)
    return [result.caption.text if result.caption else "" for result in results], rate, median(times)


def form(picture: bytes) -> bytes:
    """Return the body of a form with a picture."""
    head = b'--boundary\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return head + picture + b"\r\n--boundary--\r\n"


@contextmanager
def served(model: str, *options: str, peer: bool = False) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield the address of a server, and its process."""
    ours = [sys.executable, "-m", "myllm", "serve", "--model", model, "--port=0", "--quiet", *options]
    words = [sys.executable, str(PEER), model] if peer else ours
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1], process
        process.terminate()


async def load(url: str, bodies: Sequence[bytes], captions: Sequence[str] | None, plan: Plan) -> Load:
    """Send the requests. captions: the right answers; None to compare nothing."""
    result, chance, numbers = Load(), random.Random(0), iter(range(plan.requests))
    address = urlsplit(url)

    async def client() -> None:
        connection = await asyncio.open_connection(address.hostname, address.port)
        for number in numbers:
            if plan.rate:
                await asyncio.sleep(max(0.0, result.begin + number / plan.rate - time.perf_counter()))
            kind, index = chance.random(), number % len(bodies)
            is_junk, is_leaving = kind < plan.junk, plan.junk <= kind < plan.junk + plan.left
            begin = time.perf_counter()
            body = form(b"junk" * 50) if is_junk else bodies[index]
            try:
                connection[1].write(request_head(len(body)) + body)
                if is_leaving:
                    await asyncio.sleep(chance.uniform(0, 0.2))
                    raise ConnectionResetError
                status, answer = await read_answer(connection[0])
            except (OSError, asyncio.IncompleteReadError, ValueError):
                result.lost += not is_leaving
                connection[1].close()
                connection = await asyncio.open_connection(address.hostname, address.port)
                continue
            if is_junk:
                result.junk_answers.append(status)
                continue
            caption = json.loads(answer).get("caption")
            result.wrong += status != 200 or (captions is not None and caption != captions[index])
            result.seconds.append(time.perf_counter() - begin)
        connection[1].close()

    result.begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(plan.clients)))
    result.end = time.perf_counter()
    return result


async def print_refusals(model: str, bodies: Sequence[bytes]) -> None:
    """Print how fast a full queue refuses, and how fast a request is answered among many idle connections."""
    allow_files(MAX_IDLE + 500)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    count = MAX_IDLE if limit == resource.RLIM_INFINITY else min(MAX_IDLE, limit - 500)
    with served(model, f"--max_queue={QUEUE}", f"--max_connections={count + 100}") as (url, _):
        address = urlsplit(url)
        holders = [asyncio.create_task(keep_asking(url, bodies[0])) for _ in range(2 * QUEUE)]
        await asyncio.sleep(2)
        refusals = await measure(url, bodies[0], 503, 200)
        for holder in holders:
            holder.cancel()
        print(f"| 503 from a full queue, {len(refusals)} requests: median, worst | {middle_and_worst(refusals)} |")
        idle = [await asyncio.open_connection(address.hostname, address.port) for _ in range(count)]
        lone = await measure(url, bodies[0], 200, LONE)
        answered = f"{len(lone)} of {LONE} lone requests answered"
        print(f"| {count:,} idle connections, {answered}: median, worst | {middle_and_worst(lone)} |")
        for _, writer in idle:
            writer.close()


async def keep_asking(url: str, body: bytes) -> None:
    """Keep a place in the queue, or try for one."""
    while True:
        status, _ = await ask(url, body)
        if status == 503:
            await asyncio.sleep(0.1)


async def measure(url: str, body: bytes, status: int, count: int) -> list[float]:
    """Send so many requests, one after another; return the times of those that are answered with this status."""
    times = []
    for _ in range(count):
        answered, seconds = await ask(url, body)
        if answered == status:
            times.append(seconds)
        await asyncio.sleep(0.01)
    return times


def middle_and_worst(times: Sequence[float]) -> str:
    return f"{1000 * median(times):.1f} ms, {1000 * max(times):.1f} ms" if times else "none"


async def ask(url: str, body: bytes) -> tuple[int, float]:
    """Send a request on a connection of its own; return the status and the seconds until the answer."""
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    begin = time.perf_counter()
    writer.write(request_head(len(body)) + body)
    status, _ = await read_answer(reader)
    seconds = time.perf_counter() - begin
    writer.close()
    return status, seconds


def request_head(length: int) -> bytes:
    return (
        "POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=boundary\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    match = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert match is not None
    return int(head.split()[1]), await reader.readexactly(int(match[1]))


def decode_steps(url: str) -> tuple[float, float]:
    """Return the number of decoding steps for clients that waited, and for clients that had left."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    wanted, unwanted = (
        re.search(rf'^myllm_decode_steps_total{{wanted="{value}"}} (\S+)$', text, re.MULTILINE)
        for value in ("true", "false")
    )
    return (float(wanted[1]) if wanted else 0.0), (float(unwanted[1]) if unwanted else 0.0)


def idle_share(process: int, seconds: float = 10.0) -> float:
    """Return the share of a core that a process uses while nobody asks for anything."""

    def used() -> float:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    time.sleep(2)
    before = used()
    time.sleep(seconds)
    return (used() - before) / seconds


def soak(model: str, bodies: Sequence[bytes], captions: Sequence[str], clients: int, minutes: float) -> None:
    """Print the server's memory each minute under load."""
    with served(model) as (url, process):
        end = time.perf_counter() + 60 * minutes
        while time.perf_counter() < end:
            minute = time.perf_counter() + 60
            wrong = lost = count = 0
            while time.perf_counter() < minute:
                plan = Plan(10 * clients, clients, left=0.1, junk=0.05)
                result = asyncio.run(load(url, bodies, captions, plan))
                wrong, lost, count = wrong + result.wrong, lost + result.lost, count + len(result.seconds)
            pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="utf-8").split()[1])
            megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            print(f"{count:6,} captions, {wrong} wrong, {lost} lost, {megabytes:,.0f} MB")


if __name__ == "__main__":
    main()
