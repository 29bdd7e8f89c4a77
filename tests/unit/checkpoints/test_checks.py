"""Checks of what files hold: types and old names of options, the cost of pictures, tokenizers that panic."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers

from myllm.checkpoints import formats, native
from myllm.checkpoints.checks import check_preprocess, dataclass_from_dict, is_onnx_export
from myllm.checkpoints.native import Checkpoint
from myllm.config import RENAMED_OPTIONS, CaptionerConfig, CaptionsConfig, DecodeConfig, PreprocessConfig
from myllm.data.tokenizer import encode_captions
from myllm.errors import CheckpointError
from myllm.export import onnx_export
from myllm.inference.captioner import Captioner
from myllm.inference.onnx_captioner import OnnxCaptioner
from myllm.training_config import TrainConfig


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (DecodeConfig, {"beams": 2.0}, "decode.beams is 2.0; expected a whole number"),
        (DecodeConfig, {"beams": True}, "decode.beams is True; expected a whole number"),
        (DecodeConfig, {"do_sample": 1}, "decode.do_sample is 1; expected true or false"),
        (DecodeConfig, {"bad_words": [1]}, r"decode.bad_words is \(1,\); expected a list, each text"),
        (DecodeConfig, {"early_stopping": "x"}, "decode.early_stopping is 'x'; expected true or false or one of never"),
        (DecodeConfig, {"num_return_sequences": "2"}, "num_return_sequences is '2'; expected a whole number or null"),
        (DecodeConfig, {"colour": 2}, "decode.colour is unknown; if a newer myllm wrote the file, upgrade: "),
        (PreprocessConfig, {"mean": [0.5, 0.5]}, "preprocess.mean is .*; expected a list of 3, each a number"),
        (PreprocessConfig, {"image_size": [32.0, 32]}, "preprocess.image_size is .* of 2, each a whole number"),
        (PreprocessConfig, {"crop_pct": float("nan")}, "preprocess.crop_pct is nan; it must be above 0"),
        (PreprocessConfig, {"crop_pct": -6.4}, "preprocess.crop_pct is -6.4; it must be above 0"),
        (PreprocessConfig, {"image_size": [20_000, 20_000]}, "preprocess.image_size is .* at most 4096"),
        (PreprocessConfig, {"std": [0.5, 0.0, 0.5]}, "preprocess.std is .*; it must be above 0"),
        (PreprocessConfig, {"mean": [float("inf"), 0.0, 0.5]}, "preprocess.mean is .*; it must be between -10 and 10"),
        (PreprocessConfig, {"crop_mode": "x"}, "preprocess.crop_mode is 'x'; expected one of center, border, squash"),
        (CaptionsConfig, {"lowercase": None}, "captions.lowercase is None; expected true or false"),
        (CaptionerConfig, {"text": {"n_head": 4.0}}, "text.n_head is 4.0; expected a whole number"),
        (CaptionerConfig, {"text": {"gelu": "swish"}}, "text.gelu is 'swish'; expected one of tanh, none"),
        (CaptionerConfig, {"vision": {"geometry": 3}}, "vision.geometry is 3; expected options as `name: value`"),
        (CaptionerConfig, {"text": [1]}, "text is "),
        (CaptionerConfig, {"mode": "both"}, "mode is 'both'; expected one of layerwise, last"),
    ],
)
def test_dataclass_from_dict_refuses_another_type_or_range_by_name(
    kind: type[Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        dataclass_from_dict(kind, values)


def test_dataclass_from_dict_fills_defaults_and_converts_lists() -> None:
    values = {"temperature": 2, "do_sample": True, "stop_strings": ["."], "early_stopping": "never"}
    assert dataclass_from_dict(DecodeConfig, values) == DecodeConfig(
        temperature=2, do_sample=True, stop_strings=(".",), early_stopping="never"
    )


def test_renamed_options_exist_under_their_new_names_only() -> None:
    for old, new in RENAMED_OPTIONS.items():
        for name, is_expected in ((old, False), (new, True)):
            group, _, option = name.rpartition(".")
            fields = TrainConfig.__dataclass_fields__ if not group else type(getattr(TrainConfig(), group))
            assert (option in getattr(fields, "__dataclass_fields__", fields)) is is_expected, name


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({}, (32, 32), r"preprocess.image_size is \(224, 224\), the encoder takes \(32, 32\)"),
        ({"crop_pct": 0.001}, (224, 224), "preprocess.crop_pct is 0.001; expected 0.1"),
        ({"image_size": (2000, 2000), "crop_pct": 0.1}, (2000, 2000), "resizes to 20,000 pixels a side; at most 4,096"),
    ],
)
def test_check_preprocess_refuses_expensive_pixels(
    options: dict[str, Any], size: tuple[int, int], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_preprocess(PreprocessConfig(**options), size)


@pytest.fixture(scope="module")
def onnx_folder(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX export of `tiny_checkpoint`; read only."""
    folder = tmp_path_factory.mktemp("export") / "onnx"
    onnx_export.to_folder(tiny_checkpoint, folder)
    return folder


