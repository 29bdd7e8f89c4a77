from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from myllm.checkpoints import native
from myllm.checkpoints.original import from_state, recognises
from myllm.data.tokenizer import train_tokenizer
from myllm.errors import CheckpointError
from myllm.inference.captioner import Captioner

BareState = Callable[..., dict[str, Tensor]]
PLACE = Path("captioner/captioner.pt")
GPT2_TOKENIZER = Path(__file__).parents[4] / "shared/data/gpt2_tokenizer"
CLIPCAP = ("gpt.transformer.wte.weight", "gpt.lm_head.weight", "clip_project.model.0.weight")
NANOVLM = ("vision_encoder.patch_embedding.conv.weight", "decoder.blocks.0.attn.q_proj.weight", "MP.proj.weight")


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """As of a GPT-2 with a smaller vocabulary, of 290 tokens at most."""
    folder = tmp_path / "small-gpt2"
    folder.mkdir()
    train_tokenizer(["a small red ball", "two blue cubes on grass"] * 3, 290).save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("kind", ["seed", "VisionGPT2"])
def test_state_dicts_are_recognised_by_their_names(bare_state: BareState, kind: str) -> None:
    assert recognises(bare_state(kind)) == kind


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
def test_what_is_not_opened_is_not_taken_for_the_seeds(names: Collection[str], kind: str | None) -> None:
    assert recognises(names) == kind


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (CLIPCAP, "a model of ClipCap, .*own program.* seed and VisionGPT2"),
        (NANOVLM, "a model of nanoVLM"),
        (("weight",), "no captioner known here has such tensors, weight for one; .* seed and VisionGPT2"),
    ],
)
def test_other_models_are_refused_by_name(names: Collection[str], told: str) -> None:
    with pytest.raises(CheckpointError, match=f"captioner.pt: {told}"):
        from_state({name: torch.ones(2) for name in names}, PLACE)


@pytest.mark.parametrize(
    ("kind", "names", "told"),
    [
        ("seed", ["cls_token"], r"cls_token is missing \(1 of 85 tensors"),
        ("seed", ["blocks.1.attn.proj.bias"], r"blocks.1.attn.proj.bias is missing \(1 of"),
        ("seed", ["trf_blocks.0.attn.W_key.bias"], r"trf_blocks.0.attn.W_key.bias is missing \(1 of"),
        ("seed", ["tok_emb.weight", "out_head.weight"], r"tok_emb.weight is missing \(2 of"),
        ("seed", ["final_norm.shift", "trf_blocks.1.ln_3.scale", "pos_embed"], r"pos_embed is missing \(3 of"),
        ("VisionGPT2", ["transformer.h.1.attn.c_attn.bias"], r"transformer.h.1.attn.c_attn.bias is missing \(1 of"),
    ],
)
def test_the_first_missing_tensor_is_named(bare_state: BareState, kind: str, names: list[str], told: str) -> None:
    state = {name: value for name, value in bare_state(kind).items() if name not in names}
    with pytest.raises(CheckpointError, match=f"captioner.pt: {told}.*take another copy"):
        from_state(state, PLACE)


@pytest.mark.parametrize("part", ["blocks.1.", "trf_blocks.1."])
def test_the_two_stacks_are_of_one_depth(bare_state: BareState, part: str) -> None:
    state = {name: value for name, value in bare_state("seed").items() if not name.startswith(part)}
    with pytest.raises(CheckpointError, match=rf"{part}\S+ is missing \(\d\d of 85"):
        from_state(state, PLACE)


def test_unknown_tensors_are_named(bare_state: BareState) -> None:
    state = bare_state("seed") | {"blocks.0.ls1.gamma": torch.ones(64), "blocks.1.ls1.gamma": torch.ones(64)}
    with pytest.raises(CheckpointError, match=r"blocks.0.ls1.gamma has no counterpart here \(2 tensors in all\)"):
        from_state(state, PLACE)


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("trf_blocks.1.attn.W_key.weight", (64, 65), r"\(64, 65\); the others ask for \(64, 64\) \(1 tensors"),
        ("pos_emb.weight", (20, 32), r"\(20, 32\); the others ask for \(20, 64\)"),
        ("pos_emb.weight", (20,), r"\(20,\); expected 2 sizes, none of them 0"),
        ("pos_emb.weight", (2, 64), r"no captioner \(text.n_positions is 2"),
        ("pos_embed", (1, 9, 64), r"\(1, 9, 64\); expected places for one class token and for the patches of a square"),
        ("pos_embed", (1, 1, 64), r"\(1, 1, 64\); expected places"),
        ("patch_embed.proj.weight", (64, 3, 4, 2), r"\(64, 3, 4, 2\); expected square patches of 3 colours"),
        ("patch_embed.proj.weight", (64, 1, 4, 4), r"\(64, 1, 4, 4\); expected square patches of 3 colours"),
        ("patch_embed.proj.weight", (80, 3, 4, 4), r"\(80, 3, 4, 4\); expected a width that is a multiple of 64"),
        ("patch_embed.proj.weight", (64, 3, 0, 0), r"expected 4 sizes, none of them 0"),
        ("patch_embed.proj.weight", (128, 3, 4, 4), r"the others ask for .* \(82 tensors do not fit in all"),
    ],
)
def test_a_tensor_of_another_shape_is_named(bare_state: BareState, name: str, shape: tuple[int], told: str) -> None:
    with pytest.raises(CheckpointError, match=f"captioner.pt: .*{told}"):
        from_state(bare_state("seed") | {name: torch.zeros(shape)}, PLACE)


