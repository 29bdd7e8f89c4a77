import gc
import io
import re
import resource
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from myllm.attribution.methods import DEFAULT_METHOD
from myllm.caption import Calibration
from myllm.checkpoints import native
from myllm.checkpoints.lora import Adapter
from myllm.checkpoints.native import Checkpoint
from myllm.errors import ConfigError, DataError, MyLLMError
from myllm.inference.captioner import Captioner
from myllm.model.lora import LowRank

RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(45 * index, 75 * index + 20, (50 + 9 * index, 70, 3), dtype=np.uint8) for index in range(4)]
PICTURES = [Image.fromarray(pixels) for pixels in PIXELS]


@pytest.fixture(scope="module")
def captioner(tiny_checkpoint: Checkpoint) -> Captioner:
    return Captioner(tiny_checkpoint, torch.device("cpu"))


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_caption_is_the_same_for_path_bytes_image_and_tensor(captioner: Captioner, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(as_png(PICTURES[0]))
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), as_png(PICTURES[0]), PICTURES[0]]
    captions = [captioner.caption(form) for form in [*forms, captioner.preprocess(PICTURES[0])]]
    assert len({caption.text for caption in captions}) == 1
    assert len({caption.score for caption in captions}) == 1


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_caption_batch_equals_caption_of_each_picture(captioner: Captioner, beams: int, batch_size: int) -> None:
    together = captioner.caption_batch(iter(PICTURES), beams=beams, batch_size=batch_size)
    separate = [captioner.caption(picture, beams=beams) for picture in PICTURES]
    assert [caption.tokens for caption in together] == [caption.tokens for caption in separate]
    assert [caption.alternatives for caption in together] == [caption.alternatives for caption in separate]
    assert [caption.score for caption in together] == pytest.approx([caption.score for caption in separate], abs=1e-4)


def test_caption_depends_on_the_picture(captioner: Captioner) -> None:
    assert len({caption.text for caption in captioner.caption_batch(PICTURES)}) > 1


def test_caption_batch_of_no_pictures_is_empty(captioner: Captioner) -> None:
    assert captioner.caption_batch([]) == []


@torch.inference_mode()
def test_caption_with_one_beam_takes_the_most_likely_tokens(captioner: Captioner) -> None:
    caption = captioner.caption(PICTURES[0], beams=1)
    image = captioner.preprocess(PICTURES[0])[None]
    tokens, logprobs = [captioner.tokenizer.token_to_id("<|endoftext|>")], []
    while len(tokens) <= 7 and (len(tokens) == 1 or tokens[-1] != tokens[0]):
        scores = captioner.model(image, torch.tensor([[tokens]]))[0, 0, -1].log_softmax(-1)
        tokens.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
    assert caption.tokens == [token for token in tokens if token != tokens[0]]
    assert caption.token_logprobs == pytest.approx(logprobs, abs=1e-4)
    assert caption.score == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)
    assert (caption.ended_by == "end") == (tokens[-1] == tokens[0])


@torch.inference_mode()
def test_beams_find_captions_at_least_as_likely_without_length_penalty(captioner: Captioner) -> None:
    few = captioner.caption_batch(PICTURES, beams=1, length_penalty=0.0)
    many = captioner.caption_batch(PICTURES, beams=200, length_penalty=0.0)
    assert all(sum(b.token_logprobs) >= sum(a.token_logprobs) - 1e-4 for a, b in zip(few, many, strict=True))


def test_caption_alternatives_are_the_other_beams(captioner: Captioner) -> None:
    caption = captioner.caption(PICTURES[0], beams=4)
    assert len(caption.alternatives) == 3
    assert captioner.caption(PICTURES[0], beams=1).alternatives == []


def test_caption_attention_has_the_size_of_the_picture(captioner: Captioner) -> None:
    for picture, caption in zip(PICTURES, captioner.caption_batch(PICTURES), strict=True):
        assert caption.attention.shape == (len(caption.tokens), picture.height, picture.width)
        assert (caption.attention >= 0).all()
        torch.testing.assert_close(caption.attention.sum((1, 2)), torch.ones(len(caption.tokens)))


