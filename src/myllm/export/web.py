"""Export to a folder of static files that captions pictures in a browser: page, model and ONNX Runtime.

Any web server can serve it, and no picture leaves the browser. The page's own files are in `myllm/page`.
"""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from myllm.checkpoints.native import Checkpoint, without_index
from myllm.config import DecodeConfig
from myllm.errors import ConfigError, MyLLMError
from myllm.export import onnx_export
from myllm.export.onnx_export import Precision
from myllm.files import atomic_folder, cache_folder
from myllm.page.files import page_files
from myllm.progress import Progress

PACKAGE = "onnxruntime-web@1.30.0"
DOWNLOAD_MB = 33  # the whole package, although the two files below take only 14
TIMEOUT_SECONDS = 600
# The files of the package that the page needs, and their sha256
RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
# Decoding options that `page/browser/search.js` knows; `prefix` is part of the export
PAGE_OPTIONS = {
    "beams", "early_stopping", "length_penalty", "max_new_tokens", "min_new_tokens", "no_repeat_ngram_size",
    "num_return_sequences", "prefix", "repetition_penalty",
}


def to_folder(checkpoint: Checkpoint, folder: Path, precision: Precision, progress: Progress) -> None:
    """Write the page, the model as `onnx_export.to_folder` writes it (model/), and ONNX Runtime Web (runtime/).

    Raises what `onnx_export.to_folder` and `fetch_runtime` raise.
    """
    runtime = fetch_runtime()
    with atomic_folder(folder) as out:
        # the page ranks captions by score
        onnx_export.to_folder(without_index(checkpoint), out / "model", precision, progress)
        for name, path in page_files("browser").items():
            shutil.copyfile(path, out / name)
        shutil.copytree(runtime, out / "runtime")


def ignored_options(decode: DecodeConfig) -> list[str]:
    """Return the decoding options that are set but that the page does not know, each with its value."""
    return [f"{name} {value!r}" for name, value in decode.changed().items() if name not in PAGE_OPTIONS]


def runtime_folder() -> Path:
    """Return the cache folder of the runtime, which may not exist yet."""
    return cache_folder() / "npm" / PACKAGE


def fetch_runtime() -> Path:
    """Return a folder with the runtime's files; the first time, npm downloads them.

    Raises ConfigError if npm is missing or fails, and MyLLMError if a file does not have the expected hash.
    """
    folder = runtime_folder()
    if folder.is_dir():
        _check_hashes(folder)
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(
            f"npm not found; it is needed once, to download {PACKAGE} ({DOWNLOAD_MB} MB). Install Node.js, or copy "
            f"{' and '.join(RUNTIME_FILES)} of that package to {folder}"
        )
    with TemporaryDirectory(prefix="myllm-npm-") as name:
        command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", name]
        try:
            subprocess.run(command, cwd=name, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True)
        except subprocess.SubprocessError as error:  # it failed, or took too long
            output = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
            cause = (output or str(error)).splitlines()[0]
            raise ConfigError(f"npm pack {PACKAGE} failed ({cause}); it needs the npm registry, once") from error
        [archive] = Path(name).glob("*.tgz")
        with atomic_folder(folder) as part, tarfile.open(archive) as package:
            for file in RUNTIME_FILES:
                content = package.extractfile(f"package/dist/{file}")
                assert content is not None
                (part / file).write_bytes(content.read())
            _check_hashes(part)
    return folder


def _check_hashes(folder: Path) -> None:
    for name, expected in RUNTIME_FILES.items():
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise MyLLMError(
                f"{file} is missing or differs from {PACKAGE}; remove {folder}, and the next export downloads it again"
            )