def test_what_is_no_number_is_named(bare_state: BareState) -> None:
    state = bare_state("seed")
    state["blocks.1.norm1.bias"][3] = float("nan")
    with pytest.raises(CheckpointError, match=r"blocks.1.norm1.bias holds values that are no finite numbers"):
        from_state(state, PLACE)


def test_a_head_of_its_own_is_refused(bare_state: BareState) -> None:
    with pytest.raises(CheckpointError, match="out_head.weight differs from tok_emb.weight"):
        from_state(bare_state("seed") | {"out_head.weight": torch.zeros(300, 64)}, PLACE)


@pytest.mark.parametrize("name", ["out_head.weight", "tok_emb.weight"])
def test_one_name_of_the_tied_tensor_is_enough(bare_state: BareState, name: str) -> None:
    state = bare_state("seed")
    words = state.pop(name)
    assert torch.equal(from_state(state, PLACE).model.decoder.lm_head.weight, words)


@pytest.mark.parametrize("kind", ["seed", "VisionGPT2"])
def test_what_shapes_do_not_tell_is_the_scripts(bare_state: BareState, kind: str) -> None:
    found = from_state(bare_state(kind, patch=5, grid=3), PLACE)
    way = found.preprocess
    assert (way.image_size, way.crop_mode, way.crop_pct) == ((15, 15), "squash", 1.0)
    assert way.mean == way.std == (0.5, 0.5, 0.5)
    assert found.captions.lowercase
    assert (found.decode.beams, found.decode.max_new_tokens) == (1, 20)  # the context
    assert not found.model.training


@pytest.mark.parametrize("kind", ["seed", "VisionGPT2"])
def test_the_misplaced_norms_are_kept_and_told(bare_state: BareState, kind: str) -> None:
    state = bare_state(kind)
    found = from_state(state, PLACE)
    name = "trf_blocks.1.ln_2.scale" if kind == "seed" else "transformer.h.1.ln_2.weight"
    assert torch.equal(found.model.decoder.blocks[1].ln_cross_attn.weight, state[name])
    assert found.provenance["imported from"] == kind
    assert "GPT-2's norm of the MLP was loaded as that of cross-attention" in found.provenance["notes"][0]


def test_half_precision_becomes_single(bare_state: BareState) -> None:
    state = {name: value.half() for name, value in bare_state("seed").items()}
    assert {value.dtype for value in from_state(state, PLACE).model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("is_saved", [False, True])
def test_without_a_tokenizer_the_model_opens_and_captioning_tells_what_is_missing(
    bare_state: BareState, tmp_path: Path, is_saved: bool
) -> None:
    found = from_state(bare_state("seed"), PLACE)
    if is_saved:
        native.save(found, tmp_path / "captioner.pt")
        found = native.load(tmp_path)
    captioner = Captioner(found, torch.device("cpu"))
    image = captioner.preprocess(Image.new("RGB", (30, 20), "grey"))
    assert captioner.model(image[None], torch.tensor([[[1, 2, 3]]])).shape == (1, 1, 3, 300)
    for caption in (captioner.caption, lambda picture: next(captioner.stream(picture))):
        with pytest.raises(CheckpointError, match="has no tokenizer.* Set HF_GPT2_REPO to .*gpt2.* import the weights"):
            caption(image)


@pytest.mark.parametrize("kind", ["seed", "VisionGPT2"])
def test_the_tokenizer_is_taken_from_hf_gpt2_repo(
    bare_state: BareState, kind: str, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_GPT2_REPO", str(tokenizer_folder))
    captioner = Captioner(from_state(bare_state(kind), PLACE), torch.device("cpu"))
    assert captioner.tokenizer.encode("a small ball").ids
    assert captioner.caption(Image.new("RGB", (30, 20), "grey"), max_new_tokens=5).tokens


def test_a_tokenizer_of_another_model_is_refused(
    bare_state: BareState, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_GPT2_REPO", str(tokenizer_folder))
    with pytest.raises(CheckpointError, match="embedding has 200 rows, but the tokenizer of HF_GPT2_REPO .* name the"):
        from_state(bare_state("seed", vocab=200), PLACE)


def test_a_folder_without_a_tokenizer_is_refused(
    bare_state: BareState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_GPT2_REPO", str(tmp_path))
    with pytest.raises(CheckpointError, match="holds no vocab.json and no merges.txt"):
        from_state(bare_state("seed"), PLACE)


@pytest.mark.skipif(not GPT2_TOKENIZER.is_dir(), reason="GPT-2's tokenizer is not beside this checkout")
def test_gpt2s_own_tokenizer_serves(bare_state: BareState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_GPT2_REPO", str(GPT2_TOKENIZER))
    captioner = Captioner(from_state(bare_state("seed", vocab=50257), PLACE), torch.device("cpu"))
    assert captioner.tokenizer.token_to_id("<|endoftext|>") == 50256
    assert captioner.caption(Image.new("RGB", (30, 20), "grey"), max_new_tokens=5).tokens
