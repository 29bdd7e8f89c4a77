"""Our search against transformers.generate, over a captioner of transformers with odd widths and random weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from myllm.config import DecodeConfig, GPTConfig
from myllm.decoding.arrays import to_numpy
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.engine import Hypothesis, SearchRequest
from myllm.decoding.history import History
from myllm.decoding.rules import apply_rules
from myllm.decoding.search import generate
from myllm.model.gpt import GPT
from myllm.model.kv_cache import ImageKV, SelfKV

VOCAB, END, LONGEST = 11, 10, 14
GEOMETRIES = [(36, 3, 1), (40, 5, 3), (48, 2, 2)]
# each token is a word, so that banning words bans tokens, as transformers does
WORDS = Vocabulary([*(f" word{token}".encode() for token in range(END)), b""], lambda text: [], END)
IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@dataclass
class Decoder:
    """Our decoder as the engine sees it, with logits of torch or numpy."""

    gpt: GPT
    is_numpy: bool = False

    def start(self, images: ImageKV) -> tuple[ImageKV, SelfKV]:
        return images, self.gpt.new_cache(len(IMAGES))

    def step(self, tokens: NDArray[np.int64], state: tuple[ImageKV, SelfKV]) -> tuple[Any, tuple[ImageKV, SelfKV]]:
        logits = self.gpt(torch.from_numpy(tokens), *state)[:, :, -1]
        return to_numpy(logits) if self.is_numpy else logits, state

    def reorder(self, state: tuple[ImageKV, SelfKV], rows: NDArray[np.int64]) -> tuple[ImageKV, SelfKV]:
        image, cache = state
        captions = torch.from_numpy(rows)
        image = image.select(captions[:, 0] // (cache.keys.shape[1] // image.batch_size))
        cache.select(captions.flatten())
        return image, cache

    def release(self, state: object) -> None:
        pass


def tokens_of(results: list[list[Hypothesis]]) -> list[list[int]]:
    return [hypothesis.tokens for hypotheses in results for hypothesis in hypotheses]


@dataclass
class Pair:
    """A VisionEncoderDecoderModel, and its decoder's weights in ours."""

    reference: Any
    ours: GPT

    def hypotheses(self, prefix: Sequence[int] = (), **decode: object) -> list[list[Hypothesis]]:
        config = DecodeConfig(max_new_tokens=LONGEST, **decode)  # type: ignore[arg-type]
        picture = self.reference.enc_to_dec_proj(self.reference.encoder(IMAGES).last_hidden_state)
        image = ImageKV(tuple(block.crossattention.key_value(picture) for block in self.ours.blocks))
        in_torch, in_numpy = (
            generate(SearchRequest(Decoder(self.ours, is_numpy), image, len(IMAGES), END, config, prefix, WORDS))
            for is_numpy in (False, True)
        )
        assert tokens_of(in_torch) == tokens_of(in_numpy)
        return in_torch

    def generated(self, beams: int = 1, **options: object) -> tuple[list[list[int]], list[float]]:
        """Tokens and ranks of every beam of every image."""
        output = self.reference.generate(
            IMAGES, num_beams=beams, num_return_sequences=beams, max_new_tokens=LONGEST, do_sample=False,
            return_dict_in_generate=True, output_scores=True,
            decoder_start_token_id=END, eos_token_id=END, pad_token_id=END, **options,
        )
        tokens = [[*row[1:], END][: [*row[1:], END].index(END)] for row in output.sequences.tolist()]
        return tokens, output.sequences_scores.tolist() if beams > 1 else []


@pytest.fixture(scope="module")
def make_pair(random_gpt2, transposed):
    from transformers import VisionEncoderDecoderModel, ViTConfig, ViTModel

    def make(geometry: tuple[int, int, int], seed: int) -> Pair:
        decoder = random_gpt2(*geometry, seed, vocab_size=VOCAB, eos_token_id=END, add_cross_attention=True)
        torch.manual_seed(seed)
        vision = ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=30,
                           image_size=12, patch_size=4)
        reference = VisionEncoderDecoderModel(encoder=ViTModel(vision, add_pooling_layer=False), decoder=decoder).eval()
        for parameter in [*reference.encoder.parameters(), *reference.enc_to_dec_proj.parameters()]:
            nn.init.normal_(parameter, std=0.3)
        ours = GPT(GPTConfig(VOCAB, 23, geometry[2], geometry[1], geometry[0], layer_norm_epsilon=3e-4), True).eval()
        ours.load_state_dict(transposed(decoder))
        return Pair(reference, ours)

    return make


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_greedy_tokens_equal_transformers(make_pair, geometry: tuple[int, int, int], seed: int) -> None:
    pair = make_pair(geometry, seed)
    tokens, _ = pair.generated(beams=1)
    assert tokens_of(pair.hypotheses()) == tokens


