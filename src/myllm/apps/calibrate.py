"""Confidence that means something, written into a captioner: at the end of `myllm train`, or by `myllm evaluate`."""

from pathlib import Path

from myllm.apps.console import Display
from myllm.apps.options import EvaluateOptions
from myllm.checkpoints import formats, hub, native
from myllm.errors import ConfigError, DataError
from myllm.evaluation.calibration import Trust, calibrate, described, expected_calibration_error, measure_trust
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


def calibrate_model(model: Path, data: Path, evaluation: Evaluation) -> Trust:
    """Learn from an evaluation's captions, and write what was learned into the model; what it is worth, cross-fitted.

    Raises DataError where there are too few words to learn from; then the model stays as it was.
    """
    on = described(data.resolve().name, evaluation.protocol)
    references = [record.captions for record in evaluation.records]
    # first, as it is learned from fewer pictures: what is written can also be judged
    trust = measure_trust(evaluation.captions, references, evaluation.per_image["CIDEr-D"], on)
    native.write_calibration(calibrate(evaluation.captions, references, on), model)
    return trust


def calibrate_run(model: Path, data: Path, evaluation: Evaluation, display: Display) -> Trust | None:
    """`calibrate_model` at the end of a run, which is none the worse where there is too little to learn from."""
    try:
        trust = calibrate_model(model, data, evaluation)
    except DataError as error:
        display.say(f"Confidence is not calibrated: {error}")
        return None
    display.say(told_trust(trust))
    return trust


def told_trust(trust: Trust) -> str:
    """What confidence is worth, in two lines."""
    half, whole = trust.coverage[4], trust.coverage[-1]
    judged = "a calibration of other pictures" if trust.is_cross_fitted else "the captioner's own calibration"
    return (
        f"Confidence by {judged}: off by {expected_calibration_error(trust.words):.3f} in the mean for a word, by "
        f"{expected_calibration_error(trust.captions):.3f} for a caption;\n"
        f"  the more confident half of the captions has CIDEr-D {half:.3f}, all have {whole:.3f}"
    )
