"""What several system tests need: scenes, a finished tiny run on them, options for tiny runs, and a browser."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)
BROWSER_MS = 200_000
"""Milliseconds that the browser may take for a step."""
REPOSITORY = Path(__file__).parents[2]
TINY = [
    "--vision.name=vit_mini_conv8_64",
    "--vision.pretrained=false",
    "--text.pretrained=false",
    "--text.n_layer=1",
    "--text.n_head=2",
    "--text.n_embd=32",
    "--text.n_positions=48",
    "--mode=last",
    "--captions.vocab_size=300",
    "--batch_size=8",
    "--captions_per_image=5",
    "--decode.max_new_tokens=12",
    "--lr=0.01",
    "--augment=false",
    "--devices=cpu",
]


SIGNALS_ITSELF = """
import glob, os, sys

number, path, size, process = int(sys.argv.pop(1)), sys.argv.pop(1), int(sys.argv.pop(1)), os.getpid()

def send(event, arguments):
    global process
    if event != "open" or os.getpid() != process:
        return
    if any(os.path.getsize(file) > size for file in glob.glob(path)):
        process = None
        os.kill(os.getpid(), number)

sys.addaudithook(send)
from myllm.apps.cli import main

sys.argv[0] = "myllm"
sys.exit(main())
"""


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of a training that takes a second or two."""
    return list(TINY)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 scenes; read only."""
    from myllm.apps.cli import main

    folder = tmp_path_factory.mktemp("data") / "scenes"
    assert main(["scenes", "--out", str(folder), "--count", "60", "--quiet"]) == 0
    return folder


@pytest.fixture(scope="session")
def train(scenes: Path) -> Callable[..., int]:
    """train(out, *options, data=scenes): the exit code of a tiny `myllm train`; later options override earlier ones."""
    from myllm.apps.cli import main

    def run(out: Path, *options: str, data: Path = scenes) -> int:
        return main(["train", "--data", str(data), "--out", str(out), *TINY, *options])

    return run


@pytest.fixture(scope="session")
def tiny_run(train: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of four epochs, never interrupted; read only."""
    out = tmp_path_factory.mktemp("run") / "captioner"
    assert train(out, "--epochs=4", "--quiet") == 0
    return out


@pytest.fixture(scope="session")
def pictures(scenes: Path) -> list[Path]:
    """Five of the scenes."""
    return sorted((scenes / "flickr30k_images").iterdir())[:5]


@pytest.fixture(scope="session")
def original_script_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The process of the original script, which has ended: run with a tiny configuration, outside the repository."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    script = REPOSITORY / "MyLLM_Vit_gpt2_captioning/MyLLM_Vit_gpt2_captioning.py"
    options = ["--data", str(scenes), "--out", "run", *TINY, "--mode=layerwise", "--epochs=3"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(REPOSITORY / "tests/no_network"), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, str(script), *options],
        cwd=elsewhere, env=environment, capture_output=True, text=True,
    )


@pytest.fixture
def stopped() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """stopped(words, signal, when, cwd, size, then): the finished `myllm WORDS`, which got the signal when `when()`.

    when: or a path, which may be a glob; the process sends itself the signal when it opens the next file after that
    path has more than `size` bytes, so that it cannot end before. then: text of a line on standard error, and what is
    called after it.
    """
    processes = []

    def run(
        words: Sequence[str], number: signal.Signals, when: Callable[[], bool] | Path, cwd: Path | None = None,
        size: int = -1, then: tuple[str, Callable[[], object]] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{REPOSITORY / 'src'}"}
        program = ["-m", "myllm"] if callable(when) else ["-c", SIGNALS_ITSELF, str(int(number)), str(when), str(size)]
        process = subprocess.Popen(
            [sys.executable, *program, *words],
            cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        processes.append(process)
        if callable(when):
            while not when() and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(number)
        if then is not None:
            assert process.stderr is not None and any(then[0] in line for line in process.stderr)
            then[1]()
        output, errors = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    yield run
    for process in processes:
        process.kill()


@pytest.fixture(scope="session")
def jsonl() -> Callable[[Path], list[dict[str, object]]]:
    """jsonl(path): the rows of a file of JSON lines."""
    return lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two machines of a processor each; `cluster.add_node(**cluster.machine)` adds one."""
    from ray.cluster_utils import Cluster

    machine = {"num_cpus": 1, "object_store_memory": 80_000_000}
    with pytest.MonkeyPatch.context() as patch:
        # without tests/no_network: Ray's processes connect to this machine by its outside address
        patch.setenv("PYTHONPATH", f"{REPOSITORY}/src")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "300")  # 5 by default: too little for a busy machine
        patch.setenv("OMP_NUM_THREADS", "1")
        cluster = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
        cluster.machine = machine
        cluster.add_node(**machine)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def browser(program: Callable[[str], str]) -> Iterator[Any]:
    """Headless Chromium that sends no requests of its own to other machines, and may be slow."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path, options = program("chromium"), {"args": list(CHROMIUM), "timeout": BROWSER_MS}
        chromium = playwright.chromium.launch(executable_path=path, **options)
        chromium.on("context", lambda context: context.set_default_timeout(BROWSER_MS))
        yield chromium
        chromium.close()
