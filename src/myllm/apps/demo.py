"""`myllm demo` and `myllm scenes`: the embedded default, from drawn pictures to a judged captioner."""

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

from myllm.apps.console import Display
from myllm.apps.options import DemoOptions, RunOptions, ScenesOptions
from myllm.apps.train import REPORT_FILE, check_run_folder, describe, run_training, write_text
from myllm.config import CaptionsConfig, GPTConfig, TrainConfig, VisionConfig
from myllm.data.scenes import draw_scene, write_scenes
from myllm.evaluation.scenes import JUDGEMENT, describe_scene_figures, score_scene_captions
from myllm.inference.captioner import Captioner
from myllm.metrics.score import score_captions, shuffled
from myllm.presets import PRESETS
from myllm.training import run_state

STAMP = "demo.json"
REPORT = "report.json"
JUDGED_SEED = 1_000_003


def scenes(options: ScenesOptions) -> int:
    """Write a folder of scenes."""
    display = Display(options.quiet)
    with display.counting() as progress:
        for done in write_scenes(Path(options.out), options.count, options.seed):
            progress("drawing scenes", done, options.count)
    display.console.print(f"Wrote {options.count:,} scenes to {options.out}. Train on them with: "
                          f"myllm train --preset scenes --data {options.out} --out captioner")
    return 0


def demo(options: DemoOptions) -> int:
    """Render, train, judge on fresh scenes, report. An interrupted demo goes on where it was."""
    began = time.monotonic()
    display = Display(options.quiet)
    out = Path(options.out)
    data = out / "scenes"
    if not (out / STAMP).is_file():
        check_run_folder(out, RunOptions())  # the run that is there is no demo's
    # another recipe under the same options is another demo: its checkpoints would not fit
    stamp = json.dumps([asdict(replace(options, quiet=False, judged=1)), PRESETS["scenes"]], sort_keys=True)
    is_same = (out / STAMP).is_file() and (out / STAMP).read_text(encoding="utf-8") == stamp
    if not is_same or not (data / "splits").is_dir():
        _render(data, options, display)
    resumes = is_same and (out / run_state.FILE_NAME).is_file() and not (out / REPORT).is_file()
    write_text(out / STAMP, stamp)
    (out / REPORT).unlink(missing_ok=True)
    config = demo_config(options, str(data))
    finished, evaluation = run_training(config, RunOptions(resume=resumes, overwrite=not resumes), display)
    if not finished:
        display.console.print("The same command goes on with the demo.")
        return 130
    assert evaluation is not None
    report = _judge(options, display)
    write_text(out / REPORT, json.dumps(report, indent=2) + "\n")
    display.console.print("\n" + describe(evaluation), highlight=False)
    display.console.print("\n" + _told(report, options), highlight=False)
    display.console.print(f"\n{(time.monotonic() - began) / 60:.1f} minutes in all. Look at:")
    for name in (REPORT_FILE, "samples.png", "loss.png", "perplexity.png", "metrics.csv", REPORT):
        display.console.print(f"  {out / name}")
    display.console.print("Caption a picture with:")
    display.console.print(f"  .venv/bin/myllm caption {data}/flickr30k_images/val_000000.png --model {out}")
    return 0


def demo_config(options: DemoOptions, data: str) -> TrainConfig:
    """The preset `scenes` with the demo's folder, time and seed."""
    preset = dict(PRESETS["scenes"])
    return TrainConfig(
        **(preset | {
            "vision": VisionConfig(**preset["vision"]), "text": GPTConfig(**preset["text"]),
            "captions": CaptionsConfig(**preset["captions"]),
            "data": data, "out": options.out, "seed": options.seed, "max_steps": options.max_steps,
            "max_minutes": None if options.max_steps else options.minutes,
        })
    )


def _render(data: Path, options: DemoOptions, display: Display) -> None:
    """Into a folder beside, moved when complete: a half-drawn folder is never trained on."""
    partial = data.with_name(f"{data.name}.part")
    for folder in (partial, data):
        shutil.rmtree(folder, ignore_errors=True)
    with display.counting() as progress:
        for done in write_scenes(partial, options.count, options.seed):
            progress("drawing scenes", done, options.count)
    partial.rename(data)
    display.say(f"Drew {options.count:,} scenes into {data}")


def _judge(options: DemoOptions, display: Display) -> dict[str, dict[str, float]]:
    """Hold the captioner against scenes that no one has seen: of seen colour-thing pairs, and of held-out ones."""
    captioner = Captioner.load(options.out)
    report: dict[str, dict[str, float]] = {}
    with display.counting() as progress:
        for part, name in (("val", "seen pairs"), ("heldout", "held-out pairs")):
            images, drawn = [], []
            for number in range(options.judged):
                image, scene = draw_scene(options.seed + JUDGED_SEED, part, number)
                images.append(image)
                drawn.append(scene)
                progress(f"drawing fresh {name}", number + 1, options.judged)
            texts = [caption.text for caption in captioner.caption_batch(images, batch_size=100)]
            references = [scene.captions for scene in drawn]
            report[name] = score_scene_captions(texts, [scene.things for scene in drawn])
            for figure, said in (("CIDEr-D", texts), ("CIDEr-D_shuffled", shuffled(texts))):
                report[name][figure] = score_captions(said, references, metrics=("CIDEr",)).corpus["CIDEr-D"]
    return report


def _told(report: dict[str, dict[str, float]], options: DemoOptions) -> str:
    lines = [f"{options.judged:,} fresh scenes each, captions by greedy search:"]
    for name, figures in report.items():
        lines.append(
            f"  {name + ':':<15} {describe_scene_figures(figures)}   "
            f"CIDEr-D {figures['CIDEr-D']:.2f}, with shuffled pictures {figures['CIDEr-D_shuffled']:.2f}"
        )
    lines.append(JUDGEMENT)
    lines.append("Held-out pairs are colours of things that no training picture or caption had.")
    return "\n".join(lines)
