"""Captioners of transformers, opened here: the same logits, the same captions."""

import json
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from myllm.checkpoints import hf_gpt2
from myllm.checkpoints import hf_vision_encoder_decoder as hf
from myllm.checkpoints.native import Checkpoint
from myllm.config import DecodeConfig
from myllm.data.tokenizer import train_tokenizer
from myllm.errors import CheckpointError, ConfigError
from myllm.inference.captioner import Captioner
from myllm.model.gpt import GPT

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SIDE = {"image_size": 32, "patch_size": 8}
DEEP = SIDE | {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 72}
ONE_BLOCK = SIDE | {"hidden_size": 40, "num_hidden_layers": 1, "num_attention_heads": 5, "intermediate_size": 80}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", DEEP),
    "vit of the decoder's width": ("ViT", ONE_BLOCK | {"layer_norm_eps": 1e-3}),
    "vit without biases": ("ViT", DEEP | {"qkv_bias": False}),
    "deit": ("DeiT", DEEP),
    "beit": ("Beit", DEEP | {"use_relative_position_bias": True}),
    "beit with shared and absolute places": (
        "Beit", ONE_BLOCK | {"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True}
    ),
    "beit with a last norm": ("Beit", DEEP | {"use_relative_position_bias": True, "use_mean_pooling": False}),
    "swin": ("Swin", {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 1, 2], "num_heads": [1, 2, 4],
                      "window_size": 4, "mlp_ratio": 2.0}),
    "swin without biases": ("Swin", {"image_size": 32, "patch_size": 4, "embed_dim": 10, "depths": [2, 2],
                                    "num_heads": [2, 5], "window_size": 4, "qkv_bias": False}),
}
Made = Callable[..., tuple[Any, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """made("vit", **of its decoder): a random captioner of transformers, and the folder that it wrote."""
    import transformers

    tokenizer = train_tokenizer(["a dog runs", "a cat sleeps on a red mat"], vocab_size=280)
    end = tokenizer.token_to_id("<|endoftext|>")

    def make(name: str, **decoder: Any) -> tuple[Any, Path]:
        family, geometry = ENCODERS[name]
        options = {"n_embd": 40, "n_head": 5, "n_layer": 2, "n_positions": 30, "vocab_size": 290} | decoder
        ids = {"bos_token_id": end, "eos_token_id": end}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**geometry))
            gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(add_cross_attention=True, **options, **ids))
            model = transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=gpt2).eval()
            for part, parameter in model.named_parameters():
                is_scale = ("norm" in part or "ln_" in part or "lambda" in part) and not part.endswith("bias")
                nn.init.normal_(parameter, mean=float(is_scale), std=0.2)
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = end
        model.generation_config.pad_token_id = end
        folder = tmp_path_factory.mktemp("theirs")
        model.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        return model, folder

    return make


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_logits_are_transformers(made: Made, name: str) -> None:
    theirs, folder = made(name)
    tokens = torch.randint(290, (3, 11), generator=torch.Generator().manual_seed(1))
    expected = theirs(pixel_values=IMAGES, decoder_input_ids=tokens).logits
    found = hf.from_folder(folder).model(IMAGES, tokens[:, None])[:, 0]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_the_exact_gelu_of_a_decoder_goes_there_and_back(made: Made, tmp_path: Path) -> None:
    theirs, folder = made("vit", activation_function="gelu", n_layer=4)
    tokens = torch.arange(33).view(3, 11)
    expected = theirs(pixel_values=IMAGES, decoder_input_ids=tokens).logits
    hf.to_folder(hf.from_folder(folder), tmp_path / "out")
    found = hf.from_folder(tmp_path / "out").model(IMAGES, tokens[:, None])[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["vit", "deit", "beit", "swin"])
