"""Tiny random CLIPs, made here: what is tested is what is done with a CLIP, not what a CLIP knows."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from myllm.apps.cli import main
from myllm.errors import ConfigError, DataError
from myllm.evaluation.clipscore import clip_scores

CAPTIONS = ["a dog", "a cat and a dog on the grass", "two men", ""]
REFERENCES = [["a dog runs", "the dog"], ["a cat"], ["two men", "three men on a boat", "men"], ["a boat"]]
SIDE = 32


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(len(CAPTIONS))]
    generator = np.random.default_rng(0)
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP of transformers: a token a letter, one layer, random weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    config = transformers.CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(names), "max_position_embeddings": 40},
        vision_config={**tower, "image_size": SIDE, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[])
    half, crop = [0.5] * 3, {"height": SIDE, "width": SIDE}
    prepare = transformers.CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=crop, image_mean=half, image_std=half
    )
    transformers.CLIPProcessor(prepare, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_open_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as open_clip's `local-dir:` reads it; its tokenizer brings CLIP's own vocabulary."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("open_clip")
    model: dict[str, Any] = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    torch.save(open_clip.model.CLIP(**model).state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def expected(of_pictures: list[float], of_references: list[list[float]]) -> tuple[list[float], list[float]]:
    """CLIPScore and RefCLIPScore by the paper's two lines, from cosines."""
    scores = [2.5 * max(cosine, 0) for cosine in of_pictures]
    likenesses = [max(max(cosines), 0) for cosines in of_references]
    means = [2 / (1 / a + 1 / b) if a and b else 0 for a, b in zip(scores, likenesses, strict=True)]
    return scores, means


def test_a_clip_of_transformers_gives_the_papers_formula(tiny_clip: Path, pictures: list[Path]) -> None:
    found = clip_scores(f"transformers:{tiny_clip}", pictures, CAPTIONS, REFERENCES)

    import transformers

    model = transformers.CLIPModel.from_pretrained(tiny_clip)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_clip)
    of_pictures, of_references = [], []
    for path, caption, references in zip(pictures, CAPTIONS, REFERENCES, strict=True):
        # by hand: 32 x 32 needs no resizing, and each text stands alone
        pixels = torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        vectors = []
        for text in (caption, *references):
            tokens = torch.tensor([tokenizer.encode(f"A photo depicts {text}")[:40]])
            tokens[0, -1] = tokenizer.eos_token_id
            with torch.no_grad():
                output = model(input_ids=tokens, pixel_values=pixels)
            vectors.append(output.text_embeds[0])
        of_pictures.append(float(output.image_embeds[0] @ vectors[0]))
        of_references.append([float(vectors[0] @ vector) for vector in vectors[1:]])
    scores, means = expected(of_pictures, of_references)
    assert found["CLIPScore"].per_image == pytest.approx(scores, abs=1e-5)
    assert found["RefCLIPScore"].per_image == pytest.approx(means, abs=1e-5)
    assert found["CLIPScore"].corpus == pytest.approx(sum(scores) / len(scores), abs=1e-5)
    assert any(scores), "a test of zeros would prove nothing"


def test_a_clip_of_open_clip_gives_the_papers_formula(tiny_open_clip: Path, pictures: list[Path]) -> None:
    name = f"open_clip:local-dir:{tiny_open_clip}"
    found = clip_scores(name, pictures, CAPTIONS, REFERENCES)

    import open_clip

    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{tiny_open_clip}")
    model.eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=24)

    def unit(vector: torch.Tensor) -> torch.Tensor:
        return vector[0] / vector[0].norm()

    of_pictures, of_references = [], []
    with torch.no_grad():
        for path, caption, references in zip(pictures, CAPTIONS, REFERENCES, strict=True):
            texts = [unit(model.encode_text(tokenizer(f"A photo depicts {text}"))) for text in (caption, *references)]
            picture = unit(model.encode_image(prepare(Image.open(path))[None]))
            of_pictures.append(float(picture @ texts[0]))
            of_references.append([float(texts[0] @ text) for text in texts[1:]])
    scores, means = expected(of_pictures, of_references)
    assert found["CLIPScore"].per_image == pytest.approx(scores, abs=1e-5)
    assert found["RefCLIPScore"].per_image == pytest.approx(means, abs=1e-5)


