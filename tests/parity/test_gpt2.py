"""Our decoder, compared with transformers' GPT-2, in geometries whose sizes differ, so that mixed-up axes show."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from myllm.config import GPTConfig
from myllm.errors import CheckpointError, ConfigError
from myllm.model.gpt import GPT
from myllm.model.gpt2_weights import check_same_geometry, fit_to_pretrained
from myllm.model.kv_cache import ImageKV

GEOMETRIES = [(36, 3, 1), (40, 5, 3), (48, 2, 2)]
FORMS = ["model.safetensors", "pytorch_model.bin"]
TOKENS = torch.randint(59, (3, 23), generator=torch.Generator().manual_seed(1))


def save(tensors: dict[str, Tensor], path: Path) -> None:
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)


def saved_as(folder: Path, reference, form: str = FORMS[0], prefix: str = "transformer.") -> Path:
    """Write the model with save_pretrained, then rewrite its tensors in another form and with another prefix."""
    reference.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save({name.replace("transformer.", prefix): value for name, value in tensors.items()}, folder / form)
    return folder


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_from_pretrained_logits_equal_transformers(
    random_gpt2, tmp_path: Path, geometry: tuple[int, int, int], form: str, prefix: str
) -> None:
    reference = random_gpt2(*geometry)
    ours = GPT.from_pretrained(str(saved_as(tmp_path, reference, form, prefix))).eval()
    assert (ours.config.n_embd, ours.config.n_head, ours.config.n_layer) == geometry
    with torch.inference_mode():
        torch.testing.assert_close(ours(TOKENS), reference(TOKENS).logits, rtol=0, atol=1e-4)


def test_from_pretrained_loads_what_transformers_saves(random_gpt2, tmp_path: Path) -> None:
    reference = random_gpt2(*GEOMETRIES[0])
    reference.save_pretrained(tmp_path)
    with torch.inference_mode():
        ours = GPT.from_pretrained(str(tmp_path)).eval()(TOKENS)
        torch.testing.assert_close(ours, reference(TOKENS).logits, rtol=0, atol=1e-4)


def test_from_pretrained_follows_the_exact_gelu_of_a_folder(random_gpt2, tmp_path: Path) -> None:
    reference = random_gpt2(*GEOMETRIES[0], activation_function="gelu")
    reference.save_pretrained(tmp_path)
    config = fit_to_pretrained(GPTConfig(vocab_size=59, pretrained=str(tmp_path)))
    ours = GPT.from_pretrained(str(tmp_path)).eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours(TOKENS), reference(TOKENS).logits, rtol=0, atol=1e-4)
    with pytest.raises(ConfigError, match=r"text.gelu is tanh, but the pretrained GPT-2 has none"):
        check_same_geometry(replace(config, gelu="tanh"), ours.config)


def test_gpt_gradients_equal_transformers(random_gpt2, tmp_path: Path) -> None:
    reference = random_gpt2(*GEOMETRIES[1])
    ours = GPT.from_pretrained(str(saved_as(tmp_path, reference))).eval()
    ours(TOKENS).logsumexp(-1).mean().backward()
    reference(TOKENS).logits.logsumexp(-1).mean().backward()
    transposed_gradient = reference.transformer.h[1].mlp.c_fc.weight.grad.T
    torch.testing.assert_close(ours.transformer.h[1].mlp.c_fc.weight.grad, transposed_gradient, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.lm_head.weight.grad, reference.lm_head.weight.grad, rtol=0, atol=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gpt_cross_attention_equals_transformers(
    random_gpt2, transposed, geometry: tuple[int, int, int]
) -> None:
    reference = random_gpt2(*geometry, add_cross_attention=True)
    ours = GPT(config_of(geometry), cross_attention=True).eval()
    ours.load_state_dict(transposed(reference))
    picture = torch.randn(3, 7, geometry[0], generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        image = ImageKV(tuple(block.crossattention.key_value(picture) for block in ours.blocks))
        expected = reference(TOKENS, encoder_hidden_states=picture).logits
        torch.testing.assert_close(ours(TOKENS, image), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("has_cross_attention", [False, True])
def test_gpt_state_dict_keys_equal_transformers(random_gpt2, has_cross_attention: bool) -> None:
    reference = random_gpt2(*GEOMETRIES[1], add_cross_attention=has_cross_attention)
    ours = GPT(config_of(GEOMETRIES[1]), cross_attention=has_cross_attention)
    assert sorted(ours.state_dict()) == sorted(reference.state_dict())


def test_gpt_cached_steps_equal_transformers_full_pass(random_gpt2, tmp_path: Path) -> None:
    reference = random_gpt2(*GEOMETRIES[2])
    ours = GPT.from_pretrained(str(saved_as(tmp_path, reference))).eval()
    cache = ours.new_cache(3)
    with torch.inference_mode():
        steps = [ours(TOKENS[:, index : index + 1], cache=cache) for index in range(TOKENS.shape[1])]
        torch.testing.assert_close(torch.cat(steps, 1), reference(TOKENS).logits, rtol=0, atol=1e-4)


def test_from_pretrained_ignores_the_buffers_of_old_files(random_gpt2, tmp_path: Path) -> None:
    reference = random_gpt2(*GEOMETRIES[0])
    path = saved_as(tmp_path, reference, prefix="") / "model.safetensors"
    save(load_file(path) | {"h.0.attn.bias": torch.ones(1, 1, 23, 23).tril()}, path)  # as in openai-community/gpt2
    with torch.inference_mode():
        ours = GPT.from_pretrained(str(tmp_path)).eval()(TOKENS)
        torch.testing.assert_close(ours, reference(TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", None, "cannot be read"),
        ("config.json", b"{", "cannot be read"),
        ("config.json", b"{}", "vocab_size"),
        ("config.json", b"[]", "holds a list; expected an object"),
        ("model.safetensors", None, "no weights in this folder"),
        ("model.safetensors", b"short", "damaged, cut short"),
    ],
)
def test_from_pretrained_names_a_damaged_folder(
    random_gpt2, tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    saved_as(tmp_path, random_gpt2(*GEOMETRIES[0]))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name}.*{reason}"):
        GPT.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "llama"}, "config.json: model_type is 'llama'; expected 'gpt2'"),
        ({"n_layer": 2}, r"h.1.ln_1.weight is missing; expected shape \(36,\)"),
        ({"vocab_size": 60}, r"wte.weight is of shape \(59, 36\); expected shape \(60, 36\)"),
    ],
)
def test_from_pretrained_names_tensors_that_do_not_fit_the_configuration(
    random_gpt2, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    facts = json.loads((saved_as(tmp_path, random_gpt2(*GEOMETRIES[0])) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(facts | change))
    with pytest.raises(CheckpointError, match=reason):
        GPT.from_pretrained(str(tmp_path))


def test_from_pretrained_refuses_a_hostile_pickle_without_running_it(random_gpt2, hostile, tmp_path: Path) -> None:
    saved_as(tmp_path, random_gpt2(*GEOMETRIES[0]), form=FORMS[1])
    torch.save(hostile(tmp_path / "was-run"), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        GPT.from_pretrained(str(tmp_path))
    assert not (tmp_path / "was-run").exists()


def config_of(geometry: tuple[int, int, int]) -> GPTConfig:
    n_embd, n_head, n_layer = geometry
    return GPTConfig(59, 23, n_layer, n_head, n_embd, layer_norm_epsilon=3e-4)