@torch.inference_mode()
def test_captions_are_transformers(made: Made, name: str, beams: int) -> None:
    theirs, folder = made(name)
    captioner = Captioner(hf.from_folder(folder), torch.device("cpu"))
    found = captioner.caption_tensors(IMAGES, captioner.decode_options(beams=beams, max_new_tokens=20))
    rows = theirs.generate(IMAGES, num_beams=beams, max_new_tokens=20, do_sample=False).tolist()
    end = theirs.generation_config.eos_token_id
    assert [one.tokens for one in found] == [[token for token in row if token != end] for row in rows]


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_what_is_exported_is_what_was_imported(made: Made, name: str, tmp_path: Path) -> None:
    """Without a warning, with the same logits, and tensor for tensor."""
    import transformers

    theirs, folder = made(name)
    hf.to_folder(hf.from_folder(folder), tmp_path / "out")
    again, loading = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(290, (3, 11), generator=torch.Generator().manual_seed(1))
    expected, found = (model.eval()(pixel_values=IMAGES, decoder_input_ids=tokens).logits for model in (theirs, again))
    assert torch.equal(found, expected)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[part], after[part]) for part in after if "pooler.dense" not in part)


@torch.inference_mode()
def test_the_exported_folder_captions_in_transformers_as_here(made: Made, tmp_path: Path) -> None:
    """With its own tokenizer, image processor and generation defaults, from a picture to a sentence."""
    import numpy as np
    import transformers
    from PIL import Image

    _, folder = made("vit")
    checkpoint = hf.from_folder(folder)
    captioner = Captioner(checkpoint, torch.device("cpu"))
    checkpoint = replace(checkpoint, decode=captioner.decode_options(beams=3, max_new_tokens=12))
    captioner.decode = checkpoint.decode
    hf.to_folder(checkpoint, tmp_path / "out")
    model = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path / "out").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    # of the model's own size, so that two ways to resize have nothing to differ in
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = processor(picture, return_tensors="pt").pixel_values
    torch.testing.assert_close(captioner.preprocess(picture), pixels[0], rtol=0, atol=1e-5)
    told = tokenizer.decode(model.generate(pixels)[0], skip_special_tokens=True).strip()
    assert captioner.caption(picture).text == told


