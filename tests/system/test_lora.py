"""`myllm train --base`, with adapters and without."""

import csv
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from myllm.apps.cli import main
from myllm.checkpoints import native
from myllm.checkpoints.formats import load
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, VisionConfig
from myllm.inference.captioner import Captioner
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import weights_hash

Capture = pytest.CaptureFixture[str]
Main = Callable[..., int]
LORA = ["--lora.rank=4", "--lora.alpha=8"]


@pytest.fixture(scope="session")
def adapt(scenes: Path, tiny_run: Path) -> Main:
    """adapt(out, *options, base=tiny_run): the exit code of a short `myllm train --base`."""

    def run(out: Path, *options: str, base: Path = tiny_run) -> int:
        options = ("--batch_size=8", "--lr=0.03", "--augment=false", "--devices=cpu", "--quiet", *options)
        return main(["train", "--base", str(base), "--data", str(scenes), "--out", str(out), *options])

    return run


@pytest.fixture(scope="session")
def lora_run(adapt: Main, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of three epochs of adapters; read-only."""
    out = tmp_path_factory.mktemp("lora") / "run"
    assert adapt(out, *LORA, "--epochs=3") == 0
    return out


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file)]


def captions(capfd: Capture, picture: Path, *words: str) -> str:
    """Return captions as JSON: their scores differ even where models write the same."""
    capfd.readouterr()
    assert main(["caption", str(picture), *words, "--devices=cpu", "--quiet", "--json"]) == 0
    return capfd.readouterr().out


def test_lora_run_folder_holds_an_adapter_and_no_captioner(lora_run: Path, tiny_run: Path) -> None:
    assert not (lora_run / "captioner.pt").exists()
    size = sum(path.stat().st_size for path in (lora_run / "adapter").iterdir())
    assert size < (tiny_run / "captioner.pt").stat().st_size / 20
    for name in ("last.pt", "metrics.csv", "metrics.json", "report.html", "samples.png"):
        assert (lora_run / name).stat().st_size


def test_lora_training_lowers_the_loss_and_leaves_the_base(lora_run: Path, tiny_run: Path) -> None:
    assert losses(lora_run)[-1] < min(losses(tiny_run))
    before, last = native.load(tiny_run).model.state_dict(), torch.load(lora_run / "last.pt", weights_only=True)
    assert all(torch.equal(value, last["objective"][f"model.{name}"]) for name, value in before.items())


def test_saved_adapter_scores_as_in_training(lora_run: Path, scenes: Path, capfd: Capture) -> None:
    row = load(lora_run).provenance["validation"]
    assert row["val_loss"] == pytest.approx(min(losses(lora_run)))
    capfd.readouterr()
    assert main(["evaluate", "--model", str(lora_run), "--data", str(scenes), "--json", "--quiet"]) == 0
    assert json.loads(capfd.readouterr().out)["CIDEr-D"] == pytest.approx(row["CIDEr-D"])


def test_adapter_captions_alike_from_run_folder_base_and_merged_file(
    lora_run: Path, tiny_run: Path, pictures: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    assert main(["import", str(lora_run), "--out", str(tmp_path / "merged.pt")]) == 0
    assert "a low-rank adapter on a captioner" in capfd.readouterr().out
    expected = captions(capfd, pictures[0], "--model", str(tmp_path / "merged.pt"))
    assert captions(capfd, pictures[0], "--model", str(lora_run)) == expected
    assert captions(capfd, pictures[0], "--model", str(lora_run / "adapter")) == expected
    assert captions(capfd, pictures[0], "--model", str(tiny_run), "--adapter", str(lora_run)) == expected
    assert captions(capfd, pictures[0], "--model", str(tiny_run)) != expected


@pytest.mark.slow
def test_evaluate_takes_an_adapter_with_its_base(lora_run: Path, tiny_run: Path, scenes: Path, tmp_path: Path) -> None:
    def captions_of(*model: str) -> str:
        words = ["--data", str(scenes), "--out", str(tmp_path), "--overwrite", "--quiet"]
        assert main(["evaluate", *words, "--model", *model]) == 0
        return (tmp_path / "captions.jsonl").read_text()

    with_adapter = captions_of(str(tiny_run), "--adapter", str(lora_run))
    assert with_adapter == captions_of(str(lora_run)) != captions_of(str(tiny_run))


@pytest.mark.slow
def test_onnx_export_of_an_adapter_is_merged_and_takes_no_other(
    lora_run: Path, pictures: list[Path], tmp_path: Path, capfd: Capture
) -> None:
    assert main(["export", str(lora_run), "--to", "onnx", "--out", str(tmp_path / "onnx"), "--quiet"]) == 0
    exported, expected = (
        json.loads(captions(capfd, pictures[0], "--model", str(model))) for model in (tmp_path / "onnx", lora_run)
    )
    assert exported["caption"] == expected["caption"]
    assert exported["score"] == pytest.approx(expected["score"], abs=1e-4)
    words = ["caption", str(pictures[0]), "--model", str(tmp_path / "onnx"), "--adapter", str(lora_run)]
    assert main(words) == 2
    assert "leave out --devices, --precision and --adapter" in capfd.readouterr().err


def test_info_describes_an_adapter_and_its_base(lora_run: Path, tiny_run: Path, capfd: Capture) -> None:
    assert main(["info", str(lora_run)]) == 0
    output = capfd.readouterr().out
    base_hash = weights_hash(native.load(tiny_run).model)
    for part in (
        f"{lora_run / 'adapter'}: a low-rank adapter on a captioner, ", "of rank 4, scaled by 2, on 7 layers",
        f"based on {tiny_run}, with the weights that it was trained on (hash {base_hash})", "data.folder scenes",
    ):
        assert part in output, output
    assert main(["info", str(lora_run), "--json"]) == 0
    values = json.loads(capfd.readouterr().out)
    assert values["bytes"] == sum(path.stat().st_size for path in (lora_run / "adapter").iterdir())
    assert values["adapter"]["base_hash"] == base_hash and len(values["adapter"]["layers"]) == 7


@pytest.mark.slow
def test_resumed_lora_run_equals_the_uninterrupted_one(
    stopped: Callable[..., Any], lora_run: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "run", yaml.safe_load((lora_run / "config.yaml").read_text())
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(whole | {"out": str(out)}))
    process = stopped(["train", "--config", str(tmp_path / "whole.yaml")], signal.SIGINT, out / "metrics.csv")
    assert process.returncode == 130, process.stderr
    assert main(["train", "--config", str(out / "config.yaml"), "--resume", "--quiet"]) == 0
    assert losses(out) == losses(lora_run)
    resumed, expected = (load_file(run / "adapter/adapter_model.safetensors") for run in (out, lora_run))
    assert resumed and all(torch.equal(value, expected[name]) for name, value in resumed.items())


@pytest.mark.slow
def test_train_replaces_an_adapter_only_with_overwrite(
    adapt: Main, lora_run: Path, tmp_path: Path, capfd: Capture
) -> None:
    out = Path(shutil.copytree(lora_run, tmp_path / "run"))
    assert adapt(out, *LORA, "--epochs=1") == 2
    assert "holds a run already (adapter, last.pt, last.previous.pt)" in capfd.readouterr().err
    assert adapt(out, "--epochs=1", "--overwrite") == 0
    assert (out / "captioner.pt").is_file() and not (out / "adapter").exists()


@pytest.mark.slow
def test_adapter_whose_base_has_changed_is_refused(adapt: Main, tiny_run: Path, tmp_path: Path, capfd: Capture) -> None:
    base, out = Path(shutil.copytree(tiny_run, tmp_path / "base")), tmp_path / "run"
    assert adapt(out, *LORA, "--max_steps=1", base=base) == 0
    changed = native.load(base)
    with torch.no_grad():
        changed.model.decoder.transformer.ln_f.weight.mul_(1.01)
    native.save(changed, base / "captioner.pt")
    assert main(["caption", str(tmp_path), "--model", str(out)]) == 1
    assert f"{out / 'adapter'}: was trained on {base} with weights of hash" in capfd.readouterr().err
    assert adapt(out, *LORA, "--max_steps=2", "--resume", base=base) == 1
    assert "this run began with another base (" in capfd.readouterr().err


@pytest.mark.slow
def test_train_with_base_continues_the_whole_captioner_and_leaves_the_base(
    adapt: Main, tiny_run: Path, tmp_path: Path
) -> None:
    before = (tiny_run / "captioner.pt").read_bytes()
    assert adapt(tmp_path / "run", "--epochs=1", "--lr=0.01") == 0
    assert (tiny_run / "captioner.pt").read_bytes() == before
    assert losses(tmp_path / "run")[0] < losses(tiny_run)[0]
    trained, base = load(tmp_path / "run"), load(tiny_run)
    assert trained.model.config == base.model.config and trained.decode == base.decode
    assert trained.tokenizer.to_str() == base.tokenizer.to_str()
    assert trained.provenance["base"] == str(tiny_run)


@pytest.mark.slow
def test_lora_on_the_backbone_trains_and_keeps_batch_statistics(
    adapt: Main, tiny_run: Path, tmp_path: Path
) -> None:
    assert adapt(tmp_path / "run", *LORA, "--lora.targets=[encoder.*qkv]", "--max_steps=2") == 0
    objective = torch.load(tmp_path / "run/last.pt", weights_only=True)["objective"]
    assert all(value.any() for name, value in objective.items() if "lora_B" in name)
    statistics = {name: value for name, value in load(tiny_run).model.state_dict().items() if "running" in name}
    assert statistics and all(torch.equal(objective[f"model.{name}"], value) for name, value in statistics.items())


@pytest.mark.slow
def test_train_warns_of_adapters_that_the_model_does_not_use(
    adapt: Main, tiny_checkpoint: Checkpoint, tmp_path: Path, capfd: Capture
) -> None:
    geometry = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    vision = VisionConfig("beit_base_patch16_224", pretrained=False, image_size=64, geometry=geometry)
    model = VisionGPT2(CaptionerConfig(vision, tiny_checkpoint.model.config.text, "last")).eval()
    beit = replace(tiny_checkpoint, model=model, preprocess=model.encoder.preprocess)
    native.save(beit, tmp_path / "beit.pt")
    options = [*LORA, "--lora.targets=[qkv, encoder.*.proj]", "--max_steps=1"]
    assert adapt(tmp_path / "run", *options, base=tmp_path / "beit.pt") == 0
    assert "adapters of 2 layers are not used by the model, encoder.backbone.blocks.0.attn.qkv for one" in " ".join(
        capfd.readouterr().out.split()
    )


def test_lora_run_configuration_holds_the_options_of_its_base(lora_run: Path, tiny_run: Path) -> None:
    saved, base = (yaml.safe_load((run / "config.yaml").read_text()) for run in (lora_run, tiny_run))
    assert saved["base"] == str(tiny_run) and saved["lora"]["rank"] == 4
    assert saved["vision"] == base["vision"] and saved["mode"] == base["mode"] and saved["decode"] == base["decode"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--base=nowhere"], 1, "nowhere: no such file or folder"),
        (["--lora.targets=[c_atn]"], 2, "'c_atn', which matches no linear layer of this model; did you mean c_attn"),
        (["--lora.targets=[qkv]", "--vision.frozen"], 2, "a layer of the backbone, and vision.frozen keeps"),
        (["--text.n_layer=3"], 2, "text.n_layer is 3, but the base"),
        (["--vision.name=vit_small_patch16_224"], 2, "vision.name is vit_small_patch16_224, but the base"),
        (["--lora.rank=-1"], 2, "lora.rank is -1"),
    ],
)
def test_train_with_base_names_obstacles_and_writes_nothing(
    adapt: Main, tmp_path: Path, capfd: Capture, options: list[str], code: int, message: str
) -> None:
    assert adapt(tmp_path / "run", *LORA, *options) == code
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_lora_without_a_base_is_refused(train: Main, tmp_path: Path, capfd: Capture) -> None:
    assert train(tmp_path / "run", *LORA) == 2
    assert "lora.rank 4 without base" in capfd.readouterr().err


def test_run_cannot_be_written_over_its_base(adapt: Main, tiny_run: Path, tmp_path: Path, capfd: Capture) -> None:
    base = Path(shutil.copytree(tiny_run, tmp_path / "base"))
    assert adapt(base, *LORA, "--overwrite", base=base) == 2
    assert "is inside --out" in capfd.readouterr().err
    assert (base / "captioner.pt").is_file()


def test_lora_on_an_adapter_is_refused_but_full_training_is_not(
    adapt: Main, lora_run: Path, tmp_path: Path, capfd: Capture
) -> None:
    assert adapt(tmp_path / "run", *LORA, base=lora_run) == 1
    assert "is an adapter itself" in capfd.readouterr().err
    assert adapt(tmp_path / "run", "--max_steps=1", base=lora_run) == 0
    assert Captioner.load(tmp_path / "run").checkpoint.provenance["base"] == str(lora_run)
