"""The original script had eight faults; each test shows that one of them does not occur here."""

import math
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, CaptionsConfig, GPTConfig, PreprocessConfig, VisionConfig
from myllm.data.augmentation import augment
from myllm.data.batches import CaptionSource, check_pictures, evaluation_batches, make_source
from myllm.data.images import Preprocess
from myllm.data.records import Findings
from myllm.data.sources import read_records
from myllm.data.splits import split_records
from myllm.inference.captioner import Captioner
from myllm.inference.onnx_encoder import OnnxEncoder
from myllm.inference.onnx_stepper import OnnxStepper
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.training.loss import Objective
from myllm.training.validate import sum_losses

PICTURE = Image.effect_noise((64, 64), 90).convert("RGB")


@pytest.fixture
def source(tiny_picture_folder: Path, tiny_checkpoint: Checkpoint) -> CaptionSource:
    records, findings = read_records(tiny_picture_folder, CaptionsConfig())
    preprocess = Preprocess(PreprocessConfig((64, 64)))
    whole, pixels = check_pictures(records, preprocess, findings)
    return make_source(whole, pixels, preprocess, tiny_checkpoint.tokenizer, 24, findings)


def test_original_fault_1_no_picture_is_in_both_training_and_validation(tiny_picture_folder: Path) -> None:
    pictures = tiny_picture_folder / "flickr30k_images"
    shutil.copy(pictures / "scene0.png", pictures / "copy.png")  # the same picture under another name
    with (tiny_picture_folder / "results.csv").open("a") as file:
        file.write("copy.png| 0| the same again\n")
    records, _ = read_records(tiny_picture_folder, CaptionsConfig())
    splits = split_records(records, Findings())
    sides = [{record.image.read_bytes() for record in splits[name]} for name in ("train", "val")]
    assert all(sides) and not sides[0] & sides[1]
    assert all(len(record.captions) == 5 for side in splits.values() for record in side if record.name != "copy.png")


def test_original_fault_2_the_begin_token_is_fed_in_training_and_the_end_is_a_target(source: CaptionSource) -> None:
    [batch] = evaluation_batches(source, 12, workers=0).epoch(0)
    assert (batch.tokens[..., 0] == source.end).all()
    targets, lengths = batch.tokens[..., 1:], batch.lengths
    last = targets.gather(-1, (lengths - 1).clamp(min=0)[..., None])[..., 0]
    is_whole = lengths < 23  # a caption that fills the context was cut before its end
    assert is_whole.any() and (last[is_whole] == source.end).all()


def test_original_fault_3_gpt2_norms_are_loaded_in_their_places_and_the_cross_attention_norm_is_new(
    tmp_path: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    geometry = {"vocab_size": 61, "n_positions": 24, "n_layer": 1, "n_head": 2, "n_embd": 32}
    gpt2 = GPT2LMHeadModel(GPT2Config(**geometry, eos_token_id=60, bos_token_id=60))
    for value, name in enumerate(("ln_1", "ln_2"), start=2):
        torch.nn.init.constant_(gpt2.transformer.h[0].get_submodule(name).weight, value)
    gpt2.save_pretrained(tmp_path)
    vision = VisionConfig("vit_mini_conv8_64", pretrained=False)
    [block] = VisionGPT2(CaptionerConfig(vision, GPTConfig(**geometry, pretrained=str(tmp_path)))).decoder.blocks
    assert [block.ln_1.weight[0].item(), block.ln_2.weight[0].item()] == [2, 3]
    assert (block.ln_cross_attn.weight == 1).all() and (block.ln_cross_attn.bias == 0).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_original_fault_4_a_picture_is_encoded_once_and_each_step_reads_one_token(
    tiny_checkpoint: Checkpoint, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, lengths, step, encode = [], [], OnnxStepper.step, OnnxEncoder.__call__

    def recording(self: OnnxStepper, tokens: Tensor, state: Any) -> Any:
        lengths.append(tokens.shape[2])
        return step(self, tokens, state)

    monkeypatch.setattr(OnnxStepper, "step", recording)
    monkeypatch.setattr(
        OnnxEncoder, "__call__", lambda self, images: encoded.append(len(images)) or encode(self, images)
    )
    caption = Captioner(tiny_checkpoint, torch.device("cpu")).caption(PICTURE, beams=beams)
    assert encoded == [1]
    assert set(lengths) == {1} and len(lengths) >= len(caption.tokens) > 1


def test_original_fault_5_a_flip_swaps_left_and_right_and_named_colours_stay() -> None:
    picture = Image.new("RGB", (64, 64), (90, 90, 90))
    picture.paste((230, 30, 30), (0, 0, 32, 64))
    for seed in range(60):
        image, [caption] = augment(picture, ["a red wall on the left"], random.Random(seed))
        west, east = (image.getpixel((x, 32)) for x in (12, 52))
        is_red_west = west[0] - west[1] > east[0] - east[1]
        assert caption == ("a red wall on the left" if is_red_west else "a red wall on the right")
        red, green, blue = max(west, east, key=lambda pixel: pixel[0] - pixel[1])
        assert red > 2 * max(green, blue) and abs(green - blue) <= 2  # still the same hue


def test_original_fault_6_the_checkpoint_is_plain_data_and_all_that_captioning_needs(
    tiny_checkpoint: Checkpoint, tiny_captioner_file: Path
) -> None:
    content = torch.load(tiny_captioner_file, weights_only=True)
    assert {"format_version", "config", "tokenizer", "preprocess", "decode", "model"} <= content.keys()
    loaded = Captioner.load(tiny_captioner_file)
    assert loaded.caption(PICTURE).text == Captioner(tiny_checkpoint, torch.device("cpu")).caption(PICTURE).text


@torch.inference_mode()
def test_original_fault_7_perplexity_is_exp_of_total_loss_by_total_tokens(
    source: CaptionSource, tiny_checkpoint: Checkpoint
) -> None:
    model, total, tokens = tiny_checkpoint.model, 0.0, 0
    for position, record in enumerate(source.records):
        for caption in record.captions:  # a caption at a time: no batch, no padding, no mask
            ids = source.ids[caption]
            logits = model(source.images([position]), torch.tensor([[ids[:-1]]]))[0, 0].double()
            total -= float(logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].sum())
            tokens += len(ids) - 1
    batches = evaluation_batches(source, 5, workers=0)  # unequal batches: the mean over batches differs
    measured, count = sum_losses(Objective(model), batches.epoch(0), torch.device("cpu"))
    assert math.exp(measured / count) == pytest.approx(math.exp(total / tokens), rel=1e-4)


@pytest.mark.slow
def test_original_fault_8_the_script_runs_without_gpu_in_any_directory_with_no_path_to_edit(
    original_script_run: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    assert original_script_run.returncode == 0, original_script_run.stderr
    assert "Training on cpu" in original_script_run.stdout