@pytest.mark.parametrize("form", ["shards", "bin", "bin shards"])
@torch.inference_mode()
def test_weights_are_read_in_every_form(made: Made, tmp_path: Path, form: str) -> None:
    _, folder = made("vit")
    tensors = load_file(folder / "model.safetensors")
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in/model.safetensors").unlink()
    kind, save = ("model", save_file) if form == "shards" else ("pytorch_model", torch.save)
    suffix = "safetensors" if form == "shards" else "bin"
    if form == "bin":
        torch.save(tensors, tmp_path / "in/pytorch_model.bin")
    else:
        names = sorted(tensors)
        halves = {f"{kind}-0000{at + 1}-of-00002.{suffix}": names[at::2] for at in range(2)}
        for file, own in halves.items():
            save({name: tensors[name] for name in own}, tmp_path / "in" / file)  # type: ignore[operator]
        places = {name: file for file, own in halves.items() for name in own}
        (tmp_path / f"in/{kind}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    expected, found = hf.from_folder(folder).model.state_dict(), hf.from_folder(tmp_path / "in").model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@torch.inference_mode()
def test_what_older_versions_kept_beside_the_weights_is_left_out(made: Made, tmp_path: Path) -> None:
    """Causal masks in every block, the head a second time, and no word of what is pooled."""
    _, folder = made("vit")
    tensors = {name: value for name, value in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    for layer, part in ((layer, part) for layer in range(2) for part in ("attn", "crossattention")):
        mask = torch.ones(30, 30, dtype=torch.uint8).tril()[None, None]
        tensors |= {f"decoder.transformer.h.{layer}.{part}.bias": mask}
        tensors |= {f"decoder.transformer.h.{layer}.{part}.masked_bias": torch.tensor(-1e4)}
    tensors["decoder.lm_head.weight"] = tensors["decoder.transformer.wte.weight"].clone()
    shutil.copytree(folder, tmp_path / "in")
    save_file(tensors, tmp_path / "in/model.safetensors")
    expected, found = hf.from_folder(folder).model.state_dict(), hf.from_folder(tmp_path / "in").model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    tensors["decoder.lm_head.weight"] = tensors["decoder.lm_head.weight"] + 1
    save_file(tensors, tmp_path / "in/model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from decoder.transformer.wte.weight"):
        hf.from_folder(tmp_path / "in")


def broken(folder: Path, out: Path, **changes: Any) -> Path:
    """A copy in which config.json says otherwise: broken(..., **{"encoder.model_type": "clip"})."""
    shutil.copytree(folder, out)
    facts = json.loads((out / "config.json").read_text(encoding="utf-8"))
    for name, value in changes.items():
        part, _, key = name.rpartition(".")
        (facts[part] if part else facts)[key] = value
    (out / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    return out


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("model_type", "blip", "model_type is 'blip'; expected 'vision-encoder-decoder'"),
        ("encoder.model_type", "clip_vision_model", "supported are vit, deit, beit, swin"),
        ("encoder.hidden_act", "relu", "encoder.hidden_act is 'relu'; supported is 'gelu'"),
        ("encoder.image_size", [32, 64], r"image_size is \[32, 64\]; only squares"),
        ("encoder.hidden_size", 48, r"its configuration declares \(1, 1, 48\)"),
        ("decoder.model_type", "bert", "model_type is 'bert'; expected 'gpt2'"),
        ("decoder.activation_function", "relu", "activation_function is 'relu'"),
        ("decoder.n_inner", 7, "n_inner is 7"),
        ("decoder.n_layer", 3, "its weights lack the tensor decoder.transformer.h.2"),
        ("decoder.cross_attention_hidden_size", 9, "cross_attention_hidden_size is set"),
        ("decoder.vocab_size", 100, r"its configuration declares \(100, 40\)"),
        ("decoder", None, "expected 'vision-encoder-decoder'"),
    ],
)
def test_what_cannot_be_computed_here_is_named(made: Made, tmp_path: Path, name: str, value: Any, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        hf.from_folder(broken(made("vit")[1], tmp_path / "in", **{name: value}))


def test_a_shard_that_is_missing_or_elsewhere_is_refused(made: Made, tmp_path: Path) -> None:
    folder = broken(made("vit")[1], tmp_path / "in")
    (folder / "model.safetensors").unlink()
    for place, told in (("gone.safetensors", "shard gone.safetensors is missing"), ("../x.safetensors", "refused")):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
        with pytest.raises(CheckpointError, match=told):
            hf.from_folder(folder)


def test_layerwise_is_not_said_in_this_form(tiny_checkpoint: Checkpoint, tiny_model: Any, tmp_path: Path) -> None:
    layerwise = replace(tiny_checkpoint, model=tiny_model(mode="layerwise"))
    with pytest.raises(ConfigError, match="mode layerwise"):
        hf.to_folder(layerwise, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_stays(made: Made, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        hf.to_folder(hf.from_folder(made("vit")[1]), tmp_path / "out")


@torch.inference_mode()
def test_the_language_alone_is_a_gpt2_of_transformers(made: Made, tmp_path: Path) -> None:
    import transformers

    checkpoint = hf.from_folder(made("vit")[1])
    hf_gpt2.to_folder(checkpoint, tmp_path / "gpt2")
    theirs, loading = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2", output_loading_info=True)
    assert not any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, tokens = GPT.from_pretrained(str(tmp_path / "gpt2")).eval(), torch.arange(22).view(2, 11)
    torch.testing.assert_close(ours(tokens), theirs.eval()(tokens).logits, rtol=0, atol=1e-4)
    again = {name: value for name, value in checkpoint.model.decoder.state_dict().items() if name in ours.state_dict()}
    assert all(torch.equal(value, again[name]) for name, value in ours.state_dict().items())


HALF, IMAGENET = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, {"image_mean": [0.485, 0.456, 0.406],
                                                                   "image_std": [0.229, 0.224, 0.225]}
PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2, **HALF},
    "vit-gpt2's, of its time": {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 2, **HALF},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": {"height": 36, "width": 36}, "resample": 3,
             "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, **IMAGENET},
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36}, "resample": 3,
             "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, **IMAGENET},
    "swin's, not normalised": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32},
                               "resample": 3, "do_normalize": False, **IMAGENET},
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(57, 91), (128, 64), (32, 32)])
def test_pictures_become_what_their_processor_makes_of_them(
    made: Made, tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    import numpy as np
    import transformers
    from PIL import Image

    folder = broken(made("vit")[1], tmp_path / "in")
    facts = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts | PROCESSORS[name]), encoding="utf-8")
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = [120 + 60 * np.sin(rows / 7) + 60 * np.cos(columns / step) for step in (5, 9, 13)]
    picture = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    expected = transformers.ViTImageProcessor.from_pretrained(folder) if "vit" in name else (
        transformers.AutoImageProcessor.from_pretrained(folder)
    )
    pixels = expected(picture, return_tensors="pt").pixel_values[0]
    found = Captioner(hf.from_folder(folder), torch.device("cpu")).preprocess(picture)
    # transformers resizes tensors, we pictures: they round at other places; it also cuts an odd margin the other way
    assert (found - pixels).abs().mean() < 0.02 * pixels.std()
    assert (found - pixels).abs().max() < 0.1 * pixels.std()


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"size": {"height": 30, "width": 30}}, "gives 30 pixels a side; the encoder takes 32"),
        ({"size": {"height": 32, "width": 48}}, "only squares"),
        ({"size": 32, "rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"size": 32, "resample": 7}, "resample"),
        ({"size": 32, "image_mean": None}, "no image processor that is known here"),
    ],
)
def test_a_processor_that_is_not_known_here_is_named(
    made: Made, tmp_path: Path, facts: dict[str, Any], told: str
) -> None:
    folder = broken(made("vit")[1], tmp_path / "in")
    (folder / "preprocessor_config.json").write_text(json.dumps(HALF | facts), encoding="utf-8")
    with pytest.raises(CheckpointError, match=told):
        hf.from_folder(folder)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"num_beams": 4, "max_length": 17, "min_length": 5}, {"beams": 4, "max_new_tokens": 16, "min_new_tokens": 4}),
        ({"max_length": 17, "max_new_tokens": 9}, {"max_new_tokens": 9}),
        ({"max_new_tokens": 500}, {"max_new_tokens": 30}),  # the context
        ({"num_beams": 3, "length_penalty": 0.5, "early_stopping": True, "no_repeat_ngram_size": 2},
         {"beams": 3, "length_penalty": 0.5, "early_stopping": True, "no_repeat_ngram_size": 2}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
         {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2}),
        ({"temperature": 0.7, "top_k": 50, "num_beams": 1, "min_length": 0}, {}),  # without sampling they say nothing
    ],
)
def test_defaults_of_generation_come_along(
    made: Made, tmp_path: Path, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    folder = broken(made("vit")[1], tmp_path / "in")
    place = folder / "generation_config.json"
    ids = {name: json.loads(place.read_text(encoding="utf-8"))[name] for name in ("bos_token_id", "eos_token_id")}
    place.write_text(json.dumps(ids | given), encoding="utf-8")
    assert hf.from_folder(folder).decode == DecodeConfig(**expected)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"eos_token_id": 7}, "eos_token_id is 7; supported is"),
        ({"decoder_start_token_id": 2}, "decoder_start_token_id is 2; supported is"),
        ({"num_beams": -3}, "beams"),
        ({"num_beams": "many"}, "beams"),
        ({"early_stopping": "perhaps"}, "early_stopping"),
    ],
)
def test_defaults_that_cannot_be_kept_are_named(made: Made, tmp_path: Path, given: dict[str, Any], told: str) -> None:
    folder = broken(made("vit")[1], tmp_path / "in")
    (folder / "generation_config.json").write_text(json.dumps(given), encoding="utf-8")
    with pytest.raises(CheckpointError, match=told):
        hf.from_folder(folder)


ODD = [None, -1, 0, 10**9, float("nan"), "x", []]


@pytest.mark.parametrize("name", ["vit", "beit", "swin"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_no_value_in_a_configuration_brings_more_than_a_message(
    made: Made, tmp_path: Path, name: str, part: str
) -> None:
    _, folder = made(name)
    shutil.copytree(folder, tmp_path / "in")
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    refused, before = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for key, odd in ((key, odd) for key in facts[part] for odd in ODD):
        changed = facts | {part: facts[part] | {key: odd}}
        (tmp_path / "in/config.json").write_text(json.dumps(changed), encoding="utf-8")
        began = time.monotonic()
        try:
            hf.from_folder(tmp_path / "in")
        except CheckpointError as error:
            assert str(tmp_path / "in") in str(error)
            refused += 1
        assert time.monotonic() - began < 5
    assert refused > 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # KB
