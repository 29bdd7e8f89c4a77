"""Every option of the package as a frozen dataclass, checked when it is created.

The docstring of a field is its help text on the command line.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from myllm.errors import ConfigError
from myllm.option_checks import Range, check_options

VERSION = "0.1.0"
FORMAT_VERSION = 1
END_OF_TEXT = "<|endoftext|>"
# old name -> new name; the old names still work, on the command line and in YAML files
RENAMED_OPTIONS = {
    "decode.contrast": "decode.contrastive_weight", "presence": "word_presence_weight", "clip": "grad_clip"
}


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean a, b?' for an error message, or '' if no known word is similar."""
    close = difflib.get_close_matches(word, list(known), cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


@dataclass(frozen=True)
class VisionConfig:
    """The vision backbone: any model of the timm library."""

    name: str = "vit_base_patch16_224"
    """Name of a timm model."""
    pretrained: bool = True
    """Start from timm's published weights (downloaded once)."""
    weights: str | None = None
    """File with weights for this backbone (safetensors or pickle) to use instead of the published ones."""
    image_size: Annotated[int | None, Range.IMAGE_SIZE] = None
    """Side of the square input in pixels; the backbone's default if not given."""
    crop_pct: Annotated[float | None, Range.POSITIVE] = None
    """Share of the picture's shorter side to keep, 1 for all of it; the backbone's default if not given."""
    geometry: dict[str, Any] = field(default_factory=dict)
    """Arguments for timm that change the model's geometry, like {embed_dim: 192, depth: 6}. norm_eps sets the epsilon
    of its LayerNorms."""
    mirrored: bool = False
    """The decoder reads the tokens of the mirrored picture, too. Captions are better, and the encoder takes twice the
    time. Stored features of training pictures are of one version of the picture at a time; see views."""
    feature_maps: Annotated[int, Range.POSITIVE] = 1
    """Number of feature maps that image tokens are made of: with 4, a convolutional backbone's last map and the three
    before it, which show colours and small things, averaged over the cells of the last."""
    frozen: bool = False
    """Do not train the backbone. Its features are computed once and kept on disk; an epoch trains only the decoder."""

    def __post_init__(self) -> None:
        check_options(self, "vision.")


@dataclass(frozen=True)
class GPTConfig:
    """The GPT-style decoder; the defaults are GPT-2 small."""

    vocab_size: Annotated[int, Range.POSITIVE] = 50257
    """Rows of the token embedding; training takes it from the tokenizer."""
    n_positions: Annotated[int, Range.POSITIVE] = 1024
    """Maximum text length in tokens."""
    n_layer: Annotated[int, Range.POSITIVE] = 12
    """Number of transformer blocks."""
    n_head: Annotated[int, Range.POSITIVE] = 12
    """Attention heads per block."""
    n_embd: Annotated[int, Range.POSITIVE] = 768
    """Width of the model; must be a multiple of n_head."""
    dropout: Annotated[float, Range.FRACTION] = 0.1
    """Dropout rate in training."""
    layer_norm_epsilon: Annotated[float, Range.POSITIVE] = 1e-5
    """Epsilon of LayerNorm, added to the variance."""
    gelu: Literal["tanh", "none"] = "tanh"
    """Approximation of GELU: tanh (as GPT-2) or none (exact)."""
    pretrained: bool | str = False
    """GPT-2 weights to start from: a hub id, a folder, or true for the one in HF_GPT2_REPO (openai-community/gpt2 if
    unset); false for random weights."""

    def __post_init__(self) -> None:
        check_options(self, "text.")
        if self.n_positions < 3:
            raise ConfigError(f"text.n_positions is {self.n_positions}; at least 3 are needed: begin, one token, end")
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"text.n_embd {self.n_embd} is not divisible by text.n_head {self.n_head}; "
                f"take n_embd {self.n_embd // self.n_head * self.n_head or self.n_head} or another n_head"
            )


@dataclass(frozen=True)
class CaptionerConfig:
    """Architecture of a `VisionGPT2`."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: GPTConfig = field(default_factory=GPTConfig)
    mode: Literal["layerwise", "last"] = "layerwise"

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class PreprocessConfig:
    """How a picture becomes the backbone's input; read from timm and kept in the checkpoint."""

    image_size: Annotated[tuple[int, int], Range.IMAGE_SIZE] = (224, 224)
    mean: Annotated[tuple[float, float, float], Range.MODERATE] = (0.5, 0.5, 0.5)
    std: Annotated[tuple[float, float, float], Range.POSITIVE] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_pct: Annotated[float, Range.POSITIVE] = 1.0
    crop_mode: Literal["center", "border", "squash"] = "center"

    def __post_init__(self) -> None:
        check_options(self, "preprocess.")