def test_caption_attention_of_a_tensor_has_the_size_of_the_tensor(captioner: Captioner) -> None:
    caption = captioner.caption(captioner.preprocess(PICTURES[0]))
    assert caption.attention.shape == (len(caption.tokens), 64, 64)


def test_attention_maps_takes_methods_sizes_and_texts(captioner: Captioner) -> None:
    caption = captioner.caption(PICTURES[0])
    methods = (None, DEFAULT_METHOD, "attention")
    maps = [captioner.attention_maps(PICTURES[0], caption, method=method) for method in methods]
    assert torch.equal(maps[0], caption.attention) and torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])
    assert captioner.attention_maps(PICTURES[0], caption, longest=35).shape[1:] == (25, 35)
    large = PICTURES[0].resize((1400, 1000))
    assert captioner.attention_maps(large, "a red ball").shape[1:] == (731, 1024)
    assert captioner.attention_maps(large, "a red ball", longest=None).shape[1:] == (1000, 1400)
    with pytest.raises(ConfigError, match="method 'lime' is unknown"):
        captioner.attention_maps(PICTURES[0], caption, method="lime")


def test_caption_words_have_their_tokens_and_logprobs(captioner: Captioner) -> None:
    caption = captioner.caption(PICTURES[0], prefix="two blue", regex="two blue cubes", max_new_tokens=20)
    two, blue, cubes = caption.words
    assert [two.text, blue.text, cubes.text] == ["two", "blue", "cubes"]
    assert two.logprob is None and blue.logprob is None
    maps = caption.attention[cubes.tokens]
    assert cubes.logprob == pytest.approx(sum(caption.token_logprobs[: len(maps)])) and len(maps) > 0


def test_caption_batch_attention_belongs_to_each_picture(captioner: Captioner) -> None:
    for picture, caption in zip(PICTURES, captioner.caption_batch(PICTURES), strict=True):
        torch.testing.assert_close(caption.attention, captioner.caption(picture).attention, rtol=0, atol=1e-5)


def test_attention_maps_of_an_empty_caption_are_empty(captioner: Captioner) -> None:
    assert captioner.attention_maps(PICTURES[0], "").shape == (0, 50, 70)


def test_caption_sampling_is_repeatable_with_a_generator(captioner: Captioner) -> None:
    def sampled(seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        options = {"do_sample": True, "temperature": 2.0}
        return [caption.text for caption in captioner.caption_batch(PICTURES, generator=generator, **options)]

    assert sampled(0) == sampled(0) != sampled(1)


def test_caption_refuses_an_unknown_option_and_lists_the_known(captioner: Captioner) -> None:
    with pytest.raises(ConfigError, match=r"unknown decoding option 'num_beams'; known are beams, "):
        captioner.caption(PICTURES[0], num_beams=3)


@pytest.mark.parametrize("option", [{"beams": 0}, {"top_p": 0.0}, {"do_sample": True, "beams": 2}])
def test_caption_refuses_option_values_that_cannot_work(captioner: Captioner, option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        captioner.caption(PICTURES[0], **option)


def test_caption_length_is_limited_by_option_and_context(captioner: Captioner) -> None:
    assert len(captioner.caption(PICTURES[0], max_new_tokens=2).tokens) <= 2
    context = captioner.model.config.text.n_positions
    assert len(captioner.caption(PICTURES[0], max_new_tokens=context).tokens) <= context


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (64, 64)])
def test_caption_takes_pictures_of_any_size(captioner: Captioner, size: tuple[int, int]) -> None:
    assert isinstance(captioner.caption(Image.new("L", size)).text, str)


