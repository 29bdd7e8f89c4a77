"""Training, judging and comparing on data in the formats of other programs, and on several data folders."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from myllm.apps.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def captions(scenes: Path) -> dict[str, list[str]]:
    """The captions of the scenes of the split val."""
    result = defaultdict[str, list[str]](list)
    for line in (scenes / "results.csv").read_text().splitlines()[1:]:
        name, _, caption = line.split("| ")
        if name.startswith("val_"):
            result[name].append(caption)
    return dict(result)


def as_coco(captions: dict[str, list[str]]) -> dict[str, Any]:
    texts = [(number, text) for number, texts in enumerate(captions.values()) for text in texts]
    return {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(captions)],
        "annotations": [{"id": n, "image_id": number, "caption": text} for n, (number, text) in enumerate(texts)],
    }


def as_karpathy(captions: dict[str, list[str]]) -> dict[str, Any]:
    return {"images": [
        {"filename": name, "imgid": number, "split": "val", "sentences": [{"raw": text} for text in texts]}
        for number, (name, texts) in enumerate(captions.items())
    ]}


@pytest.fixture(params=[as_coco, as_karpathy])
def references(
    request: pytest.FixtureRequest, captions: dict[str, list[str]], scenes: Path, tmp_path: Path
) -> Path:
    """A file with the captions of val in another program's format, beside the pictures."""
    (tmp_path / "images").symlink_to(scenes / "flickr30k_images")
    path = tmp_path / "captions_val.json"
    path.write_text(json.dumps(request.param(captions)))
    return path


@pytest.mark.slow
def test_evaluate_compare_and_score_read_the_same_references(
    tiny_run: Path, scenes: Path, references: Path, tmp_path: Path, capfd: Capture
) -> None:
    def judged(data: Path) -> Any:
        words = ["evaluate", "--model", str(tiny_run), "--data", str(data), "--out", str(tmp_path / f"{data.stem} out")]
        assert main([*words, "--devices=cpu", "--quiet", "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    result, expected = judged(references), judged(scenes)
    assert result["CIDEr-D"] == pytest.approx(expected["CIDEr-D"]) and result["protocol"]["pictures"] == 3
    predictions = str(tmp_path / f"{references.stem} out/captions.jsonl")
    assert main(["compare", predictions, predictions, "--data", str(references), "--quiet", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["a"]["CIDEr-D"] == pytest.approx(expected["CIDEr-D"])
    assert main(["score", "--predictions", predictions, "--references", str(references), "--quiet", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["CIDEr-D"] == pytest.approx(expected["CIDEr-D"])


def test_compare_and_score_match_captions_by_the_ids_of_the_references(
    captions: dict[str, list[str]], references: Path, capfd: Capture
) -> None:
    path = references.parent / "results.json"
    path.write_text(json.dumps([{"image_id": n, "caption": texts[0]} for n, texts in enumerate(captions.values())]))
    assert main(["compare", str(path), str(path), "--data", str(references), "--quiet", "--json"]) == 0
    compared = json.loads(capfd.readouterr().out)["a"]["BLEU-4"]
    assert main(["score", "--predictions", str(path), "--references", str(references), "--quiet", "--json"]) == 0
    assert compared == json.loads(capfd.readouterr().out)["BLEU-4"] == pytest.approx(1)


def test_compare_reads_references_as_the_captioner_was_trained(
    tiny_run: Path, captions: dict[str, list[str]], references: Path, capfd: Capture
) -> None:
    rows = "".join(f"{name}\t{texts[0]}\n" for name, texts in captions.items())
    (references.parent / "val.tsv").write_text(f"picture_id\tnote\n{rows}")
    words = ["compare", str(tiny_run), str(tiny_run), "--data", str(references.parent / "val.tsv"), "--devices=cpu"]
    assert main([*words, "--quiet"]) == 1
    assert "name the column with --captions.image_column" in capfd.readouterr().err
    assert main([*words, "--quiet", "--captions.image_column=picture_id", "--captions.caption_column=note"]) == 0


@pytest.mark.slow
def test_train_mixes_folders_of_any_format_and_resumes(
    train: Callable[..., int], scenes: Path, tiny_picture_folder: Path, tmp_path: Path, capfd: Capture
) -> None:
    out = tmp_path / "run"
    assert train(out, f"--data={tiny_picture_folder}", "--max_steps=3") == 0
    output = capfd.readouterr().out
    assert f"Reading results.csv: {scenes}/results.csv" in " ".join(output.split())
    assert yaml.safe_load((out / "config.yaml").read_text())["data"] == [str(scenes), str(tiny_picture_folder)]
    names = {json.loads(line)["image"] for line in (out / "samples.jsonl").read_text().splitlines()}
    assert {name.split("/")[0] for name in names} == {scenes.name, tiny_picture_folder.name}
    assert main(["train", "--config", str(out / "config.yaml"), "--resume", "--max_steps=4", "--quiet"]) == 0
