import gc
import io
import re
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from myllm.attribution.methods import DEFAULT
from myllm.caption import Calibration
from myllm.checkpoints import native
from myllm.checkpoints.native import Checkpoint
from myllm.errors import ConfigError, DataError
from myllm.inference.captioner import Captioner

RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(45 * at, 75 * at + 20, (50 + 9 * at, 70, 3), dtype=np.uint8) for at in range(4)]
PICTURES = [Image.fromarray(pixels) for pixels in PIXELS]


@pytest.fixture(scope="module")
def captioner(tiny_checkpoint: Checkpoint) -> Captioner:
    return Captioner(tiny_checkpoint, torch.device("cpu"))


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_path_bytes_picture_and_tensor_give_the_same_caption(captioner: Captioner, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(as_png(PICTURES[0]))
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), as_png(PICTURES[0]), PICTURES[0]]
    captions = [captioner.caption(form) for form in [*forms, captioner.preprocess(PICTURES[0])]]
    assert len({caption.text for caption in captions}) == 1
    assert len({caption.score for caption in captions}) == 1


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_batch_captions_as_each_picture_alone(captioner: Captioner, beams: int, batch_size: int) -> None:
    together = captioner.caption_batch(iter(PICTURES), beams=beams, batch_size=batch_size)
    alone = [captioner.caption(picture, beams=beams) for picture in PICTURES]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert [one.alternatives for one in together] == [one.alternatives for one in alone]
    assert [one.score for one in together] == pytest.approx([one.score for one in alone], abs=1e-4)


def test_pictures_matter(captioner: Captioner) -> None:
    assert len({caption.text for caption in captioner.caption_batch(PICTURES)}) > 1


def test_no_pictures_have_no_captions(captioner: Captioner) -> None:
    assert captioner.caption_batch([]) == []


@torch.inference_mode()
def test_one_beam_is_the_likeliest_token_each_time(captioner: Captioner) -> None:
    caption = captioner.caption(PICTURES[0], beams=1)
    image = captioner.preprocess(PICTURES[0])[None]
    told, logprobs = [captioner.tokenizer.token_to_id("<|endoftext|>")], []
    while len(told) <= 7 and (len(told) == 1 or told[-1] != told[0]):
        next_one = captioner.model(image, torch.tensor([[told]]))[0, 0, -1].log_softmax(-1)
        told.append(int(next_one.argmax()))
        logprobs.append(float(next_one.max()))
    assert caption.tokens == [token for token in told if token != told[0]]
    assert caption.token_logprobs == pytest.approx(logprobs, abs=1e-4)
    assert caption.score == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)
    assert (caption.ended_by == "end") == (told[-1] == told[0])


@torch.inference_mode()
def test_more_beams_find_a_caption_no_less_likely_where_length_counts_for_nothing(captioner: Captioner) -> None:
    few = captioner.caption_batch(PICTURES, beams=1, length_penalty=0.0)
    many = captioner.caption_batch(PICTURES, beams=200, length_penalty=0.0)
    assert all(sum(b.token_logprobs) >= sum(a.token_logprobs) - 1e-4 for a, b in zip(few, many, strict=True))


def test_alternatives_are_the_other_beams(captioner: Captioner) -> None:
    caption = captioner.caption(PICTURES[0], beams=4)
    assert len(caption.alternatives) == 3
    assert captioner.caption(PICTURES[0], beams=1).alternatives == []


def test_attention_lies_on_the_picture_itself(captioner: Captioner) -> None:
    for picture, caption in zip(PICTURES, captioner.caption_batch(PICTURES), strict=True):
        assert caption.attention.shape == (len(caption.tokens), picture.height, picture.width)
        assert (caption.attention >= 0).all()
        torch.testing.assert_close(caption.attention.sum((1, 2)), torch.ones(len(caption.tokens)))


def test_attention_of_a_tensor_lies_on_the_tensor(captioner: Captioner) -> None:
    caption = captioner.caption(captioner.preprocess(PICTURES[0]))
    assert caption.attention.shape == (len(caption.tokens), 64, 64)


