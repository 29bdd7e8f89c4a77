"""`myllm score`: anyone's captions, judged without a model and without torch."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from myllm.apps.cli import main

Capture = pytest.CaptureFixture[str]
REFERENCES = {
    "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(4)],
    "annotations": [
        {"id": 10 * number + other, "image_id": number, "caption": f"a {thing} {ending}"}
        for number, thing in enumerate(["red dog", "black cat", "small boat", "green ball"])
        for other, ending in enumerate(["on the grass", "lies on the grass", "in a field"])
    ],
}
SAID = [{"image_id": number, "caption": f"A {thing} on the grass."}
        for number, thing in enumerate(["red dog", "black cat", "small boat", "green ball"])]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.json" for name in ("said", "references")}
    paths["said"].write_text(json.dumps(SAID))
    paths["references"].write_text(json.dumps(REFERENCES))
    return paths


def score(files: dict[str, Path], *options: str) -> int:
    words = ["score", "--predictions", str(files["said"]), "--references", str(files["references"]), *options]
    return main(words)


def told_json(capfd: Capture) -> Any:
    return json.loads(capfd.readouterr().out)


@pytest.mark.meteor
def test_json_holds_the_names_that_scripts_rely_on_with_their_protocol(files: dict[str, Path], capfd: Capture) -> None:
    assert score(files, "--json") == 0
    held = told_json(capfd)
    assert {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "METEOR", "CIDEr", "CIDEr-D"} <= held.keys()
    assert held["BLEU-4"] == pytest.approx(1, abs=1e-6) and held["CIDEr-D"] > 1
    assert held["protocol"]["pictures"] == 4 and held["protocol"]["references"] == 12
    assert held["protocol"]["tokenizer"] == "PTB 3.4.1" and held["protocol"]["missing"] == 0
    low, high = held["intervals"]["CIDEr-D"]
    assert low <= held["CIDEr-D"] <= high


def test_a_metric_that_is_absent_says_how_to_have_it(
    files: dict[str, Path], capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("myllm.metrics.score.missing_data", lambda: "no words: pip install 'myllm[meteor]'")
    assert score(files) == 0
    assert "METEOR is absent: no words: pip install 'myllm[meteor]'" in capfd.readouterr().out
    assert score(files, "--json") == 0
    held = told_json(capfd)
    assert "METEOR" not in held and "myllm[meteor]" in held["protocol"]["absent"]["METEOR"]


def test_text_tells_figures_intervals_people_and_controls(files: dict[str, Path], capfd: Capture) -> None:
    assert score(files) == 0
    told = capfd.readouterr().out
    assert "4 pictures, 12 references, tokenizer PTB 3.4.1" in told
    for word in ("BLEU-4", "95 % interval", "people", "the gap", "distinct captions 100.0%"):
        assert word in told


def test_csv_has_a_line_a_figure_or_a_line_a_picture(files: dict[str, Path], capfd: Capture) -> None:
    assert score(files, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert {"figure", "value", "low", "high"} == rows[0].keys() and "CIDEr-D" in [row["figure"] for row in rows]
    assert score(files, "--csv", "--per-image") == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [row["image"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert float(rows[0]["BLEU-1"]) == pytest.approx(1, abs=1e-6)


def test_per_image_figures_average_to_the_whole(files: dict[str, Path], capfd: Capture) -> None:
    assert score(files, "--json", "--per-image") == 0
    held = told_json(capfd)
    each = [row["CIDEr-D"] for row in held["per_image"]]
    assert sum(each) / 4 == pytest.approx(held["CIDEr-D"])
    assert score(files, "--per-image") == 0
    assert "2.jpg" in capfd.readouterr().out


def test_missing_and_unknown_pictures_stop_unless_allowed(files: dict[str, Path], capfd: Capture) -> None:
    files["said"].write_text(json.dumps([*SAID[:3], {"image_id": 77, "caption": "what"}]))
    assert score(files, "--json") == 1
    told = capfd.readouterr().err
    assert "1 picture has no caption (3.jpg)" in told and "1 caption is of an unknown picture (77)" in told
    assert "--allow-missing" in told
    assert score(files, "--json", "--allow-missing") == 0
    out = capfd.readouterr()
    held = json.loads(out.out)
    assert (held["protocol"]["pictures"], held["protocol"]["missing"], held["protocol"]["unknown"]) == (3, 1, 1)
    assert "3.jpg" in out.err and "77" in out.err


def test_the_protocol_tells_whether_figures_are_of_the_same_captions_and_references(
    files: dict[str, Path], capfd: Capture
) -> None:
    assert score(files, "--json") == 0
    first = told_json(capfd)["protocol"]
    files["said"].write_text(json.dumps([*SAID[:3], {"image_id": 3, "caption": "a ball"}]))
    assert score(files, "--json") == 0
    other = told_json(capfd)["protocol"]
    assert other["data"] == first["data"] and other["captions"] != first["captions"]


def test_an_empty_caption_scores_nothing_and_is_told(files: dict[str, Path], capfd: Capture) -> None:
    files["said"].write_text(json.dumps([*SAID[:3], {"image_id": 3, "caption": " "}]))
    assert score(files, "--json", "--per-image") == 0
    told = capfd.readouterr()
    assert "1 caption is empty and scores 0 (3.jpg)" in told.err
    assert json.loads(told.out)["per_image"][3]["CIDEr-D"] == 0


def test_one_reference_a_picture_is_scored_with_a_warning(files: dict[str, Path], capfd: Capture) -> None:
    files["references"].write_text(json.dumps({**REFERENCES, "annotations": REFERENCES["annotations"][::3]}))
    assert score(files, "--json") == 0
    told = capfd.readouterr()
    assert "each picture has one reference" in told.err and json.loads(told.out)["people"] == {}


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--json", "--csv"], 2, "--json and --csv: one form at a time"),
        (["--split=val"], 1, "COCO annotations have no splits"),
        (["--refs=x"], 2, "unknown option --refs"),
    ],
)
def test_wrong_usage_is_told(
    files: dict[str, Path], capfd: Capture, options: list[str], code: int, reason: str
) -> None:
    assert score(files, *options) == code
    assert reason in capfd.readouterr().err


def test_what_evaluate_writes_can_be_scored_again(tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    words = ["evaluate", "--model", str(tiny_run), "--data", str(scenes), "--out", str(tmp_path / "o")]
    assert main([*words, "--quiet", "--json"]) == 0
    own = told_json(capfd)
    assert score({"said": tmp_path / "o/captions.jsonl", "references": scenes}, "--split=val", "--json") == 0
    again = told_json(capfd)
    assert {name: again[name] for name in ("BLEU-4", "CIDEr-D", "intervals")} | {
        "intervals": {**own["intervals"], **again["intervals"]}
    } == {name: own[name] for name in ("BLEU-4", "CIDEr-D", "intervals")}
