"""`pip install .` and the Dockerfile: what the wheel and the packages that it requires can do in an empty environment.

The environment is filled from the packages installed here, and from no others than the wheel's requirements and theirs.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import httpx2
import pytest
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).parents[2]
MAX_MEGABYTES = 250
Run = Callable[..., subprocess.CompletedProcess[str]]


def required(requirements: list[str]) -> Iterator[Distribution]:
    """The installed distributions of requirements without extras, and those that they require in turn."""
    names = [Requirement(line) for line in requirements]
    seen = set[str]()
    while names:
        requirement = names.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if name not in seen and is_needed:
            seen.add(name)
            yield (found := distribution(requirement.name))
            names += [Requirement(line) for line in found.requires or []]


def files_of(package: Distribution) -> list[Path]:
    """The package's files in site-packages, without bytecode and without programs in bin/."""
    return [Path(file) for file in package.files or () if file.suffix != ".pyc" and ".." not in file.parts]


def build_wheel(source: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


def install(wheel: Path, requirements: list[str], folder: Path) -> Path:
    """Return Python of a new environment that holds the wheel and what it requires."""
    venv.create(folder, with_pip=False)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    for package in required(requirements):
        for file in files_of(package):
            link = packages / file
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(Path(str(package.locate_file(file))))
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(packages)], check=True)
    return folder / "bin/python"


def project() -> dict[str, Any]:
    """The project table of this checkout's pyproject.toml, even if another version is installed."""
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


@pytest.fixture(scope="module")
def requirements() -> list[str]:
    return list(project()["dependencies"])


