"""What tests of several folders need: no network, a clean environment, small pictures and tiny models."""

import importlib
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from torch import Tensor

    from myllm.checkpoints.native import Checkpoint
    from myllm.model.vision_gpt2 import VisionGPT2

TESTS = Path(__file__).parent
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
TEACHER = runpy.run_path(f"{TESTS}/fixtures/teacher_server.py")
SETTINGS = ("MYLLM_API_KEY", "OPENAI_API_KEY", "HF_ENDPOINT", "HF_GPT2_REPO", "HF_HUB_OFFLINE", "HF_TOKEN")
PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "http_proxy", "https_proxy")
TERMINAL = ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")

# before the first import of torch, matplotlib or huggingface_hub, which read these variables once
for name in SETTINGS + PROXIES + TERMINAL:
    os.environ.pop(name, None)
if WORKER is None:
    session_folder = tempfile.TemporaryDirectory(prefix="myllm-tests-")  # shared by the workers
    os.environ["HF_HOME"] = session_folder.name
os.environ["MYLLM_CACHE"] = f"{os.environ['HF_HOME']}/myllm-{WORKER}"
os.environ["OMP_NUM_THREADS"] = "1"  # sums are the same on any number of cores, and workers already share these
os.environ["MPLBACKEND"] = "Agg"
os.environ["MYLLM_TESTS_REFUSED"] = f"{os.environ['HF_HOME']}/refused-{WORKER}.txt"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (f"{TESTS}/no_network", os.environ.get("PYTHONPATH"))))
runpy.run_path(f"{TESTS}/no_network/sitecustomize.py", run_name="sitecustomize")

# the same examples in every run, so that a failure in CI can be repeated; --hypothesis-profile default draws new ones
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch, so that a test draws the same numbers whatever tests ran before it in its process."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def refused_connections() -> Iterator[Path]:
    """Fail a test that tried to connect to another machine; the file has the addresses, also those of its processes."""
    refused = Path(os.environ["MYLLM_TESTS_REFUSED"])
    yield refused
    if refused.exists():
        addresses = refused.read_text(encoding="utf-8").split()
        refused.unlink()
        pytest.fail(f"connected to {', '.join(addresses)}; tests may only connect to this machine")


