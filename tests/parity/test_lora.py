"""Adapters, compared with PEFT: each library reads the other's files, with the same logits and training steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from myllm.checkpoints import hf_vision_encoder_decoder as hf
from myllm.checkpoints import lora, native
from myllm.checkpoints.formats import load
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, LoraConfig, VisionConfig
from myllm.model.lora import adapted_layers, add_adapters, with_adapters
from myllm.model.vision_gpt2 import VisionGPT2

pytestmark = pytest.mark.parity
RANDOM = torch.Generator().manual_seed(0)
IMAGES, TOKENS = torch.randn(2, 3, 64, 64, generator=RANDOM), torch.randint(0, 61, (2, 3, 5), generator=RANDOM)
EVERYWHERE = ("c_attn", "q_attn", "c_proj", "c_fc", "encoder.*qkv", "enc_to_dec_proj")


@pytest.fixture
def base(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    native.save(tiny_checkpoint, tmp_path / "base.pt")
    return tmp_path / "base.pt"


@pytest.fixture
def transformers_base(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A vit-gpt2 folder of transformers, whose GPT-2 stores its matrices transposed."""
    geometry = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 16}
    vision = VisionConfig(pretrained=False, image_size=64, geometry=geometry)
    model = VisionGPT2(CaptionerConfig(vision, tiny_checkpoint.model.config.text, "last")).eval()
    model.decoder.load_state_dict(tiny_checkpoint.model.decoder.state_dict())
    hf.to_folder(replace(tiny_checkpoint, model=model), tmp_path / "transformers")
    return tmp_path / "transformers"


def from_transformers(folder: Path) -> Any:
    import transformers

    return transformers.VisionEncoderDecoderModel.from_pretrained(folder).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    if isinstance(model.get_base_model() if isinstance(model, peft.PeftModel) else model, VisionGPT2):
        return model(IMAGES, TOKENS)
    captions = [model(pixel_values=IMAGES, decoder_input_ids=TOKENS[:, caption]).logits for caption in range(3)]
    return torch.stack(captions, dim=1)


def with_random_b(model: Any) -> Any:
    """Fill the matrices B with random numbers, because their initial zeros would hide every fault."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def save_ours(base: Path, out: Path, targets: tuple[str, ...] = EVERYWHERE) -> Tensor:
    """Write adapters to `out` and return the logits of the captioner with them."""
    checkpoint, config = load(base), LoraConfig(rank=3, alpha=5.0, dropout=0.1, targets=targets)
    add_adapters(checkpoint.model, config)
    lora.save(replace(checkpoint, model=with_random_b(checkpoint.model)), config, str(base), "0", out)
    return logits(checkpoint.model)


@torch.no_grad()
def our_logits(base: Path, adapter: Path) -> Tensor:
    return logits(with_adapters(load(base).model, lora.read(adapter).layers))


@pytest.mark.filterwarnings("error")
def test_peft_reads_our_adapter_without_a_warning(base: Path, tmp_path: Path) -> None:
    expected = save_ours(base, tmp_path / "adapter")
    read = peft.PeftModel.from_pretrained(load(base).model, tmp_path / "adapter")
    torch.testing.assert_close(logits(read), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(read.merge_and_unload()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["c_attn", "q_attn"]},
        {"target_modules": r"decoder\..*\.(c_proj|c_fc)|encoder\..*qkv", "lora_dropout": 0.1},
        {"target_modules": ["c_attn", "enc_to_dec_proj"], "use_rslora": True},
        {"target_modules": ["c_attn"], "rank_pattern": {"attn.c_attn": 2}, "layers_to_transform": [1]},
        {"target_modules": ["c_fc"], "init_lora_weights": "gaussian"},
    ],
)
def test_lora_reads_an_adapter_of_peft(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=6, **options)
    reference = with_random_b(peft.get_peft_model(load(base).model, config))
    reference.save_pretrained(tmp_path / "adapter")
    assert (logits(reference) - logits(load(base).model)).abs().max() > 0.01
    torch.testing.assert_close(our_logits(base, tmp_path / "adapter"), logits(reference), atol=1e-5, rtol=1e-5)


def test_lora_training_step_equals_peft(base: Path) -> None:
    def train_step(model: Any) -> dict[str, Tensor]:
        """Train one step from the same values and return the adapters by the names of their layers."""
        generator = torch.Generator().manual_seed(0)
        adapters = {
            name.removeprefix("base_model.model.").replace(".default", ""): parameter
            for name, parameter in model.named_parameters() if "lora_" in name
        }
        for _, parameter in sorted(adapters.items()):
            nn.init.normal_(parameter, std=0.1, generator=generator)
        optimizer = torch.optim.SGD(adapters.values(), lr=1.0)
        model(IMAGES, TOKENS).logsumexp(-1).mean().backward()
        optimizer.step()
        return adapters

    model = load(base).model
    add_adapters(model, LoraConfig(rank=4, alpha=6.0, targets=("c_attn", "c_fc")))
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["c_attn", "c_fc"])
    trained, expected = train_step(model), train_step(peft.get_peft_model(load(base).model, config))
    assert len(trained) == 2 * len(list(adapted_layers(model))) and trained.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(trained[name], value, atol=1e-6, rtol=1e-5)


def test_lora_reads_an_adapter_of_transformers_transposed_gpt2(
    transformers_base: Path, tmp_path: Path
) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["c_attn", "q_attn", "c_fc"], fan_in_fan_out=True)
    reference = with_random_b(peft.get_peft_model(from_transformers(transformers_base), config))
    reference.save_pretrained(tmp_path / "adapter")
    expected = logits(reference)
    torch.testing.assert_close(our_logits(transformers_base, tmp_path / "adapter"), expected, atol=1e-4, rtol=0)
    # the adapter's folder opens by itself, because it names its captioner
    torch.testing.assert_close(logits(load(tmp_path / "adapter").model), expected, atol=1e-4, rtol=0)


def test_peft_adds_our_adapter_to_transformers_gpt2(transformers_base: Path, tmp_path: Path) -> None:
    expected = save_ours(transformers_base, tmp_path / "adapter", LoraConfig().targets)
    with pytest.warns(UserWarning, match="fan_in_fan_out is set to False but the target module is `Conv1D`"):
        read = peft.PeftModel.from_pretrained(from_transformers(transformers_base), tmp_path / "adapter")
    torch.testing.assert_close(logits(read), expected, atol=1e-4, rtol=0)
