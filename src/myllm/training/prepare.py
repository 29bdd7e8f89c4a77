"""From a configuration to what the loop needs: model, tokenizer, and pictures with their captions."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""


@dataclass(frozen=True)
class Prepared:
    """What a run trains, on what."""

    config: TrainConfig
    """The run's, with the base's geometry and decoding defaults where there is one."""
    model: VisionGPT2
    tokenizer: Tokenizer
    preprocess: PreprocessConfig
    train: CaptionSource
    val: CaptionSource
    findings: Findings
    fingerprint: str
    """Of the pictures' names and captions, train and val: tells whether two runs had the same data."""
    base_hash: str | None = None
    """Of the weights that stay as they are, beside which adapters train."""


def prepare(config: TrainConfig, progress: Progress | None = None) -> Prepared:
    """Read the data, make or open tokenizer and model, decode the pictures, and encode them if the backbone is frozen.

    Raises DataError, ConfigError or CheckpointError with the way out.
    """
    records, findings = read_records(Path(config.data), config.captions)
    splits = split_records(records, Path(config.data), findings)
    base = _base(config)
    if base is not None:
        config = fit_to_base(config, base)
    torch.manual_seed(config.seed)
    begun = base or _new(config, splits["train"])
    model, preprocess = begun.model, Preprocess(begun.preprocess)
    base_hash = None
    if config.lora.rank:
        base_hash = weights_hash(model)
        add_adapters(model, config.lora)
        _check_features(config, model)
    cache = _feature_cache(begun, config) if config.vision.frozen else None
    sources = []
    for name in ("train", "val"):
        pictures = [record.image for record in splits[name]]
        known = cache.known(pictures) if cache is not None else ()
        told = _told(progress, f"reading {name} pictures")
        whole, pixels = check_pictures(splits[name], preprocess, findings, told, known)
        source = make_source(whole, pixels, preprocess, begun.tokenizer, model.config.text.n_positions, findings)
        if cache is not None:
            told = _told(progress, f"encoding {name} pictures")
            source = _with_features(source, cache, model, choose_device(config.devices), findings, told)
        sources.append(source)
    fingerprint = fingerprint_of([*sources[0].records, *sources[1].records])
    return Prepared(
        config, model, begun.tokenizer, begun.preprocess, sources[0], sources[1], findings, fingerprint, base_hash
    )


def _base(config: TrainConfig) -> Checkpoint | None:
    if config.base is None:
        return None
    # what an adapter stands on is opened again wherever the adapter is
    return formats.load_base(config.base) if config.lora.rank else formats.load(config.base)


def fit_to_base(config: TrainConfig, base: Checkpoint) -> TrainConfig:
    """`config` with the base's geometry and decoding defaults, for what was left at the default.

    Raises ConfigError where it asks for another geometry.
    """
    own = base.model.config
    given, found, default = (dict(flatten(asdict(one), ".")) for one in (config.captioner, own, CaptionerConfig()))
    for name, value in given.items():
        # whether a part was pretrained before, and whether it trains now, is no geometry
        if value not in (found.get(name), default.get(name)) and not name.endswith((".pretrained", ".frozen")):
            raise ConfigError(f"{name} is {value}, but the base {config.base} has {found.get(name)}; leave that out")
    return replace(
        config,
        vision=replace(own.vision, frozen=config.vision.frozen),
        text=own.text,
        mode=own.mode,
        decode=base.decode if config.decode == DecodeConfig() else config.decode,
    )


def _new(config: TrainConfig, train: Sequence[Record]) -> Checkpoint:
    """A model as it is before training, and its tokenizer."""
    tokenizer = _tokenizer(config, train)
    text = replace(fit_to_pretrained(config.text), vocab_size=tokenizer.get_vocab_size())
    model = VisionGPT2(replace(config.captioner, text=text))
    return Checkpoint(model, tokenizer, model.encoder.preprocess)


def _check_features(config: TrainConfig, model: VisionGPT2) -> None:
    """Raises ConfigError where adapters would change features that are computed once."""
    within = [name for name, _ in adapted_layers(model) if name.startswith("encoder.")]
    if config.vision.frozen and within:
        raise ConfigError(
            f"lora.targets has {within[0]}, a layer of the backbone, and vision.frozen keeps the features of that; "
            "drop one of them"
        )


def _feature_cache(begun: Checkpoint, config: TrainConfig) -> FeatureCache:
    """Keyed by what the features depend on, and nothing else, so that runs with other decoders share them."""
    encoder = begun.model.encoder
    key = f"{config.vision.name} {encoder.indices} {weights_hash(encoder)} {begun.preprocess}"
    return FeatureCache(cache_folder() / "features", key, config.half_features)


def _with_features(
    source: CaptionSource,
    cache: FeatureCache,
    model: VisionGPT2,
    device: torch.device,
    findings: Findings,
    progress: Callable[[int, int], None] | None,
) -> CaptionSource:
    """The source with the features of its pictures, from the cache or computed now."""
    encoder = model.encoder.to(device).eval()

    def encode(images: Tensor) -> tuple[Tensor, ...]:
        return encoder(images.to(device))

    pictures = [record.image for record in source.records]
    features = cache.features(pictures, source.images, encode, findings, progress=progress)
    return replace(source, features=features, pixels=None)


def fingerprint_of(records: Sequence[Record]) -> str:
    """Of the pictures' names and captions."""
    digest = hashlib.blake2b(digest_size=8)
    for record in records:
        digest.update("\0".join((record.name, *record.captions)).encode())
    return digest.hexdigest()


def _tokenizer(config: TrainConfig, train: Sequence[Record]) -> Tokenizer:
    if config.text.pretrained:
        return gpt2_tokenizer(str(gpt2_folder(config.text.pretrained)))
    return train_tokenizer((text for record in train for text in record.captions), config.captions.vocab_size)


def _told(progress: Progress | None, what: str) -> Callable[[int, int], Any] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)
