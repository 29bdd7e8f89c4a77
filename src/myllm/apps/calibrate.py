"""Confidence that means something, written into a captioner: at the end of `myllm train`, or by `myllm evaluate`."""

from pathlib import Path

from myllm.apps.options import EvaluateOptions
from myllm.checkpoints import formats, hub, native
from myllm.errors import ConfigError
from myllm.evaluation.calibration import ConfidenceReport, calibrate, described
from myllm.evaluation.evaluate import Evaluation


def check_calibratable(options: EvaluateOptions) -> None:
    """Raises ConfigError for a model that a calibration can't be written into."""
    form = None if hub.is_id(options.model) else formats.recognise(options.model)[0]
    if form is not formats.OURS or options.adapter is not None:
        found = "one on a hub" if form is None else form.name if options.adapter is None else "one with an adapter"
        raise ConfigError(
            f"--calibrate writes into a captioner.pt, or into a folder of safetensors; --model {options.model} is "
            f"{found}. Import it by `myllm import` and calibrate that; an export made afterwards keeps it"
        )


def calibrate_model(model: Path, evaluation: Evaluation) -> None:
    """Learn from an evaluation's captions, and write what was learned into the model.

    Raises DataError where there are too few words to learn from; then the model stays as it was.
    """
    references = [record.captions for record in evaluation.records]
    native.write_calibration(calibrate(evaluation.captions, references, described(evaluation.protocol)), model)


def describe_confidence(trust: ConfidenceReport) -> list[str]:
    """What confidence is worth, for people to read."""
    judged = "a calibration of other pictures" if trust.is_cross_fitted else "the captioner's own calibration"
    return [
        f"confidence by {judged}: off by {trust.word_error:.3f} in the mean for a word, by "
        f"{trust.caption_error:.3f} for a caption",
        trust.describe_sorting("CIDEr-D"),
    ]