@pytest.fixture(scope="session", autouse=True)
def without_meteor() -> Iterator[None]:
    """Leave out METEOR, which reads 270 MB of paraphrases for seconds, also where fixtures of several tests train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("myllm.metrics.score.missing_data", lambda: "left out of this test")
        yield


@pytest.fixture(autouse=True)
def meteor_if_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute METEOR too in tests marked meteor."""
    if request.node.get_closest_marker("meteor"):
        from myllm.metrics.meteor_data import missing_data

        monkeypatch.setattr("myllm.metrics.score.missing_data", missing_data)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Flickr8k in the original layout, 7,000 photographs with the official split; read only, not in the project."""
    folder = TESTS.parents[1] / "shared/data/flickr8k"
    if not folder.is_dir():
        pytest.skip("Flickr8k is not next to this checkout")
    return folder


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """program(name): the path of a program; the test is skipped if the machine lacks it, but fails in CI."""

    def find(name: str) -> str:
        path = shutil.which(name)
        has_packages = name != "node" or (TESTS / "javascript/node_modules").is_dir()  # installed by make test with npm
        if path is None or not has_packages:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name}, or a package that it needs, is missing")
        return str(path)

    return find


@pytest.fixture
def tiny_picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original layout without splits: twelve drawn pictures of 64 x 64, five captions each; free to damage."""
    from myllm.data.scenes import draw_scene

    folder = tmp_path_factory.mktemp("pictures")
    (folder / "flickr30k_images").mkdir()
    rows = ["image_name| comment_number| comment"]
    for number in range(12):
        image, scene = draw_scene(seed=0, part="train", number=number)
        image.save(folder / "flickr30k_images" / f"scene{number}.png")
        rows += [f"scene{number}.png| {index}| {caption}" for index, caption in enumerate(scene.captions)]
    (folder / "results.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def hub_settings() -> Iterator[Callable[..., None]]:
    """hub_settings(HF_HOME="...", HF_ENDPOINT="..."): use huggingface_hub as if it had been imported with these."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:

        def use(**environment: str) -> None:
            for name in ("HF_ENDPOINT", "HF_GPT2_REPO", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN"):
                patch.delenv(name, raising=False)
            for name, value in {"HF_HUB_DISABLE_XET": "1", **environment}.items():
                patch.setenv(name, value)
            importlib.reload(constants)

        # without the waits between two tries; the time module itself, which other threads use, stays as it is
        patch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        yield use
    importlib.reload(constants)


@pytest.fixture
def teacher_server() -> Iterator[Any]:
    """A server that captions pictures for `myllm label`, see `fixtures/teacher_server.py`."""
    server = TEACHER["TeacherServer"]()
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny_model() -> "Callable[..., VisionGPT2]":
    """tiny_model(mode="last", seed=0, **options of GPTConfig): a model for 64 x 64 pictures, of width 32 and 2 blocks.

    It is in eval mode, and its random weights are large enough for its inputs to matter.
    """
    import torch

    from myllm.config import CaptionerConfig, GPTConfig, VisionConfig
    from myllm.model.vision_gpt2 import VisionGPT2

    def make(mode: "Literal['layerwise', 'last']" = "last", seed: int = 0, **text: Any) -> VisionGPT2:
        geometry = {"vocab_size": 61, "n_positions": 24, "n_layer": 2, "n_head": 4, "n_embd": 32} | text
        vision = VisionConfig("vit_mini_conv8_64", pretrained=False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = VisionGPT2(CaptionerConfig(vision, GPTConfig(**geometry), mode)).eval()
            for name, parameter in [*model.decoder.named_parameters(), *model.enc_to_dec_proj.named_parameters()]:
                is_scale = "ln_" in name and name.endswith("weight")
                torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.3)
            # smaller than by default: an untrained stem's output is small, and positions would dominate it
            torch.nn.init.normal_(model.encoder.backbone.pos_embed, std=0.02)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: "Callable[..., VisionGPT2]") -> "Checkpoint":
    """A checkpoint as a run saves it: a tiny model with random weights, and a tokenizer of bytes and a few words."""
    from myllm.checkpoints.native import Checkpoint
    from myllm.config import CaptionsConfig, DecodeConfig
    from myllm.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["a small red ball", "two blue cubes on grass", "a red cube left of a ball"], 300)
    model = tiny_model(vocab_size=tokenizer.get_vocab_size())
    decode = DecodeConfig(max_new_tokens=7, length_penalty=0.5)
    return Checkpoint(
        model, tokenizer, model.encoder.preprocess, CaptionsConfig(lowercase=False), decode, {"seed": 3, "note": "tiny"}
    )


BARE = {
    "width": 64, "depth": 2, "patch": 4, "grid": 3, "context": 20, "vocab": 300, "hidden": 256, "biases": True
}


@pytest.fixture(scope="session")
def bare_state() -> "Callable[..., dict[str, Tensor]]":
    """bare_state(kind, **sizes of BARE): a random state dict as the original script (seed) or VisionGPT2 saves it."""
    import torch

    def make(kind: str, **changes: int) -> "dict[str, Tensor]":
        size, random, state = BARE | changes, torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
        width, patch, context, hidden = size["width"], size["patch"], size["context"], size["hidden"]
        is_seed = kind == "seed"

        def add(name: str, *shape: int, mean: float = 0.0, std: float = 0.2) -> None:
            state[name] = mean + std * torch.randn(*shape, generator=random)

        def linear(name: str, rows: int = width, columns: int = width, bias: int = True) -> None:
            add(f"{name}.weight", rows, columns, std=1.5 * columns**-0.5)
            if bias:
                add(f"{name}.bias", rows)

        def norm(name: str, names: tuple[str, str] = ("weight", "bias")) -> None:
            add(f"{name}.{names[0]}", width, mean=1.0)
            add(f"{name}.{names[1]}", width)

        def vit_block(block: str) -> None:
            norm(f"{block}.norm1")
            norm(f"{block}.norm2")
            linear(f"{block}.attn.qkv", 3 * width, bias=size["biases"])
            linear(f"{block}.attn.proj")
            linear(f"{block}.mlp.fc1", hidden)
            linear(f"{block}.mlp.fc2", columns=hidden)

        def text_block(block: str) -> None:
            for part in ("ln_1", "ln_2", "ln_3"):
                norm(f"{block}.{part}", norm_names)
            for part in ("q", "k", "v", "c_proj"):
                linear(f"{block}.cross_attn.{part}")
            for part in ("W_query", "W_key", "W_value") if is_seed else ():
                linear(f"{block}.attn.{part}", bias=size["biases"])
            if not is_seed:
                linear(f"{block}.attn.c_attn", 3 * width)
            linear(f"{block}.attn.{'out_proj' if is_seed else 'c_proj'}")
            square = torch.ones(context, context)
            state[f"{block}.attn.mask"] = square.triu(1) if is_seed else square.tril()[None, None]
            linear(f"{block}.mlp.{'layers.0' if is_seed else 'c_fc'}", 4 * width)
            linear(f"{block}.mlp.{'layers.2' if is_seed else 'c_proj'}", columns=4 * width)

        tokens, positions, blocks, last, head = (
            ("tok_emb", "pos_emb", "trf_blocks", "final_norm", "out_head") if is_seed else
            ("transformer.wte", "transformer.wpe", "transformer.h", "transformer.ln_f", "lm_head")
        )
        norm_names = ("scale", "shift") if is_seed else ("weight", "bias")
        add("cls_token", 1, 1, width)
        add("pos_embed", 1, 1 + size["grid"] ** 2, width)
        add("patch_embed.proj.weight", width, 3, patch, patch, std=0.5 / patch)
        add("patch_embed.proj.bias", width)
        add(f"{tokens}.weight", size["vocab"], width)
        add(f"{positions}.weight", context, width)
        for number in range(size["depth"]):
            vit_block(f"blocks.{number}")
            text_block(f"{blocks}.{number}")
        norm(last, norm_names)
        state[f"{head}.weight"] = state[f"{tokens}.weight"]
        return state

    return make


class Hostile:
    """Object that makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.fixture(scope="session")
def hostile() -> Callable[[Path], object]:
    """hostile(path): an object that makes a folder there when it is unpickled."""
    return Hostile


@pytest.fixture
def tiny_captioner_file(tiny_checkpoint: "Checkpoint", tmp_path: Path) -> Path:
    """A captioner.pt of `tiny_checkpoint`, free to damage."""
    from myllm.checkpoints import native

    native.save(tiny_checkpoint, tmp_path / "captioner" / native.FILE_NAME)
    return tmp_path / "captioner" / native.FILE_NAME
