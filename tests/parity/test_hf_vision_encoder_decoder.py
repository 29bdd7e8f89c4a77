"""Captioners of transformers give the same logits, tokens and pixels here, and back in transformers."""

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
from tokenizers import Tokenizer
from torch import nn

from myllm.checkpoints import hf_encoders, hf_generation, hf_gpt2, hf_image_processors
from myllm.checkpoints import hf_vision_encoder_decoder as hf
from myllm.checkpoints.native import Checkpoint
from myllm.config import DecodeConfig, VisionConfig
from myllm.data.tokenizer import train_tokenizer
from myllm.errors import CheckpointError, ConfigError
from myllm.inference.captioner import Captioner
from myllm.model.gpt import GPT
from myllm.model.vision import ImageEncoder

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
    "beit with shared and absolute positions": (
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
    """made("vit", **options of its decoder): a random captioner of transformers, and the folder that it wrote."""
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
        folder = tmp_path_factory.mktemp("transformers")
        model.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        return model, folder

    return make


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_imported_logits_equal_transformers(made: Made, name: str) -> None:
    original, folder = made(name)
    tokens = torch.randint(290, (3, 11), generator=torch.Generator().manual_seed(1))
    expected = original(pixel_values=IMAGES, decoder_input_ids=tokens).logits
    imported = hf.from_folder(folder).model(IMAGES, tokens[:, None])[:, 0]
    assert expected.std() > 0.1
    torch.testing.assert_close(imported, expected, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_exact_gelu_of_a_decoder_is_imported_and_exported(made: Made, tmp_path: Path) -> None:
    original, folder = made("vit", activation_function="gelu", n_layer=4)
    tokens = torch.arange(33).view(3, 11)
    expected = original(pixel_values=IMAGES, decoder_input_ids=tokens).logits
    hf.to_folder(hf.from_folder(folder), tmp_path / "out")
    imported = hf.from_folder(tmp_path / "out").model(IMAGES, tokens[:, None])[:, 0]
    torch.testing.assert_close(imported, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["vit", "deit", "beit", "swin"])
@torch.inference_mode()
def test_imported_captions_equal_transformers(made: Made, name: str, beams: int) -> None:
    original, folder = made(name)
    captioner = Captioner(hf.from_folder(folder), torch.device("cpu"))
    captions = captioner.caption_tensors(IMAGES, captioner.decode_options(beams=beams, max_new_tokens=20))
    rows = original.generate(IMAGES, num_beams=beams, max_new_tokens=20, do_sample=False).tolist()
    end = original.generation_config.eos_token_id
    assert [caption.tokens for caption in captions] == [[token for token in row if token != end] for row in rows]


@pytest.mark.parametrize("beams", [1, 3])
@torch.inference_mode()
def test_embedding_rows_without_a_token_are_chosen_as_in_transformers(made: Made, beams: int) -> None:
    original, folder = made("vit", vocab_size=600)
    captioner = Captioner(hf.from_folder(folder), torch.device("cpu"))
    captions = captioner.caption_tensors(IMAGES, captioner.decode_options(beams=beams, max_new_tokens=20))
    rows = original.generate(IMAGES, num_beams=beams, max_new_tokens=20, do_sample=False).tolist()
    end = original.generation_config.eos_token_id
    assert [caption.tokens for caption in captions] == [[token for token in row if token != end] for row in rows]
    assert any(token >= captioner.tokenizer.get_vocab_size() for row in rows for token in row)


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_exported_folder_equals_the_imported_one(made: Made, name: str, tmp_path: Path) -> None:
    """transformers loads it without a warning, with the same logits, and all tensors are equal."""
    import transformers

    original, folder = made(name)
    hf.to_folder(hf.from_folder(folder), tmp_path / "out")
    again, loading = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(290, (3, 11), generator=torch.Generator().manual_seed(1))
    expected, logits = (
        model.eval()(pixel_values=IMAGES, decoder_input_ids=tokens).logits for model in (original, again)
    )
    assert torch.equal(logits, expected)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[part], after[part]) for part in after if "pooler.dense" not in part)