def test_other_methods_sizes_and_texts_can_be_asked_for(captioner: Captioner) -> None:
    caption = captioner.caption(PICTURES[0])
    maps = [captioner.attention_maps(PICTURES[0], caption, method=method) for method in (None, DEFAULT, "attention")]
    assert torch.equal(maps[0], caption.attention) and torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])
    assert captioner.attention_maps(PICTURES[0], caption, longest=35).shape[1:] == (25, 35)
    large = PICTURES[0].resize((1400, 1000))
    assert captioner.attention_maps(large, "a red ball").shape[1:] == (731, 1024)
    assert captioner.attention_maps(large, "a red ball", longest=None).shape[1:] == (1000, 1400)
    with pytest.raises(ConfigError, match="method 'lime' is unknown"):
        captioner.attention_maps(PICTURES[0], caption, method="lime")


def test_words_have_the_tokens_and_chances_of_their_own(captioner: Captioner) -> None:
    caption = captioner.caption(PICTURES[0], prefix="two blue", regex="two blue cubes", max_new_tokens=20)
    given, blue, cubes = caption.words
    assert [given.text, blue.text, cubes.text] == ["two", "blue", "cubes"]
    assert given.logprob is None and blue.logprob is None
    maps = caption.attention[cubes.tokens]
    assert cubes.logprob == pytest.approx(sum(caption.token_logprobs[: len(maps)])) and len(maps) > 0


def test_each_caption_of_a_batch_looks_at_its_own_picture(captioner: Captioner) -> None:
    for picture, caption in zip(PICTURES, captioner.caption_batch(PICTURES), strict=True):
        torch.testing.assert_close(caption.attention, captioner.caption(picture).attention, rtol=0, atol=1e-5)


def test_an_empty_caption_has_empty_attention(captioner: Captioner) -> None:
    assert captioner.attention_maps(PICTURES[0], "").shape == (0, 50, 70)


def test_sampling_with_a_generator_can_be_repeated(captioner: Captioner) -> None:
    def sampled(seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        options = {"do_sample": True, "temperature": 2.0}
        return [one.text for one in captioner.caption_batch(PICTURES, generator=generator, **options)]

    assert sampled(0) == sampled(0) != sampled(1)


def test_an_unknown_decoding_option_is_refused_with_the_known_ones(captioner: Captioner) -> None:
    with pytest.raises(ConfigError, match=r"unknown decoding option 'num_beams'; known are beams, "):
        captioner.caption(PICTURES[0], num_beams=3)


@pytest.mark.parametrize("option", [{"beams": 0}, {"top_p": 0.0}, {"do_sample": True, "beams": 2}])
def test_options_that_cannot_work_are_refused(captioner: Captioner, option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        captioner.caption(PICTURES[0], **option)


def test_captions_are_no_longer_than_asked_for_or_the_context_allows(captioner: Captioner) -> None:
    assert len(captioner.caption(PICTURES[0], max_new_tokens=2).tokens) <= 2
    context = captioner.model.config.text.n_positions
    assert len(captioner.caption(PICTURES[0], max_new_tokens=context).tokens) <= context


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (64, 64)])
def test_pictures_of_any_size_are_captioned(captioner: Captioner, size: tuple[int, int]) -> None:
    assert isinstance(captioner.caption(Image.new("L", size)).text, str)


