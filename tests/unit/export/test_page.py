"""The modules of the exported page, run in Node.js without a browser, compared with the same parts in Python."""

import json
import random
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from myllm.caption import Calibration, Caption, normalize_word
from myllm.config import DecodeConfig, PreprocessConfig
from myllm.data.images import Preprocess
from myllm.decoding.engine import SearchRequest
from myllm.decoding.search import generate
from myllm.export import web
from myllm.page.files import page_files

RUNNER = Path(__file__).parents[2] / "javascript/page.mjs"
VOCAB_SIZE, END = 5, 4
RunPage = Callable[[str, list[Any]], list[Any]]


@pytest.fixture
def run_page(program: Callable[[str], str]) -> RunPage:
    """run_page(job, cases): the result of a job of page.mjs for each case."""

    def run(job: str, cases: list[Any]) -> list[Any]:
        command = [program("node"), str(RUNNER), job]
        result = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        results: list[Any] = json.loads(result.stdout)
        return results

    return run


class Toy:
    """A model of one picture whose next token depends on the last two of a caption; its state is their tokens."""

    def __init__(self, seed: int, scale: float) -> None:
        rng = np.random.default_rng(seed)
        self.table = (scale * rng.standard_normal((VOCAB_SIZE,) * 3)).astype(np.float32)

    def start(self, images: int) -> Any:
        return torch.full((images, 1), END)

    def step(self, tokens: Any, state: Any) -> tuple[Any, Any]:
        state = torch.cat([state, torch.as_tensor(tokens).flatten(0, 1)], dim=1)
        return torch.from_numpy(self.table)[state[:, -2], state[:, -1]].unflatten(0, tokens.shape[:2]), state

    def reorder(self, state: Any, rows: Any) -> Any:
        return state[rows.flatten()]

    def release(self, state: Any) -> None: ...


def in_python(toy: Toy, prefix: tuple[int, ...], config: DecodeConfig) -> list[dict[str, Any]]:
    [hypotheses] = generate(SearchRequest(toy, 1, 1, END, config, prefix))
    return [
        {"tokens": hypothesis.tokens, "logprobs": pytest.approx(hypothesis.logprobs, abs=1e-5),
         "endedBy": hypothesis.ended_by}
        for hypothesis in hypotheses
    ]


def in_page(run_page: RunPage, searches: list[tuple[Toy, tuple[int, ...], DecodeConfig]]) -> list[Any]:
    """The hypotheses of each search, without rank; or the error."""
    results = run_page("search", [
        {"table": np.where(np.isinf(toy.table), None, toy.table).tolist(), "end": END, "prefix": prefix,  # type: ignore[call-overload]
         "config": asdict(config)}
        for toy, prefix, config in searches
    ])
    return [
        result["error"] if isinstance(result, dict) else [
            {name: hypothesis[name] for name in ("tokens", "logprobs", "endedBy")} for hypothesis in result
        ]
        for result in results
    ]


def test_page_search_finds_the_hypotheses_of_python(run_page: RunPage) -> None:
    rng, searches = random.Random(0), []
    for seed in range(300):
        config = DecodeConfig(
            beams=rng.randint(1, 6), max_new_tokens=rng.randint(1, 7),
            length_penalty=rng.choice([-1.0, 0.0, 0.5, 1.0, 2.0]), early_stopping=rng.choice([True, False, "never"]),
            repetition_penalty=rng.choice([1.0, 1.0, 0.7, 1.7]), no_repeat_ngram_size=rng.choice([0, 0, 2, 3]),
        )
        config = replace(config, min_new_tokens=rng.choice([0, 0, min(3, config.max_new_tokens)]))
        prefix = tuple(rng.choices(range(END), k=rng.choice([0, 0, 1, 3])))
        searches.append((Toy(seed, rng.choice([0.3, 1.0, 3.0])), prefix, config))
    for hypotheses, search in zip(in_page(run_page, searches), searches, strict=True):
        assert hypotheses == in_python(*search), search


