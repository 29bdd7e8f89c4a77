"""`myllm score`: captions from any source, scored without a model and without torch."""

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
PREDICTIONS = [{"image_id": number, "caption": f"A {thing} on the grass."}
        for number, thing in enumerate(["red dog", "black cat", "small boat", "green ball"])]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.json" for name in ("predictions", "references")}
    paths["predictions"].write_text(json.dumps(PREDICTIONS))
    paths["references"].write_text(json.dumps(REFERENCES))
    return paths


def score(files: dict[str, Path], *options: str) -> int:
    words = ["score", "--predictions", str(files["predictions"]), "--references", str(files["references"]), *options]
    return main(words)


def printed_json(capfd: Capture) -> Any:
    return json.loads(capfd.readouterr().out)


@pytest.mark.slow
@pytest.mark.meteor
def test_score_json_has_the_names_that_scripts_use_and_the_protocol(files: dict[str, Path], capfd: Capture) -> None:
    assert score(files, "--json") == 0
    content = printed_json(capfd)
    assert {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "METEOR", "CIDEr", "CIDEr-D"} <= content.keys()
    assert content["BLEU-4"] == pytest.approx(1, abs=1e-6) and content["CIDEr-D"] > 1
    assert content["protocol"]["pictures"] == 4 and content["protocol"]["references"] == 12
    assert content["protocol"]["tokenizer"] == "PTB 3.4.1" and content["protocol"]["missing"] == 0
    low, high = content["intervals"]["CIDEr-D"]
    assert low <= content["CIDEr-D"] <= high