@pytest.mark.parametrize("content", [b"", b"no picture", as_png(PICTURES[0])[:200]])
def test_a_broken_picture_is_named(captioner: Captioner, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken.png"):
        captioner.caption(tmp_path / "broken.png")
    with pytest.raises(DataError, match="the given bytes"):
        captioner.caption(content)


def test_a_tensor_of_another_shape_is_refused(captioner: Captioner) -> None:
    with pytest.raises(ConfigError, match=r"shape \(3, 32, 64\); this model expects \(3, 64, 64\)"):
        captioner.caption(torch.zeros(3, 32, 64))


@pytest.mark.parametrize(("precision", "is_exact"), [("auto", True), ("fp32", True), ("bf16", False), ("int8", False)])
def test_precision_decides_whether_scores_are_exact(
    captioner: Captioner, tiny_captioner_file: Path, precision: str, is_exact: bool
) -> None:
    other = Captioner.load(tiny_captioner_file, device="cpu", precision=precision)
    scores = [[one.score for one in each.caption_batch(PICTURES)] for each in (captioner, other)]
    assert (scores[0] == pytest.approx(scores[1], abs=1e-6)) == is_exact


@pytest.mark.parametrize("options", [{"precision": "fp8"}, {"device": "tpu"}])
def test_unknown_precision_or_device_is_refused(tiny_captioner_file: Path, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="fp8|tpu"):
        Captioner.load(tiny_captioner_file, **options)


def test_a_gpu_that_is_not_there_is_told(tiny_captioner_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"cuda: this machine has no usable GPU; take --devices cpu"):
        Captioner.load(tiny_captioner_file, device="cuda")


def test_the_models_own_decoding_defaults_are_used(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    decode = replace(tiny_checkpoint.decode, beams=3, max_new_tokens=4)
    native.save(replace(tiny_checkpoint, decode=decode), tmp_path / "captioner.pt")
    caption = Captioner.load(tmp_path).caption(PICTURES[0])
    assert len(caption.alternatives) == 2 and len(caption.tokens) <= 4


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 2.0}, {"prefix": "a small"}])
def test_pieces_as_they_come_are_the_caption(captioner: Captioner, options: dict[str, Any]) -> None:
    for picture in PICTURES:
        told = captioner.caption(picture, generator=torch.Generator().manual_seed(1), **options)
        pieces = list(captioner.stream(picture, generator=torch.Generator().manual_seed(1), **options))
        assert "".join(pieces) == told.text and "" not in pieces


def test_no_piece_ends_within_a_character(captioner: Captioner) -> None:
    ids = captioner.tokenizer.encode("a 🐕 über", add_special_tokens=False).ids
    pieces = list(captioner.stream(PICTURES[0], regex="a 🐕 über", max_new_tokens=20))
    assert "".join(pieces) == "a 🐕 über" and not any("\ufffd" in piece for piece in pieces)
    assert len(ids) > len("a 🐕 über") and len(pieces) > 3


