"""Captions without torch: exports of `myllm export --to onnx`, on ONNX Runtime, tokenizers, Pillow and numpy."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from myllm.batched import batched
from myllm.caption import Calibration
from myllm.checkpoints.checks import check_preprocess, check_tokenizer, dataclass_from_dict, with_current_names
from myllm.config import CaptionsConfig, DecodeConfig, PreprocessConfig
from myllm.data.images import Preprocess
from myllm.decoding.arrays import Floats, Ints
from myllm.decoding.engine import SearchRequest, Stepper
from myllm.decoding.retrieval import INDEX_NAME, CaptionIndex
from myllm.device import count_cores
from myllm.errors import CheckpointError, ConfigError, reason
from myllm.files import read_json
from myllm.inference.base_captioner import AdapterName, BaseCaptioner, PictureOf
from myllm.inference.generate import find_neighbours, fit_prefix

ENCODER, DECODER = "encoder_model", "decoder_model_merged"
PAST = "past_key_values"


class OnnxCaptioner(BaseCaptioner[Floats, np.random.Generator, "OnnxCaptioner"]):
    """An exported captioner; in fp32 it finds the same captions as the captioner that was exported."""

    adapter = None

    def __init__(
        self, encoder: onnxruntime.InferenceSession, decoder: onnxruntime.InferenceSession, tokenizer: Tokenizer,
        facts: Mapping[str, Any], index: CaptionIndex | None = None,
    ) -> None:
        """facts: the entry `myllm` of config.json. index: captions of training pictures, for `rank_by` retrieval."""
        super().__init__(tokenizer)
        self.encoder, self.decoder = encoder, decoder
        self.decode = dataclass_from_dict(DecodeConfig, facts["decode"])
        self.captions = dataclass_from_dict(CaptionsConfig, facts["captions"])
        calibration = facts.get("calibration")  # earlier exports have none
        self.calibration = None if calibration is None else Calibration.from_json(with_current_names(calibration))
        self.precision, self.index = str(facts["precision"]), index
        self._end, self.n_positions = int(facts["given"][0]), int(facts["n_positions"])
        preprocess = dataclass_from_dict(PreprocessConfig, facts["preprocess"])
        check_preprocess(preprocess, tuple(encoder.get_inputs()[0].shape[2:]))
        self._preprocess = Preprocess(preprocess)
        self._files: list[Path] = []
        check_tokenizer(tokenizer, decoder.get_outputs()[0].shape[2], "the decoder")

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None) -> "OnnxCaptioner":
        """Open a folder that `myllm export --to onnx` wrote. threads: by default, ONNX Runtime chooses their number.

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
            tokenizer, index = Tokenizer.from_file(str(folder / "tokenizer.json")), None
            if (folder / INDEX_NAME).exists():
                with np.load(folder / INDEX_NAME) as arrays:
                    index = CaptionIndex.from_arrays(arrays)
            opened = cls(encoder, decoder, tokenizer, facts, index)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        except Exception as error:  # an edited file can raise anything, and tokenizers raises bare Exception
            message = f"{folder}: its parts do not fit together ({reason(error)}); export it again"
            raise CheckpointError(message) from error
        opened._files = sorted(path for path in (folder / "onnx").iterdir() if path.is_file())
        return opened

    def preprocess(self, image: PictureOf[Floats]) -> Floats:
        """Return a picture as the encoder's input; see `BaseCaptioner.preprocess`."""
        if isinstance(image, np.ndarray):
            expected = (3, *self._preprocess.size)
            if image.shape != expected:
                raise ConfigError(f"an image array of shape {image.shape}; this model expects {expected}")
            return image.astype(np.float32)
        return self._preprocess(self._preprocess.load(image))

    def blind_caption(self, decode: DecodeConfig) -> None:
        """Return None: the exported encoder returns keys and values, so its image tokens cannot be set to zero."""
        return None

    def weights_hash(self) -> str:
        """Return a hash of the export's ONNX files."""
        digest = hashlib.blake2b(digest_size=8)
        for path in self._files:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _variant(self, adapter: AdapterName) -> "OnnxCaptioner":
        """Return the captioner itself: an export has no adapters."""
        if adapter not in (None, ...):
            raise ConfigError(f"adapter {adapter!r}: an export has no adapters; export the captioner with the adapter")
        return self

    def _encode(self, variant: "OnnxCaptioner", images: Sequence[Floats]) -> Floats:
        """(B, 3, H, W) -> (B, 2 * n_layer * n_head * S, head_dim): keys and values for the decoder."""
        # a picture for each thread: more at once are no faster, and need more memory
        threads = self.encoder.get_session_options().intra_op_num_threads or count_cores()
        parts = [
            _run(self.encoder, ["last_hidden_state"], {"pixel_values": np.stack(part)})[0]
            for part in batched(images, threads)
        ]
        return np.concatenate(parts)

    def _request(
        self, variant: "OnnxCaptioner", encoded: Floats, rows: Sequence[int], decode: DecodeConfig, seeds: Sequence[int]
    ) -> SearchRequest:
        vocabulary = self._vocabulary()
        decode, prefix = fit_prefix(vocabulary, decode, self.n_positions)
        blind = None
        if decode.contrastive_weight:
            grey = self._encode(self, [np.zeros((3, *self._preprocess.size), np.float32)])
            blind = np.repeat(grey, len(rows), axis=0)
        stepper = ExportStepper(self.decoder)
        images = encoded[rows]
        neighbours = find_neighbours(decode, self.index, lambda: stepper.means(images))
        return SearchRequest(
            stepper, images, len(rows), self._end, decode, prefix, vocabulary, blind, seeds, neighbours
        )

    def _draw_seeds(self, count: int, generator: np.random.Generator | None) -> list[int]:
        return [int(seed) for seed in (generator or np.random.default_rng()).integers(2**62, size=count)]