@pytest.fixture(scope="module")
def small_python(requirements: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that holds the wheel and what it requires."""
    wheel = build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))
    return install(wheel, requirements, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def myllm(small_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """myllm(*words): the finished `python -m myllm WORDS` in the small environment, in a folder of its own."""
    folder = tmp_path_factory.mktemp("work")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(small_python), "-I", "-m", "myllm", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder)

    return run


@pytest.fixture
def export(tiny_captioner_file: Path, tmp_path: Path) -> Path:
    from myllm.apps.cli import main

    assert main(["export", str(tiny_captioner_file), "--to", "onnx", "--out", str(tmp_path / "onnx"), "--quiet"]) == 0
    return tmp_path / "onnx"


def test_small_install_is_under_250_megabytes(requirements: list[str]) -> None:
    files = [Path(str(one.locate_file(file))) for one in required(requirements) for file in files_of(one)]
    assert sum(file.stat().st_size for file in files if file.exists()) / 1e6 < MAX_MEGABYTES


def test_small_install_has_no_torch(small_python: Path) -> None:
    imported = subprocess.run([str(small_python), "-I", "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in imported.stderr


def test_small_install_scores_captions(myllm: Run, tmp_path: Path) -> None:
    predictions, references = tmp_path / "predictions.jsonl", tmp_path / "results.csv"
    rows = [("a.jpg", "a dog runs on grass"), ("b.jpg", "two children play football")]
    predictions.write_text("".join(json.dumps({"image": image, "caption": text}) + "\n" for image, text in rows))
    lines = [f"{image}| {number}| {text}" for image, text in rows for number in range(2)]
    references.write_text("\n".join(["image_name| comment_number| comment", *lines]) + "\n")
    scored = myllm("score", "--predictions", str(predictions), "--references", str(references), "--json")
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["BLEU-4"] == pytest.approx(1.0)


@pytest.mark.slow
def test_small_install_captions_with_an_onnx_export(myllm: Run, export: Path, tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    Image.new("RGB", (80, 60), "red").save(picture)
    captioned = myllm("caption", str(picture), "--model", str(export), "--json")
    assert captioned.returncode == 0, captioned.stderr
    assert isinstance(json.loads(captioned.stdout)["caption"], str)


def test_small_install_labels_pictures(myllm: Run, teacher_server: Any, tmp_path: Path) -> None:
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    labelled = myllm("label", str(tmp_path), "--teacher", teacher_server.url, "--out", str(tmp_path / "out.jsonl"))
    assert labelled.returncode == 0, labelled.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text())["image"] == "red.png"


@pytest.mark.slow
def test_small_install_evaluates_and_compares_an_onnx_export(myllm: Run, export: Path, scenes: Path) -> None:
    evaluated = myllm("evaluate", "--model", str(export), "--data", str(scenes), "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    compared = myllm("compare", str(export), str(export), "--data", str(scenes), "--json")
    assert compared.returncode == 0, compared.stderr
    assert json.loads(compared.stdout)["a"]["CIDEr-D"] == json.loads(evaluated.stdout)["CIDEr-D"]


@pytest.mark.slow
def test_small_install_names_matplotlib_before_it_captions_for_a_report(
    myllm: Run, export: Path, scenes: Path, tmp_path: Path
) -> None:
    words = ("--data", str(scenes), "--out", str(tmp_path / "out"))
    for verb in (("evaluate", "--model", str(export)), ("compare", str(export), str(export))):
        refused = myllm(*verb, *words)
        assert refused.returncode == 1 and "captioning" not in refused.stdout
        assert "this needs matplotlib" in refused.stderr and "matplotlib`" in refused.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["train", "demo", "export"])
def test_small_install_names_the_missing_packages(myllm: Run, verb: str, small_python: Path, tmp_path: Path) -> None:
    words = {"train": ["--data", "nowhere"], "demo": ["--out", str(tmp_path)], "export": ["nowhere", "--out", "there"]}
    refused = myllm(verb, *words[verb])
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1 and "torch" in refused.stderr
    assert f"{small_python} -m pip install" in refused.stderr


def block_of(language: str) -> str:
    """Return the only block of this language in docs/serve.md."""
    text = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(block)


@pytest.mark.slow
def test_dockerfile_steps_make_an_image_that_serves_an_export(export: Path, tmp_path: Path) -> None:
    image, python, server = tmp_path / "image", None, None
    for step, _, rest in (line.partition(" ") for line in block_of("dockerfile").splitlines()):
        match step:
            case "COPY":
                *sources, target = rest.split()
                for source in sources:
                    copied = image / target.removeprefix("/") / ("" if not target.endswith("/") else source)
                    path = export if source == "exported" else ROOT / source
                    copied.parent.mkdir(parents=True, exist_ok=True)
                    (shutil.copytree if path.is_dir() else shutil.copy)(path, copied)
            case "RUN":
                *words, option, constraints, package = shlex.split(rest)
                assert words == ["pip", "install", "--no-cache-dir"] and option == "-c"
                assert (image / constraints.removeprefix("/")).is_file()
                folder, extra = re.fullmatch(r"/(\w+)\[(\w+)\]", package).groups()  # type: ignore[union-attr]
                needed = [*project()["dependencies"], *project()["optional-dependencies"][extra]]
                python = install(build_wheel(image / folder, tmp_path / "wheel"), needed, tmp_path / "python")
            case "CMD":
                program, *words = [word.replace("/srv", f"{image}/srv") for word in json.loads(rest)]
                assert program == "myllm"
                server = [str(python), "-I", "-m", "myllm", *words, "--port=0"]
            case other:
                assert other in ("FROM", "USER", "EXPOSE")
    assert server is not None
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}  # as the user nobody has it
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True, env=environment, cwd=image) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1].replace("0.0.0.0", "127.0.0.1")
        Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
        answer = httpx2.post(f"{url}/v1/caption", files={"image": (tmp_path / "red.png").read_bytes()}, timeout=60)
        assert httpx2.get(f"{url}/healthz", timeout=60).status_code == 200
        process.terminate()
    assert answer.status_code == 200 and isinstance(answer.json()["caption"], str)
    assert process.returncode == 0


def test_systemd_unit_is_accepted_by_systemd(tmp_path: Path) -> None:
    from myllm.apps.cli import parse_verb

    unit = block_of("ini")
    [command] = re.findall(r"^ExecStart=/opt/myllm/bin/myllm serve (.*)$", unit, re.MULTILINE)
    parse_verb("serve", shlex.split(command))
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / "myllm.service").write_text(unit.replace("/opt/myllm/bin/myllm", f"{sys.executable} -m myllm"))
    verify = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "myllm.service")]
    verified = subprocess.run(verify, capture_output=True, text=True)
    assert verified.returncode == 0 and "myllm.service" not in verified.stderr, verified.stderr