@pytest.mark.parametrize("content", [b"", b"no picture", as_png(PICTURES[0])[:200]])
def test_caption_names_a_broken_picture(captioner: Captioner, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken.png"):
        captioner.caption(tmp_path / "broken.png")
    with pytest.raises(DataError, match="the given bytes"):
        captioner.caption(content)


def test_caption_refuses_a_tensor_of_another_shape(captioner: Captioner) -> None:
    with pytest.raises(ConfigError, match=r"shape \(3, 32, 64\); this model expects \(3, 64, 64\)"):
        captioner.caption(torch.zeros(3, 32, 64))


@pytest.mark.parametrize(("precision", "is_exact"), [("auto", True), ("fp32", True), ("bf16", False), ("int8", False)])
def test_captioner_precision_decides_whether_scores_are_exact(
    captioner: Captioner, tiny_captioner_file: Path, precision: str, is_exact: bool
) -> None:
    other = Captioner.load(tiny_captioner_file, device="cpu", precision=precision)
    scores = [[caption.score for caption in each.caption_batch(PICTURES)] for each in (captioner, other)]
    assert (scores[0] == pytest.approx(scores[1], abs=1e-6)) == is_exact


@pytest.mark.parametrize("options", [{"precision": "fp8"}, {"device": "tpu"}])
def test_captioner_load_refuses_unknown_options(tiny_captioner_file: Path, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="fp8|tpu"):
        Captioner.load(tiny_captioner_file, **options)


def test_captioner_load_reports_a_missing_gpu(tiny_captioner_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"cuda: this machine has no usable GPU; take --devices cpu"):
        Captioner.load(tiny_captioner_file, device="cuda")


def test_caption_uses_the_decoding_defaults_of_the_checkpoint(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    decode = replace(tiny_checkpoint.decode, beams=3, max_new_tokens=4)
    native.save(replace(tiny_checkpoint, decode=decode), tmp_path / "captioner.pt")
    caption = Captioner.load(tmp_path).caption(PICTURES[0])
    assert len(caption.alternatives) == 2 and len(caption.tokens) <= 4


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 2.0}, {"prefix": "a small"}])
def test_stream_pieces_join_to_the_caption(captioner: Captioner, options: dict[str, Any]) -> None:
    for picture in PICTURES:
        caption = captioner.caption(picture, generator=torch.Generator().manual_seed(1), **options)
        pieces = list(captioner.stream(picture, generator=torch.Generator().manual_seed(1), **options))
        assert "".join(pieces) == caption.text and "" not in pieces


def test_stream_pieces_never_end_inside_a_character(captioner: Captioner) -> None:
    ids = captioner.tokenizer.encode("a 🐕 über", add_special_tokens=False).ids
    pieces = list(captioner.stream(PICTURES[0], regex="a 🐕 über", max_new_tokens=20))
    assert "".join(pieces) == "a 🐕 über" and not any("\ufffd" in piece for piece in pieces)
    assert len(ids) > len("a 🐕 über") and len(pieces) > 3


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (PICTURES[0], {"beams": 2}, "the best of several captions is known only at the end"),
        (PICTURES[0], {"do_sample": True, "num_return_sequences": 2}, "the best of several captions"),
        (PICTURES[0], {"num_beams": 2}, "unknown decoding option 'num_beams'"),
        (PICTURES[0], {"adapter": "birds"}, "adapter 'birds' is unknown"),
        (PICTURES[0], {"prefix": "a " * 500}, "fills the model's context"),
        ("nowhere.jpg", {}, "nowhere.jpg"),
    ],
)
def test_stream_raises_at_the_call(captioner: Captioner, image: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MyLLMError, match=message):
        captioner.stream(image, **options)  # nothing is asked of the iterator


@pytest.mark.parametrize("beams", [1, 2])
def test_caption_prefix_begins_every_caption_and_is_not_scored(captioner: Captioner, beams: int) -> None:
    for caption in captioner.caption_batch(PICTURES, prefix="two blue", beams=beams):
        assert caption.text.startswith("two blue")
        prefix_length = len(captioner.tokenizer.encode("two blue", add_special_tokens=False).ids)
        assert len(caption.token_logprobs) == len(caption.tokens) - prefix_length + (caption.ended_by == "end")
        assert caption.attention.shape[0] == len(caption.tokens)


