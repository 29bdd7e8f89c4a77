"""Captions without torch: exports of `myllm export --to onnx`, on ONNX Runtime, tokenizers, Pillow and numpy.

from myllm.inference.onnx_captioner import OnnxCaptioner

captioner = OnnxCaptioner.load("exported")
print(captioner.caption("dog.jpg", beams=4).text)
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from myllm.batched import batched
from myllm.caption import Calibration, Caption
from myllm.checkpoints.checks import check_preprocess, check_tokenizer, dataclass_from_dict, with_current_names
from myllm.config import CaptionsConfig, DecodeConfig, PreprocessConfig
from myllm.data.images import Preprocess, load_image
from myllm.decoding.constraints import Vocabulary
from myllm.decoding.engine import SearchRequest
from myllm.errors import CheckpointError, ConfigError, reason
from myllm.files import read_json
from myllm.inference.generate import (
    check_streamable,
    fit_prefix,
    generate_captions,
    make_vocabulary,
    override_options,
    stream_text,
)

Picture = Path | str | bytes | Image.Image | NDArray[np.float32]
ENCODER, DECODER = "encoder_model", "decoder_model_merged"
PAST = "past_key_values"


class OnnxCaptioner:
    """An exported captioner; in fp32 it finds the same captions as the captioner that was exported."""

    def __init__(
        self, encoder: onnxruntime.InferenceSession, decoder: onnxruntime.InferenceSession, tokenizer: Tokenizer,
        facts: Mapping[str, Any],
    ) -> None:
        """facts: the entry `myllm` of config.json."""
        self.encoder, self.decoder, self.tokenizer = encoder, decoder, tokenizer
        self.decode = dataclass_from_dict(DecodeConfig, facts["decode"])
        self.captions = dataclass_from_dict(CaptionsConfig, facts["captions"])
        calibration = facts.get("calibration")  # earlier exports have none
        self.calibration = None if calibration is None else Calibration.from_json(with_current_names(calibration))
        self.precision = str(facts["precision"])
        self._end, self._n_positions = int(facts["given"][0]), int(facts["n_positions"])
        preprocess = dataclass_from_dict(PreprocessConfig, facts["preprocess"])
        check_preprocess(preprocess, tuple(encoder.get_inputs()[0].shape[2:]))
        self._preprocess = Preprocess(preprocess)
        self._files: list[Path] = []
        check_tokenizer(tokenizer, decoder.get_outputs()[0].shape[2], "the decoder")

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None) -> "OnnxCaptioner":
        """Open a folder that `myllm export --to onnx` wrote. threads: ONNX Runtime's own choice by default.

        Raises CheckpointError if a file is missing or damaged, or needs an operator that ONNX Runtime lacks.
        """
        folder = Path(folder)
        facts = read_json(folder / "config.json").get("myllm")
        if not isinstance(facts, dict):
            raise CheckpointError(
                f"{folder / 'config.json'}: has no entry 'myllm', so it was not written by `myllm export --to onnx`"
            )
        encoder, decoder = _session(folder, ENCODER, threads), _session(folder, DECODER, threads)
        try:
            opened = cls(encoder, decoder, Tokenizer.from_file(str(folder / "tokenizer.json")), facts)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        except Exception as error:  # an edited file can raise anything, and tokenizers raises bare Exception
            raise CheckpointError(
                f"{folder}: its parts do not fit together ({reason(error)}); export it again"
            ) from error
        opened._files = sorted(path for path in (folder / "onnx").iterdir() if path.is_file())
        return opened

    def preprocess(self, image: Picture) -> NDArray[np.float32]:
        """Return (3, H, W) float32. An array of that shape counts as preprocessed. Raises DataError."""
        if isinstance(image, np.ndarray):
            expected = (3, *self._preprocess.size)
            if image.shape != expected:
                raise ConfigError(f"an image array of shape {image.shape}; this model expects {expected}")
            return image.astype(np.float32)
        return self._preprocess(load_image(image))

    def caption(self, image: Picture, *, generator: np.random.Generator | None = None, **decode: Any) -> Caption:
        """Caption one picture; `decode` overrides the model's decoding defaults, e.g. beams=4.

        Raises DataError if the picture cannot be read, ConfigError for an unknown option or if the rules leave nothing.
        """
        [caption] = self.caption_batch([image], generator=generator, **decode)
        if caption.error:
            raise ConfigError(caption.error)
        return caption

    def caption_batch(
        self,
        images: Iterable[Picture],
        *,
        each: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int = 32,
        generator: np.random.Generator | None = None,
        **decode: Any,
    ) -> list[Caption]:
        """Return one caption for each picture, in their order, the same that `caption` returns; many at once.

        each: options of each picture, where they differ; they override those of `decode`. A picture for which the rules
        leave nothing gets a caption with `error`.
        """
        if each is not None:
            images = list(images)
            if len(each) != len(images):
                raise ConfigError(f"caption_batch: each has options for {len(each)} pictures; there are {len(images)}")
        options = (self.decode_options(**{**decode, **changes}) for changes in (repeat({}) if each is None else each))
        captions = list[Caption]()
        for batch in batched(images, batch_size):
            pictures = [self.preprocess(picture) for picture in batch]
            seeds = self._draw_seeds(len(pictures), generator)
            captions += self.caption_tensors(pictures, list(islice(options, len(pictures))), seeds)
        return captions

    def stream(self, image: Picture, *, generator: np.random.Generator | None = None, **decode: Any) -> Iterator[str]:
        """Yield the caption of one picture in pieces as they are found, each of whole characters.

        Raises as `caption`, and ConfigError with beams or several samples, whose best is known only at the end.
        """
        options = self.decode_options(**decode)
        check_streamable(options)
        images = self._encode(self.preprocess(image)[None])
        return stream_text(self._request(images, options, self._draw_seeds(1, generator)), self.tokenizer)

    def decode_options(self, **decode: Any) -> DecodeConfig:
        """Return the model's decoding defaults with some of them replaced. Raises ConfigError for an unknown name."""
        return override_options(self.decode, self._n_positions, decode)

    def caption_tensors(
        self,
        images: Sequence[NDArray[np.float32]],
        decode: DecodeConfig | Sequence[DecodeConfig],
        seeds: Sequence[int] | None = None,
    ) -> list[Caption]:
        """images: (B, 3, H, W) float32, preprocessed -> a caption for each, by options for all or of each.

        seeds: a random seed for each picture; drawn if there are none. In fp32, seeds draw the captions that the
        exported captioner draws.
        """
        options = [decode] * len(images) if isinstance(decode, DecodeConfig) else decode
        seeds = self._draw_seeds(len(images), None) if seeds is None else seeds
        encoded = self._encode(np.stack(images))
        captions: dict[int, Caption] = {}
        for distinct in dict.fromkeys(options):
            rows = [row for row, option in enumerate(options) if option == distinct]
            request = self._request(encoded[rows], distinct, [seeds[row] for row in rows])
            captions |= zip(rows, generate_captions(request, self.tokenizer), strict=True)
        return [replace(captions[row], calibration=self.calibration) for row in range(len(images))]

    def blind_caption(self, decode: DecodeConfig) -> None:
        """None: the exported encoder returns keys and values, not the image tokens that would have to be zero."""
        return None

    def weights_hash(self) -> str:
        """The same for the same files."""
        digest = hashlib.blake2b(digest_size=8)
        for path in self._files:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _encode(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, 3, H, W) -> (B, 2 * n_layer * n_head * S, head_dim): keys and values for the decoder."""
        (encoded,) = _run(self.encoder, ["last_hidden_state"], {"pixel_values": images})
        return np.asarray(encoded)

    def _request(self, images: NDArray[np.float32], decode: DecodeConfig, seeds: Sequence[int]) -> SearchRequest:
        decode, prefix = fit_prefix(self._vocabulary, decode, self._n_positions)
        blind = None
        if decode.contrastive_weight:
            grey = self._encode(np.zeros((1, 3, *self._preprocess.size), np.float32))
            blind = np.repeat(grey, len(images), axis=0)
        stepper = ExportStepper(self.decoder)
        return SearchRequest(stepper, images, len(images), self._end, decode, prefix, self._vocabulary, blind, seeds)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return make_vocabulary(self.tokenizer)

    def _draw_seeds(self, count: int, generator: np.random.Generator | None) -> list[int]:
        return [int(seed) for seed in (generator or np.random.default_rng()).integers(2**62, size=count)]


@dataclass(frozen=True)
class _ExportState:
    """G unfinished captions of each of B pictures."""

    images: NDArray[np.float32]
    """(B, 2 * n_layer * n_head * S, head_dim)."""
    past: Mapping[str, NDArray[np.float32]]
    """(B * G, n_head, P, head_dim) keys and values of each block, by the names of the decoder's inputs."""


