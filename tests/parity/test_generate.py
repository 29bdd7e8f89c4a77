"""Our search against transformers.generate, over a captioner of transformers' with odd widths and random weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from myllm.config import DecodeConfig, GPTConfig
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.engine import Hypothesis, SearchRequest
from myllm.decoding.generate import generate
from myllm.decoding.rules import Said, apply_rules
from myllm.model.gpt import GPT
from myllm.model.kv_cache import ImageKV, SelfKV

VOCAB, END, LONGEST = 11, 10, 14
GEOMETRIES = [(36, 3, 1), (40, 5, 3), (48, 2, 2)]
# each token a word of its own, so that banning words is banning tokens, which is what transformers can do
WORDS = Vocabulary([*(f" word{token}".encode() for token in range(END)), b""], lambda text: [], END)
IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@dataclass
class Decoder:
    """Our decoder as the engine sees it."""

    gpt: GPT

    def start(self, images: ImageKV) -> tuple[ImageKV, SelfKV]:
        return images, self.gpt.new_cache(len(IMAGES))

    def step(self, tokens: Tensor, state: tuple[ImageKV, SelfKV]) -> tuple[Tensor, tuple[ImageKV, SelfKV]]:
        return self.gpt(tokens, *state)[:, :, -1], state

    def reorder(self, state: tuple[ImageKV, SelfKV], rows: Tensor) -> tuple[ImageKV, SelfKV]:
        image, cache = state
        captions = cache.keys.shape[1] // image.batch_size
        cache.select(rows.flatten())
        return image.select(rows[:, 0] // captions), cache


@dataclass
class Both:
    """A VisionEncoderDecoderModel, and its decoder's weights in ours."""

    theirs: Any
    ours: GPT

    def hypotheses(self, prefix: Sequence[int] = (), **decode: object) -> list[list[Hypothesis]]:
        config = DecodeConfig(max_new_tokens=LONGEST, **decode)  # type: ignore[arg-type]
        picture = self.theirs.enc_to_dec_proj(self.theirs.encoder(IMAGES).last_hidden_state)
        image = ImageKV(tuple(block.crossattention.key_value(picture) for block in self.ours.blocks))
        return generate(SearchRequest(Decoder(self.ours), image, len(IMAGES), END, config, tuple(prefix), WORDS))

    def generated(self, beams: int = 1, **options: object) -> tuple[list[list[int]], list[float]]:
        """Tokens and ranks of every beam of every image."""
        found = self.theirs.generate(
            IMAGES, num_beams=beams, num_return_sequences=beams, max_new_tokens=LONGEST, do_sample=False,
            return_dict_in_generate=True, output_scores=True,
            decoder_start_token_id=END, eos_token_id=END, pad_token_id=END, **options,
        )
        tokens = [[*row[1:], END][: [*row[1:], END].index(END)] for row in found.sequences.tolist()]
        return tokens, found.sequences_scores.tolist() if beams > 1 else []


@pytest.fixture(scope="module")
def both(random_gpt2, transposed):
    from transformers import VisionEncoderDecoderModel, ViTConfig, ViTModel

    def make(geometry: tuple[int, int, int], seed: int) -> Both:
        decoder = random_gpt2(*geometry, seed, vocab_size=VOCAB, eos_token_id=END, add_cross_attention=True)
        torch.manual_seed(seed)
        vision = ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=30,
                           image_size=12, patch_size=4)
        theirs = VisionEncoderDecoderModel(encoder=ViTModel(vision, add_pooling_layer=False), decoder=decoder).eval()
        for parameter in [*theirs.encoder.parameters(), *theirs.enc_to_dec_proj.parameters()]:
            nn.init.normal_(parameter, std=0.3)
        ours = GPT(GPTConfig(VOCAB, 23, geometry[2], geometry[1], geometry[0], layer_norm_epsilon=3e-4), True).eval()
        ours.load_state_dict(transposed(decoder))
        return Both(theirs, ours)

    return make


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_greedy_tokens_are_transformers(both, geometry: tuple[int, int, int], seed: int) -> None:
    pair = both(geometry, seed)
    tokens, _ = pair.generated(beams=1)
    assert [one.tokens for [one] in pair.hypotheses()] == tokens