def test_page_search_returns_num_return_sequences(run_page: RunPage) -> None:
    search = Toy(0, 1.0), (), DecodeConfig(beams=4, num_return_sequences=2, max_new_tokens=5)
    [hypotheses] = in_page(run_page, [search])
    assert len(hypotheses) == 2 and hypotheses == in_python(*search)


def test_page_knows_every_option_of_its_search() -> None:
    """Each option that `search.js` reads is announced as known, and each that is announced is read."""
    source = page_files("browser")["search.js"].read_text(encoding="utf-8")
    read = {name for name in DecodeConfig.__dataclass_fields__ if re.search(rf"\b{name}\b", source)}
    assert read == web.PAGE_OPTIONS


def test_ignored_options_names_what_the_page_does_not_know() -> None:
    assert web.ignored_options(DecodeConfig(beams=3, prefix="a", length_penalty=0.5)) == []
    decode = DecodeConfig(do_sample=True, bad_words=("dog",))
    assert web.ignored_options(decode) == ["do_sample True", "bad_words ('dog',)"]


def test_page_search_fails_if_the_rules_allow_no_token(run_page: RunPage) -> None:
    configs = [DecodeConfig(beams=beams, no_repeat_ngram_size=1, min_new_tokens=6) for beams in (1, 2)]
    errors = in_page(run_page, [(Toy(3, 1.0), (), config) for config in configs])
    assert errors == ["the decoding options allow no further token; loosen one of them"] * 2


def test_page_search_fails_when_the_logits_are_nan_or_impossible(run_page: RunPage) -> None:
    toy = Toy(0, 1.0)
    toy.table[:] = -np.inf
    [error] = in_page(run_page, [(toy, (), DecodeConfig())])
    assert error.startswith("the model's logits are NaN or all minus infinity")


SNOW = "雪".encode()
CALIBRATION = Calibration(
    0.7, 1.3, 0.4, {"red": 1.5, "дом": -2.0, "strasse": 0.9, "ball": -0.3, "constructor": 0.2}, ("a", "is", "the")
)
# pieces of a caption, and how many of them are a prefix
CAPTIONS: dict[str, tuple[list[bytes], int]] = {
    "words": ([b"a", b" red", b" ball"], 0),
    "a word of several tokens": ([b"a", b" re", b"d", b" ba", b"ll"], 0),
    "a token of several words": ([b"a red", b" ball is", b" big"], 0),
    "blanks of their own": ([b"a", b" ", b"red", b" \n", b" ball", b" "], 0),
    "torn characters": ([b"a ", SNOW[:1], SNOW[1:], b" red"], 0),
    "characters without their ends": ([b"a", b" " + SNOW[:2], b" red", SNOW[2:]], 0),
    "invalid bytes": ([b"\xff\xfe", b" \xe9t\xe9", b"\xed\xa0\x80", b" \xf4\x90\x80\x80"], 0),
    "a byte order mark": (["\ufeffred ball".encode()], 0),
    "punctuation": ([b'"Red', b'!"', b" ...", b" (ball),", b" it's", b" _x_"], 0),
    "case": (["RED ДОМ Straße".encode(), b" BALL"], 0),
    "blanks outside ASCII": (["red\u00a0ball\u2003is\x85red".encode()], 0),
    "special tokens": ([b"red", b"", b" ball", b""], 0),
    "common words only": ([b"a", b" the", b" is"], 0),
    "names of object methods": ([b"constructor", b" toString", b" __proto__"], 0),
    "a prefix": ([b"a", b" red", b" ball"], 2),
    "a prefix that ends inside a word": ([b"a", b" re", b"d ball"], 2),
    "a prefix that is everything": ([b"red", b" ball"], 2),
    "nothing": ([], 0),
}


