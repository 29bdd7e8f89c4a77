import json
from pathlib import Path
from typing import Any

import pytest

from myllm.config import CaptionsConfig
from myllm.data.predictions import match, read_predictions
from myllm.data.sources import References, read_references
from myllm.errors import ConfigError, DataError

CSV = 'image,caption,score\n1.jpg,"a dog, running",-0.5\n2.jpg,a cat,NaN\n'


def write(path: Path, content: Any) -> Path:
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
def test_read_predictions_reads_each_format_with_numbers_and_names(tmp_path: Path, content: Any) -> None:
    assert read_predictions(write(tmp_path / "file", content)) == {"1": "a dog, running", "2": "a cat"}


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
        ("[{]", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"image": "1", "caption": "a"}\n{"image": \n', "line 2 is not JSON"),
        ('{"image":' * 100_000, "line 1 is JSON that is nested too deeply"),
        ({"images": [], "annotations": []}, "one JSON object with images, annotations, not predictions"),
        ([{"image_id": 1, "caption": "x" * 10_000_000}], "10,000,000 characters; a caption has at most 100,000"),
    ],
)
def test_read_predictions_refuses_other_content_with_its_position(
    tmp_path: Path, content: Any, message: str
) -> None:
    path = write(tmp_path / "file", content)
    with pytest.raises(DataError) as error:
        read_predictions(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_read_predictions_replaces_lone_surrogates(tmp_path: Path) -> None:
    path = write(tmp_path / "file", r'[{"image_id": "a\ud83d.jpg", "caption": "a \ud83d dog \ud83d\ude00"}]')
    assert read_predictions(path) == {"a\ufffd.jpg": "a \ufffd dog \U0001f600"}


def test_read_predictions_names_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b'[{"image_id": 1, "caption": "caf\xe9"}]')
    with pytest.raises(DataError, match="byte 0xe9, which is not UTF-8"):
        read_predictions(tmp_path / "file")
    with pytest.raises(DataError, match="gone: cannot be read .No such file"):
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


def read(path: Path, split: str | None = None) -> References:
    return read_references(path, split, CaptionsConfig())[0]


def test_match_finds_coco_pictures_by_id_name_and_end_of_path(tmp_path: Path) -> None:
    references = read(write(tmp_path / "annotations.json", COCO))
    assert references.captions == {"COCO_val2014_000000391895.jpg": ["a man", "a person"], "b/7.jpg": ["a cat"]}
    for name in ("391895", "COCO_val2014_000000391895.jpg", "any/where/COCO_val2014_000000391895.jpg",
                 "COCO_val2014_000000391895", "C:\\pictures\\COCO_val2014_000000391895.jpg"):
        assert match({name: "a caption"}, references).names == ["COCO_val2014_000000391895.jpg"], name


def test_read_references_of_karpathys_file_has_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset.json", KARPATHY)
    assert read(path, "test").captions == {"b.jpg": ["a cat", "cats"]}
    assert match({"42": "a cat"}, read(path, "test")).names == ["b.jpg"]
    assert list(read(path).captions) == ["a.jpg", "b.jpg"]
    with pytest.raises(ConfigError, match="--split 'val': .* has train, test"):
        read(path, "val")