class ExportStepper:
    """The decoder of an export, step by step."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    def start(self, images: NDArray[np.float32]) -> _ExportState:
        shapes = {node.name: node.shape for node in self.session.get_inputs() if node.name.startswith(PAST)}
        past = {name: np.zeros((len(images), shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}
        return _ExportState(images, past)

    def step(self, tokens: NDArray[np.int64], state: _ExportState) -> tuple[NDArray[np.float32], _ExportState]:
        batch, captions, positions = tokens.shape
        inputs = {"input_ids": tokens.reshape(-1, positions), "encoder_hidden_states": state.images, **state.past}
        names = ["logits", *(name.replace(PAST, "present") for name in state.past)]
        logits, *present = _run(self.session, names, inputs)
        past = dict(zip(state.past, present, strict=True))
        return np.asarray(logits[:, -1]).reshape(batch, captions, -1), _ExportState(state.images, past)

    def reorder(self, state: _ExportState, rows: NDArray[np.int64]) -> _ExportState:
        captions = len(next(iter(state.past.values()))) // len(state.images)
        images = state.images if len(rows) == len(state.images) else state.images[rows[:, 0] // captions]
        return _ExportState(images, {name: array[rows.ravel()] for name, array in state.past.items()})

    def release(self, state: _ExportState) -> None:
        """Nothing is kept."""


def _run(session: onnxruntime.InferenceSession, outputs: Sequence[str], inputs: Mapping[str, Any]) -> Sequence[Any]:
    try:
        return session.run(outputs, inputs)
    except Exception as error:  # its errors have no common base
        raise CheckpointError(
            f"ONNX Runtime could not compute the export ({reason(error)}): memory ran out, or its two files are of "
            "different models; caption fewer pictures at once, or export it again"
        ) from error


def _session(folder: Path, name: str, threads: int | None) -> onnxruntime.InferenceSession:
    files = sorted((folder / "onnx").glob(f"{name}*.onnx"))
    if len(files) != 1:
        found = f"{len(files)} files, {', '.join(file.name for file in files)}" if files else "no file"
        raise CheckpointError(f"{folder / 'onnx'}: {found} of the name {name}*.onnx; expected one: export it again")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors are raised; warnings would be printed between the captions
    if threads:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(files[0]), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        is_unsupported = "NOT_IMPLEMENTED" in str(error) or "is not a registered function/op" in str(error)
        fix = "upgrade onnxruntime, or export with --precision fp32" if is_unsupported else "export it again"
        version = onnxruntime.__version__
        raise CheckpointError(f"{files[0]}: onnxruntime {version} can't open it ({reason(error)}); {fix}") from error
