"""Each format that people have: recognised in a folder, and by the file itself."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.config import CaptionsConfig
from myllm.data.formats import FORMATS as TABLE
from myllm.data.sources import read_records, read_references
from myllm.errors import DataError

COCO = {
    "info": {}, "images": [{"id": 7, "file_name": "1.jpg"}, {"id": 8, "file_name": "2.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "a dog"}, {"id": 2, "image_id": 8, "caption": "a cat"},
        {"id": 3, "image_id": 7, "caption": "dogs"},
    ],
}
KARPATHY = {"dataset": "x", "images": [
    {"filename": "1.jpg", "split": "restval", "sentences": [{"raw": "a dog"}, {"raw": "dogs"}]},
    {"filename": "2.jpg", "split": "val", "sentences": [{"raw": "a cat"}]},
]}
LINES = '{"file_name": "1.jpg", "text": "a dog"}\n{"file_name": "2.jpg", "text": "a cat"}\n'
OWN = (
    '{"image": "1.jpg", "caption": "a dog", "score": -0.5, "alternatives": ["no reference"]}\n'
    '{"image": "1.jpg", "caption": "dogs"}\n{"image": "2.jpg", "caption": "a cat"}\n'
)
BOTH = {"1.jpg": ("a dog", "dogs"), "2.jpg": ("a cat",)}
FIRST = {"1.jpg": ("a dog",), "2.jpg": ("a cat",)}

FORMATS: list[tuple[str, dict[str, Any], dict[str, tuple[str, ...]], str]] = [
    ("results.csv", {
        "results.csv": "image_name| comment_number| comment\n1.jpg| 0| a dog\n1.jpg| 1| dogs\n2.jpg| 0| a cat\n",
    }, BOTH, "flickr30k_images"),
    ("captions.txt", {"captions.txt": "image,caption\n1.jpg,a dog\n1.jpg,dogs\n2.jpg,a cat\n"}, BOTH, "Images"),
    ("Flickr8k token file", {
        "Flickr8k.token.txt": "1.jpg#0\ta dog\n1.jpg#1\tdogs\n2.jpg#0\ta cat\n",
    }, BOTH, "Flicker8k_Dataset"),
    ("Flickr8k token file", {
        "Flickr8k_text/Flickr8k.token.txt": "1.jpg#0\ta dog\n1.jpg#1\tdogs\n2.jpg#0\ta cat\n",
    }, BOTH, "Flicker8k_Dataset"),
    ("COCO captions", {"annotations/captions_val2014.json": COCO}, BOTH, "val2014"),
    ("COCO captions", {"mine.json": COCO}, BOTH, "images"),
    ("Karpathy JSON", {"dataset_x.json": KARPATHY}, BOTH, "images"),
    ("Hugging Face metadata", {"metadata.jsonl": LINES}, FIRST, "."),
    ("Hugging Face metadata", {"metadata.csv": "file_name,text\n1.jpg,a dog\n2.jpg,a cat\n"}, FIRST, "."),
    ("JSON lines", {"captions.jsonl": OWN}, BOTH, "."),
    ("JSON lines", {"rows.json": [
        {"image": "1.jpg", "caption": ["a dog", "dogs"]}, {"image": "2.jpg", "caption": "a cat"},
    ]}, BOTH, "images"),
    ("table", {"any.csv": "Path;Caption\n1.jpg;a dog\n1.jpg;dogs\n2.jpg;a cat\n"}, BOTH, "."),
    ("table", {"any.tsv": "filename\tsentences\n1.jpg\t[\"a dog\", \"dogs\"]\n2.jpg\ta cat\n"}, BOTH, "."),
    ("captions next to pictures", {"1.txt": "a dog\n\ndogs\n", "2.caption": "a cat"}, BOTH, "."),
    ("captions next to pictures", {"1.json": ["a dog", "dogs"], "2.jpg.json": {"caption": "a cat"}}, BOTH, "."),
    ("captions next to pictures", {
        "1.json": {"image": "1.jpg", "caption": ["a dog", "dogs"]}, "2.json": {"image": "2.jpg", "caption": "a cat"},
    }, BOTH, "."),
]


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def make_folder(folder: Path, files: dict[str, Any], pictures: str = "1.jpg 2.jpg", into: str = ".") -> Path:
    for name, content in files.items():
        write(folder / name, content)
    for name in pictures.split():
        write(folder / into / name, name)
    return folder


def captions_of(*data: Path, **options: Any) -> dict[str, tuple[str, ...]]:
    return {record.name: record.captions for record in read_records(data, CaptionsConfig(**options))[0]}


@pytest.mark.parametrize(("form", "files", "expected", "pictures"), FORMATS, ids=[
    f"{form} in {next(iter(files))}" for form, files, *_ in FORMATS
])
def test_a_folder_in_each_format_is_recognised_and_read(
    tmp_path: Path, form: str, files: dict[str, Any], expected: dict[str, tuple[str, ...]], pictures: str
) -> None:
    make_folder(tmp_path, files, into=pictures)
    records, findings = read_records(tmp_path, CaptionsConfig())
    assert {record.name: record.captions for record in records} == expected
    assert all(line.startswith(f"{form}: ") for line in findings.formats) and findings.lines() == []


@pytest.mark.parametrize(("form", "files", "expected", "pictures"), [
    row for row in FORMATS if row[0] != "captions next to pictures"
], ids=[f"{form} in {next(iter(files))}" for form, files, *_ in FORMATS if form != "captions next to pictures"])
def test_a_file_in_each_format_is_read_like_its_folder(
    tmp_path: Path, form: str, files: dict[str, Any], expected: dict[str, tuple[str, ...]], pictures: str
) -> None:
    make_folder(tmp_path, files, into=pictures)
    path = tmp_path / next(iter(files))
    assert captions_of(path) == expected
    references, _ = read_references(path, None, CaptionsConfig())
    assert {name: tuple(captions) for name, captions in references.captions.items()} == expected


def test_captions_txt_has_commas_quotes_and_line_ends_in_captions(tmp_path: Path) -> None:
    rows = 'image,caption\n1.jpg,a dog, running\n1.jpg,"two ""big"" dogs, and\na cat"\n2.jpg,"Sam" says "hi", x\n'
    folder = make_folder(tmp_path, {"captions.txt": rows}, into="Images")
    assert captions_of(folder) == {
        "1.jpg": ("a dog, running", 'two "big" dogs, and a cat'), "2.jpg": ('"sam" says "hi", x',)
    }


@pytest.mark.parametrize("header", ["image,caption\n", "image_name| number| comment\n"])
def test_a_stray_quote_does_not_swallow_the_rows_below_it(tmp_path: Path, header: str) -> None:
    mark = "," if "," in header else "| 0| "
    rows = f'{header}1.jpg{mark}"a dog\n2.jpg{mark}a cat"\n'
    assert captions_of(make_folder(tmp_path, {"captions.txt": rows})) == {"1.jpg": ('"a dog',), "2.jpg": ('a cat"',)}


@pytest.mark.parametrize("separator", ["|", ",", ";", "\t"])
@given(captions=st.lists(st.text(st.sampled_from("ab \"'|,;\t\n"), min_size=1).filter(str.strip), min_size=1))
def test_tables_are_read_as_the_csv_module_writes_them(
    tmp_path_factory: pytest.TempPathFactory, separator: str, captions: list[str]
) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerows([["image", "caption"], *(["1.jpg", caption] for caption in captions)])
    folder = make_folder(tmp_path_factory.mktemp("data"), {"a.csv": file.getvalue()})
    expected = tuple(" ".join(part.strip() for part in caption.strip().split("\n") if part.strip())
                     for caption in captions)
    assert captions_of(folder) == {"1.jpg": expected}


def test_karpathys_restval_is_train_and_filepath_is_part_of_the_name(tmp_path: Path) -> None:
    images = [{**image, "filepath": f"val201{number}"} for number, image in enumerate(KARPATHY["images"], 4)]
    folder = make_folder(tmp_path, {"dataset_coco.json": {"images": images}}, "val2014/1.jpg val2015/2.jpg")
    records, _ = read_records(folder, CaptionsConfig())
    assert [(r.name, r.split) for r in records] == [("val2014/1.jpg", "train"), ("val2015/2.jpg", "val")]


def test_coco_files_of_two_splits_are_read_together(tmp_path: Path) -> None:
    val = {"images": [{"id": 9, "file_name": "3.jpg"}], "annotations": [{"image_id": 9, "caption": "a bird"}]}
    folder = make_folder(tmp_path, {
        "annotations/captions_train2014.json": COCO, "annotations/captions_val2014.json": val,
        "annotations/instances_val2014.json": {"images": [], "annotations": [{"bbox": []}]},
    }, into="train2014")
    write(folder / "val2014/3.jpg", "3")
    records, _ = read_records(folder, CaptionsConfig())
    assert [(r.name, r.split) for r in records] == [("1.jpg", "train"), ("2.jpg", "train"), ("3.jpg", "val")]
    assert read_records(sorted((folder / "annotations").glob("captions*")), CaptionsConfig())[0] == records


def test_flickr8ks_lists_are_its_splits_with_and_without_suffix(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {
        "Flickr8k.token.txt": "1.jpg#0\ta dog\n2.jpg#0\ta cat\n3.jpg#0\ta bird\n", "Flickr_8k.testImages.txt": "3\n",
        "Flickr_8k.trainImages.txt": "1.jpg\n", "Flickr_8k.devImages.txt": "2.jpg\n",
    }, "1.jpg 2.jpg 3.jpg", into="Flicker8k_Dataset")
    records, _ = read_records(folder, CaptionsConfig())
    assert [record.split for record in records] == ["train", "val", "test"]


def test_metadata_in_folders_of_splits_gives_paths_and_splits(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"train/metadata.jsonl": LINES, "validation/metadata.jsonl": LINES},
                         "train/1.jpg train/2.jpg validation/1.jpg validation/2.jpg")
    records, _ = read_records(folder, CaptionsConfig())
    assert [(r.name, r.split) for r in records][1:3] == [("train/2.jpg", "train"), ("validation/1.jpg", "val")]


def test_tables_named_after_splits_are_read_together_and_others_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"train.csv": "image,text\n1.jpg,a dog\n", "dev.csv": "image,text\n2.jpg,a cat\n"})
    assert {r.name: r.split for r in read_records(folder, CaptionsConfig())[0]} == {"1.jpg": "train", "2.jpg": "val"}
    (folder / "dev.csv").rename(folder / "other.csv")
    with pytest.raises(DataError, match="other.csv and train.csv hold captions; give the file to read as --data"):
        read_records(folder, CaptionsConfig())


def test_a_column_split_decides(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a.csv": "image,text,split\n1.jpg,a dog,train\n2.jpg,a cat,validation\n"})
    assert [record.split for record in read_records(folder, CaptionsConfig())[0]] == ["train", "val"]


def test_columns_are_named_by_options_and_old_captioners_keep_their_defaults(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a.csv": "id,image,note\n2.jpg,1.jpg,a dog\n"})
    assert captions_of(folder / "a.csv", image_column="id", caption_column="note") == {"2.jpg": ("a dog",)}
    write(folder / "a.csv", "image,caption\n1.jpg,a dog\n")
    assert captions_of(folder, image_column="image_name", caption_column="comment") == {"1.jpg": ("a dog",)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "image,note\n1.jpg,a dog\n", "line 1 has no column with the caption.* among image, note"),
        ("a.csv", "\n \n", "the file is empty"),
        ("a.csv", "image,caption\n", "only the header"),
        ("a.csv", "image,caption\n1.jpg, \n", "no row holds a caption"),
        ("a.txt", "hello", "Found text that begins 'hello'. Expected one of: results.csv .*COCO captions"),
        ("a.json", '{"info": 1}', "Found a JSON object with info"),
        ("a.json", '{"images": [', "is not JSON"),
        ("a.jsonl", '{"image": "1.jpg", "caption": "a"}\n{"image": \n', "line 2 is not JSON"),
        ("a.jsonl", '{"image": "1.jpg", "caption": "a"}\n[1]\n', r"line 2 is \[1\]; expected an object"),
        ("a.jsonl", '{"image": "1.jpg", "caption": "a"}\n{"image": "2.jpg"}\n', "line 2 has no column with the cap"),
        ("a.jsonl", '{"image": "1.jpg", "caption": "a"}\n{"image": "2.jpg", "caption": 7}', "line 2, .* caption is 7"),
        ("a.jsonl", '{"image": null, "caption": "a"}\n{"image": 1, "caption": "a"}', "line 1 calls its picture None"),
        ("a.json", [{"image": "1.jpg", "caption": "a"}, 5], "entry 2 is 5; expected an object"),
        ("a.json", {**COCO, "images": [*COCO["images"], {"file_name": "3.jpg"}]}, "image 3 calls its picture None"),
        ("a.json", {**COCO, "images": [*COCO["images"], {"id": 7, "file_name": "3.jpg"}]}, "3.jpg, has the id 7, as"),
        ("a.json", {**COCO, "annotations": {}}, "annotations is {}; expected a list"),
        ("a.json", {"images": [{"filename": "1.jpg", "sentences": {"raw": "a"}}]}, "image 1, sentences is {'raw'"),
    ],
)
def test_bad_files_are_refused_with_file_and_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_references(path, None, CaptionsConfig())
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("bytes_", "encoding"), [(b"caf\xe9", "LATIN1"), (b"\x93caf\xe9\x94", "CP1252")])
def test_bytes_of_windows_are_named_cp1252(tmp_path: Path, bytes_: bytes, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(b"image,caption\n1.jpg," + bytes_ + b"\n")
    with pytest.raises(DataError, match=f"line 2 holds byte 0x.*iconv -f {encoding} -t UTF-8") as caught:
        read_references(tmp_path / "a.csv", None, CaptionsConfig())
    assert bytes_.decode(encoding).isprintable() and str(tmp_path / "a.csv") in str(caught.value)


def test_a_folder_without_captions_says_what_it_holds_and_what_is_expected(tmp_path: Path) -> None:
    make_folder(tmp_path, {"readme.md": "x"})
    with pytest.raises(DataError, match="Found only 1.jpg, 2.jpg, readme.md. Expected one of: results.csv"):
        read_records(tmp_path, CaptionsConfig())


def test_a_file_beside_pictures_that_is_no_caption_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, {"1.json": {"width": 4}})
    with pytest.raises(DataError, match=r"1.json: has width; expected a caption"):
        read_records(tmp_path, CaptionsConfig())


def test_the_table_of_the_documents_and_the_cases_above_have_every_format() -> None:
    page = (Path(__file__).parents[3] / "docs/data.md").read_text(encoding="utf-8")
    in_other_files = {"tar or zip archive", "Parquet", "saved by datasets"}  # test_archives.py and test_tables.py
    assert {form.name for form in TABLE} == {form for form, *_ in FORMATS} | in_other_files
    assert [form.name for form in TABLE if f"\n| {form.name}" not in page.replace("`", "")] == []


def test_rows_of_label_have_all_captions_of_the_teacher_and_say_where_the_picture_is(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/1.jpg", "out/images/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    teacher = {"teacher": {"model": "x"}}
    rows: list[dict[str, Any]] = [
        {"image": "1.jpg", "caption": "a dog", "alternatives": ["dogs", "a pup"], "path": "../b/1.jpg", **teacher},
        {"image": "2.jpg", "caption": "a cat", "alternatives": [], "path": "gone/2.jpg", **teacher},
    ]
    (tmp_path / "out/captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, _ = read_records(tmp_path / "out/captions.jsonl", CaptionsConfig())
    assert [(record.name, record.captions) for record in records] == [
        ("1.jpg", ("a dog", "dogs", "a pup")), ("2.jpg", ("a cat",)),
    ]
    assert [Path(str(record.image)).read_bytes() for record in records] == [b"b/1.jpg", b"out/images/2.jpg"]