@dataclass(frozen=True)
class CaptionsConfig:
    """How captions are read."""

    image_column: str | None = None
    """Column of a table with the picture's file name; usual names, such as image and file_name, if not given."""
    caption_column: str | None = None
    """Column of a table with the caption; usual names, such as caption, comment and text, if not given."""
    lowercase: bool = True
    """Convert every caption to lower case."""
    vocab_size: Annotated[int, Range.POSITIVE] = 8000
    """Maximum vocabulary size of the tokenizer that is trained on the captions; not used with GPT-2's weights, which
    come with a tokenizer."""

    def __post_init__(self) -> None:
        check_options(self, "captions.")
        if self.vocab_size < 257:
            raise ConfigError(
                f"captions.vocab_size is {self.vocab_size}; at least 257 are needed: 256 bytes and {END_OF_TEXT}"
            )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA): small matrices added to linear layers; only these train and are saved."""

    rank: Annotated[int, Range.AT_LEAST_0] = 0
    """Rank of the adapters; 0 trains the model itself, without adapters."""
    alpha: Annotated[float, Range.POSITIVE] = 16.0
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    dropout: Annotated[float, Range.FRACTION] = 0.0
    """Dropout rate on the adapters' input in training."""
    targets: tuple[str, ...] = ("c_attn", "q_attn", "c_proj", "c_fc")
    """Linear layers that get an adapter, by the last parts of their names; * matches any text, as in decoder.*.q_attn
    or *.qkv. The default selects all linear layers of the decoder."""

    def __post_init__(self) -> None:
        check_options(self, "lora.")
        if not self.targets:
            raise ConfigError("lora.targets is empty; name the layers that get adapters, like [c_attn, q_attn]")


