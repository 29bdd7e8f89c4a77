"""Prepares a run from its configuration: data, tokenizer, model, and features of a frozen backbone."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from myllm.checkpoints import formats
from myllm.checkpoints.build import build_model
from myllm.checkpoints.card import flatten
from myllm.checkpoints.native import Checkpoint
from myllm.config import CaptionerConfig, DecodeConfig, PreprocessConfig
from myllm.data.augmentation import is_english
from myllm.data.batches import CaptionSource, check_pictures, fit_memory, make_source
from myllm.data.checked_pictures import CheckedPictures
from myllm.data.images import Preprocess
from myllm.data.records import Findings, Record
from myllm.data.sources import read_records
from myllm.data.splits import check_both_sides, split_records
from myllm.data.tokenizer import gpt2_tokenizer, train_tokenizer
from myllm.device import choose_device
from myllm.errors import ConfigError, DataError
from myllm.files import cache_folder
from myllm.model.gpt2_weights import fit_to_pretrained, gpt2_folder
from myllm.model.lora import adapted_layers, add_adapters
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.model.weight_files import weights_hash
from myllm.progress import Progress, no_progress
from myllm.training.frozen import FrozenBackbone, frozen_backbone
from myllm.training_config import TrainConfig


@dataclass(frozen=True)
class Prepared:
    """Model and data of a run."""

    config: TrainConfig
    """The run's configuration; with a base, it has the base's geometry and decoding defaults."""
    model: VisionGPT2
    tokenizer: Tokenizer
    preprocess: PreprocessConfig
    train: CaptionSource
    val: CaptionSource
    findings: Findings
    fingerprints: dict[str, str]
    """Must be the same when a run is resumed, {"training split": hash}: hashes of pictures' names with their captions,
    and of the base's weights if adapters train on them."""
    base_hash: str | None = None
    """Hash of the base's weights if adapters train on them."""


def prepare(
    config: TrainConfig, progress: Progress = no_progress, given_options: Collection[str] = (),
    tokenizer: Tokenizer | None = None, pictures: int | None = None,
) -> Prepared:
    """Read the data, make or open tokenizer and model, decode the pictures, and encode them if the backbone is frozen.

    given_options: dotted names of the options that the user set, such as "text.dropout": with a base, they count even
    if their value is the default. tokenizer: of a run that is resumed. pictures: for a dry run, the number of
    pictures of each split that are read; they stand for the others.
    Raises DataError, ConfigError or CheckpointError.
    """
    records, findings = read_records(config.data, config.captions)
    splits = split_records(records, findings)
    check_both_sides(splits)
    base = None
    if config.base is not None:
        # an adapter names its base, which must open again as a whole captioner
        base = formats.load_base(config.base) if config.lora.rank else formats.load(config.base)
        config = fit_to_base(config, base, given_options)
        architecture = replace(base.model.config, text=config.text, vision=config.vision)
        if architecture != base.model.config:
            base = replace(base, model=build_model(architecture, base.model.state_dict()))
    torch.manual_seed(config.seed)
    start = base or _new_checkpoint(config, splits["train"], tokenizer)
    model, preprocess, base_hash = start.model, Preprocess(start.preprocess), None
    if config.lora.rank:
        base_hash = weights_hash(model)
        add_adapters(model, config.lora)
        in_backbone = [name for name, _ in adapted_layers(model) if name.startswith("encoder.")]
        if config.vision.frozen and in_backbone:
            raise ConfigError(
                f"lora.targets has {in_backbone[0]}, a layer of the backbone, and vision.frozen keeps the "
                "backbone's features; drop one of them"
            )
    backbones = {}  # by whether they read mirrored pictures, too
    if config.vision.frozen:
        count, device = len(splits["train"]) + len(splits["val"]), choose_device(config.devices)
        for mirrored in {False, model.encoder.mirrored}:
            backbones[mirrored] = frozen_backbone(start, device, config.half_features, count, mirrored)
    sources = []
    for name in ("train", "val"):
        frozen = backbones.get(model.encoder.mirrored and name == "val")
        readable, pixels = _readable(splits[name][:pictures], preprocess, frozen, findings, progress)
        if pictures is not None:
            readable, pixels = _with_pictures_of(readable, pixels, splits[name], preprocess)
        source = make_source(readable, pixels, preprocess, start.tokenizer, model.config.text.n_positions, findings)
        # of a dry run's pictures, which repeat under other names, only the view as it is
        views = config.views if name == "train" and pictures is None else 1
        sources.append(source if frozen is None else frozen.with_features(source, views, findings, progress))
    train, val = sources
    if config.decode.rank_by == "retrieval" and len(train.records) < 2:
        raise DataError(
            "decode.rank_by retrieval compares a picture with at least two training pictures, and there is one; add "
            "pictures, or take --decode.rank_by score"
        )
    if config.augment and not config.vision.frozen and not train.is_english:
        captions = (caption for record in train.records for caption in record.captions)
        findings.not_english += [caption for caption in captions if not is_english(caption)]
    fingerprints = {
        "training split": fingerprint_of(train.records), "validation split": fingerprint_of(val.records),
        **({"base": base_hash} if base_hash else {}),
    }
    return Prepared(config, model, start.tokenizer, start.preprocess, train, val, findings, fingerprints, base_hash)