def test_a_caption_equal_to_a_reference_has_the_greatest_similarity(tiny_clip: Path, pictures: list[Path]) -> None:
    found = clip_scores(f"transformers:{tiny_clip}", pictures, CAPTIONS, [[caption] for caption in CAPTIONS])
    score = found["CLIPScore"].per_image
    assert found["RefCLIPScore"].per_image == pytest.approx(2 * score / (score + 1), abs=1e-6)


def test_no_score_is_negative_and_batches_change_none(tiny_clip: Path, pictures: list[Path]) -> None:
    name, reports = f"transformers:{tiny_clip}", []
    many = clip_scores(name, pictures * 10, CAPTIONS * 10, REFERENCES * 10, progress=lambda *now: reports.append(now))
    few = clip_scores(name, pictures, CAPTIONS, REFERENCES)
    for figure in ("CLIPScore", "RefCLIPScore"):
        assert many[figure].per_image == pytest.approx(np.tile(few[figure].per_image, 10), abs=1e-6)
        assert (many[figure].per_image >= 0).all()
    assert reports == [("scoring with CLIP", 32, 40), ("scoring with CLIP", 40, 40)]


def test_long_captions_are_cut(tiny_clip: Path, pictures: list[Path]) -> None:
    found = clip_scores(f"transformers:{tiny_clip}", pictures[:1], ["a dog " * 50], [["a dog"]])
    assert np.isfinite(found["CLIPScore"].per_image).all()


@pytest.mark.parametrize("name", ["", "clip", "ViT-B-32", "transformers:", "keras:x", "open_clip"])
def test_load_clip_refuses_a_malformed_name_with_the_expected_form(name: str) -> None:
    with pytest.raises(ConfigError, match="expected transformers:FOLDER_OR_ID or open_clip:ARCHITECTURE/TAG_OR_FILE"):
        clip_scores(name, [], [], [])


def test_a_missing_library_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"open_clip.*-m pip install open_clip_torch"):
        clip_scores("open_clip:ViT-B-32/openai", [], [], [])


def test_missing_weights_are_an_error_with_the_fix(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(ConfigError, match="give a local folder or file, or run once with network access"):
        clip_scores(f"transformers:{tmp_path}/none", [], [], [])
    with pytest.raises(ConfigError, match="give a local folder or file"):
        clip_scores(f"open_clip:ViT-B-32/{tmp_path}/none.pt", [], [], [])
    with pytest.raises(ConfigError, match="weights are not named.*laion2b"):
        clip_scores("open_clip:ViT-B-32", [], [], [])


def test_a_folder_without_half_its_weights_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in tiny_clip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 weights are missing, such as text_projection.weight"):
        clip_scores(f"transformers:{tmp_path}", [], [], [])


def test_a_picture_that_cannot_be_read_is_named(tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone.jpg"):
        clip_scores(f"transformers:{tiny_clip}", [tmp_path / "gone.jpg"], ["a dog"], [["a dog"]])


def test_score_adds_clip_scores_if_a_clip_is_named(
    tiny_clip: Path, pictures: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = [{"image": path.name, "caption": caption} for path, caption in zip(pictures, CAPTIONS, strict=True)]
    rows = [f"{path.name}| 0| {caption}" for path, group in zip(pictures, REFERENCES, strict=True) for caption in group]
    (tmp_path / "said.json").write_text(json.dumps(said))
    (tmp_path / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *rows]))
    words = ["score", "--predictions", str(tmp_path / "said.json"), "--references", str(tmp_path / "results.csv")]
    clip = ["--clip", f"transformers:{tiny_clip}"]
    assert main([*words, *clip, "--pictures", str(pictures[0].parent), "--json", "--per-image"]) == 0
    held = json.loads(capfd.readouterr().out)
    expected = clip_scores(f"transformers:{tiny_clip}", pictures, CAPTIONS, REFERENCES)
    for name in ("CLIPScore", "RefCLIPScore"):
        assert held[name] == pytest.approx(expected[name].corpus) and name in held["intervals"]
        assert [row[name] for row in held["per_image"]] == pytest.approx(expected[name].per_image.tolist())
    assert held["protocol"]["clip"] == f"transformers:{tiny_clip}"
    assert main([*words, *clip]) == 2
    assert "give both --clip and --pictures, or neither" in capfd.readouterr().err