@torch.inference_mode()
def test_exported_folder_captions_in_transformers_as_here(made: Made, tmp_path: Path) -> None:
    """From a picture to a sentence, with the exported tokenizer, image processor and generation defaults."""
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
    # of the model's own size, so that two ways to resize cannot differ
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = processor(picture, return_tensors="pt").pixel_values
    torch.testing.assert_close(captioner.preprocess(picture), pixels[0], rtol=0, atol=1e-5)
    expected = tokenizer.decode(model.generate(pixels)[0], skip_special_tokens=True).strip()
    assert captioner.caption(picture).text == expected


@pytest.mark.parametrize("layout", ["shards", "bin", "bin shards"])
@torch.inference_mode()
def test_weights_are_read_from_bin_files_and_shards(made: Made, tmp_path: Path, layout: str) -> None:
    _, folder = made("vit")
    tensors = load_file(folder / "model.safetensors")
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in/model.safetensors").unlink()
    kind, save = ("model", save_file) if layout == "shards" else ("pytorch_model", torch.save)
    suffix = "safetensors" if layout == "shards" else "bin"
    if layout == "bin":
        torch.save(tensors, tmp_path / "in/pytorch_model.bin")
    else:
        names = sorted(tensors)
        halves = {f"{kind}-0000{half + 1}-of-00002.{suffix}": names[half::2] for half in range(2)}
        for file, names in halves.items():
            save({name: tensors[name] for name in names}, tmp_path / "in" / file)  # type: ignore[operator]
        file_of = {name: file for file, names in halves.items() for name in names}
        (tmp_path / f"in/{kind}.{suffix}.index.json").write_text(json.dumps({"weight_map": file_of}), encoding="utf-8")
    expected, imported = hf.from_folder(folder).model.state_dict(), hf.from_folder(tmp_path / "in").model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in imported.items())


@torch.inference_mode()
def test_extra_tensors_of_older_versions_are_ignored(made: Made, tmp_path: Path) -> None:
    """Causal masks in every block, the head a second time, and no pooler."""
    _, folder = made("vit")
    tensors = {name: value for name, value in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    for layer, part in ((layer, part) for layer in range(2) for part in ("attn", "crossattention")):
        mask = torch.ones(30, 30, dtype=torch.uint8).tril()[None, None]
        tensors |= {f"decoder.transformer.h.{layer}.{part}.bias": mask}
        tensors |= {f"decoder.transformer.h.{layer}.{part}.masked_bias": torch.tensor(-1e4)}
    tensors["decoder.lm_head.weight"] = tensors["decoder.transformer.wte.weight"].clone()
    shutil.copytree(folder, tmp_path / "in")
    save_file(tensors, tmp_path / "in/model.safetensors")
    expected, imported = hf.from_folder(folder).model.state_dict(), hf.from_folder(tmp_path / "in").model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in imported.items())
    tensors["decoder.lm_head.weight"] = tensors["decoder.lm_head.weight"] + 1
    save_file(tensors, tmp_path / "in/model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from decoder.transformer.wte.weight"):
        hf.from_folder(tmp_path / "in")


