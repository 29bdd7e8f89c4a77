"""`myllm evaluate`: caption a split and score the captions."""

from pathlib import Path

from myllm.apps import run_folder
from myllm.apps.console import Display
from myllm.apps.data_folder import load_split
from myllm.apps.opening import open_captioner
from myllm.apps.options import EvaluateOptions
from myllm.apps.printing import print_json
from myllm.caption import CaptionerProtocol
from myllm.data.sources import data_name
from myllm.device import choose_device
from myllm.errors import ConfigError, DataError
from myllm.evaluation.clipscore import clip_scores
from myllm.evaluation.evaluate import Evaluation, evaluate
from myllm.evaluation.judge import defined
from myllm.evaluation.scenes import JUDGEMENT, describe_scene_figures


def evaluate_split(options: EvaluateOptions) -> int:
    """Print the figures of a split; with --out, write metrics.json, captions.jsonl, samples and report.html."""
    display = Display(options.quiet, options.json)
    out = run_folder.output_folder(options.out, run_folder.METRICS_FILE, options.overwrite)
    if options.calibrate:
        check_calibratable(options)
    captioner = open_captioner(options.model, options.devices, options.precision, options.adapter)
    captions = options.captions_config(captioner.captions)
    data = load_split(options.data, options.split, captions, display, limit=options.limit, training=options.training)
    decode = captioner.decode_options(**options.decode_changes)
    with display.progress() as progress:
        evaluation = evaluate(captioner, data, decode, options.batch_size, progress, options.metrics or None)
        if options.clip is not None:
            figures = clip_scores(
                options.clip, [record.image for record in evaluation.records],
                [caption.text for caption in evaluation.captions],
                [record.captions for record in evaluation.records], choose_device(options.devices), progress,
            )
            evaluation = evaluation.with_figures(figures, clip=options.clip)
    if options.calibrate:
        try:
            run_folder.save_calibration(Path(options.model), evaluation)
        except DataError as error:
            display.warn(f"confidence is not calibrated: {error}")
            evaluation = evaluation.with_figures({}, not_calibrated=str(error))
    for fault in evaluation.broken:
        display.warn(f"left out: {fault}")
    for fault in evaluation.failed:
        display.warn(f"counted as an empty caption: {fault}")
    if out is not None:
        write_results(captioner, evaluation, options, out)
    if options.json:
        print_json(evaluation.as_json())
    else:
        display.print(run_folder.evaluation_as_text(evaluation))
        if evaluation.truth:
            display.print(f"  {describe_scene_figures(evaluation.truth)}\n{JUDGEMENT}")
    return 0


def check_calibratable(options: EvaluateOptions) -> None:
    """Raise ConfigError for a model whose form cannot store a calibration."""
    from myllm.checkpoints import formats
    from myllm.hub import is_id

    form = None if is_id(options.model) else formats.find_format(options.model)[0]
    if form is not formats.NATIVE or options.adapter is not None:
        kind = "on a hub" if form is None else form.name if options.adapter is None else "used with an adapter"
        raise ConfigError(
            f"--calibrate saves into a captioner.pt or a folder of safetensors; --model {options.model} is {kind}. "
            "Convert it by `myllm import` and calibrate that; exports made afterwards keep the calibration"
        )


def write_results(captioner: CaptionerProtocol, evaluation: Evaluation, options: EvaluateOptions, out: Path) -> None:
    """Write metrics.json, captions.jsonl, samples, plots and report.html."""
    data = data_name(options.data)
    facts = {"Written": run_folder.current_time(), "Captioner": options.model, "Data": data}
    run_folder.write_evaluation(captioner, evaluation, out, facts, title=Path(options.model).resolve().name)
    run_folder.write_jsonl(out / "captions.jsonl", [
        {
            "image": record.name, "caption": caption.text, "score": round(caption.score, 6),
            "confidence": round(caption.confidence, 6),
            **{name: defined(round(float(values[index]), 6)) for name, values in evaluation.per_image.items()},
        }
        for index, (record, caption) in enumerate(zip(evaluation.records, evaluation.captions, strict=True))
    ])
