"""What all tests stand on: no network, an environment of their own, a few small pictures."""

import os
import runpy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from myllm.checkpoints.native import Checkpoint
    from myllm.config import CaptionerConfig
    from myllm.model.vision_gpt2 import VisionGPT2

TESTS = Path(__file__).parent
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
OWN_SETTINGS = ("HF_ENDPOINT", "HF_GPT2_REPO", "HF_HUB_OFFLINE", "HF_TOKEN")
PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "http_proxy", "https_proxy")

# All of this comes before the first import of torch, matplotlib or huggingface_hub, which read it once.
for name in OWN_SETTINGS + PROXIES:
    os.environ.pop(name, None)
if WORKER is None:
    session_folder = tempfile.TemporaryDirectory(prefix="myllm-tests-")  # the workers share it
    os.environ["HF_HOME"] = session_folder.name
else:
    os.environ["OMP_NUM_THREADS"] = "1"  # torch's threads: the workers share the cores already
os.environ["MPLBACKEND"] = "Agg"
os.environ["MYLLM_TESTS_REFUSED"] = f"{os.environ['HF_HOME']}/refused-{WORKER}.txt"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (f"{TESTS}/no_network", os.environ.get("PYTHONPATH"))))
runpy.run_path(f"{TESTS}/no_network/sitecustomize.py", run_name="sitecustomize")

# The same examples in every run, so that what failed in CI fails here; --hypothesis-profile default draws new ones.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def refused_connections() -> Iterator[Path]:
    """A file of the addresses that this test, or a process of its, reached out to; it fails the test at its end."""
    refused = Path(os.environ["MYLLM_TESTS_REFUSED"])
    yield refused
    if refused.exists():
        places = refused.read_text(encoding="utf-8").split()
        refused.unlink()
        pytest.fail(f"reached out to {', '.join(places)}; tests reach this machine alone")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Flickr8k in the seed's layout, 7,000 photographs with the official split; not part of the project, read only."""
    folder = TESTS.parents[1] / "shared/data/flickr8k"
    if not folder.is_dir():
        pytest.skip("Flickr8k is not beside this checkout")
    return folder


@pytest.fixture
def tiny_picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seed's layout without splits: twelve drawn pictures of 64 x 64, five captions each; free to damage."""
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


# Tiny models (width 32, 2 blocks, random weights) that several files share follow here.


@pytest.fixture(scope="session")
def tiny_config() -> "Callable[..., CaptionerConfig]":
    """tiny_config(mode="last", **of GPTConfig): a 64 x 64 vision transformer and a decoder of width 32, 2 blocks."""
    from myllm.config import CaptionerConfig, GPTConfig, VisionConfig

    def make(mode: "Literal['layerwise', 'last']" = "last", **text: Any) -> CaptionerConfig:
        geometry = {"vocab_size": 61, "n_positions": 24, "n_layer": 2, "n_head": 4, "n_embd": 32} | text
        return CaptionerConfig(VisionConfig("vit_mini_conv8_64", pretrained=False), GPTConfig(**geometry), mode)

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config: "Callable[..., CaptionerConfig]") -> "Callable[..., VisionGPT2]":
    """tiny_model(mode="last", seed=0, **of GPTConfig): in eval mode, with weights that make its inputs matter."""
    import torch

    from myllm.model.vision_gpt2 import VisionGPT2

    def make(mode: "Literal['layerwise', 'last']" = "last", seed: int = 0, **text: Any) -> VisionGPT2:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = VisionGPT2(tiny_config(mode, **text)).eval()
            for name, parameter in [*model.decoder.named_parameters(), *model.enc_to_dec_proj.named_parameters()]:
                is_scale = "ln_" in name and name.endswith("weight")
                torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.3)
            # an untrained stem tells so little of a picture that places would drown it
            torch.nn.init.normal_(model.encoder.backbone.pos_embed, std=0.02)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: "Callable[..., VisionGPT2]") -> "Checkpoint":
    """What a run saves: a tiny model with random weights, and a tokenizer of bytes and a few words."""
    from myllm.checkpoints.native import Checkpoint
    from myllm.config import CaptionsConfig, DecodeConfig
    from myllm.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["a small red ball", "two blue cubes on grass", "a red cube left of a ball"], 300)
    model = tiny_model(vocab_size=tokenizer.get_vocab_size())
    decode = DecodeConfig(max_new_tokens=7, length_penalty=0.5)
    return Checkpoint(
        model, tokenizer, model.encoder.preprocess, CaptionsConfig(lowercase=False), decode, {"seed": 3, "note": "tiny"}
    )


class Hostile:
    """Makes a folder when it is unpickled."""

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