def edited(folder: Path, out: Path, **changes: Any) -> Path:
    """Return a copy with changes in config.json: edited(..., **{"encoder.model_type": "clip"})."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    for name, value in changes.items():
        part, _, key = name.rpartition(".")
        (config[part] if part else config)[key] = value
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return out


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model_type", "blip", "model_type is 'blip'; expected 'vision-encoder-decoder'"),
        ("encoder.model_type", "clip_vision_model", "supported are vit, deit, beit, swin"),
        ("encoder.hidden_act", "relu", "encoder.hidden_act is 'relu'; supported is 'gelu'"),
        ("encoder.image_size", [32, 64], r"image_size is \[32, 64\]; only squares"),
        ("encoder.hidden_size", 24.0, "encoder.hidden_size is 24.0; expected a whole number"),
        ("decoder.n_head", 5.0, "text.n_head is 5.0; expected a whole number"),
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
def test_unsupported_configuration_is_refused_by_name(
    made: Made, tmp_path: Path, name: str, value: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        hf.from_folder(edited(made("vit")[1], tmp_path / "in", **{name: value}))


def test_shard_that_is_missing_or_elsewhere_is_refused(made: Made, tmp_path: Path) -> None:
    folder = edited(made("vit")[1], tmp_path / "in")
    (folder / "model.safetensors").unlink()
    for shard, message in (("gone.safetensors", "shard gone.safetensors is missing"), ("../x.safetensors", "refused")):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(CheckpointError, match=message):
            hf.from_folder(folder)


def test_layerwise_cannot_be_exported(tiny_checkpoint: Checkpoint, tiny_model: Any, tmp_path: Path) -> None:
    layerwise = replace(tiny_checkpoint, model=tiny_model(mode="layerwise"))
    with pytest.raises(ConfigError, match="mode layerwise"):
        hf.to_folder(layerwise, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "geometry"),
    [
        ("vit_base_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
        ("vit_base_patch16_224", {"pos_embed": "none"}),
        ("vit_base_patch16_224", {"no_embed_class": True}),
        ("vit_base_patch16_224", {"proj_bias": False}),
        ("vit_base_patch16_224", {"final_norm": False}),
        ("vit_base_patch16_224", {"init_values": 0.1}),
        ("beit_base_patch16_224", {"qkv_bias": False}),
    ],
)
def test_encoder_with_other_tensors_than_transformers_cannot_be_exported(name: str, geometry: dict[str, Any]) -> None:
    geometry = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8} | geometry
    encoder = ImageEncoder(VisionConfig(name, pretrained=False, image_size=32, geometry=geometry))
    with pytest.raises(ConfigError, match=rf"{name} cannot be exported .*: its tensor \S+ is not in a plain"):
        hf_encoders.from_timm(encoder, name)


@pytest.mark.parametrize(("attribute", "value", "option"), [
    ("mirrored", True, "mirrored"), ("finer", {3: 48}, "feature_maps 1"),
])
def test_an_encoder_that_reads_more_than_the_last_feature_map_cannot_be_exported(
    made: Made, attribute: str, value: Any, option: str, tmp_path: Path
) -> None:
    checkpoint = hf.from_folder(made("vit")[1])
    setattr(checkpoint.model.encoder, attribute, value)
    with pytest.raises(ConfigError, match=rf"vision\.{option}: .*export to safetensors"):
        hf.to_folder(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_with_a_border_cannot_be_exported(made: Made, tmp_path: Path) -> None:
    checkpoint = hf.from_folder(made("vit")[1])
    padded = replace(checkpoint, preprocess=replace(checkpoint.preprocess, crop_mode="border"))
    with pytest.raises(ConfigError, match="preprocess.crop_mode border"):
        hf.to_folder(padded, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_to_folder_refuses_an_existing_folder(made: Made, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        hf.to_folder(hf.from_folder(made("vit")[1]), tmp_path / "out")


@torch.inference_mode()
def test_exported_decoder_is_a_gpt2_of_transformers(made: Made, tmp_path: Path) -> None:
    import transformers

    checkpoint = hf.from_folder(made("vit")[1])
    hf_gpt2.to_folder(checkpoint, tmp_path / "gpt2")
    original, loading = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2", output_loading_info=True)
    assert not any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, tokens = GPT.from_pretrained(str(tmp_path / "gpt2")).eval(), torch.arange(22).view(2, 11)
    torch.testing.assert_close(ours(tokens), original.eval()(tokens).logits, rtol=0, atol=1e-4)
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
def test_preprocessing_equals_the_image_processor(
    made: Made, tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    import numpy as np
    import transformers
    from PIL import Image

    folder = edited(made("vit")[1], tmp_path / "in")
    common = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(common | PROCESSORS[name]), encoding="utf-8")
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = [120 + 60 * np.sin(rows / 7) + 60 * np.cos(columns / step) for step in (5, 9, 13)]
    picture = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    expected = transformers.ViTImageProcessor.from_pretrained(folder) if "vit" in name else (
        transformers.AutoImageProcessor.from_pretrained(folder)
    )
    pixels = expected(picture, return_tensors="pt").pixel_values[0]
    imported = Captioner(hf.from_folder(folder), torch.device("cpu")).preprocess(picture)
    # transformers resizes tensors, we pictures: they round at other places; it also cuts an odd margin the other way
    assert (imported - pixels).abs().mean() < 0.02 * pixels.std()
    assert (imported - pixels).abs().max() < 0.1 * pixels.std()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_processor_type": "ViTImageProcessor"},
        {"image_processor_type": "ViTImageProcessor", "crop_size": 17, "do_normalize": False},
        {"image_processor_type": "BeitImageProcessor", "do_rescale": False, "image_mean": [100.0, 110.0, 120.0]},
        {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "do_normalize": False},
        {"image_processor_type": "DeiTImageProcessor", "rescale_factor": 1 / 127.5, "crop_size": 32},
        {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32},
        {"image_processor_type": "BlipImageProcessor"},
        {"image_processor_type": "SiglipImageProcessor"},
    ],
)
def test_image_processor_defaults_and_scales_are_those_of_transformers(
    made: Made, tmp_path: Path, options: dict[str, Any]
) -> None:
    """For a picture of the encoder's size, so that two ways to resize cannot differ; only a 32 x 32 size is added."""
    import numpy as np
    import transformers
    from PIL import Image

    size = {} if "size" in options else {"size": {"height": 32, "width": 32}}
    folder = edited(made("vit")[1], tmp_path / "in")
    (folder / "preprocessor_config.json").write_text(json.dumps(options | size), encoding="utf-8")
    kind = options.get("image_processor_type", "ViTImageProcessor")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    expected = getattr(transformers, kind).from_pretrained(folder)(picture, return_tensors="pt").pixel_values[0]
    pixels = Captioner(hf.from_folder(folder), torch.device("cpu")).preprocess(picture)
    torch.testing.assert_close(pixels, expected.float(), rtol=1e-4, atol=1e-5)


