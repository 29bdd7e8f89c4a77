"""Training and judging on pictures in archives and tables: the same figures as with the pictures in a folder."""

import csv
import io
import json
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from myllm.apps.cli import main

OPTIONS = ["--epochs=2", "--quiet", "--workers=2", "--augment=true", "--captions.lowercase=false"]
Samples = dict[str, tuple[str, list[str], bytes]]


@pytest.fixture(scope="module")
def samples(scenes: Path) -> Samples:
    """Split, captions and bytes of each scene by its name."""
    captions = defaultdict[str, list[str]](list)
    for line in (scenes / "results.csv").read_text().splitlines()[1:]:
        name, _, caption = line.split("| ")
        captions[name].append(caption)
    lists = {path.stem.replace("heldout", "test"): path for path in (scenes / "splits").iterdir()}
    splits = {name: split for split, path in lists.items() for name in path.read_text().split()}
    pictures = scenes / "flickr30k_images"
    return {name: (splits[name], texts, (pictures / name).read_bytes()) for name, texts in captions.items()}


def write_shards(folder: Path, samples: Samples) -> Path:
    folder.mkdir()
    for split in {split for split, *_ in samples.values()}:
        chosen = [(name, *sample[1:]) for name, sample in samples.items() if sample[0] == split]
        for shard in range(2):
            with tarfile.open(folder / f"{split}-{shard:06d}.tar", "w") as archive:
                for name, captions, picture in chosen[shard * len(chosen) // 2 : (shard + 1) * len(chosen) // 2]:
                    for member, content in (
                        (name, picture), (f"{Path(name).stem}.txt", "\n".join(captions).encode())
                    ):
                        info = tarfile.TarInfo(member)
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
    return folder


def write_zip(folder: Path, samples: Samples) -> Path:
    folder.mkdir()
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        rows = [f"{name}| 0| {caption}" for name, (_, captions, _) in samples.items() for caption in captions]
        archive.writestr("results.csv", "\n".join(["image_name| comment_number| comment", *rows]))
        for split in {split for split, *_ in samples.values()}:
            archive.writestr(f"splits/{split}.txt", "\n".join(n for n, s in samples.items() if s[0] == split))
        for name, (_, _, picture) in samples.items():
            archive.writestr(f"flickr30k_images/{name}", picture)
    return folder / "data.zip"


def write_parquet(folder: Path, samples: Samples) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir()
    for split in {split for split, *_ in samples.values()}:
        rows = [(name, texts, picture) for name, (part, texts, picture) in samples.items() if part == split]
        table = {
            "image": [{"bytes": picture, "path": name} for name, _, picture in rows],
            "caption": [texts for _, texts, _ in rows],
        }
        parquet.write_table(pyarrow.table(table), folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(params=[write_shards, write_zip, write_parquet])
def data(
    request: pytest.FixtureRequest, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The scenes in shards, a zip or Parquet."""
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    return request.param(tmp_path / "stored", samples)


@pytest.fixture(scope="module")
def folder_run(train: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folder") / "captioner"
    assert train(out, *OPTIONS) == 0
    return out


def losses(run: Path) -> list[tuple[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [(row["train_loss"], row["val_loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_training_judging_and_comparing_give_the_figures_of_the_folder(
    train: Callable[..., int], scenes: Path, folder_run: Path, data: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def figures(words: list[str], source: Path) -> Any:
        capfd.readouterr()
        assert main([*words, f"--data={source}", "--devices=cpu", "--quiet", "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    assert train(tmp_path / "run", *OPTIONS, data=data) == 0
    assert losses(tmp_path / "run") == losses(folder_run)
    judge = ["evaluate", f"--model={folder_run}"]
    stored, plain = figures([*judge, f"--out={tmp_path / 'judged'}"], data), figures(judge, scenes)
    for name in ("CIDEr-D", "BLEU-4", "ROUGE-L", "CIDEr-D_shuffled"):
        assert stored[name] == pytest.approx(plain[name]), name
    assert stored["leaks"] == plain["leaks"]
    assert stored["protocol"]["data"] == plain["protocol"]["data"]
    assert (tmp_path / "judged/report.html").read_text().count("data:image/") >= stored["protocol"]["pictures"]
    versus = figures(["compare", str(tmp_path / "run"), str(folder_run)], data)
    assert versus["a"]["CIDEr-D"] == versus["b"]["CIDEr-D"] == pytest.approx(plain["CIDEr-D"])


@pytest.mark.slow
def test_features_of_a_frozen_backbone_and_resuming_work_with_shards(
    train: Callable[..., int], scenes: Path, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    data, options = write_shards(tmp_path / "shards", samples), [*OPTIONS, "--vision.frozen=true"]
    assert train(tmp_path / "stored", *options, data=data) == train(tmp_path / "plain", *options) == 0
    assert losses(tmp_path / "stored") == losses(tmp_path / "plain")
    words = ["train", "--config", str(tmp_path / "stored/config.yaml"), "--resume", "--epochs=3", "--quiet"]
    assert main(words) == 0 and len(losses(tmp_path / "stored")) == 3