@pytest.mark.parametrize("options", [{"beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_the_best_of_several_cannot_be_streamed(captioner: Captioner, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the best of several captions is known only at the end"):
        next(captioner.stream(PICTURES[0], **options))


@pytest.mark.parametrize("beams", [1, 2])
def test_a_prefix_begins_every_caption_and_is_not_scored(captioner: Captioner, beams: int) -> None:
    for caption in captioner.caption_batch(PICTURES, prefix="two blue", beams=beams):
        assert caption.text.startswith("two blue")
        given = len(captioner.tokenizer.encode("two blue", add_special_tokens=False).ids)
        assert len(caption.token_logprobs) == len(caption.tokens) - given + (caption.ended_by == "end")
        assert caption.attention.shape[0] == len(caption.tokens)


def test_a_prefix_that_fills_the_context_is_refused(captioner: Captioner) -> None:
    with pytest.raises(ConfigError, match=r"decode.prefix 'a a.*fills the model's context of \d+ tokens"):
        captioner.caption(PICTURES[0], prefix="a " * 500)


OPTIONS: list[dict[str, Any]] = [
    {"beams": 3}, {}, {"do_sample": True, "num_return_sequences": 2, "temperature": 2.0}, {"beams": 3},
]


def test_pictures_of_a_batch_may_each_have_their_options(captioner: Captioner) -> None:
    seeds = [torch.Generator().manual_seed(7) for _ in range(2)]
    together = captioner.caption_batch(PICTURES, each=OPTIONS, generator=seeds[0], batch_size=3, max_new_tokens=6)
    for picture, own, found in zip(PICTURES, OPTIONS, together, strict=True):
        alone = captioner.caption(picture, generator=seeds[1], max_new_tokens=6, **own)
        assert (found.text, found.tokens, found.alternatives) == (alone.text, alone.tokens, alone.alternatives)


def test_options_of_too_few_pictures_are_refused(captioner: Captioner) -> None:
    with pytest.raises(ConfigError, match="options of 1 pictures"):
        captioner.caption_batch(PICTURES, each=[{}])


def test_a_length_beyond_the_context_names_both(captioner: Captioner) -> None:
    with pytest.raises(ConfigError, match=r"max_new_tokens 500 is more than the model's context of 24 tokens"):
        captioner.caption(PICTURES[0], max_new_tokens=500)


def test_words_are_banned_required_and_allowed_in_captions(captioner: Captioner) -> None:
    plain = captioner.caption_batch(PICTURES, max_new_tokens=12)
    said = sorted({word for caption in plain for word in caption.text.split() if word.isalnum()})
    for caption in captioner.caption_batch(PICTURES, bad_words=said, max_new_tokens=12):
        assert not set(said) & set(caption.text.split())
    for caption in captioner.caption_batch(PICTURES, force_words=("red ball",), beams=3, max_new_tokens=12):
        assert "red ball" in caption.text and caption.missing == ()
    for caption in captioner.caption_batch(PICTURES, only_words=["two", "blue", "cubes"], max_new_tokens=20):
        *words, last = re.split("[ ,.-]+", caption.text.lower())
        known = ("two", "blue", "cubes")
        assert set(words) <= {*known, ""} and any(one.startswith(last) for one in known)
    for caption in captioner.caption_batch(PICTURES, regex="(a|two) (red|blue) (ball|cubes)", max_new_tokens=20):
        assert caption.text.count(" ") == 2 and caption.ended_by == "end"


def test_confidence_is_the_mean_chance_of_a_token(captioner: Captioner) -> None:
    for caption in captioner.caption_batch(PICTURES):
        chances = [np.exp(logprob) for logprob in caption.token_logprobs]
        assert caption.confidence == pytest.approx(np.prod(chances) ** (1 / len(chances)))
        assert 0 < caption.confidence < 1


@pytest.mark.parametrize("options", [{}, {"beams": 3}, {"do_sample": True}, {"prefix": "a small"}], ids=str)
def test_words_are_those_of_the_text_and_share_out_its_log_probability(
    captioner: Captioner, options: dict[str, Any]
) -> None:
    for caption in captioner.caption_batch(PICTURES, max_new_tokens=12, **options):
        said = "".join(word.text for word in caption.words)
        assert "".join(said.split()) == "".join(caption.text.split())  # some blanks of Unicode's do not part words
        given = len(caption.tokens) + (caption.ended_by == "end") - len(caption.token_logprobs)
        assert (given > 0) == ("prefix" in options)
        of_tokens = caption.token_logprobs[: caption.words[-1].tokens.stop - given]
        assert sum(word.logprob or 0.0 for word in caption.words) == pytest.approx(sum(of_tokens))


def test_a_calibrated_captioners_confidence_is_that_of_its_telling_words(tiny_checkpoint: Checkpoint) -> None:
    learned = Calibration(1.0, 0.0, 0.0, common_words=("a",))
    captioner = Captioner(replace(tiny_checkpoint, calibration=learned), torch.device("cpu"))
    for caption in captioner.caption_batch(PICTURES):
        telling = [word.confidence for word in caption.words if re.search(r"[^\W_]", word.text) and word.text != "a"]
        assert caption.confidence == pytest.approx(np.mean(telling or [word.confidence for word in caption.words]))


def test_contrast_against_a_grey_picture_changes_what_is_said(captioner: Captioner) -> None:
    plain, contrasted = (captioner.caption_batch(PICTURES, contrastive_weight=weight) for weight in (0.0, 3.0))
    assert [one.tokens for one in plain] != [one.tokens for one in contrasted]


@pytest.mark.slow
def test_thousands_of_captions_leave_memory_as_it_was(captioner: Captioner) -> None:
    image = captioner.preprocess(PICTURES[0])
    options: list[dict[str, Any]] = [
        {"beams": 3}, {"do_sample": True}, {"beams": 2, "force_words": ("red",)}, {"bad_words": ("blue",)},
    ]

    def caption_many(first: int, count: int) -> None:
        for number in range(first, first + count):
            images = torch.stack([image + (number * 8 + place) / 500 for place in range(8)])
            captioner.caption_tensors(images, captioner.decode_options(**options[number % 4]))

    def resident() -> int:
        """Bytes."""
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell a process's size")
    caption_many(0, 60)
    before = resident()
    caption_many(60, 250)
    assert resident() - before < 12 * 2**20