def test_image_processor_defaults_are_those_of_transformers() -> None:
    import transformers

    for kind, values in hf_image_processors.PROCESSORS.items():
        defaults = getattr(transformers, f"{kind}ImageProcessor")().to_dict()
        for name, value in defaults.items():
            if name in values:
                assert values[name] == (list(value) if isinstance(value, tuple) else value), (kind, name)


def test_encoder_defaults_are_those_of_transformers() -> None:
    import transformers

    names = {"vit": "ViT", "deit": "DeiT", "beit": "Beit", "swin": "Swin"}
    for family, values in hf_encoders.DEFAULTS.items():
        defaults = getattr(transformers, f"{names[family]}Config")().to_dict()
        assert values == {name: defaults[name] for name in values}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"height": 30, "width": 30}}, "gives 30 pixels a side; the encoder takes 32"),
        ({"size": {"height": 32, "width": 48}}, "only squares"),
        ({"size": -5}, "gives -5 pixels a side"),
        ({"size": "32"}, "size is '32'; only squares"),
        ({"size": {"longest_edge": 32}}, "size is .*longest_edge"),
        ({"size": 0, "do_center_crop": True, "crop_size": 32}, "division"),
        ({"size": 20_000, "do_center_crop": True, "crop_size": 32}, "preprocess.crop_pct is 0.0016"),
        ({"size": 32, "resample": 7}, "resample"),
        ({"size": 32, "image_mean": None}, "preprocess.mean is None; expected a list of 3, each a number"),
        ({"size": 32, "image_mean": ["a"]}, r"preprocess.mean is \('a',\); expected a list of 3, each a number"),
        ({"size": 32, "image_std": [0.5, 0.5, 0.0]}, "preprocess.std is .*; it must be above 0"),
        ({"size": 32, "do_resize": False, "do_center_crop": True}, "do_resize is false and do_center_crop is true"),
        ({"size": 32, "do_pad": True, "pad_size": {"height": 40, "width": 40}}, "do_pad is true; supported is false"),
        ({"size": 32, "image_processor_type": "ConvNextImageProcessor"}, "image_processor_type is ConvNext"),
    ],
)
def test_unsupported_image_processor_is_refused_by_name(
    made: Made, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = edited(made("vit")[1], tmp_path / "in")
    (folder / "preprocessor_config.json").write_text(json.dumps(HALF | options), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json: .*{message}"):
        hf.from_folder(folder)


def test_do_resize_false_is_noted(made: Made, tmp_path: Path) -> None:
    folder = edited(made("vit")[1], tmp_path / "in")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 224, "do_resize": False}), encoding="utf-8")
    [note] = hf.from_folder(folder).provenance["notes"]
    assert "do_resize is false: transformers refuses pictures of other sizes" in note