@torch.inference_mode()
def test_captions_depend_on_the_pictures(make_pair) -> None:
    tokens, _ = make_pair(GEOMETRIES[0], seed=0).generated(beams=1)
    assert len({tuple(row) for row in tokens}) > 1


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_beam_search_equals_transformers(
    make_pair, geometry: tuple[int, int, int], beams: int, length_penalty: float, seed: int
) -> None:
    pair = make_pair(geometry, seed)
    tokens, ranks = pair.generated(beams, length_penalty=length_penalty)
    results = pair.hypotheses(beams=beams, length_penalty=length_penalty)
    hypotheses = [hypothesis for group in results for hypothesis in group]
    assert [hypothesis.tokens for hypothesis in hypotheses] == tokens
    assert [hypothesis.rank for hypothesis in hypotheses] == pytest.approx(ranks, abs=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 2.0])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("beams", [2, 3, 5])
def test_early_stopping_equals_transformers(
    make_pair, beams: int, early_stopping: bool | str, length_penalty: float, seed: int
) -> None:
    pair = make_pair(GEOMETRIES[seed], seed)
    options = {"early_stopping": early_stopping, "length_penalty": length_penalty}
    tokens, ranks = pair.generated(beams, **options)
    hypotheses = [hypothesis for group in pair.hypotheses(beams=beams, **options) for hypothesis in group]
    assert [hypothesis.tokens for hypothesis in hypotheses] == tokens
    assert [hypothesis.rank for hypothesis in hypotheses] == pytest.approx(ranks, abs=1e-4)


RULES = [
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.8},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"min_new_tokens": 6},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
]


@torch.inference_mode()
@pytest.mark.parametrize("rules", RULES, ids=lambda rules: ",".join(rules))
@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_rules_equal_transformers(
    make_pair, geometry: tuple[int, int, int], beams: int, rules: dict[str, float]
) -> None:
    pair = make_pair(geometry, seed=1)
    tokens, ranks = pair.generated(beams, **rules)
    hypotheses = [hypothesis for group in pair.hypotheses(beams=beams, **rules) for hypothesis in group]
    assert [hypothesis.tokens for hypothesis in hypotheses] == tokens
    assert not ranks or [hypothesis.rank for hypothesis in hypotheses] == pytest.approx(ranks, abs=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("banned", [[[3]], [[2, 7], [5]], [[1, 1], [0, 4, 2], [8]]])
@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_bad_words_equal_transformers(
    make_pair, geometry: tuple[int, int, int], beams: int, banned: list[list[int]]
) -> None:
    pair = make_pair(geometry, seed=1)
    tokens, ranks = pair.generated(beams, bad_words_ids=banned)
    phrases = tuple(" ".join(f"Word{token}" for token in phrase) for phrase in banned)
    hypotheses = [hypothesis for group in pair.hypotheses(beams=beams, bad_words=phrases) for hypothesis in group]
    assert [hypothesis.tokens for hypothesis in hypotheses] == tokens
    assert not ranks or [hypothesis.rank for hypothesis in hypotheses] == pytest.approx(ranks, abs=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, {"min_new_tokens": 4}, {"no_repeat_ngram_size": 2}, {"length_penalty": 2.0}])
@pytest.mark.parametrize("beams", [1, 3])
def test_captions_with_a_prefix_equal_transformers(make_pair, beams: int, options: dict[str, Any]) -> None:
    pair, prefix = make_pair(GEOMETRIES[1], seed=2), [3, 7, 1]
    inputs = torch.tensor([[END, *prefix]]).repeat(len(IMAGES), 1)
    tokens, ranks = pair.generated(beams, decoder_input_ids=inputs, **options)
    hypotheses = [hypothesis for group in pair.hypotheses(prefix, beams=beams, **options) for hypothesis in group]
    assert [hypothesis.tokens for hypothesis in hypotheses] == tokens
    assert all(hypothesis.tokens[:3] == prefix for hypothesis in hypotheses)
    assert not ranks or [hypothesis.rank for hypothesis in hypotheses] == pytest.approx(ranks, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "warper", "value"),
    [
        ("temperature", "TemperatureLogitsWarper", 0.7),
        ("top_k", "TopKLogitsWarper", 4),
        ("top_p", "TopPLogitsWarper", 0.8),
        ("min_p", "MinPLogitsWarper", 0.1),
        ("typical_p", "TypicalLogitsWarper", 0.6),
    ],
)
def test_sampling_rules_equal_transformers(name: str, warper: str, value: float) -> None:
    import transformers

    scores = 2 * torch.randn(300, 40, generator=torch.Generator().manual_seed(0))
    expected = getattr(transformers, warper)(value)(torch.full((300, 1), END), scores)
    config = DecodeConfig(do_sample=True, **{name: value})  # type: ignore[arg-type]
    for array in (scores, scores.numpy()):
        changed = to_numpy(apply_rules(array[:, None], History.begin(300, 1, END), config))[:, 0]
        np.testing.assert_allclose(changed, expected.numpy(), rtol=0, atol=1e-6)