@dataclass(frozen=True)
class _ExportState:
    """G unfinished captions of each of B pictures."""

    images: Floats
    """(B, 2 * n_layer * n_head * S, head_dim)."""
    past: Mapping[str, Floats]
    """(B * G, n_head, P, head_dim) keys and values of each block, by the names of the decoder's inputs."""


class ExportStepper(Stepper):
    """The decoder of an export, step by step."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    def means(self, images: Floats) -> Floats:
        """Return the mean of the last block's values (B, n_head * head_dim) of the encoder's output."""
        shapes = self._past_shapes()
        n_head = next(iter(shapes.values()))[1]
        # keys and values of all blocks follow each other
        values = images[:, -images.shape[1] // len(shapes) :]
        return values.reshape(len(images), n_head, -1, images.shape[2]).mean(2).reshape(len(images), -1)

    def _past_shapes(self) -> dict[str, list[Any]]:
        return {node.name: node.shape for node in self.session.get_inputs() if node.name.startswith(PAST)}

    def start(self, images: Floats) -> _ExportState:
        shapes = self._past_shapes()
        past = {name: np.zeros((len(images), shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}
        return _ExportState(images, past)

    def step(self, tokens: Ints, state: _ExportState) -> tuple[Floats, _ExportState]:
        batch, captions, positions = tokens.shape
        inputs = {"input_ids": tokens.reshape(-1, positions), "encoder_hidden_states": state.images, **state.past}
        names = ["logits", *(name.replace(PAST, "present") for name in state.past)]
        logits, *present = _run(self.session, names, inputs)
        past = dict(zip(state.past, present, strict=True))
        return np.asarray(logits[:, -1]).reshape(batch, captions, -1), _ExportState(state.images, past)

    def reorder(self, state: _ExportState, rows: Ints) -> _ExportState:
        captions = len(next(iter(state.past.values()))) // len(state.images)
        images = state.images if len(rows) == len(state.images) else state.images[rows[:, 0] // captions]
        return _ExportState(images, {name: array[rows.ravel()] for name, array in state.past.items()})


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
        count = f"{len(files)} files, {', '.join(file.name for file in files)}" if files else "no file"
        raise CheckpointError(f"{folder / 'onnx'}: {count} of the name {name}*.onnx; expected one: export it again")
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