def test_caption_refuses_a_prefix_that_fills_the_context(captioner: Captioner) -> None:
    with pytest.raises(ConfigError, match=r"decode.prefix 'a a.*fills the model's context of \d+ tokens"):
        captioner.caption(PICTURES[0], prefix="a " * 500)


OPTIONS: list[dict[str, Any]] = [
    {"beams": 3}, {}, {"do_sample": True, "num_return_sequences": 2, "temperature": 2.0}, {"beams": 3},
]


def test_caption_batch_takes_options_for_each_picture(captioner: Captioner) -> None:
    seeds = [torch.Generator().manual_seed(7) for _ in range(2)]
    together = captioner.caption_batch(PICTURES, each=OPTIONS, generator=seeds[0], batch_size=3, max_new_tokens=6)
    for picture, options, caption in zip(PICTURES, OPTIONS, together, strict=True):
        separate = captioner.caption(picture, generator=seeds[1], max_new_tokens=6, **options)
        assert (caption.tokens, caption.alternatives) == (separate.tokens, separate.alternatives)


@pytest.mark.parametrize("count", [0, 3, 5])
@pytest.mark.parametrize("container", [list, iter])
def test_caption_batch_refuses_options_for_fewer_or_more_pictures(
    captioner: Captioner, container: Callable[[list[Image.Image]], Iterable[Image.Image]], count: int
) -> None:
    with pytest.raises(ConfigError, match=f"each has options for {count} pictures; there are 4"):
        captioner.caption_batch(container(PICTURES), each=[{}] * count)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0])
def test_caption_batch_refuses_batches_without_pictures(captioner: Captioner, batch_size: Any) -> None:
    with pytest.raises(ConfigError, match=f"batch_size is {batch_size}; expected a whole number above 0"):
        captioner.caption_batch(PICTURES, batch_size=batch_size)


def test_caption_refuses_a_length_beyond_the_context(captioner: Captioner) -> None:
    with pytest.raises(ConfigError, match=r"max_new_tokens 500 is more than the model's context of 24 tokens"):
        captioner.caption(PICTURES[0], max_new_tokens=500)


def test_caption_obeys_bad_force_and_only_words_and_regex(captioner: Captioner) -> None:
    plain = captioner.caption_batch(PICTURES, max_new_tokens=12)
    banned = sorted({word for caption in plain for word in caption.text.split() if word.isalnum()})
    for caption in captioner.caption_batch(PICTURES, bad_words=banned, max_new_tokens=12):
        assert not set(banned) & set(caption.text.split())
    for caption in captioner.caption_batch(PICTURES, force_words=("red ball",), beams=3, max_new_tokens=12):
        assert "red ball" in caption.text and caption.missing == ()
    for caption in captioner.caption_batch(PICTURES, only_words=["two", "blue", "cubes"], max_new_tokens=20):
        *words, last = re.split("[ ,.-]+", caption.text.lower())
        known = ("two", "blue", "cubes")
        assert set(words) <= {*known, ""} and any(word.startswith(last) for word in known)
    for caption in captioner.caption_batch(PICTURES, regex="(a|two) (red|blue) (ball|cubes)", max_new_tokens=20):
        assert caption.text.count(" ") == 2 and caption.ended_by == "end"


def test_caption_confidence_without_calibration_is_the_mean_token_probability(captioner: Captioner) -> None:
    for caption in captioner.caption_batch(PICTURES):
        probabilities = [np.exp(logprob) for logprob in caption.token_logprobs]
        assert caption.confidence == pytest.approx(np.prod(probabilities) ** (1 / len(probabilities)))
        assert 0 < caption.confidence < 1


