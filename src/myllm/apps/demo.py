"""`myllm demo`: from drawn scenes to a captioner, judged on scenes that it has never seen."""

import json
import shlex
import shutil
import time
from pathlib import Path

from myllm.apps.console import Display
from myllm.apps.data_folder import draw_with_progress
from myllm.apps.options import DemoOptions
from myllm.apps.run_folder import REPORT_FILE, SAMPLES_PICTURE, evaluation_as_text, write_config, write_text
from myllm.apps.train import check_run_folder, finish, remove_checkpoints, run_training
from myllm.data.records import quantity
from myllm.data.scenes import draw_scene
from myllm.errors import ConfigError
from myllm.evaluation.scenes import JUDGEMENT, describe_scene_figures, score_scene_captions
from myllm.files import lock_folder
from myllm.inference.captioner import Captioner
from myllm.metrics.score import score_captions, shuffled
from myllm.presets import PRESETS, preset_config
from myllm.training import run_state
from myllm.training.ranks import Ranks
from myllm.training_config import TrainConfig

STAMP = "demo.json"
REPORT = "report.json"
JUDGED_SEED = 1_000_003  # added to --seed, so that the new scenes are not those of training


def demo(options: DemoOptions) -> int:
    """Draw scenes, train, judge on new scenes, report. The same command resumes an interrupted demo."""
    with lock_folder(Path(options.out)):
        return run_demo(options, Display(options.quiet))


def run_demo(options: DemoOptions, display: Display) -> int:
    """Run a demo in a folder that is locked; returns the exit code."""
    begin = time.monotonic()
    out, data = Path(options.out), Path(options.out) / "scenes"
    is_same = holds_demo(out, options)
    if is_same and (out / REPORT).is_file():
        display.print(f"{out} holds this demo already; repeat it by --overwrite. {list_files(out)}")
        return 0
    if not is_same or not (data / "splits").is_dir():
        draw_scenes(data, options, display)
    if not is_same:
        remove_checkpoints(out)
        (out / REPORT).unlink(missing_ok=True)
        write_text(out / STAMP, recipe(options))
    try:
        trained = run_training(
            demo_config(options, str(data)), display, run_state.exists(out), (), Ranks(),
            begin=lambda config: write_config(config, out),
        )
    except SystemExit:
        display.print("Interrupted, and saved. The same command resumes the demo.")
        raise
    report = judge_on_new_scenes(options, display)
    evaluation = finish(*trained, display, report)
    write_text(out / REPORT, json.dumps(report, indent=2) + "\n")
    display.print(f"\n{evaluation_as_text(evaluation)}\n\n{report_as_text(report, options)}")
    display.print(f"\n{(time.monotonic() - begin) / 60:.1f} minutes in all. {list_files(out)}")
    return 0


def holds_demo(out: Path, options: DemoOptions) -> bool:
    """Return whether the folder holds a demo with these options that may be resumed or reported.

    Raises ConfigError if it holds any other run, unless that may be overwritten.
    """
    if not (out / STAMP).is_file():
        check_run_folder([out], overwrite=options.overwrite)
        return False
    is_same = (out / STAMP).read_text(encoding="utf-8") == recipe(options)
    if not is_same and not options.overwrite:
        raise ConfigError(
            f"--out {out} holds a demo with other options, or of another version; replace it by --overwrite, or give "
            "another --out"
        )
    return is_same and not options.overwrite


def recipe(options: DemoOptions) -> str:
    """Return, as JSON, all that a demo's scenes and checkpoints depend on."""
    names = ("count", "seed", "minutes", "max_steps")
    return json.dumps([{name: getattr(options, name) for name in names}, PRESETS["scenes"]], sort_keys=True)


def demo_config(options: DemoOptions, data: str) -> TrainConfig:
    """Return the preset `scenes` with the demo's folder, time and seed."""
    minutes = None if options.max_steps else options.minutes
    return preset_config(
        "scenes", data=data, out=options.out, seed=options.seed, max_steps=options.max_steps, max_minutes=minutes
    )


def draw_scenes(data: Path, options: DemoOptions, display: Display) -> None:
    """Draw the scenes, and only then replace those of an earlier demo."""
    partial = data.with_name(f"{data.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    draw_with_progress(partial, options.count, options.seed, display)
    shutil.rmtree(data, ignore_errors=True)
    partial.rename(data)
    display.say(f"Drew {options.count:,} scenes into {data}")


def judge_on_new_scenes(options: DemoOptions, display: Display) -> dict[str, dict[str, float]]:
    """Return figures on new scenes: of colour-thing pairs that occur in training, and of held-out pairs."""
    captioner = Captioner.load(options.out)
    report: dict[str, dict[str, float]] = {}
    with display.progress() as progress:
        for part, name in (("val", "seen pairs"), ("heldout", "held-out pairs")):
            images, scenes = [], []
            for number in range(options.judged):
                image, scene = draw_scene(options.seed + JUDGED_SEED, part, number)
                images.append(image)
                scenes.append(scene)
                progress(f"drawing new {name}", number + 1, options.judged)
            captions = [caption.text for caption in captioner.caption_batch(images, batch_size=100)]
            references = [scene.captions for scene in scenes]
            report[name] = {
                "pictures": options.judged, **score_scene_captions(captions, [scene.things for scene in scenes])
            }
            for figure, texts in (("CIDEr-D", captions), ("CIDEr-D_shuffled", shuffled(captions))):
                report[name][figure] = score_captions(texts, references, metrics=("CIDEr",)).corpus["CIDEr-D"]
    return report


def report_as_text(report: dict[str, dict[str, float]], options: DemoOptions) -> str:
    """Return the figures on new scenes as text."""
    return "\n".join([
        f"{quantity(options.judged, 'new scene')} each, captions by greedy search:",
        *(
            f"  {name + ':':<15} {describe_scene_figures(figures)}   "
            f"CIDEr-D {figures['CIDEr-D']:.2f}, with shuffled pictures {figures['CIDEr-D_shuffled']:.2f}"
            for name, figures in report.items()
        ),
        JUDGEMENT, "Held-out pairs of thing and colour occur in no training picture.",
    ])


def list_files(out: Path) -> str:
    """Return the files to look at, and a command that captions a picture."""
    names = (REPORT_FILE, SAMPLES_PICTURE, "loss.png", "perplexity.png", "metrics.csv", REPORT)
    lines = "\n".join(f"  {out / name}" for name in names)
    command = shlex.join(["caption", str(out / "scenes/flickr30k_images/val_000000.png"), "--model", str(out)])
    return f"Look at:\n{lines}\nCaption a picture with:\n  .venv/bin/myllm {command}"
