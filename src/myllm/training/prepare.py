"""Prepares a run from its configuration: data, tokenizer, model, and features of a frozen backbone."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from myllm.checkpoints import formats
from myllm.checkpoints.card import flatten
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, DecodeConfig, PreprocessConfig, TrainConfig
from myllm.data.batches import CaptionSource, check_pictures, make_source
from myllm.data.features import FeatureCache
from myllm.data.images import Preprocess
from myllm.data.records import Findings, Record, read_records
from myllm.data.splits import split_records
from myllm.data.tokenizer import gpt2_tokenizer, train_tokenizer
from myllm.device import choose_device
from myllm.errors import ConfigError
from myllm.files import cache_folder
from myllm.model.gpt2_weights import fit_to_pretrained, gpt2_folder
from myllm.model.lora import adapted_layers, add_adapters
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import weights_hash
from myllm.progress import Progress, no_progress


@dataclass(frozen=True)
class Prepared:
    """Model and data of a run."""

    config: TrainConfig
    """The run's configuration; with a base it has the base's geometry and decoding defaults."""
    model: VisionGPT2
    tokenizer: Tokenizer
    preprocess: PreprocessConfig
    train: CaptionSource
    val: CaptionSource
    findings: Findings
    fingerprint: str
    """Hash of the pictures' names and captions, train and val: equal for runs with the same data."""
    base_hash: str | None = None
    """Hash of the base's weights if adapters train on them."""


def prepare(config: TrainConfig, progress: Progress = no_progress, given_options: Collection[str] = ()) -> Prepared:
    """Read the data, make or open tokenizer and model, decode the pictures, and encode them if the backbone is frozen.

    given_options: dotted names of the options that the user set (`text.dropout`): with a base, they count even if their
    value is the default. Raises DataError, ConfigError or CheckpointError with the fix.
    """
    records, findings = read_records(Path(config.data), config.captions)
    splits = split_records(records, Path(config.data), findings)
    base = _base(config)
    if base is not None:
        config = fit_to_base(config, base, given_options)
    torch.manual_seed(config.seed)
    start = base or _new_checkpoint(config, splits["train"])
    model, preprocess = start.model, Preprocess(start.preprocess)
    base_hash = None
    if config.lora.rank:
        base_hash = weights_hash(model)
        add_adapters(model, config.lora)
        _check_features(config, model)
    cache = _feature_cache(start, config) if config.vision.frozen else None
    sources = []
    for name in ("train", "val"):
        pictures = [record.image for record in splits[name]]
        known = cache.known(pictures) if cache is not None else ()
        readable, pixels = check_pictures(splits[name], preprocess, findings, progress, known)
        source = make_source(readable, pixels, preprocess, start.tokenizer, model.config.text.n_positions, findings)
        if cache is not None:
            source = _with_features(source, cache, model, choose_device(config.devices), findings, progress)
        sources.append(source)
    fingerprint = fingerprint_of([*sources[0].records, *sources[1].records])
    return Prepared(
        config, model, start.tokenizer, start.preprocess, sources[0], sources[1], findings, fingerprint, base_hash
    )


def _base(config: TrainConfig) -> Checkpoint | None:
    if config.base is None:
        return None
    # an adapter file names its base, which must open as a whole captioner again
    return formats.load_base(config.base) if config.lora.rank else formats.load(config.base)


# Options of the model that a base does not fix: where its weights came from, and what trains.
NOT_GEOMETRY = ("vision.pretrained", "vision.frozen", "text.pretrained")


def fit_to_base(config: TrainConfig, base: Checkpoint, given_options: Collection[str] = ()) -> TrainConfig:
    """Return `config` with the base's model options, and with its decoding options if none are set.

    An option is set if it differs from the default, or is in `given_options`. Raises ConfigError if a model option that
    is set differs from the base's.
    """
    model = base.model.config
    options, of_base, default = (
        dict(flatten(asdict(part), ".")) for part in (config.captioner, model, CaptionerConfig())
    )
    for name, value in options.items():
        # a config.yaml holds the default of text.vocab_size, because training takes it from the tokenizer
        is_set = value != default.get(name) or (name in given_options and name != "text.vocab_size")
        if is_set and value != of_base.get(name) and name not in NOT_GEOMETRY:
            raise ConfigError(f"{name} is {value}, but the base {config.base} has {of_base.get(name)}; leave that out")
    sets_decode = config.decode != DecodeConfig() or any(name.startswith("decode.") for name in given_options)
    vision, decode = replace(model.vision, frozen=config.vision.frozen), config.decode if sets_decode else base.decode
    return replace(config, vision=vision, text=model.text, mode=model.mode, decode=decode)


def _new_checkpoint(config: TrainConfig, train: Sequence[Record]) -> Checkpoint:
    """Return an untrained model with its tokenizer and preprocessing."""
    tokenizer = _tokenizer(config, train)
    text = replace(fit_to_pretrained(config.text), vocab_size=tokenizer.get_vocab_size())
    model = VisionGPT2(replace(config.captioner, text=text))
    return Checkpoint(model, tokenizer, model.encoder.preprocess)


def _check_features(config: TrainConfig, model: VisionGPT2) -> None:
    """Raise ConfigError if adapters would change features that are computed only once."""
    in_backbone = [name for name, _ in adapted_layers(model) if name.startswith("encoder.")]
    if config.vision.frozen and in_backbone:
        raise ConfigError(
            f"lora.targets has {in_backbone[0]}, a layer of the backbone, and vision.frozen keeps the "
            "backbone's features; drop one of them"
        )


def _feature_cache(start: Checkpoint, config: TrainConfig) -> FeatureCache:
    """Return the cache for the backbone and the preprocessing; runs with other decoders share it."""
    encoder = start.model.encoder
    key = f"{config.vision.name} {encoder.indices} {weights_hash(encoder)} {start.preprocess}"
    return FeatureCache(cache_folder() / "features", key, config.half_features)


def _with_features(
    source: CaptionSource, cache: FeatureCache, model: VisionGPT2, device: torch.device, findings: Findings,
    progress: Progress,
) -> CaptionSource:
    """Return the source with the features of its pictures, from the cache or computed now."""
    encoder = model.encoder.to(device).eval()

    def encode(images: Tensor) -> tuple[Tensor, ...]:
        return encoder(images.to(device))

    pictures = [record.image for record in source.records]
    features = cache.features(pictures, source.images, encode, findings, progress=progress)
    return replace(source, features=features, pixels=None)


def fingerprint_of(records: Sequence[Record]) -> str:
    """Return a hash of the pictures' names and captions."""
    digest = hashlib.blake2b(digest_size=8)
    for record in records:
        digest.update("\0".join((record.name, *record.captions)).encode())
    return digest.hexdigest()


def _tokenizer(config: TrainConfig, train: Sequence[Record]) -> Tokenizer:
    if config.text.pretrained:
        return gpt2_tokenizer(str(gpt2_folder(config.text.pretrained)))
    return train_tokenizer((text for record in train for text in record.captions), config.captions.vocab_size)