@pytest.mark.parametrize("options", [{}, {"beams": 3}, {"do_sample": True}, {"prefix": "a small"}], ids=str)
def test_caption_words_cover_the_text_and_sum_to_its_logprob(
    captioner: Captioner, options: dict[str, Any]
) -> None:
    for caption in captioner.caption_batch(PICTURES, max_new_tokens=12, **options):
        joined = "".join(word.text for word in caption.words)
        assert "".join(joined.split()) == "".join(caption.text.split())  # some Unicode blanks do not separate words
        prefix_length = len(caption.tokens) + (caption.ended_by == "end") - len(caption.token_logprobs)
        assert (prefix_length > 0) == ("prefix" in options)
        logprobs = caption.token_logprobs[: caption.words[-1].tokens.stop - prefix_length]
        assert sum(word.logprob or 0.0 for word in caption.words) == pytest.approx(sum(logprobs))


def test_caption_confidence_with_calibration_is_the_mean_of_informative_words(tiny_checkpoint: Checkpoint) -> None:
    calibration = Calibration(1.0, 0.0, 0.0, common_words=("a",))
    captioner = Captioner(replace(tiny_checkpoint, calibration=calibration), torch.device("cpu"))
    for caption in captioner.caption_batch(PICTURES):
        words = [word for word in caption.words if re.search(r"[^\W_]", word.text) and word.text != "a"]
        assert caption.confidence == pytest.approx(np.mean([word.confidence for word in words or caption.words]))


@pytest.mark.parametrize("calibration", [None, Calibration(1.0, 0.0, 0.0, {"red": -3.0}, ("a",))])
def test_the_most_confident_caption_can_be_asked_for_without_an_index_of_training_pictures(
    tiny_checkpoint: Checkpoint, calibration: Calibration | None
) -> None:
    captioner = Captioner(replace(tiny_checkpoint, calibration=calibration), torch.device("cpu"))
    picture = torch.randn(3, *captioner.checkpoint.preprocess.image_size)
    chosen, likeliest = captioner.caption(picture, beams=6, rank_by="confidence"), captioner.caption(picture, beams=6)
    assert chosen.confidence >= likeliest.confidence and likeliest.text in (chosen.text, *chosen.alternatives)


def test_contrastive_weight_changes_captions(captioner: Captioner) -> None:
    plain, contrasted = (captioner.caption_batch(PICTURES, contrastive_weight=weight) for weight in (0.0, 3.0))
    assert [caption.tokens for caption in plain] != [caption.tokens for caption in contrasted]


