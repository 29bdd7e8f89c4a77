"""The options of a training run; as in `config.py`, checked when they are created."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from myllm.config import CaptionerConfig, CaptionsConfig, DecodeConfig, GPTConfig, LoraConfig, VisionConfig
from myllm.errors import ConfigError
from myllm.option_checks import Range, check_options


@dataclass(frozen=True)
class SelfCriticalConfig:
    """Self-critical training: sampled captions are rewarded by their CIDEr-D instead of learning people's captions."""

    samples: Annotated[int, Range.AT_LEAST_0] = 0
    """Captions sampled for each picture, at least 2; 0 learns people's captions. Needs a trained captioner as base."""
    people_weight: Annotated[float, Range.AT_LEAST_0] = 0.0
    """Weight of the usual loss of people's captions, which are then learned, too: it keeps captions natural."""
    kl_weight: Annotated[float, Range.AT_LEAST_0] = 0.0
    """Penalty, in the reward, for each nat by which a sample has become more likely than it is to the base."""

    def __post_init__(self) -> None:
        check_options(self, "self_critical.")
        if self.samples == 1:
            raise ConfigError("self_critical.samples is 1; samples are compared with each other: give 2 or more")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run depends on."""

    data: tuple[str, ...] | str = "data"
    """Folder with captions and pictures, file of captions, tar or zip archive, or repository of a hub (user/name); the
    format is recognised. Several, each with --data, are mixed."""
    out: str = "captioner"
    """The run folder."""
    base: str | None = None
    """Captioner to start from, in any form that MyLLM opens. Its weights, geometry, tokenizer and preprocessing are
    used. If vision, text or mode is given, too, it must be the same, except vision.frozen, vision.mirrored and
    text.dropout. Its decoding options are the defaults."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: GPTConfig = field(default_factory=GPTConfig)
    mode: Literal["layerwise", "last"] = "layerwise"
    """What each decoder block attends to: the output of the encoder block at the same depth (layerwise), or the last
    output of the encoder (last)."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    self_critical: SelfCriticalConfig = field(default_factory=SelfCriticalConfig)

    next_runs: tuple[dict[str, Any], ...] = ()
    """Runs to make after this one, each as options that differ from this run's; each starts from the best captioner of
    the one before. The runs before the last are in folders run1, run2 ... of --out."""

    epochs: Annotated[int, Range.POSITIVE] = 10
    """Passes over the training pictures."""
    max_steps: Annotated[int | None, Range.POSITIVE] = None
    """Stop after this many optimizer steps; the learning rate schedule ends there too."""
    max_minutes: Annotated[float | None, Range.POSITIVE] = None
    """Stop after this many minutes of training; the learning rate schedule ends there too. A run that ends earlier
    leaves the rest to the next of next_runs, if that has a limit of minutes."""
    batch_size: Annotated[int, Range.POSITIVE] = 32
    """Pictures per batch."""
    accumulate: Annotated[int, Range.POSITIVE] = 1
    """Batches whose gradients are accumulated for one optimizer step."""
    captions_per_image: Annotated[int, Range.POSITIVE] = 5
    """Captions of a picture per batch; the picture is encoded once for all of them."""
    lr: Annotated[float, Range.POSITIVE] = 1e-4
    """Peak learning rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw for all parameters, or muon for the matrices of the blocks and adamw for the rest."""
    muon_lr: Annotated[float, Range.POSITIVE] = 0.02
    """Peak learning rate of the parameters that muon trains."""
    vision_layers: Annotated[int | None, Range.POSITIVE] = None
    """Train only so many of the backbone's last layers (blocks of a transformer, stages of a convolutional network),
    and what follows them; all if not given. The layers before them stay as they are, which saves time."""
    vision_lr: Annotated[float | None, Range.POSITIVE] = None
    """Peak learning rate of the backbone, which AdamW then trains; if not given, it trains as the decoder does."""
    weight_decay: Annotated[float, Range.AT_LEAST_0] = 0.01
    """Weight decay of matrices; norms, biases and embeddings have none."""
    vision_weight_decay: Annotated[float | None, Range.AT_LEAST_0] = None
    """Weight decay of the backbone's matrices; weight_decay if not given."""
    schedule: Literal["onecycle", "cosine", "linear"] = "onecycle"
    """Learning rate schedule. onecycle rises from lr/25 over the first 30 % and falls as a cosine; cosine and linear
    warm up over 5 % and fall as their names say."""
    ema: Annotated[float, Range.FRACTION] = 0.0
    """Validate and keep an exponential moving average of the weights with this decay per step, like 0.999; 0 keeps the
    weights themselves."""
    base_share: Annotated[float, Range.FRACTION] = 0.0
    """Share of the base's weights in the captioner that the run leaves at its end: after training on rewards, the mean
    of both was better than either on photographs."""
    grad_clip: Annotated[float, Range.POSITIVE] = 1.0
    """Maximum norm of the gradient."""
    stages: tuple[str, ...] = ("all",)
    """What trains in each epoch: new (the parts that are not pretrained), text (these and the decoder) or all; later
    epochs repeat the last entry."""
    label_smoothing: Annotated[float, Range.FRACTION] = 0.0
    """Share of the target probability spread evenly over all tokens."""
    word_dropout: Annotated[float, Range.FRACTION] = 0.0
    """Share of input tokens masked in training, so that the decoder relies on the picture."""
    word_presence_weight: Annotated[float, Range.AT_LEAST_0] = 0.0
    """Weight of an auxiliary loss: predict from the image tokens which frequent words the captions contain."""
    augment: bool = True
    """Flip, shift, lighten and darken training pictures if their captions stay true: captions that are not known to be
    English rule out flips and shifts of hue. No effect with vision.frozen."""
    views: Annotated[int, Range.POSITIVE] = 1
    """With vision.frozen: number of versions of each training picture whose features are stored, the picture as it is
    and others augmented as `augment` does. Each epoch takes the next one. No effect on a backbone that trains."""
    patience: Annotated[int | None, Range.POSITIVE] = None
    """Stop after this many epochs without a better validation result."""
    best_by: Literal["loss", "CIDEr-D"] = "loss"
    """Validation figure that selects the best checkpoint."""
    val_images: Annotated[int, Range.POSITIVE] = 500
    """Number of validation pictures to caption after each epoch; the validation loss uses all of them."""
    seed: Annotated[int, Range.SEED] = 0
    """Random seed of weights, data order and augmentation."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic in training; auto is bf16 on a GPU with bf16 units, and with vision.frozen on a CPU that multiplies
    faster in it, too; else fp32."""
    devices: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""
    save_minutes: Annotated[float, Range.POSITIVE] = 10.0
    """Save the run for --resume after this many minutes of an epoch, besides after each epoch."""
    workers: Annotated[int | None, Range.AT_LEAST_0] = None
    """Processes that decode and augment pictures during training. If not given: the cores of each training process
    without one, 1 to 8. The result does not depend on it."""
    half_features: bool = False
    """Store the cached features of a frozen backbone in half precision."""

    def __post_init__(self) -> None:
        check_options(self)
        if not self.stages or set(self.stages) - {"new", "text", "all"}:
            raise ConfigError(f"stages {list(self.stages)}: expected one or more of new, text and all")
        if self.lora.rank and self.base is None:
            raise ConfigError(
                f"lora.rank {self.lora.rank} without base: a run with adapters saves only the adapters, which need the "
                "captioner that they were trained on; give one by --base, or train without --lora.rank"
            )

        if self.base_share and (self.base is None or self.lora.rank):
            reason = "without base: give a captioner by --base" if self.base is None else "with lora.rank: leave it out"
            raise ConfigError(f"base_share {self.base_share:g} {reason}")
        if self.lora.rank and self.decode.rank_by == "retrieval":
            raise ConfigError(
                "decode.rank_by retrieval with lora.rank: an adapter has no index of training pictures; take score"
            )
        if self.self_critical.samples and self.base is None:
            raise ConfigError(
                f"self_critical.samples {self.self_critical.samples} without base: samples of an untrained captioner "
                "earn nothing; train one on people's captions first, and give it by --base"
            )

    @property
    def captioner(self) -> CaptionerConfig:
        """Architecture of the captioner that this run trains."""
        return CaptionerConfig(self.vision, self.text, self.mode)
