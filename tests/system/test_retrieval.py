"""`myllm train --decode.rank_by retrieval`: a captioner that keeps its training captions, in every format."""

from collections.abc import Callable
from pathlib import Path

import pytest

from myllm import Captioner, OnnxCaptioner
from myllm.apps.cli import main

Capture = pytest.CaptureFixture[str]
SEARCH = ("--decode.beams=4", "--decode.rank_by=retrieval")


@pytest.fixture(scope="module")
def run(train: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a captioner with an index; read only."""
    out = tmp_path_factory.mktemp("retrieval") / "captioner"
    assert train(out, *SEARCH, "--epochs=3", "--quiet") == 0
    return out


@pytest.fixture(scope="module")
def captioner(run: Path) -> Captioner:
    return Captioner.load(run)


def texts(captioner: Captioner | OnnxCaptioner, pictures: list[Path], **options: str) -> list[str]:
    return [caption.text for caption in captioner.caption_batch(pictures, **options)]


def test_the_captioner_has_the_captions_of_its_training_pictures(run: Path, captioner: Captioner) -> None:
    assert captioner.decode.rank_by == "retrieval" and captioner.checkpoint.index is not None
    assert len(captioner.checkpoint.index.counts) == captioner.checkpoint.provenance["data"]["train"]
    assert '"rank_by": "retrieval"' in (run / "metrics.json").read_text()
    assert "beam 4, ranked by retrieval" in (run / "report.html").read_text()


def test_the_chosen_caption_may_be_less_likely_than_the_likeliest(captioner: Captioner, pictures: list[Path]) -> None:
    for picture in pictures:
        chosen, likeliest = captioner.caption(picture), captioner.caption(picture, rank_by="score")
        assert len(chosen.alternatives) == 3 and chosen.score <= likeliest.score + 1e-6


def test_the_most_confident_caption_is_chosen_with_the_support_of_similar_pictures(
    captioner: Captioner, pictures: list[Path]
) -> None:
    by_confidence = captioner.caption_batch(pictures, rank_by="confidence")
    by_retrieval = captioner.caption_batch(pictures)
    for caption, other in zip(by_confidence, by_retrieval, strict=True):
        assert caption.confidence >= other.confidence and len(caption.support) == len(caption.tokens)
    assert [caption.text for caption in by_confidence] != [caption.text for caption in by_retrieval]


def test_captions_do_not_depend_on_the_batch(captioner: Captioner, pictures: list[Path]) -> None:
    assert texts(captioner, pictures) == [captioner.caption(picture).text for picture in pictures]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_the_index_is_part_of_exports(
    run: Path, captioner: Captioner, pictures: list[Path], form: str, tmp_path: Path
) -> None:
    out = tmp_path / "export"
    assert main(["export", str(run), "--to", form, "--out", str(out), "--quiet"]) == 0
    export = OnnxCaptioner.load(out) if form == "onnx" else Captioner.load(out)
    assert export.decode.rank_by == "retrieval" and texts(export, pictures) == texts(captioner, pictures)
    # the index's components of least variance magnify rounding errors, in which ONNX differs from torch
    tolerance = 1e-3 if form == "onnx" else 1e-4
    for caption, same in zip(captioner.caption_batch(pictures), export.caption_batch(pictures), strict=True):
        assert len(caption.support) == len(caption.tokens)
        assert caption.support == pytest.approx(same.support, abs=tolerance)
        assert caption.confidence == pytest.approx(same.confidence, abs=tolerance)


def test_words_of_a_caption_ranked_by_score_have_no_support(captioner: Captioner, pictures: list[Path]) -> None:
    by_retrieval, by_score = captioner.caption(pictures[0]), captioner.caption(pictures[0], rank_by="score")
    assert [word.support for word in by_score.words] == [None] * len(by_score.words)
    assert all(0 <= word.support <= 1 for word in by_retrieval.words if word.support is not None)
    assert None not in [word.support for word in by_retrieval.words]


@pytest.mark.slow
def test_the_web_page_has_no_index_and_is_compared_with_captions_ranked_by_score(
    run: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "runtime").mkdir()
    for name in ("fetch_runtime", "runtime_folder"):
        monkeypatch.setattr(f"myllm.export.web.{name}", lambda: tmp_path / "runtime")
    words = ["--to", "web", "--precision", "fp32", "--data", str(scenes), "--limit", "4"]
    assert main(["export", str(run), *words, "--out", str(tmp_path / "web")]) == 0
    assert not list((tmp_path / "web").rglob("index.npz"))
    output = " ".join("".join(capsys.readouterr()).split())
    assert "the page ignores the captioner's decode.rank_by 'retrieval'" in output
    assert "the same caption for 3 of 3 pictures" in output


@pytest.mark.slow
def test_resuming_a_finished_run_makes_the_index_again(run: Path, captioner: Captioner, pictures: list[Path]) -> None:
    before = texts(captioner, pictures)
    assert main(["train", "--out", str(run), "--resume", "--quiet"]) == 0
    assert texts(Captioner.load(run), pictures) == before


def test_info_says_how_many_captions_can_be_read(run: Path, captioner: Captioner, capsys: Capture) -> None:
    assert captioner.checkpoint.index is not None
    assert main(["info", str(run)]) == 0
    assert f"{len(captioner.checkpoint.index.lengths):,} captions of training pictures" in capsys.readouterr().out


def test_an_average_has_no_index(run: Path, tiny_run: Path, tmp_path: Path) -> None:
    assert main(["average", str(run), str(run), "--out", str(tmp_path / "mean.pt"), "--quiet"]) == 0
    mean = Captioner.load(tmp_path / "mean.pt").checkpoint
    assert mean.index is None and mean.decode.rank_by == "score"


def test_an_average_is_compared_with_captioners_that_rank_by_score_too(
    run: Path, scenes: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["average", str(run), str(run), "--out", str(tmp_path / "mean.pt"), "--data", str(scenes)]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "so it ranks by score; figures of all are by score" in output
    first, _, mean = [line[30:].split() for line in output.splitlines() if line.count("0.") >= 3]
    assert first == mean


def test_a_captioner_without_an_index_says_how_to_get_one(
    tiny_run: Path, pictures: list[Path], capsys: Capture
) -> None:
    words = ["caption", str(pictures[0]), "--model", str(tiny_run), *SEARCH]
    assert main(words) == 2
    assert "decode.rank_by retrieval: this captioner has no index" in capsys.readouterr().err


@pytest.mark.slow
def test_an_adapter_cannot_have_an_index(
    train: Callable[..., int], run: Path, pictures: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    lora = ["--base", str(run), "--lora.rank=2", "--epochs=1", "--quiet"]
    assert train(tmp_path / "refused", *lora, *SEARCH) == 2
    assert "decode.rank_by retrieval with lora.rank" in capsys.readouterr().err
    assert train(tmp_path / "adapted", *lora) == 0
    adapted = Captioner.load(tmp_path / "adapted")
    assert adapted.decode.rank_by == "score" and texts(adapted, pictures[:1])


def test_a_damaged_index_is_an_error_that_names_the_file(run: Path, tmp_path: Path, capsys: Capture) -> None:
    import torch

    content = torch.load(run / "captioner.pt", weights_only=True)
    content["index"]["counts"] = content["index"]["counts"][:-1]
    torch.save(content, tmp_path / "captioner.pt")
    assert main(["info", str(tmp_path / "captioner.pt")]) == 1
    assert "captioner.pt: its captions of training pictures are damaged" in capsys.readouterr().err