@pytest.fixture
def edit_onnx(onnx_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """edit_onnx(part, **options): the export with some options of a part of its configuration changed."""

    def edit(part: str, **options: Any) -> Path:
        (tmp_path / "copy").mkdir()
        for file in onnx_folder.iterdir():
            (tmp_path / "copy" / file.name).symlink_to(file)
        config = json.loads((onnx_folder / "config.json").read_text())
        config["myllm"][part] |= options
        (tmp_path / "copy/config.json").unlink()
        (tmp_path / "copy/config.json").write_text(json.dumps(config))
        return tmp_path / "copy"

    return edit


@pytest.mark.slow
def test_onnx_export_reads_options_under_their_old_names(edit_onnx: Callable[..., Path]) -> None:
    folder = edit_onnx("decode", contrast=0.25)
    config = json.loads((folder / "config.json").read_text())
    del config["myllm"]["decode"]["contrastive_weight"]
    (folder / "config.json").write_text(json.dumps(config))
    assert OnnxCaptioner.load(folder).decode.contrastive_weight == 0.25


def test_onnx_export_with_expensive_pictures_is_refused(edit_onnx: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="preprocess.crop_pct is 0.0032"):
        OnnxCaptioner.load(edit_onnx("preprocess", crop_pct=64 / 20_000))


def test_is_onnx_export_only_without_weights_that_open(onnx_folder: Path, tmp_path: Path) -> None:
    assert is_onnx_export(onnx_folder) and not is_onnx_export(tmp_path)
    (tmp_path / "onnx").symlink_to(onnx_folder / "onnx")
    assert is_onnx_export(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").touch()
    assert not is_onnx_export(tmp_path)


@pytest.fixture
def panicking_file(tiny_captioner_file: Path) -> Path:
    """A captioner whose tokenizer splits by a regular expression that takes exponential time."""
    content = torch.load(tiny_captioner_file, weights_only=True)
    tokenizer = Tokenizer.from_str(content["tokenizer"])
    catastrophic = pre_tokenizers.Split(Regex("(a|a|aa)+$"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([catastrophic, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    torch.save(content | {"tokenizer": tokenizer.to_str()}, tiny_captioner_file)
    return tiny_captioner_file


def test_tokenizer_that_panics_raises_a_checkpoint_error(panicking_file: Path) -> None:
    text = "a" * 60 + "!"
    checkpoint = native.load(panicking_file)
    captioner = Captioner(checkpoint, torch.device("cpu"))
    image = torch.zeros(3, 64, 64)
    captioner.caption(image, max_new_tokens=3)
    with pytest.raises(CheckpointError, match="tokenizer failed on a text .*retry-limit.*take the tokenizer"):
        captioner.caption(image, prefix=text)
    with pytest.raises(CheckpointError, match="tokenizer failed on a text"):
        encode_captions(formats.load(panicking_file).tokenizer, [text], 24)