def with_generation(folder: Path, out: Path, generation: dict[str, Any] | None, **config: Any) -> Path:
    """Return a copy with another generation_config.json (None: without it; END stands for the end token's id)."""
    edited(folder, out, **config)
    path = out / "generation_config.json"
    end = json.loads(path.read_text(encoding="utf-8"))["eos_token_id"]
    path.unlink()
    if generation is not None:
        values = {name: end if value == END else value for name, value in generation.items()}
        path.write_text(json.dumps(values), encoding="utf-8")
    return out


END = "the end token"
IDS = {"decoder_start_token_id": END, "eos_token_id": END}


@pytest.mark.parametrize(
    ("generation", "config"),
    [
        (IDS, {}),  # no length: 20 tokens
        (None, {}),
        (IDS, {"num_beams": 3, "max_length": 7}),  # ignored, as there is a generation_config.json
        (None, {"num_beams": 3, "max_length": 7}),
        (None, {"decoder.num_beams": 3, "decoder.max_length": 9}),
        (None, {"num_beams": 1, "decoder.num_beams": 3, "max_length": 12}),
        (IDS | {"num_beams": 4, "max_length": 17, "min_length": 5}, {}),
        (IDS | {"max_length": 17, "max_new_tokens": 9}, {}),
        (IDS | {"max_new_tokens": 12, "min_new_tokens": 12, "repetition_penalty": 1.7}, {}),
        (IDS | {"min_length": 28, "max_length": 9}, {}),
        (IDS | {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True, "no_repeat_ngram_size": 2}, {}),
        (IDS | {"temperature": 0.7, "top_k": 50, "typical_p": 0.5, "num_beams": 1, "min_length": 0}, {}),
        (IDS | {"num_beams": 3, "num_return_sequences": 2, "encoder_repetition_penalty": 2.0}, {}),
        (IDS | {"num_beams": 3, "diversity_penalty": 0.5}, {}),
        ({"bos_token_id": END, "eos_token_id": END}, {}),
        ({"decoder_start_token_id": END, "eos_token_id": [END], "bos_token_id": 5}, {}),
    ],
)
@torch.inference_mode()
def test_generation_config_gives_the_tokens_of_transformers(
    made: Made, tmp_path: Path, generation: dict[str, Any] | None, config: dict[str, Any]
) -> None:
    import transformers

    _, folder = made("vit")
    if generation is not None and generation["eos_token_id"] == [END]:
        end = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
        generation = generation | {"eos_token_id": [end]}
    folder = with_generation(folder, tmp_path / "in", generation, **config)
    model = transformers.VisionEncoderDecoderModel.from_pretrained(folder).eval()
    captioner = Captioner(hf.from_folder(folder), torch.device("cpu"))
    captions = captioner.caption_tensors(IMAGES, captioner.decode)
    rows = model.generate(IMAGES).view(len(IMAGES), -1, model.generate(IMAGES).shape[-1])[:, 0].tolist()
    end = captioner.tokenizer.token_to_id("<|endoftext|>")
    assert [caption.tokens for caption in captions] == [[token for token in row if token != end] for row in rows]
    assert max(len(row) for row in rows) > 5


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"do_sample": True}, {"do_sample": True, "top_k": 50, "max_new_tokens": 20}),
        ({"do_sample": True, "top_k": 0, "max_length": 5}, {"do_sample": True, "max_new_tokens": 4}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8},
         {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8,
          "max_new_tokens": 20}),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "stop_strings": ["."]},
         {"beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "stop_strings": (".",), "max_new_tokens": 20}),
        ({"stop_strings": "."}, {"stop_strings": (".",), "max_new_tokens": 20}),
        ({"num_return_sequences": 1, "max_new_tokens": 500}, {"max_new_tokens": 30}),  # the context
    ],
)
def test_generation_options_are_taken_under_our_names(
    made: Made, tmp_path: Path, generation: dict[str, Any], expected: dict[str, Any]
) -> None:
    folder = with_generation(made("vit")[1], tmp_path / "in", IDS | generation)
    checkpoint = hf.from_folder(folder)
    assert checkpoint.decode == DecodeConfig(**expected) and "notes" not in checkpoint.provenance


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"eos_token_id": 7}, "eos_token_id is 7; supported is"),
        ({"decoder_start_token_id": 2}, "decoder_start_token_id is 2; supported is"),
        ({"decoder_start_token_id": None, "bos_token_id": 5}, "bos_token_id is 5; supported is"),
        ({"num_beams": -3}, "beams"),
        ({"num_beams": "many"}, "decode.beams is 'many'; expected a whole number"),
        ({"num_beams": 2.0}, "decode.beams is 2.0; expected a whole number"),
        ({"early_stopping": "perhaps"}, "early_stopping"),
        ({"suppress_tokens": [5]}, r"suppress_tokens is \[5\], which is not supported; remove it"),
        ({"begin_suppress_tokens": [5]}, "begin_suppress_tokens"),
        ({"forced_bos_token_id": 0}, "forced_bos_token_id is 0"),
        ({"forced_eos_token_id": 3}, "forced_eos_token_id"),
        ({"bad_words_ids": [[3]]}, "bad_words_ids"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"do_sample": True, "eta_cutoff": 0.1}, "eta_cutoff"),
    ],
)
def test_generation_options_that_change_the_tokens_are_refused_by_name(
    made: Made, tmp_path: Path, generation: dict[str, Any], message: str
) -> None:
    folder = with_generation(made("vit")[1], tmp_path / "in", IDS | generation)
    with pytest.raises(CheckpointError, match=f"generation_config.json: .*{message}"):
        hf.from_folder(folder)