def test_read_references_of_results_csv_needs_no_pictures_and_a_folder_has_splits(tmp_path: Path) -> None:
    table = write(tmp_path / "results.csv", "image_name| comment_number| comment\n1.jpg| 0| a dog\n1.jpg| 1| dogs\n")
    assert read(table).captions == {"1.jpg": ["a dog", "dogs"]}
    (tmp_path / "flickr30k_images").mkdir()
    (tmp_path / "flickr30k_images/1.jpg").touch()
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/test.txt").write_text("1.jpg\n")
    assert read(tmp_path, "test").captions == read(table, "test").captions == {"1.jpg": ["a dog", "dogs"]}
    with pytest.raises(ConfigError, match="--split 'dev'"):
        read(tmp_path, "dev")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 1, "caption": "a"}], "entry 1 has no column with the picture's name"),
        ({"info": {}}, "Found a JSON object with info. Expected one of"),
        ("1.jpg,a dog\n", "line 1 has no column with the picture's name"),
        ({"images": [], "annotations": []}, "no row holds a caption"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a"}]}, "annotation 1 is of picture 2"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": 3}]}, "the caption is 3"),
        ({"images": [1, 2], "annotations": []}, "image 1 is 1; expected an object"),
        ({"images": {"id": 1}, "annotations": []}, "images is {'id': 1}; expected a list"),
        ({"images": [{"id": 1}], "annotations": [[1, "a dog"]]}, r"annotation 1 is \[1, 'a dog'\]; expected an object"),
        ({"images": [{"id": 1}], "annotations": None}, "annotations is None; expected a list"),
        ({"images": [{"id": [1]}], "annotations": []}, r"image 1 calls its picture \[1\]"),
        ({"images": [{}], "annotations": []}, "image 1 calls its picture None"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": {}, "caption": "a"}]}, "annotation 1 calls its picture"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}], "annotations": []},
            "image 2 is a second picture called a.jpg; add folders",
        ),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}], "annotations": []},
            "image 2, b.jpg, has the id 1, as a.jpg has",
        ),
        ({"images": [{"filename": "a.jpg", "sentences": []}, {"filename": "b.jpg"}]}, "image 2, sentences is None"),
        ({"images": [{"filename": "a.jpg", "sentences": ["a dog"]}]}, "image 1, sentence 1 is 'a dog'"),
        ({"images": [{"filename": "a.jpg", "sentences": [{}]}]}, "image 1, sentence 1, picture a.jpg: the caption is"),
        ({"images": [{"filename": "a.jpg", "sentences": []}] * 2}, "image 2 is a second picture called a.jpg"),
        ({"images": [None, {"sentences": []}]}, "image 1 is None"),
        ({"images": 3, "annotations": 4}, "images is 3; expected a list"),
    ],
)
def test_read_references_refuses_other_content_with_its_position(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "file", content))


def test_read_references_of_coco_annotations_refuses_a_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no splits; leave out --split val"):
        read(write(tmp_path / "coco.json", COCO), "val")


def test_read_references_of_a_folder_names_pictures_by_their_path(tmp_path: Path) -> None:
    for path in ("a/1.jpg", "b/1.jpg"):
        (tmp_path / "images" / path).parent.mkdir(parents=True)
        (tmp_path / "images" / path).touch()
    write(tmp_path / "results.csv", "image_name| comment\na/1.jpg| a dog\nb/1.jpg| a cat\n")
    assert read(tmp_path).captions == {"a/1.jpg": ["a dog"], "b/1.jpg": ["a cat"]}


TWO = References({"a/1.jpg": ["a dog"], "b/1.jpg": ["a cat"], "2.jpg": ["a man"]}, {"5": "2.jpg"}, "references")


def test_match_lists_missing_and_unknown_pictures() -> None:
    matched = match({"5": "a man", "a/1.jpg": "a dog", "9.jpg": "what"}, TWO)
    assert matched.names == ["a/1.jpg", "2.jpg"] and matched.captions == ["a dog", "a man"]
    assert matched.missing == ["b/1.jpg"] and matched.unknown == ["9.jpg"]


def test_match_leaves_out_a_name_that_two_pictures_share() -> None:
    assert match({"1.jpg": "a dog", "2": "a man"}, TWO).unknown == ["1.jpg"]


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("/data/b/1.jpg", "b/1.jpg"), ("./a/1.jpg", "a/1.jpg"), ("x/a/1", "a/1.jpg"), ("any/where/2.png", "2.jpg"),
        ("c/1.jpg", None), ("b/c/1.jpg", None), ("1.jpg", None), ("ab/1.jpg", None),
    ],
)
def test_match_compares_folders_as_far_as_both_have_them(name: str, reference: str | None) -> None:
    expected = ["2.jpg"] if reference is None else sorted({reference, "2.jpg"}, key=list(TWO.captions).index)
    captions = {name: "a caption"} | ({} if reference == "2.jpg" else {"5": "a man"})
    assert match(captions, TWO).names == expected


def test_match_refuses_two_captions_of_one_picture() -> None:
    with pytest.raises(DataError, match="2.jpg has two captions, one of them as '2'"):
        match({"2.jpg": "a man", "2": "men"}, TWO)


def test_match_without_any_match_shows_names_of_both_sides() -> None:
    with pytest.raises(DataError, match="of pictures such as 'x.png', references of such as 'a/1.jpg'"):
        match({"x.png": "a"}, TWO)
