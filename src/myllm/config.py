"""Every option of the package as a frozen dataclass, checked where it is made.

The text under a field is its help on the command line.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from myllm.errors import ConfigError

VERSION = "0.1.0"
FORMAT_VERSION = 1
END_OF_TEXT = "<|endoftext|>"
MAX_BEAMS = 1000
# Old name to new: files, YAML and command lines that hold an old name stay readable.
RENAMED_OPTIONS: Mapping[str, str] = {
    "decode.contrast": "decode.contrastive_weight",
    "presence": "word_presence_weight",
    "clip": "grad_clip",
}


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """'; did you mean a, b?' for an error message, or nothing where no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=count, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _positive(owner: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:  # nor what is no number
            raise ConfigError(f"{owner}{name} is {value}; it must be above 0")


def _fraction(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{owner}{name} is {value}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class VisionConfig:
    """The vision backbone: any model that timm can make."""

    name: str = "vit_base_patch16_224"
    """Name of a timm model."""
    pretrained: bool = True
    """Take timm's published weights (needs the network once)."""
    weights: str | None = None
    """A local file of weights for this backbone (safetensors or pickle), instead of the published ones."""
    image_size: int | None = None
    """Side of the square input in pixels; the backbone's own where not given."""
    crop_pct: float | None = None
    """Share of the picture's shorter side that is kept; the backbone's own where not given, 1 keeps all of it."""
    geometry: dict[str, Any] = field(default_factory=dict)
    """What timm is told of another geometry than the name's, as {embed_dim: 192, depth: 6}; norm_eps too."""
    frozen: bool = False
    """Never train the backbone: its features are computed once and kept on disk, an epoch costs only the decoder."""

    def __post_init__(self) -> None:
        _positive("vision.", image_size=self.image_size, crop_pct=self.crop_pct)


@dataclass(frozen=True)
class GPTConfig:
    """The GPT-style decoder; the defaults are GPT-2 small."""

    vocab_size: int = 50257
    """Rows of the token embedding; training sets it from the tokenizer."""
    n_positions: int = 1024
    """Longest text in tokens."""
    n_layer: int = 12
    """Number of blocks."""
    n_head: int = 12
    """Attention heads in a block."""
    n_embd: int = 768
    """Width of the model; a multiple of n_head."""
    dropout: float = 0.1
    """Share of activations dropped while training."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance in LayerNorm."""
    gelu: Literal["tanh", "none"] = "tanh"
    """How GELU is approximated: by GPT-2's tanh, or not at all."""
    pretrained: bool | str = False
    """GPT-2 weights: true for HF_GPT2_REPO (openai-community/gpt2 where unset), or a hub id or a folder."""

    def __post_init__(self) -> None:
        _positive(
            "text.", vocab_size=self.vocab_size, n_positions=self.n_positions, n_layer=self.n_layer,
            n_head=self.n_head, n_embd=self.n_embd, layer_norm_epsilon=self.layer_norm_epsilon,
        )
        _fraction("text.", dropout=self.dropout)
        if self.n_positions < 3:
            raise ConfigError(f"text.n_positions is {self.n_positions}; begin, a token and end need 3")
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"text.n_embd {self.n_embd} is not divisible by text.n_head {self.n_head}; "
                f"take n_embd {self.n_embd // self.n_head * self.n_head or self.n_head} or another n_head"
            )


@dataclass(frozen=True)
class CaptionerConfig:
    """What `VisionGPT2` is made from."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: GPTConfig = field(default_factory=GPTConfig)
    mode: Literal["layerwise", "last"] = "layerwise"


@dataclass(frozen=True)
class PreprocessConfig:
    """How a picture becomes the backbone's input; read from timm, kept in the checkpoint."""

    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"


@dataclass(frozen=True)
class CaptionsConfig:
    """Where the captions stand in the data, and how they are read."""

    image_column: str = "image_name"
    """Column of results.csv with the picture's file name."""
    caption_column: str = "comment"
    """Column of results.csv with the caption."""
    lowercase: bool = True
    """Lower-case every caption."""
    vocab_size: int = 8000
    """Most tokens that a tokenizer trained on these captions may have (GPT-2's own is used with GPT-2's weights)."""

    def __post_init__(self) -> None:
        if self.vocab_size < 257:
            raise ConfigError(
                f"captions.vocab_size is {self.vocab_size}; at least 257 are needed: 256 bytes and {END_OF_TEXT}"
            )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: small matrices beside linear layers, which alone train and are kept."""

    rank: int = 0
    """Rank of the adapters; 0 is none, and the model itself trains."""
    alpha: float = 16.0
    """What an adapter adds to its layer is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of what an adapter reads that is dropped while training."""
    targets: tuple[str, ...] = ("c_attn", "q_attn", "c_proj", "c_fc")
    """Linear layers with an adapter, by the end of their names; * is any text, as in decoder.*.q_attn or *.qkv.
    The default is all of the decoder's."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"lora.rank is {self.rank}; it must be at least 0")
        _positive("lora.", alpha=self.alpha)
        _fraction("lora.", dropout=self.dropout)
        if not self.targets:
            raise ConfigError("lora.targets is empty; name the layers that are to have adapters, as [c_attn, q_attn]")


@dataclass(frozen=True)
class DecodeConfig:
    """How captions are searched for."""

    beams: int = 1
    """Beams kept in search; 1 is greedy."""
    do_sample: bool = False
    """Draw each token instead of taking the likeliest."""
    temperature: float = 1.0
    """Divides the logits before drawing: below 1 is bolder in what is likely, above 1 in what is not."""
    top_k: int = 0
    """Draw among the k likeliest tokens; 0 is all."""
    top_p: float = 1.0
    """Draw among the fewest tokens that hold this probability together."""
    min_p: float = 0.0
    """Draw among tokens at least this share as likely as the likeliest."""
    typical_p: float = 1.0
    """Draw among tokens about as surprising as is to be expected, that hold this probability together."""
    max_new_tokens: int = 50
    """Longest caption in tokens."""
    min_new_tokens: int = 0
    """Shortest caption in tokens."""
    no_repeat_ngram_size: int = 0
    """So many tokens never come twice in the same order; 0 lets them."""
    repetition_penalty: float = 1.0
    """Above 1, tokens said already become less likely."""
    prefix: str = ""
    """Words that every caption begins with."""
    bad_words: tuple[str, ...] = ()
    """Words and phrases that are never said, in any casing."""
    only_words: tuple[str, ...] = ()
    """No other words than these are said."""
    force_words: tuple[str, ...] = ()
    """Words and phrases that every caption says; needs beams."""
    regex: str = ""
    """A regular expression that describes the whole caption."""
    stop_strings: tuple[str, ...] = ()
    """A caption ends after any of these."""
    contrastive_weight: float = 0.0
    """Above 0, what the model would say without seeing the picture counts against a token, by this weight."""
    num_return_sequences: int | None = None
    """Captions of each picture, best first: samples, or beams; all beams where not given."""
    rank_by: Literal["score", "consensus"] = "score"
    """Best of several captions is the likeliest (score), or the one most like the others by CIDEr-D (consensus)."""
    num_beam_groups: int = 1
    """Groups that the beams are divided into, each told to differ from those before."""
    diversity_penalty: float = 0.0
    """Taken from the log-probability of a token for each beam of an earlier group that says it now."""
    length_penalty: float = 1.0
    """A beam's score is its log-probability divided by its length to this power."""
    early_stopping: bool | Literal["never"] = False
    """Stop when as many captions as beams have ended (true), or when what is open falls behind them at its present
    length (false) or at any length (never)."""

    def __post_init__(self) -> None:
        _positive(
            "decode.", beams=self.beams, temperature=self.temperature, max_new_tokens=self.max_new_tokens,
            repetition_penalty=self.repetition_penalty,
        )
        _fraction("decode.", min_p=self.min_p)
        if self.early_stopping not in (True, False, "never"):
            raise ConfigError(f"decode.early_stopping is {self.early_stopping!r}; expected true, false or never")
        if self.beams > MAX_BEAMS:
            raise ConfigError(f"decode.beams is {self.beams}; at most {MAX_BEAMS}: captions rarely gain beyond 10")
        for name in ("top_k", "min_new_tokens", "no_repeat_ngram_size"):
            if getattr(self, name) < 0:
                raise ConfigError(f"decode.{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"decode.{name} is {getattr(self, name)}; it must be above 0 and at most 1")
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"decode.min_new_tokens {self.min_new_tokens} is more than decode.max_new_tokens {self.max_new_tokens}"
            )
        self._check_captions()
        self._check_words()
        if self.do_sample and self.beams > 1:
            raise ConfigError(
                f"decode.do_sample with decode.beams {self.beams}: sampling keeps one beam; drop one of them"
            )
        drawing = ("temperature", "top_k", "top_p", "min_p", "typical_p")
        given = [name for name in drawing if getattr(self, name) != getattr(DecodeConfig, name)]
        if given and not self.do_sample:
            raise ConfigError(f"decode.{' and decode.'.join(given)} change nothing without decode.do_sample true")

    def _check_captions(self) -> None:
        """How many captions, and how they differ."""
        many, groups = self.num_return_sequences, self.num_beam_groups
        _positive("decode.", num_return_sequences=many, num_beam_groups=groups)
        for name in ("contrastive_weight", "diversity_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"decode.{name} is {getattr(self, name)}; it must be at least 0")
        if many and many > self.beams and not self.do_sample:
            raise ConfigError(
                f"decode.num_return_sequences {many} with decode.beams {self.beams}: a search finds as many captions "
                "as beams; take more beams, or decode.do_sample true"
            )
        if self.rank_by == "consensus" and (many or self.beams) < 3:
            raise ConfigError(
                "decode.rank_by consensus needs captions that may agree: at least 3, by decode.beams, or by "
                "decode.num_return_sequences with decode.do_sample"
            )
        if self.beams % groups or groups > self.beams:
            raise ConfigError(f"decode.beams {self.beams} cannot be divided into decode.num_beam_groups {groups}")
        if (groups > 1) != (self.diversity_penalty > 0):
            raise ConfigError(
                f"decode.num_beam_groups {groups} and decode.diversity_penalty {self.diversity_penalty}: they work "
                "only together, as more than one group and a penalty above 0"
            )

    def _check_words(self) -> None:
        for name in ("bad_words", "only_words", "force_words", "stop_strings"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        for name in ("bad_words", "only_words", "force_words"):
            wordless = [word for word in getattr(self, name) if not any(map(str.isalnum, word))]
            if wordless:
                raise ConfigError(f"decode.{name} has {wordless[0]!r}, which is no word: it has no letter or digit")
        if "" in self.stop_strings:
            raise ConfigError("decode.stop_strings has an empty string, after which every caption would end at once")
        both = sorted({word.casefold() for word in self.force_words} & {word.casefold() for word in self.bad_words})
        if both:
            raise ConfigError(f"decode.force_words and decode.bad_words both have {both[0]!r}; drop one of them")
        if self.force_words and (self.beams == 1 or self.num_beam_groups > 1):
            raise ConfigError(
                "decode.force_words are found by beams in one group; take decode.beams 4 and no decode.num_beam_groups"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run depends on."""

    data: str = "data"
    """Folder with results.csv, flickr30k_images/ and, where there are, splits/*.txt."""
    out: str = "captioner"
    """The run folder."""
    base: str | None = None
    """A captioner to go on from, in any form that opens: weights, geometry, tokenizer and preprocessing are its own, so
    what is given of vision, text and mode must agree with it; so are its decoding defaults where none are given."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: GPTConfig = field(default_factory=GPTConfig)
    mode: Literal["layerwise", "last"] = "layerwise"
    """Decoder blocks read the encoder block of the same depth (layerwise), or all its last output (last)."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    epochs: int = 10
    """Passes over the training pictures."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; the schedule ends there too."""
    max_minutes: float | None = None
    """Stop after this much training time; the schedule ends there too."""
    batch_size: int = 32
    """Pictures in a step."""
    accumulate: int = 1
    """Batches added up before a step."""
    captions_per_image: int = 5
    """Captions of a picture in one pass: it is encoded once for all of them."""
    lr: float = 1e-4
    """Peak learning rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw for all, or muon for the matrices of the blocks and adamw for the rest."""
    muon_lr: float = 0.02
    """Peak learning rate of the parameters under muon."""
    weight_decay: float = 0.01
    """Decay of matrices; norms, biases and embeddings have none."""
    vision_weight_decay: float | None = None
    """Decay of the backbone's matrices; weight_decay where not given."""
    schedule: Literal["onecycle", "cosine", "linear"] = "onecycle"
    """onecycle climbs from lr/25 for 30 % and falls as a cosine; cosine and linear warm up for 5 % and fall so."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    stages: tuple[str, ...] = ("all",)
    """What trains in each epoch: new (what is not pretrained), text (and the decoder), all; the last one goes on."""
    label_smoothing: float = 0.0
    """Share of the target spread over all tokens."""
    word_dropout: float = 0.0
    """Share of input words hidden while training, so that the picture is looked at."""
    word_presence_weight: float = 0.0
    """Weight of a second loss: which frequent words occur in any caption of the picture, told from its tokens alone."""
    augment: bool = True
    """Flip, shift and relight pictures while training, only where the captions stay true; not with vision.frozen."""
    patience: int | None = None
    """Stop after this many epochs without a better validation."""
    best_by: Literal["loss", "CIDEr-D"] = "loss"
    """What makes a checkpoint the best one."""
    val_images: int = 500
    """Validation pictures captioned after each epoch; the loss is over all of them."""
    seed: int = 0
    """Of weights, order and augmentation."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic while training; auto takes bf16 where the device computes in it, else fp32."""
    devices: str = "auto"
    """auto, cpu or cuda."""
    workers: int = 1
    """Processes that decode pictures beside the training, where these don't all fit into memory."""
    half_features: bool = False
    """Keep cached features of a frozen backbone in half precision."""

    def __post_init__(self) -> None:
        _positive(
            "", epochs=self.epochs, max_steps=self.max_steps, max_minutes=self.max_minutes, batch_size=self.batch_size,
            accumulate=self.accumulate, captions_per_image=self.captions_per_image, lr=self.lr, muon_lr=self.muon_lr,
            grad_clip=self.grad_clip, patience=self.patience, val_images=self.val_images,
        )
        _fraction("", label_smoothing=self.label_smoothing, word_dropout=self.word_dropout)
        if self.workers < 0 or self.word_presence_weight < 0:
            raise ConfigError(
                f"workers {self.workers} and word_presence_weight {self.word_presence_weight} must be at least 0"
            )
        unknown = sorted(set(self.stages) - {"new", "text", "all"})
        if unknown or not self.stages:
            raise ConfigError(f"stages {list(self.stages)}: each must be new, text or all, and there must be one")
        if self.lora.rank and self.base is None:
            raise ConfigError(
                f"lora.rank {self.lora.rank} without base: adapters are kept alone, and stand on a captioner that is "
                "kept too; give one by --base, or train it first without --lora.rank"
            )

    @property
    def captioner(self) -> CaptionerConfig:
        return CaptionerConfig(self.vision, self.text, self.mode)