@pytest.mark.parametrize(
    ("generation", "note"),
    [
        (IDS | {"do_sample": True, "num_beams": 4, "top_k": 5}, "do_sample with num_beams 4: beams are kept"),
        (IDS | {"colour": 3}, "generation options that myllm does not have were left out: colour"),
        (IDS | {"max_time": 0.5}, "generation options that myllm does not have were left out: max_time"),
        ({"decoder_start_token_id": END}, "has no eos_token_id"),
    ],
)
def test_generation_options_that_are_dropped_are_noted(
    made: Made, tmp_path: Path, generation: dict[str, Any], note: str
) -> None:
    checkpoint = hf.from_folder(with_generation(made("vit")[1], tmp_path / "in", generation))
    [text] = checkpoint.provenance["notes"]
    assert note in text and not checkpoint.decode.do_sample


def test_generation_options_without_effect_are_accepted(made: Made, tmp_path: Path) -> None:
    neutral = {"suppress_tokens": None, "bad_words_ids": [], "guidance_scale": 1.0, "penalty_alpha": 0.0,
               "renormalize_logits": False, "eta_cutoff": 0.3, "use_cache": False}
    checkpoint = hf.from_folder(with_generation(made("vit")[1], tmp_path / "in", IDS | neutral))
    assert "notes" not in checkpoint.provenance


def test_every_generation_option_of_transformers_is_known() -> None:
    import transformers

    # max_time is named in a warning: captions do not end by the clock
    assert set(transformers.GenerationConfig().to_dict()) - {"max_time"} <= hf_generation.KNOWN


def test_decoding_options_go_to_hugging_face_format_and_back(made: Made, tmp_path: Path) -> None:
    decode = DecodeConfig(
        beams=4, max_new_tokens=9, min_new_tokens=3, num_beam_groups=2, diversity_penalty=0.5, stop_strings=(".",),
        num_return_sequences=2, length_penalty=0.5, early_stopping="never",
    )
    sampled = DecodeConfig(do_sample=True, top_k=0, min_p=0.1, typical_p=0.9, temperature=0.5, max_new_tokens=9)
    for number, options in enumerate((decode, sampled)):
        hf.to_folder(replace(hf.from_folder(made("vit")[1]), decode=options), tmp_path / f"out{number}")
        assert hf.from_folder(tmp_path / f"out{number}").decode == options
        assert hf_generation.unsupported_options(options) == []