@dataclass(frozen=True)
class DecodeConfig:
    """How captions are generated."""

    beams: Annotated[int, Range.BEAMS] = 1
    """Number of beams in beam search; 1 is greedy decoding."""
    do_sample: bool = False
    """Sample each token from the model's distribution instead of taking the most likely one."""
    temperature: Annotated[float, Range.SCALE] = 1.0
    """Softmax temperature for sampling: below 1 sharpens the distribution, above 1 flattens it."""
    top_k: Annotated[int, Range.AT_LEAST_0] = 0
    """Sample only from the k most likely tokens; 0 allows all."""
    top_p: Annotated[float, Range.SHARE] = 1.0
    """Nucleus sampling: sample from the smallest set of most likely tokens whose probabilities sum to top_p."""
    min_p: Annotated[float, Range.FRACTION] = 0.0
    """Sample only from tokens whose probability is at least min_p times the highest one."""
    typical_p: Annotated[float, Range.SHARE] = 1.0
    """Locally typical sampling: keep the tokens whose surprise is closest to the entropy, until their probabilities sum
    to typical_p."""
    max_new_tokens: Annotated[int, Range.POSITIVE] = 50
    """Maximum caption length in tokens."""
    min_new_tokens: Annotated[int, Range.AT_LEAST_0] = 0
    """Minimum caption length in tokens."""
    no_repeat_ngram_size: Annotated[int, Range.AT_LEAST_0] = 0
    """No sequence of this many tokens occurs twice in a caption; 0 allows repetition."""
    repetition_penalty: Annotated[float, Range.SCALE] = 1.0
    """Above 1, tokens that the caption already contains become less likely."""
    prefix: str = ""
    """Text that every caption begins with."""
    bad_words: tuple[str, ...] = ()
    """Words and phrases that captions must not contain, in any casing."""
    only_words: tuple[str, ...] = ()
    """Captions contain only these words."""
    force_words: tuple[str, ...] = ()
    """Words and phrases that every caption must contain; needs beam search."""
    regex: str = ""
    """Regular expression that the whole caption must match."""
    stop_strings: tuple[str, ...] = ()
    """Stop after any of these strings."""
    contrastive_weight: Annotated[float, Range.WEIGHT] = 0.0
    """Contrastive decoding: score = (1 + w) * log-probability - w * log-probability for a grey picture; 0 is off."""
    num_return_sequences: Annotated[int | None, Range.BEAMS] = None
    """Number of captions for each picture, best first. Beam search returns one for each beam by default, and cannot
    return more; otherwise the default is 1."""
    rank_by: Literal["score", "consensus", "retrieval", "confidence"] = "score"
    """Which of several captions is the best: the most likely (score), the one most similar to the others by CIDEr-D
    (consensus), one that is likely and similar to the captions of training pictures that look alike (retrieval), or the
    one with the highest confidence, which names fewer things that are not there (confidence). A captioner trained with
    --decode.rank_by retrieval keeps the captions of its training pictures; confidence uses them, too."""
    num_beam_groups: Annotated[int, Range.POSITIVE] = 1
    """Diverse beam search: number of groups that the beams are divided into."""
    diversity_penalty: Annotated[float, Range.WEIGHT] = 0.0
    """Diverse beam search: subtracted from a token's log-probability for each beam of an earlier group that chose it in
    the same step."""
    length_penalty: Annotated[float, Range.MODERATE] = 1.0
    """A beam's rank is its log-probability divided by its length to this power; higher powers favour longer ones."""
    early_stopping: bool | Literal["never"] = False
    """When beam search stops: once it has as many finished captions as beams (true), once no open beam can beat them at
    its present length (false), or once none can beat them at any later length (never)."""

    def __post_init__(self) -> None:
        for name in ("bad_words", "only_words", "force_words", "stop_strings"):
            value = getattr(self, name)
            if isinstance(value, Iterable) and not isinstance(value, Mapping):
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        check_options(self, "decode.")
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"decode.min_new_tokens {self.min_new_tokens} is more than decode.max_new_tokens {self.max_new_tokens}"
            )
        self._check_number_of_captions()
        self._check_words()
        if self.do_sample and self.beams > 1:
            raise ConfigError(
                f"decode.do_sample with decode.beams {self.beams}: sampling uses one beam; leave out one of the two"
            )
        sampling = ("temperature", "top_k", "top_p", "min_p", "typical_p")
        changed = [name for name in self.changed() if name in sampling]
        if changed and not self.do_sample:
            raise ConfigError(f"decode.{' and decode.'.join(changed)} change nothing without decode.do_sample true")

    def without_retrieval(self) -> "DecodeConfig":
        """Return the options for a captioner that has no index of training pictures: it ranks captions by score."""
        return replace(self, rank_by="score") if self.rank_by == "retrieval" else self

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from their defaults."""
        return {name: value for name, value in asdict(self).items() if value != getattr(DecodeConfig, name)}

    def _check_number_of_captions(self) -> None:
        count, groups = self.num_return_sequences, self.num_beam_groups
        if count and count > self.beams and not self.do_sample:
            raise ConfigError(
                f"decode.num_return_sequences {count} with decode.beams {self.beams}: beam search finds as many "
                "captions as it has beams; take more beams, or decode.do_sample true"
            )
        if self.rank_by == "consensus" and (count or self.beams) < 3:
            raise ConfigError(
                "decode.rank_by consensus compares captions with each other and needs at least 3: set decode.beams, or "
                "decode.num_return_sequences with decode.do_sample"
            )
        if self.beams % groups:
            raise ConfigError(f"decode.beams {self.beams} is not divisible by decode.num_beam_groups {groups}")
        if (groups > 1) != (self.diversity_penalty > 0):
            raise ConfigError(
                f"decode.num_beam_groups {groups} and decode.diversity_penalty {self.diversity_penalty}: diverse beam "
                "search needs both, more than one group and a penalty above 0"
            )

    def _check_words(self) -> None:
        for name in ("bad_words", "only_words", "force_words"):
            for word in getattr(self, name):
                if not any(map(str.isalnum, word)):
                    raise ConfigError(f"decode.{name} has {word!r}, which is not a word: it has no letter or digit")
        if "" in self.stop_strings:
            raise ConfigError("decode.stop_strings has an empty string, which would end every caption at once")
        conflicts = {word.casefold() for word in self.force_words} & {word.casefold() for word in self.bad_words}
        if conflicts:
            raise ConfigError(
                f"decode.force_words and decode.bad_words both have {min(conflicts)!r}; leave out one of them"
            )
        if self.force_words and (self.beams == 1 or self.num_beam_groups > 1):
            raise ConfigError(
                "decode.force_words needs beam search in one group; set decode.beams 4 and no decode.num_beam_groups"
            )