def test_score_names_an_absent_metric_and_how_to_install_it(
    files: dict[str, Path], capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("myllm.metrics.score.missing_data", lambda: "no words: pip install 'myllm[meteor]'")
    assert score(files) == 0
    assert "METEOR is absent: no words: pip install 'myllm[meteor]'" in capfd.readouterr().out
    assert score(files, "--json") == 0
    content = printed_json(capfd)
    assert "METEOR" not in content and "myllm[meteor]" in content["protocol"]["absent"]["METEOR"]


def test_score_prints_figures_intervals_people_and_controls(files: dict[str, Path], capfd: Capture) -> None:
    assert score(files) == 0
    output = capfd.readouterr().out
    assert "4 pictures, 12 references, tokenizer PTB 3.4.1" in output
    for word in ("BLEU-4", "95 % interval", "people", "the gap", "distinct captions 100.0%"):
        assert word in output


def test_score_csv_has_a_line_for_each_figure_or_for_each_picture(files: dict[str, Path], capfd: Capture) -> None:
    assert score(files, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert {"figure", "value", "low", "high"} == rows[0].keys() and "CIDEr-D" in [row["figure"] for row in rows]
    assert score(files, "--csv", "--per-image") == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [row["image"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert float(rows[0]["BLEU-1"]) == pytest.approx(1, abs=1e-6)


def test_score_per_image_figures_average_to_the_figure_of_all(files: dict[str, Path], capfd: Capture) -> None:
    assert score(files, "--json", "--per-image") == 0
    content = printed_json(capfd)
    per_image = [row["CIDEr-D"] for row in content["per_image"]]
    assert sum(per_image) / 4 == pytest.approx(content["CIDEr-D"])
    assert score(files, "--per-image") == 0
    assert "2.jpg" in capfd.readouterr().out


def test_score_refuses_missing_and_unknown_pictures_unless_allowed(files: dict[str, Path], capfd: Capture) -> None:
    files["predictions"].write_text(json.dumps([*PREDICTIONS[:3], {"image_id": 77, "caption": "what"}]))
    assert score(files, "--json") == 1
    errors = capfd.readouterr().err
    assert "1 picture has no caption (3.jpg)" in errors and "1 caption is of an unknown picture (77)" in errors
    assert "--allow-missing" in errors
    assert score(files, "--json", "--allow-missing") == 0
    output = capfd.readouterr()
    content = json.loads(output.out)
    assert [content["protocol"][name] for name in ("pictures", "missing", "unknown")] == [3, 1, 1]
    assert "3.jpg" in output.err and "77" in output.err


def test_score_protocol_shows_whether_captions_and_references_are_the_same(
    files: dict[str, Path], capfd: Capture
) -> None:
    assert score(files, "--json") == 0
    first = printed_json(capfd)["protocol"]
    files["predictions"].write_text(json.dumps([*PREDICTIONS[:3], {"image_id": 3, "caption": "a ball"}]))
    assert score(files, "--json") == 0
    other = printed_json(capfd)["protocol"]
    assert other["data"] == first["data"] and other["captions"] != first["captions"]


def test_score_of_an_empty_caption_is_0_with_a_warning(files: dict[str, Path], capfd: Capture) -> None:
    files["predictions"].write_text(json.dumps([*PREDICTIONS[:3], {"image_id": 3, "caption": " "}]))
    assert score(files, "--json", "--per-image") == 0
    output = capfd.readouterr()
    assert "1 caption is empty and scores 0 (3.jpg)" in output.err
    assert json.loads(output.out)["per_image"][3]["CIDEr-D"] == 0


def test_score_warns_of_one_reference_per_picture(files: dict[str, Path], capfd: Capture) -> None:
    files["references"].write_text(json.dumps({**REFERENCES, "annotations": REFERENCES["annotations"][::3]}))
    assert score(files, "--json") == 0
    output = capfd.readouterr()
    assert "each picture has one reference" in output.err and json.loads(output.out)["people"] == {}


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--json", "--csv"], 2, "--json and --csv: choose one of them"),
        (["--split=val"], 1, "has no splits; leave out --split val"),
        (["--refs=x"], 2, "unknown option --refs"),
    ],
)
def test_score_names_wrong_usage(
    files: dict[str, Path], capfd: Capture, options: list[str], code: int, reason: str
) -> None:
    assert score(files, *options) == code
    assert reason in capfd.readouterr().err


def test_score_takes_the_captions_that_evaluate_writes(
    tiny_run: Path, scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    words = ["evaluate", "--model", str(tiny_run), "--data", str(scenes), "--out", str(tmp_path / "o")]
    assert main([*words, "--quiet", "--json"]) == 0
    of_evaluate = printed_json(capfd)
    assert score({"predictions": tmp_path / "o/captions.jsonl", "references": scenes}, "--split=val", "--json") == 0
    again = printed_json(capfd)
    assert {name: again[name] for name in ("BLEU-4", "CIDEr-D", "intervals")} | {
        "intervals": {**of_evaluate["intervals"], **again["intervals"]}
    } == {name: of_evaluate[name] for name in ("BLEU-4", "CIDEr-D", "intervals")}


def test_score_csv_escapes_what_a_spreadsheet_would_run(files: dict[str, Path], capfd: Capture) -> None:
    captions = ['=HYPERLINK("http://x")', "+1", "@SUM(1)", "a dog - sits"]
    files["predictions"].write_text(
        json.dumps([{"image_id": number, "caption": caption} for number, caption in enumerate(captions)])
    )
    assert score(files, "--csv", "--per-image") == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [row["caption"] for row in rows] == [f"'{captions[0]}", "'+1", "'@SUM(1)", "a dog - sits"]
    assert all(float(row["CIDEr-D"]) >= 0 for row in rows)


@pytest.mark.parametrize("options", [("--per-image",), ("--per-image", "--csv")])
def test_score_escapes_control_characters(files: dict[str, Path], capfd: Capture, options: tuple[str, ...]) -> None:
    captions = [{**PREDICTIONS[0], "caption": "a\x1b[31m dog"}, *PREDICTIONS[1:]]
    files["predictions"].write_text(json.dumps(captions))
    assert score(files, *options) == 0
    output = capfd.readouterr().out
    assert r"a\x1b[31m dog" in output and "\x1b" not in output


def test_score_of_one_picture_speaks_of_one_picture(files: dict[str, Path], capfd: Capture) -> None:
    files["predictions"].write_text(json.dumps(PREDICTIONS[:1]))
    assert score(files, "--allow-missing") == 0
    assert capfd.readouterr().out.startswith("1 picture, 3 references, ")


@pytest.mark.parametrize("value", ["CIDEr-D,BLEU-4", "[CIDEr-D, BLEU-4]"])
def test_score_metrics_computes_only_the_metrics_given(files: dict[str, Path], capfd: Capture, value: str) -> None:
    assert score(files, "--json") == 0
    every = printed_json(capfd)
    assert score(files, "--json", f"--metrics={value}") == 0
    some = printed_json(capfd)
    assert some.keys() >= {"CIDEr-D", "BLEU-4"} and not some.keys() & {"ROUGE-L", "BLEU-1", "METEOR", "CHAIRi"}
    assert [some[name] for name in ("CIDEr-D", "BLEU-4")] == [every[name] for name in ("CIDEr-D", "BLEU-4")]


def test_score_names_an_unknown_metric(files: dict[str, Path], capfd: Capture) -> None:
    assert score(files, "--metrics=CIDER-X") == 2
    assert "CIDER-X" in capfd.readouterr().err