def test_decoding_options_that_transformers_lacks_are_named() -> None:
    lost = {"prefix": "a photo of", "bad_words": ("dog",), "only_words": ("a", "cat"), "regex": "a.*",
            "contrastive_weight": 0.5}
    messages = hf_generation.unsupported_options(DecodeConfig(**lost, min_new_tokens=2))  # type: ignore[arg-type]
    assert len(messages) == len(lost)
    for name, message in zip(lost, messages, strict=True):
        assert f"decode.{name} " in message and "cannot be kept in Hugging Face format" in message


@torch.inference_mode()
def test_untied_head_with_the_same_matrix_opens(made: Made, tmp_path: Path) -> None:
    original, folder = made("vit", tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="lm_head.weight differs from decoder.transformer.wte.weight"):
        hf.from_folder(folder)
    weights["decoder.lm_head.weight"] = weights["decoder.transformer.wte.weight"].clone()
    original.decoder.lm_head.weight.copy_(weights["decoder.transformer.wte.weight"])
    shutil.copytree(folder, tmp_path / "in")
    save_file(weights, tmp_path / "in/model.safetensors")
    tokens = torch.arange(33).view(3, 11)
    expected = original(pixel_values=IMAGES, decoder_input_ids=tokens).logits
    torch.testing.assert_close(hf.from_folder(tmp_path / "in").model(IMAGES, tokens[:, None])[:, 0], expected,
                               rtol=0, atol=1e-4)
    del weights["decoder.lm_head.weight"]
    save_file(weights, tmp_path / "in/model.safetensors")
    with pytest.raises(CheckpointError, match="tie_word_embeddings is false, but the weights lack decoder.lm_head"):
        hf.from_folder(tmp_path / "in")


@torch.inference_mode()
def test_fields_left_out_are_filled_as_in_transformers(made: Made, tmp_path: Path) -> None:
    _, folder = made("vit", n_layer=12, n_head=12, n_embd=24)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part, names in (("encoder", ("layer_norm_eps", "qkv_bias", "hidden_act")), ("decoder", ("n_layer", "n_head"))):
        for name in names:
            del config[part][name]
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in/config.json").write_text(json.dumps(config), encoding="utf-8")
    assert hf.from_folder(tmp_path / "in").model.config == hf.from_folder(folder).model.config


def test_added_tokens_are_read_as_by_transformers(made: Made, tmp_path: Path) -> None:
    import transformers

    folder = edited(made("vit")[1], tmp_path / "in")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    first = tokenizer.get_vocab_size()
    (folder / "added_tokens.json").write_text(json.dumps({"<two>": first + 1, "<one>": first}), encoding="utf-8")
    loaded = hf.from_folder(folder).tokenizer
    assert [loaded.token_to_id(token) for token in ("<one>", "<two>")] == [first, first + 1]
    ids = [5, first, 7, first + 1]
    original = transformers.GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    original.add_tokens(["<one>", "<two>"])
    assert loaded.decode(ids, skip_special_tokens=False) == original.decode(ids, clean_up_tokenization_spaces=False)
    (folder / "added_tokens.json").write_text(json.dumps({"<one>": first + 4}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"added_tokens.json: '<one>' is number {first + 4}; expected {first}"):
        hf.from_folder(folder)


ODD_VALUES = [None, -1, 0, 10**9, float("nan"), "x", []]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "name"), [("encoder", "vit"), ("encoder", "beit"), ("encoder", "swin"), ("decoder", "vit")]  # one GPT-2
)
def test_odd_configuration_values_are_opened_or_refused_quickly(
    made: Made, tmp_path: Path, part: str, name: str
) -> None:
    _, folder = made(name)
    shutil.copytree(folder, tmp_path / "in")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    refused, before = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # three values for each option, in turn
    cases = ((key, ODD_VALUES[(3 * i + j) % len(ODD_VALUES)]) for i, key in enumerate(config[part]) for j in range(3))
    for key, odd in cases:
        changed = config | {part: config[part] | {key: odd}}
        (tmp_path / "in/config.json").write_text(json.dumps(changed), encoding="utf-8")
        start = time.thread_time()
        try:
            hf.from_folder(tmp_path / "in")
        except CheckpointError as error:
            assert str(tmp_path / "in") in str(error)
            refused += 1
        assert time.thread_time() - start < 5
    assert refused > 12
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # KB