def _with_pictures_of(
    readable: Sequence[Record], pixels: Tensor | None, records: Sequence[Record], preprocess: Preprocess
) -> tuple[list[Record], Tensor | None]:
    """Return all `records` with the pictures of the few `readable` ones in turn, and their pixels if these all fit."""
    rows = torch.arange(len(records)) % len(readable)
    pixels = pixels[rows] if pixels is not None and fit_memory(len(records), preprocess) else None
    return [
        replace(record, image=readable[row].image) for record, row in zip(records, rows.tolist(), strict=True)
    ], pixels


def _readable(
    records: Sequence[Record], preprocess: Preprocess, frozen: FrozenBackbone | None, findings: Findings,
    progress: Progress,
) -> tuple[list[Record], Tensor | None]:
    """Return what `check_pictures` returns; it decodes no picture that has features, or was checked by another run."""
    pictures = [record.image for record in records]
    known = frozen.cache.known(pictures) if frozen is not None else set()
    if fit_memory(len(pictures), preprocess):
        return check_pictures(records, preprocess, findings, progress, known)
    checked = CheckedPictures(cache_folder() / "checked-pictures.txt")
    readable, pixels = check_pictures(records, preprocess, findings, progress, known | checked.known(pictures))
    checked.add(record.image for record in readable)
    return readable, pixels


# Options of the model that a base does not fix: dropout, where weights came from, what trains, and mirrored pictures.
NOT_GEOMETRY = ("text.dropout", "text.pretrained", "vision.frozen", "vision.mirrored", "vision.pretrained")


def fit_to_base(config: TrainConfig, base: Checkpoint, given_options: Collection[str] = ()) -> TrainConfig:
    """Return `config` with the base's model options, and with those of its decoding options that are not set.

    An option is set if it differs from the default or is in `given_options`. Dropout, `vision.frozen` and
    `vision.mirrored` may differ from the base's; ConfigError is raised for other model options that are set and differ.
    """
    model = base.model.config
    options, of_base, default = (
        dict(flatten(asdict(part), ".")) for part in (config.captioner, model, CaptionerConfig())
    )
    # a config.yaml has the default of text.vocab_size, because training takes it from the tokenizer
    is_set = {name for name, value in options.items() if value != default.get(name)}
    is_set |= {*given_options} - {"text.vocab_size"}
    for name in options:
        if name in is_set and name not in NOT_GEOMETRY and options[name] != of_base.get(name):
            raise ConfigError(
                f"{name} is {options[name]}, but the base {config.base} has {of_base.get(name)}; leave that out"
            )
    text = replace(model.text, dropout=config.text.dropout) if "text.dropout" in is_set else model.text
    mirrored = config.vision.mirrored if "vision.mirrored" in is_set else model.vision.mirrored
    vision = replace(model.vision, frozen=config.vision.frozen, mirrored=mirrored)
    given_decode = [option.name for option in fields(DecodeConfig) if f"decode.{option.name}" in given_options]
    set_decode = config.decode.changed() | {name: getattr(config.decode, name) for name in given_decode}
    decode = replace(base.decode.without_retrieval() if config.lora.rank else base.decode, **set_decode)
    return replace(config, vision=vision, text=text, mode=model.mode, decode=decode)


def _new_checkpoint(config: TrainConfig, train: Sequence[Record], tokenizer: Tokenizer | None) -> Checkpoint:
    """Return an untrained model with its preprocessing, and with `tokenizer` or a new one."""
    if tokenizer is not None:
        pass
    elif config.text.pretrained:
        tokenizer = gpt2_tokenizer(str(gpt2_folder(config.text.pretrained)))
    else:
        tokenizer = train_tokenizer((text for record in train for text in record.captions), config.captions.vocab_size)
    text = replace(fit_to_pretrained(config.text), vocab_size=tokenizer.get_vocab_size())
    model = VisionGPT2(replace(config.captioner, text=text))
    return Checkpoint(model, tokenizer, model.encoder.preprocess)


def fingerprint_of(records: Sequence[Record]) -> str:
    """Return a hash of the pictures' names and captions."""
    digest = hashlib.blake2b(digest_size=8)
    for record in records:
        digest.update("\0".join((record.name, *record.captions)).encode())
    return digest.hexdigest()
