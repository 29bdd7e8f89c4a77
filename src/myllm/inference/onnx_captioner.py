"""Captions without torch: what `myllm export --to onnx` wrote, on ONNX Runtime, tokenizers, Pillow and numpy alone.

from myllm.inference.onnx_captioner import OnnxCaptioner

captioner = OnnxCaptioner.load("exported")
print(captioner.caption("dog.jpg", beams=4).text)
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from myllm.batched import batched
from myllm.caption import Calibration, Caption, encode_text, fit_to_context, token_bytes
from myllm.checkpoints.checks import check_preprocess, check_tokenizer, dataclass_from_dict, with_current_names
from myllm.config import CaptionsConfig, DecodeConfig, PreprocessConfig
from myllm.data.images import Preprocess, load_image
from myllm.errors import CheckpointError, ConfigError, reason
from myllm.files import read_json
from myllm.inference.onnx_search import KNOWN, Found, check, search

Picture = Path | str | bytes | Image.Image | NDArray[np.float32]
ENCODER, DECODER = "encoder_model", "decoder_model_merged"


class OnnxCaptioner:
    """An exported captioner, ready to caption; in fp32 it finds the captions that the model itself finds in torch."""

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

        Raises CheckpointError where a file is missing or damaged, or ONNX Runtime lacks what it computes with.
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
        """(3, H, W) float32. An array of that shape is taken as preprocessed already. Raises DataError."""
        if isinstance(image, np.ndarray):
            expected = (3, *self._preprocess.size)
            if image.shape != expected:
                raise ConfigError(f"an image array of shape {image.shape}; this model expects {expected}")
            return image.astype(np.float32)
        return self._preprocess(load_image(image))

    def caption(self, image: Picture, **decode: Any) -> Caption:
        """Caption one picture; `decode` overrides the model's decoding defaults, e.g. beams=4.

        Raises DataError where the picture can't be read and ConfigError for an option that is unknown or needs torch.
        """
        return self.caption_batch([image], **decode)[0]

    def caption_batch(self, images: Iterable[Picture], batch_size: int = 32, **decode: Any) -> list[Caption]:
        """One caption for each picture, in their order; many at once."""
        options, captions = self.decode_options(**decode), list[Caption]()
        for batch in batched(images, batch_size):
            captions += self.caption_tensors([self.preprocess(picture) for picture in batch], options)
        return captions

    def decode_options(self, **decode: Any) -> DecodeConfig:
        """The model's decoding defaults with some of them replaced. Raises ConfigError as `caption`."""
        unknown = sorted(decode.keys() - DecodeConfig.__dataclass_fields__.keys())
        if unknown:
            raise ConfigError(f"unknown decoding option {unknown[0]!r}; known are {', '.join(sorted(KNOWN))}")
        options = replace(self.decode, **decode)
        check(options)
        return options

    def caption_tensors(self, images: Sequence[NDArray[np.float32]], decode: DecodeConfig) -> list[Caption]:
        """images: (B, 3, H, W) float32, preprocessed -> a caption for each."""
        check(decode)
        prefix = encode_text(self.tokenizer, decode.prefix)
        decode = fit_to_context(decode, len(prefix), self._n_positions)
        (seen,) = _run(self.encoder, ["last_hidden_state"], {"pixel_values": np.stack(images)})
        found = search(_Decoder(self.decoder, seen), len(images), [self._end, *prefix], decode)
        return [self._caption(one) for one in found]

    def blind_caption(self, decode: DecodeConfig) -> None:
        """None: the exported encoder gives keys and values, behind which its image tokens are not to be reached."""
        return None

    def weights_hash(self) -> str:
        """The same for the same files."""
        digest = hashlib.blake2b(digest_size=8)
        for path in self._files:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _caption(self, found: Sequence[Found]) -> Caption:
        texts = [self.tokenizer.decode(one.tokens, skip_special_tokens=False).strip() for one in found]
        best = found[0]
        pieces = [self._said[token] if token < len(self._said) else b"" for token in best.tokens]
        return Caption(
            texts[0], best.score, best.tokens, best.logprobs, best.ended_by,
            alternatives=texts[1:], pieces=pieces, calibration=self.calibration,
        )

    @cached_property
    def _said(self) -> list[bytes]:
        """The bytes of each token."""
        return token_bytes(self.tokenizer)


class _Decoder:
    """The exported decoding step with its cache, as `search` sees it."""

    def __init__(self, session: onnxruntime.InferenceSession, seen: NDArray[np.float32]) -> None:
        self.session, self.seen = session, seen
        shapes = {one.name: one.shape for one in session.get_inputs() if one.name.startswith("past_key_values")}
        self.past: dict[str, NDArray[np.float32]] = {
            name: np.zeros((len(seen), shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()
        }

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        fed = {"input_ids": tokens, "encoder_hidden_states": self.seen, **self.past}
        names = ["logits", *(name.replace("past_key_values", "present") for name in self.past)]
        logits, *present = _run(self.session, names, fed)
        self.past = dict(zip(self.past, present, strict=True))
        return np.asarray(logits[:, -1])

    def select(self, rows: NDArray[np.int64], pictures: NDArray[np.int64]) -> None:
        self.past = {name: value[rows] for name, value in self.past.items()}
        if len(pictures) < len(self.seen):
            self.seen = self.seen[pictures]


def _run(session: onnxruntime.InferenceSession, names: Sequence[str], fed: Mapping[str, Any]) -> Sequence[Any]:
    try:
        return session.run(names, fed)
    except Exception as error:  # its errors have no common base
        raise CheckpointError(
            f"ONNX Runtime could not compute the export ({reason(error)}): memory ran out, or its two files are not of "
            "one model; caption fewer pictures at once, or export it again"
        ) from error


def _session(folder: Path, name: str, threads: int | None) -> onnxruntime.InferenceSession:
    found = sorted((folder / "onnx").glob(f"{name}*.onnx"))
    if len(found) != 1:
        told = f"{len(found)} files, {', '.join(one.name for one in found)}" if found else "no file"
        raise CheckpointError(f"{folder / 'onnx'}: {told} of the name {name}*.onnx; expected one: export it again")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors are raised; what is below would stand between the captions
    if threads:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(found[0]), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        lacks = "NOT_IMPLEMENTED" in str(error) or "is not a registered function/op" in str(error)
        way = "upgrade onnxruntime, or export with --precision fp32" if lacks else "export it again"
        version = onnxruntime.__version__
        raise CheckpointError(f"{found[0]}: onnxruntime {version} can't open it ({reason(error)}); {way}") from error