@torch.inference_mode()
def test_the_pictures_matter(both) -> None:
    tokens, _ = both(GEOMETRIES[0], seed=0).generated(beams=1)
    assert len({tuple(row) for row in tokens}) > 1


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_beams_are_transformers(
    both, geometry: tuple[int, int, int], beams: int, length_penalty: float, seed: int
) -> None:
    pair = both(geometry, seed)
    tokens, ranks = pair.generated(beams, length_penalty=length_penalty)
    found = [one for beam in pair.hypotheses(beams=beams, length_penalty=length_penalty) for one in beam]
    assert [one.tokens for one in found] == tokens
    assert [one.rank for one in found] == pytest.approx(ranks, abs=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 2.0])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("beams", [2, 3, 5])
def test_the_three_senses_of_stopping_early_are_transformers(
    both, beams: int, early_stopping: bool | str, length_penalty: float, seed: int
) -> None:
    pair = both(GEOMETRIES[seed], seed)
    options = {"early_stopping": early_stopping, "length_penalty": length_penalty}
    tokens, ranks = pair.generated(beams, **options)
    found = [one for beam in pair.hypotheses(beams=beams, **options) for one in beam]
    assert [one.tokens for one in found] == tokens
    assert [one.rank for one in found] == pytest.approx(ranks, abs=1e-4)


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
def test_rules_are_transformers(
    both, geometry: tuple[int, int, int], beams: int, rules: dict[str, float]
) -> None:
    pair = both(geometry, seed=1)
    tokens, ranks = pair.generated(beams, **rules)
    found = [one for beam in pair.hypotheses(beams=beams, **rules) for one in beam]
    assert [one.tokens for one in found] == tokens
    assert not ranks or [one.rank for one in found] == pytest.approx(ranks, abs=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("banned", [[[3]], [[2, 7], [5]], [[1, 1], [0, 4, 2], [8]]])
@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_banned_words_are_transformers(
    both, geometry: tuple[int, int, int], beams: int, banned: list[list[int]]
) -> None:
    pair = both(geometry, seed=1)
    tokens, ranks = pair.generated(beams, bad_words_ids=banned)
    phrases = tuple(" ".join(f"Word{token}" for token in phrase) for phrase in banned)
    found = [one for beam in pair.hypotheses(beams=beams, bad_words=phrases) for one in beam]
    assert [one.tokens for one in found] == tokens
    assert not ranks or [one.rank for one in found] == pytest.approx(ranks, abs=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, {"min_new_tokens": 4}, {"no_repeat_ngram_size": 2}, {"length_penalty": 2.0}])
@pytest.mark.parametrize("beams", [1, 3])
def test_captions_that_begin_as_told_go_on_as_transformers(both, beams: int, options: dict[str, Any]) -> None:
    pair, prefix = both(GEOMETRIES[1], seed=2), [3, 7, 1]
    given = torch.tensor([[END, *prefix]]).repeat(len(IMAGES), 1)
    tokens, ranks = pair.generated(beams, decoder_input_ids=given, **options)
    found = [one for beam in pair.hypotheses(prefix, beams=beams, **options) for one in beam]
    assert [one.tokens for one in found] == tokens
    assert all(one.tokens[:3] == prefix for one in found)
    assert not ranks or [one.rank for one in found] == pytest.approx(ranks, abs=1e-4)


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
def test_what_may_be_drawn_is_what_transformers_would_draw(name: str, warper: str, value: float) -> None:
    import transformers

    scores = 2 * torch.randn(300, 40, generator=torch.Generator().manual_seed(0))
    told = torch.full((300, 1), END)
    expected = getattr(transformers, warper)(value)(told, scores)
    found = apply_rules(scores, Said(told, END), DecodeConfig(do_sample=True, **{name: value}))  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