def compare_confidence(
    run_page: RunPage, captions: list[tuple[list[bytes], int]], calibration: Calibration | None
) -> None:
    rng, expected, cases = random.Random(0), [], []
    for index, (pieces, prefix_length) in enumerate(captions):
        has_end = index % 2 == 0
        logprobs = [-rng.expovariate(0.7) for _ in range(len(pieces) - prefix_length + has_end)]
        score = sum(logprobs) / max(1, len(logprobs))
        expected.append(Caption(
            "", score, list(range(len(pieces))), logprobs, "end" if has_end else "length", pieces=pieces,
            calibration=calibration,
        ))
        cases.append({
            "pieces": [list(piece) for piece in pieces], "logprobs": logprobs, "prefixLength": prefix_length,
            "calibration": calibration and calibration.as_json(),
        })
    for result, caption in zip(run_page("confidence", cases), expected, strict=True):
        assert result["confidence"] == pytest.approx(caption.confidence, abs=1e-9), caption.pieces
        assert [word["text"] for word in result["words"]] == [word.text for word in caption.words]
        for word, expected_word in zip(result["words"], caption.words, strict=True):
            assert word["logprob"] == pytest.approx(expected_word.logprob, abs=1e-9), caption.pieces
            assert word["confidence"] == pytest.approx(expected_word.confidence, abs=1e-9), caption.pieces
            assert word["tokens"] == [expected_word.tokens.start, expected_word.tokens.stop]


@pytest.mark.parametrize("calibration", [CALIBRATION, None], ids=["calibrated", "uncalibrated"])
def test_page_confidence_is_that_of_python(run_page: RunPage, calibration: Calibration | None) -> None:
    compare_confidence(run_page, [*CAPTIONS.values(), *CAPTIONS.values(), ([], 0)], calibration)


@pytest.mark.parametrize("calibration", [CALIBRATION, None], ids=["calibrated", "uncalibrated"])
def test_page_confidence_of_random_bytes_is_that_of_python(
    run_page: RunPage, calibration: Calibration | None
) -> None:
    rng = random.Random(1)
    alphabet = [b" ", b"\n", b"a", b"red", b"ball", b".", b"_", SNOW, SNOW[:1], SNOW[1:], b"\xc3", b"\x9f", b"\x1c"]
    captions = []
    for _ in range(300):
        pieces = [b"".join(rng.choices(alphabet, k=rng.randint(0, 4))) for _ in range(rng.randint(0, 8))]
        captions.append((pieces, rng.randint(0, len(pieces)) if rng.random() < 0.3 else 0))
    compare_confidence(run_page, captions, calibration)


def test_page_normalizes_every_character_as_python_does(run_page: RunPage) -> None:
    # printable ones only: the two programs may know different versions of Unicode
    words = [f"{chr(code)}x{chr(code)}" for code in range(0x10000) if chr(code).isprintable()]
    different = [
        word for word, result in zip(words, run_page("normalize", words), strict=True) if result != normalize_word(word)
    ]
    assert different == []


def test_page_pixels_are_pillows_to_the_bit(run_page: RunPage) -> None:
    rng, cases, mean, std = np.random.default_rng(0), [], (0.48, 0.5, 0.4), (0.2, 0.3, 0.25)
    for width, height in [(24, 24), (37, 50), (60, 40), (5, 7), (170, 10), (1, 1)]:
        for interpolation in ("bilinear", "bicubic", "lanczos", "box", "hamming", "nearest"):
            for crop_mode, crop_pct in (("center", 1.0), ("squash", 0.9), ("border", 0.875), ("center", 0.95)):
                image_size = (24, 32) if crop_pct == 0.95 else (24, 24)
                config = PreprocessConfig(image_size, mean, std, interpolation, crop_pct, crop_mode)
                cases.append((rng.integers(0, 256, (height, width, 3), dtype=np.uint8), config))
    results = run_page("preprocess", [
        {"image": {"width": pixels.shape[1], "height": pixels.shape[0], "data": pixels.ravel().tolist()},
         "config": asdict(config)}
        for pixels, config in cases
    ])
    for values, (pixels, config) in zip(results, cases, strict=True):
        expected = Preprocess(config)(Image.fromarray(pixels))
        assert np.array_equal(np.array(values, np.float32), expected.ravel()), (pixels.shape, config)
