"""The original script: runs in any directory, takes every option of `myllm train`, and prints sample captions."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from myllm.apps.original import find_data, main
from myllm.inference.captioner import Captioner
from myllm.presets import PRESETS

SCRIPT = Path(__file__).parents[2] / "MyLLM_Vit_gpt2_captioning/MyLLM_Vit_gpt2_captioning.py"
Finished = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of width 32 as transformers saves it, with a vocabulary of bytes and a few words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["a red ball left of two blue cubes on grass"], 280, special_tokens=["<|endoftext|>"])
    tokenizer.save_model(str(folder))
    geometry = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 80}
    GPT2LMHeadModel(GPT2Config(vocab_size=tokenizer.get_vocab_size(), **geometry)).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_original_script_trains_in_another_directory_and_prints_sample_captions(
    original_script_run: Finished, scenes: Path
) -> None:
    assert original_script_run.returncode == 0, original_script_run.stderr
    output = original_script_run.stdout
    for name in (scenes / "splits/val.txt").read_text().split():
        assert f"{name}\n   caption:   " in output
    assert output.count("\n   reference: ") == 3
    assert output.rstrip().endswith("The pictures with their captions: run/samples.png")


@pytest.mark.slow
def test_original_script_takes_gpt2_from_hf_gpt2_repo(
    tiny_gpt2: Path, tiny: list[str], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [option for option in tiny if not option.startswith("--text.")]
    options += ["--mode=layerwise", "--max-steps=1", "--quiet"]
    monkeypatch.setenv("HF_GPT2_REPO", str(tiny_gpt2))
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "--data", str(scenes), "--out", str(tmp_path / "run"), *options])
    monkeypatch.setattr("sys.path", list(sys.path))
    with pytest.raises(SystemExit) as finished:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert finished.value.code == 0
    from transformers import GPT2LMHeadModel

    # in the first stage, new, the pretrained weights do not train
    pretrained = GPT2LMHeadModel.from_pretrained(tiny_gpt2).state_dict()
    trained = Captioner.load(tmp_path / "run").model.decoder.state_dict()
    assert torch.equal(trained["transformer.wte.weight"], pretrained["transformer.wte.weight"])
    assert torch.equal(trained["transformer.h.0.mlp.c_fc.weight"], pretrained["transformer.h.0.mlp.c_fc.weight"].T)


@pytest.mark.slow
def test_original_script_uses_preset_vit_gpt2_unless_another_is_given(
    tiny: list[str], scenes: Path, tmp_path: Path
) -> None:
    words = [*tiny, "--data", str(scenes), "--max-steps=1", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "a")], tmp_path) == 0
    assert yaml.safe_load((tmp_path / "a/config.yaml").read_text())["stages"] == list(PRESETS["vit-gpt2"]["stages"])
    words += ["--preset=photos", "--vision.feature_maps=1"]  # tiny's backbone has one map
    assert main([*words, "--out", str(tmp_path / "b")], tmp_path) == 0
    assert yaml.safe_load((tmp_path / "b/config.yaml").read_text())["ema"] == PRESETS["photos"]["ema"]


@pytest.mark.slow
def test_original_script_keeps_data_and_out_of_a_configuration_file(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((tiny_run / "config.yaml").read_text()) | {"out": str(tmp_path / "run"), "max_steps": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["--config", str(tmp_path / "config.yaml"), "--quiet"], tmp_path / "repository") == 0
    assert f"{tmp_path}/run/samples.png" in capsys.readouterr().out
    Image.open(tmp_path / "run/samples.png").verify()
    assert not (tmp_path / "repository").exists()


def test_original_script_looks_for_data_in_the_repository_then_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "work/data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert find_data(tmp_path / "repository") == tmp_path / "work/data"
    (tmp_path / "repository/data").mkdir()
    assert find_data(tmp_path / "repository") == tmp_path / "repository/data"


def test_original_script_names_the_missing_data_folder_of_the_repository(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(tiny, tmp_path / "repository") == 1
    assert f"{tmp_path}/repository/data: no such folder" in capsys.readouterr().err


def test_original_script_help_lists_the_options_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--help"], tmp_path) == 0
    assert "--batch_size" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_original_script_without_its_packages_says_in_one_line_what_to_do(tmp_path: Path) -> None:
    # -I and -S: a Python without site-packages
    ran = subprocess.run([sys.executable, "-I", "-S", str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1
    assert " is not installed: run this script with " in ran.stderr and "/.venv/bin/python" in ran.stderr


def test_original_script_in_an_old_python_names_the_version_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 7))  # an older Python can read it, to print the message
    monkeypatch.setattr("sys.version_info", (3, 10, 2))
    with pytest.raises(SystemExit, match=r"Python 3.10 is too old, 3.11 or newer is needed: run .*/.venv/bin/python"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