def test_caption_batch_keeps_no_decoded_pictures(captioner: Captioner, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PICTURES[0].save(path)
    decoded: list[weakref.ref[Image.Image]] = []

    def read_pictures() -> Iterator[Image.Image | Path]:
        for _ in range(3):
            image = PICTURES[0].copy()
            decoded.append(weakref.ref(image))
            yield image
        del image
        yield path

    def image_tensors() -> int:
        gc.collect()
        return sum(type(item) is torch.Tensor and item.shape[-3:] == (3, 64, 64) for item in gc.get_objects())

    before = image_tensors()
    *captions, last = captioner.caption_batch(read_pictures(), batch_size=2)
    assert image_tensors() <= before and not any(reference() for reference in decoded)
    with pytest.raises(ConfigError, match="has no picture; use Captioner.attention_maps"):
        captions[0].attention  # noqa: B018
    assert last.attention.shape == captioner.attention_maps(PICTURES[0], last).shape


def test_captioner_threads_share_one_session_and_caption_right(
    tiny_checkpoint: Checkpoint, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [captioner.caption(picture, beams=2).tokens for picture in PICTURES]
    sessions, make_session = [], onnxruntime.InferenceSession

    def slow_session(*arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        time.sleep(0.2)  # long enough for every thread to arrive
        sessions.append(make_session(*arguments, **options))
        return sessions[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", slow_session)
    shared = Captioner(tiny_checkpoint, torch.device("cpu"))

    def caption_all(_: int) -> tuple[list[list[int]], torch.Tensor]:
        captions = shared.caption_batch(PICTURES, beams=2)
        return [caption.tokens for caption in captions], captions[0].attention

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(caption_all, range(8)))
    assert len(sessions) == 2  # encoder and decoder
    for tokens, attention in results:
        assert tokens == expected
        torch.testing.assert_close(attention, results[0][1])


@pytest.fixture(scope="module")
def with_adapters(tiny_checkpoint: Checkpoint) -> Captioner:
    """Adapters "birds" and "dogs", with random weights, on the tiny captioner."""
    generator = torch.Generator().manual_seed(0)
    adapters = {}
    for name in ("birds", "dogs"):
        factors = torch.randn(2, 32, generator=generator), torch.randn(128, 2, generator=generator)
        layers = {"decoder.transformer.h.0.mlp.c_fc": LowRank(*factors, scale=0.5)}
        adapters[name] = Adapter(Path(name), layers, None, decode=replace(tiny_checkpoint.decode, beams=2))
    return Captioner(tiny_checkpoint, torch.device("cpu"), adapters=adapters)


def test_caption_adapter_of_a_call_equals_use_adapter(with_adapters: Captioner) -> None:
    expected = {}
    for name in (None, "birds", "dogs"):
        with_adapters.use_adapter(name)
        expected[name] = [caption.tokens for caption in with_adapters.caption_batch(PICTURES)]
        stream = "".join(with_adapters.stream(PICTURES[0], beams=1))
        for in_use in (None, "birds", "dogs"):
            with_adapters.use_adapter(in_use)
            captions = with_adapters.caption_batch(PICTURES, adapter=name)
            assert [caption.tokens for caption in captions] == expected[name]
            assert len(captions[0].alternatives) == (1 if name else 0)
            assert "".join(with_adapters.stream(PICTURES[0], beams=1, adapter=name)) == stream
    assert len({str(tokens) for tokens in expected.values()}) == 3
    with_adapters.use_adapter(None)
    with pytest.raises(ConfigError, match="adapter 'cats' is unknown; known are birds, dogs"):
        with_adapters.caption(PICTURES[0], adapter="cats")


def test_caption_attention_stays_with_the_adapter_of_its_caption(with_adapters: Captioner) -> None:
    caption = with_adapters.caption(PICTURES[0], adapter="birds")
    expected = with_adapters.attention_maps(PICTURES[0], caption, adapter="birds")
    with_adapters.use_adapter("dogs")
    assert torch.equal(caption.attention, expected)
    assert not torch.allclose(with_adapters.attention_maps(PICTURES[0], caption), expected)
    with_adapters.use_adapter(None)


def test_caption_adapter_of_threads_is_not_changed_by_use_adapter(with_adapters: Captioner) -> None:
    names = [None, "birds", "dogs"] * 4
    expected = {name: with_adapters.caption(PICTURES[0], adapter=name).tokens for name in names}

    def caption_with(name: str | None) -> list[int]:
        with_adapters.use_adapter(name)
        return with_adapters.caption(PICTURES[0], adapter=name).tokens

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(caption_with, names)) == [expected[name] for name in names]
    with_adapters.use_adapter(None)


@pytest.mark.slow
def test_captioner_memory_does_not_grow_over_thousands_of_captions(captioner: Captioner) -> None:
    image = captioner.preprocess(PICTURES[0])
    options: list[dict[str, Any]] = [
        {"beams": 3}, {"do_sample": True}, {"beams": 2, "force_words": ("red",)}, {"bad_words": ("blue",)},
    ]

    def caption_many(first: int, count: int) -> None:
        for number in range(first, first + count):
            images = torch.stack([image + (number * 8 + index) / 500 for index in range(8)])
            captioner.caption_tensors(images, captioner.decode_options(**options[number % 4]))

    def resident() -> int:
        """Bytes."""
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not report the size of a process")
    caption_many(0, 60)
    sizes = [resident()]
    for first in (60, 185):
        caption_many(first, 125)
        sizes.append(resident())
    # what leaks grows each time; other threads of this process may take memory once
    assert min(sizes[1] - sizes[0], sizes[2] - sizes[1]) < 6 * 2**20
