"""Captions of anyone's: each format, each way to name a picture, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from myllm.config import CaptionsConfig
from myllm.data.predictions import References, match, read_predictions, read_references
from myllm.errors import ConfigError, DataError

CSV = 'image,caption,score\n1.jpg,"a dog, running",-0.5\n2.jpg,a cat,NaN\n'


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "content",
    [
        [{"image_id": 1, "caption": "a dog, running"}, {"image_id": "2", "caption": "a cat"}],
        '{"image": "1", "caption": "a dog, running", "score": NaN}\n\n{"image": 2.0, "caption": "a cat"}\n',
        'caption,image_id\n"a dog, running",1\na cat,2\n',
        '\ufeff[{"image_id": 1, "caption": "a dog, running"}, {"file_name": 2, "caption": "a cat"}]',
    ],
    ids=["COCO results", "JSONL", "CSV", "byte order mark"],
)
def test_predictions_are_read_in_each_form_numbers_and_text_alike(tmp_path: Path, content: Any) -> None:
    assert read_predictions(written(tmp_path / "file", content)) == {"1": "a dog, running", "2": "a cat"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}], "1 picture has two captions (1)"),
        ([{"image_id": 1, "caption": 7}], "entry 1, picture 1: the caption is 7; expected text"),
        ([{"image_id": 1, "caption": None}], "entry 1, picture 1: the caption is null; expected text"),
        ([{"image_id": 1.5, "caption": "a"}], "entry 1 calls its picture 1.5"),
        ([{"image_id": True, "caption": "a"}], "entry 1 calls its picture True"),
        ([{"id": 1, "text": "a"}], "entry 1 has id, text; expected a picture and a caption"),
        (["a dog"], "entry 1 is 'a dog'; expected a picture"),
        ([], "holds no caption"),
        ("", "the columns are ''"),
        ("picture;text\n1;a", "the columns are 'picture;text'"),
        ("[{]", "no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"image": "1", "caption": "a"}\n{"image": \n', "line 2 is no JSON"),
        ({"images": [], "annotations": []}, "one JSON object with images, annotations, no predictions"),
        ([{"image_id": 1, "caption": "x" * 10_000_000}], "10,000,000 characters; a caption has at most 100,000"),
    ],
)
def test_what_is_no_prediction_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path / "file", content)
    with pytest.raises(DataError) as told:
        read_predictions(path)
    assert message in str(told.value) and str(path) in str(told.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b'[{"image_id": 1, "caption": "caf\xe9"}]')
    with pytest.raises(DataError, match="byte 0xe9, which is not UTF-8"):
        read_predictions(tmp_path / "file")
    with pytest.raises(DataError, match="no such file"):
        read_predictions(tmp_path / "gone")


COCO = {
    "images": [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"}, {"id": 7, "file_name": "b/7.jpg"}],
    "annotations": [
        {"image_id": 391895, "id": 1, "caption": "a man"}, {"image_id": 7, "id": 2, "caption": "a cat"},
        {"image_id": 391895, "id": 3, "caption": "a person"},
    ],
}
KARPATHY = {
    "dataset": "x",
    "images": [
        {"filename": "a.jpg", "imgid": 0, "split": "train", "sentences": [{"raw": "a dog"}]},
        {
            "filename": "b.jpg",
            "imgid": 1,
            "cocoid": 42,
            "split": "test",
            "sentences": [{"raw": "a cat"}, {"raw": "cats"}],
        },
    ],
}


def references(path: Path, split: str | None = None) -> References:
    return read_references(path, split, CaptionsConfig())


def test_coco_annotations_are_found_by_number_by_name_and_by_what_ends_it(tmp_path: Path) -> None:
    found = references(written(tmp_path / "annotations.json", COCO))
    assert found.captions == {"COCO_val2014_000000391895.jpg": ["a man", "a person"], "b/7.jpg": ["a cat"]}
    for name in ("391895", "COCO_val2014_000000391895.jpg", "any/where/COCO_val2014_000000391895.jpg",
                 "COCO_val2014_000000391895", "C:\\pictures\\COCO_val2014_000000391895.jpg"):
        assert match({name: "said"}, found).names == ["COCO_val2014_000000391895.jpg"], name


def test_karpathys_file_has_splits(tmp_path: Path) -> None:
    path = written(tmp_path / "dataset.json", KARPATHY)
    assert references(path, "test").captions == {"b.jpg": ["a cat", "cats"]}
    assert match({"42": "a cat"}, references(path, "test")).names == ["b.jpg"]
    assert list(references(path).captions) == ["a.jpg", "b.jpg"]
    with pytest.raises(DataError, match="no split 'val'; it has test, train"):
        references(path, "val")


def test_results_csv_needs_no_pictures_and_a_folder_has_splits(tmp_path: Path) -> None:
    table = written(tmp_path / "results.csv", "image_name| comment_number| comment\n1.jpg| 0| a dog\n1.jpg| 1| dogs\n")
    assert references(table).captions == {"1.jpg": ["a dog", "dogs"]}
    (tmp_path / "flickr30k_images").mkdir()
    (tmp_path / "flickr30k_images/1.jpg").touch()
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/test.txt").write_text("1.jpg\n")
    assert references(tmp_path, "test").captions == references(table, "test").captions == {"1.jpg": ["a dog", "dogs"]}
    with pytest.raises(ConfigError, match="--split 'dev'"):
        references(tmp_path, "dev")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 1, "caption": "a"}], "not references in a form that is known"),
        ({"info": {}}, "not references in a form that is known"),
        ("1.jpg,a dog\n", "not references in a form that is known"),
        ({"images": [], "annotations": []}, "holds no reference caption"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a"}]}, "annotation 1 is of picture 2"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": 3}]}, "the caption is 3"),
    ],
)
def test_what_is_no_reference_is_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        references(written(tmp_path / "file", content))
    with pytest.raises(DataError, match="COCO's annotations have no splits"):
        references(written(tmp_path / "coco.json", COCO), "val")


TWO = References({"a/1.jpg": ["a dog"], "b/1.jpg": ["a cat"], "2.jpg": ["a man"]}, {"5": "2.jpg"}, "references")


def test_missing_and_unknown_pictures_are_told_apart() -> None:
    found = match({"5": "a man", "a/1.jpg": "a dog", "9.jpg": "what"}, TWO)
    assert found.names == ["a/1.jpg", "2.jpg"] and found.captions == ["a dog", "a man"]
    assert found.missing == ["b/1.jpg"] and found.unknown == ["9.jpg"]


def test_a_name_that_two_pictures_share_calls_neither() -> None:
    assert match({"1.jpg": "a dog", "2": "a man"}, TWO).unknown == ["1.jpg"]


def test_two_names_of_one_picture_are_two_captions_of_it() -> None:
    with pytest.raises(DataError, match="2.jpg has two captions, one of them as '2'"):
        match({"2.jpg": "a man", "2": "men"}, TWO)


def test_where_nothing_matches_both_sides_are_shown() -> None:
    with pytest.raises(DataError, match="of pictures such as 'x.png', references has such as 'a/1.jpg'"):
        match({"x.png": "a"}, TWO)
