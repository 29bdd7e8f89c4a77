from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from myllm.checkpoints import native
from myllm.checkpoints.original import find_kind, from_state
from myllm.data.tokenizer import train_tokenizer
from myllm.errors import CheckpointError
from myllm.inference.captioner import Captioner

BareState = Callable[..., dict[str, Tensor]]
PATH = Path("captioner/captioner.pt")
GPT2_TOKENIZER = Path(__file__).parents[4] / "shared/data/gpt2_tokenizer"
NAMES = {"seed": "the original script", "VisionGPT2": "VisionGPT2"}
CLIPCAP = ("gpt.transformer.wte.weight", "gpt.lm_head.weight", "clip_project.model.0.weight")
NANOVLM = ("vision_encoder.patch_embedding.conv.weight", "decoder.blocks.0.attn.q_proj.weight", "MP.proj.weight")


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A tokenizer.json of at most 290 tokens."""
    folder = tmp_path / "small-gpt2"
    folder.mkdir()
    train_tokenizer(["a small red ball", "two blue cubes on grass"] * 3, 290).save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(("script", "kind"), NAMES.items())
def test_find_kind_distinguishes_state_dicts_by_tensor_names(bare_state: BareState, script: str, kind: str) -> None:
    assert find_kind(bare_state(script)) == kind


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (CLIPCAP, "ClipCap"),
        (NANOVLM, "nanoVLM"),
        (("tok_emb.weight", "trf_blocks.0.att.W_query.weight", "out_head.weight"), None),
        (("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"), None),
        (("patch_embed.proj.weight", "blocks.0.norm1.weight"), None),
        (("encoder.embeddings.cls_token", "decoder.transformer.wte.weight"), None),
        ((), None),
    ],
)
def test_find_kind_does_not_take_other_models_for_the_original_script(names: Collection[str], kind: str | None) -> None:
    assert find_kind(names) == kind


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (CLIPCAP, "a model of ClipCap, .*own program.* the original script and VisionGPT2"),
        (NANOVLM, "a model of nanoVLM"),
        (("weight",), "no known captioner has a tensor weight; .* the original script and VisionGPT2"),
    ],
)
def test_other_models_state_dicts_are_refused_by_name(names: Collection[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"captioner.pt: {message}"):
        from_state({name: torch.ones(2) for name in names}, PATH)


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("seed", ["cls_token"], r"cls_token is missing \(1 of 85 tensors"),
        ("seed", ["blocks.1.attn.proj.bias"], r"blocks.1.attn.proj.bias is missing \(1 of"),
        ("seed", ["trf_blocks.0.attn.W_key.bias"], r"trf_blocks.0.attn.W_key.bias is missing \(1 of"),
        ("seed", ["tok_emb.weight", "out_head.weight"], r"tok_emb.weight is missing \(2 of"),
        ("seed", ["final_norm.shift", "trf_blocks.1.ln_3.scale", "pos_embed"], r"pos_embed is missing \(3 of"),
        ("VisionGPT2", ["transformer.h.1.attn.c_attn.bias"], r"transformer.h.1.attn.c_attn.bias is missing \(1 of"),
    ],
)
def test_state_dict_with_missing_tensors_names_the_first(
    bare_state: BareState, kind: str, names: list[str], message: str
) -> None:
    state = {name: value for name, value in bare_state(kind).items() if name not in names}
    with pytest.raises(CheckpointError, match=f"captioner.pt: {message}.*take another copy"):
        from_state(state, PATH)


@pytest.mark.parametrize("part", ["blocks.1.", "trf_blocks.1."])
def test_encoder_and_decoder_of_different_depth_are_refused(bare_state: BareState, part: str) -> None:
    state = {name: value for name, value in bare_state("seed").items() if not name.startswith(part)}
    with pytest.raises(CheckpointError, match=rf"{part}\S+ is missing \(\d\d of 85"):
        from_state(state, PATH)


def test_state_dict_with_unknown_tensors_names_the_first(bare_state: BareState) -> None:
    state = bare_state("seed") | {"blocks.0.ls1.gamma": torch.ones(64), "blocks.1.ls1.gamma": torch.ones(64)}
    with pytest.raises(CheckpointError, match=r"blocks.0.ls1.gamma has no counterpart in myllm \(2 tensors in all\)"):
        from_state(state, PATH)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("trf_blocks.1.attn.W_key.weight", (64, 65), r"\(64, 65\); expected \(64, 64\), as the .* imply \(1 tensors"),
        ("pos_emb.weight", (20, 32), r"\(20, 32\); expected \(20, 64\)"),
        ("pos_emb.weight", (20,), r"\(20,\); expected 2 sizes, none of them 0"),
        ("pos_emb.weight", (2, 64), r"no captioner has such shapes \(text.n_positions is 2"),
        ("pos_embed", (1, 9, 64), r"\(1, 9, 64\); expected positions of one class token and of the patches of a"),
        ("pos_embed", (1, 1, 64), r"\(1, 1, 64\); expected positions"),
        ("patch_embed.proj.weight", (64, 3, 4, 2), r"\(64, 3, 4, 2\); expected square patches of 3 colours"),
        ("patch_embed.proj.weight", (64, 1, 4, 4), r"\(64, 1, 4, 4\); expected square patches of 3 colours"),
        ("patch_embed.proj.weight", (80, 3, 4, 4), r"\(80, 3, 4, 4\); expected a width that is a multiple of 64"),
        ("patch_embed.proj.weight", (64, 3, 0, 0), r"expected 4 sizes, none of them 0"),
        ("patch_embed.proj.weight", (128, 3, 4, 4), r"expected .* \(82 tensors do not fit in all"),
    ],
)
def test_tensor_of_another_shape_is_named(bare_state: BareState, name: str, shape: tuple[int], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"captioner.pt: .*{message}"):
        from_state(bare_state("seed") | {name: torch.zeros(shape)}, PATH)


def test_nan_in_a_state_dict_is_named(bare_state: BareState) -> None:
    state = bare_state("seed")
    state["blocks.1.norm1.bias"][3] = float("nan")
    with pytest.raises(CheckpointError, match=r"blocks.1.norm1.bias holds NaN or infinite values"):
        from_state(state, PATH)


def test_head_that_differs_from_the_embedding_is_refused(bare_state: BareState) -> None:
    with pytest.raises(CheckpointError, match="out_head.weight differs from tok_emb.weight"):
        from_state(bare_state("seed") | {"out_head.weight": torch.zeros(300, 64)}, PATH)


@pytest.mark.parametrize("name", ["out_head.weight", "tok_emb.weight"])
def test_tied_tensor_is_read_under_either_name(bare_state: BareState, name: str) -> None:
    state = bare_state("seed")
    embedding = state.pop(name)
    assert torch.equal(from_state(state, PATH).model.decoder.lm_head.weight, embedding)


@pytest.mark.parametrize("kind", ["seed", "VisionGPT2"])
def test_preprocessing_and_decoding_are_those_of_the_script(bare_state: BareState, kind: str) -> None:
    checkpoint = from_state(bare_state(kind, patch=5, grid=3), PATH)
    preprocess = checkpoint.preprocess
    assert (preprocess.image_size, preprocess.crop_mode, preprocess.crop_pct) == ((15, 15), "squash", 1.0)
    assert preprocess.mean == preprocess.std == (0.5, 0.5, 0.5)
    assert checkpoint.captions.lowercase
    assert (checkpoint.decode.beams, checkpoint.decode.max_new_tokens) == (1, 20)  # the context
    assert not checkpoint.model.training


@pytest.mark.parametrize("kind", ["seed", "VisionGPT2"])
def test_misplaced_norms_are_imported_unchanged_and_noted(bare_state: BareState, kind: str) -> None:
    state = bare_state(kind)
    checkpoint = from_state(state, PATH)
    name = "trf_blocks.1.ln_2.scale" if kind == "seed" else "transformer.h.1.ln_2.weight"
    assert torch.equal(checkpoint.model.decoder.blocks[1].ln_cross_attn.weight, state[name])
    assert checkpoint.provenance["imported from"] == NAMES[kind]
    assert "load GPT-2's MLP norm into the norm of cross-attention" in checkpoint.provenance["notes"][0]


def test_half_precision_state_dict_opens_as_float32(bare_state: BareState) -> None:
    state = {name: value.half() for name, value in bare_state("seed").items()}
    assert {value.dtype for value in from_state(state, PATH).model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("is_saved", [False, True])
def test_state_dict_without_tokenizer_opens_and_captioning_says_what_is_missing(
    bare_state: BareState, tmp_path: Path, is_saved: bool
) -> None:
    checkpoint = from_state(bare_state("seed"), PATH)
    if is_saved:
        native.save(checkpoint, tmp_path / "captioner.pt")
        checkpoint = native.load(tmp_path)
    captioner = Captioner(checkpoint, torch.device("cpu"))
    image = captioner.preprocess(Image.new("RGB", (30, 20), "grey"))
    assert captioner.model(image[None], torch.tensor([[[1, 2, 3]]])).shape == (1, 1, 3, 300)
    for caption in (captioner.caption, lambda picture: next(captioner.stream(picture))):
        with pytest.raises(CheckpointError, match="has no tokenizer.* Set HF_GPT2_REPO to .*gpt2.* import the weights"):
            caption(image)


@pytest.mark.parametrize("kind", ["seed", "VisionGPT2"])
def test_tokenizer_is_read_from_hf_gpt2_repo(
    bare_state: BareState, kind: str, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_GPT2_REPO", str(tokenizer_folder))
    captioner = Captioner(from_state(bare_state(kind), PATH), torch.device("cpu"))
    assert captioner.tokenizer.encode("a small ball").ids
    assert captioner.caption(Image.new("RGB", (30, 20), "grey"), max_new_tokens=5).tokens


def test_tokenizer_with_more_tokens_than_the_embedding_is_refused(
    bare_state: BareState, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_GPT2_REPO", str(tokenizer_folder))
    with pytest.raises(CheckpointError, match="embedding has 200 rows, but the tokenizer of HF_GPT2_REPO .* give the"):
        from_state(bare_state("seed", vocab=200), PATH)


def test_hf_gpt2_repo_without_tokenizer_files_is_refused(
    bare_state: BareState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_GPT2_REPO", str(tmp_path))
    with pytest.raises(CheckpointError, match="holds no vocab.json and no merges.txt"):
        from_state(bare_state("seed"), PATH)


@pytest.mark.skipif(not GPT2_TOKENIZER.is_dir(), reason="GPT-2's tokenizer is not beside this checkout")
def test_gpt2_tokenizer_fits_a_state_dict_of_its_size(bare_state: BareState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_GPT2_REPO", str(GPT2_TOKENIZER))
    captioner = Captioner(from_state(bare_state("seed", vocab=50257), PATH), torch.device("cpu"))
    assert captioner.tokenizer.token_to_id("<|endoftext|>") == 50256
    assert captioner.caption(Image.new("RGB", (30, 20), "grey"), max_new_tokens=5).tokens
