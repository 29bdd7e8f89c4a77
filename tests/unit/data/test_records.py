import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm.config import CaptionsConfig
from myllm.data.records import Findings, Record
from myllm.data.rows import CaptionFile
from myllm.data.sources import read_records
from myllm.data.table_formats import read_table
from myllm.errors import DataError

HEADER = "image_name| comment_number| comment\n"
FLICKR8K = Path(__file__).parents[4] / "shared/data/flickr8k"


def make_folder(
    folder: Path, content: str | bytes, pictures: str = "1.jpg 2.jpg", into: str = "flickr30k_images"
) -> Path:
    (folder / into).mkdir(parents=True, exist_ok=True)
    for name in pictures.split():
        (folder / into / name).write_bytes(name.encode())
    (folder / "results.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def read(folder: Path, **options: object) -> tuple[list[Record], Findings]:
    return read_records(folder, CaptionsConfig(**options))  # type: ignore[arg-type]


def captions_of(folder: Path, **options: object) -> dict[str, tuple[str, ...]]:
    return {record.name: record.captions for record in read(folder, **options)[0]}


def test_reading_records_and_splits_needs_no_torch() -> None:
    code = "import sys, myllm.data.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_read_records_groups_captions_by_picture_and_cleans_them(tmp_path: Path) -> None:
    rows = "1.jpg| 0|  A Dog runs . \n2.jpg| 0| A cat .\n1.jpg| 1| Dogs !\n"
    captions = captions_of(make_folder(tmp_path, HEADER + rows))
    assert captions == {"1.jpg": ("a dog runs .", "dogs !"), "2.jpg": ("a cat .",)}


def test_read_records_keeps_case_on_request(tmp_path: Path) -> None:
    assert captions_of(make_folder(tmp_path, HEADER + "1.jpg| 0| A Dog\n"), lowercase=False) == {"1.jpg": ("A Dog",)}


def test_read_records_recovers_and_reports_the_malformed_row_of_flickr30k(tmp_path: Path) -> None:
    row = "2199200615.jpg| 4   A dog runs across the grass .\n"
    records, findings = read(make_folder(tmp_path, HEADER + "1.jpg| 0| a cat\n" + row, "1.jpg 2199200615.jpg"))
    assert records[1].captions == ("a dog runs across the grass .",)
    assert findings.recovered_rows == ["line 3: 2199200615.jpg| 4   A dog runs across the grass ."]
    assert findings.lines() == [f"1 row recovered (line 3: {row.strip()})"]


@pytest.mark.parametrize("row", ["1.jpg", "1.jpg| a caption without its number", "1.jpg| 3"])
def test_read_records_reports_an_unreadable_row_and_reads_the_others(tmp_path: Path, row: str) -> None:
    records, findings = read(make_folder(tmp_path, f"{HEADER}{row}\n1.jpg| 0| a cat\n"))
    assert records[0].captions == ("a cat",)
    assert findings.unreadable_rows == [f"line 2: {row}"]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffimage_name| comment_number| comment\n1.jpg| 0| a dog\n",
        "image_name|comment_number|comment\r\n1.jpg|0|a dog\r\n",
        '"image_name"|"comment_number"|"comment"\n"1.jpg"|"0"|"a dog"\n',
        "comment | source | image_name\n a dog | web | 1.jpg\n",
        "image_name| comment_number| comment\n\n1.jpg| 0| a dog",
        "image_name,comment_number,comment\n1.jpg,0,a dog\n",
        "image_name\tcomment_number\tcomment\n1.jpg\t0\ta dog\n",
        "Image;Caption\n1.jpg;a dog\n",
    ],
    ids=[
        "bom", "crlf", "quotes", "other columns", "blank line and no last newline", "commas", "tabs", "semicolons",
    ],
)
def test_read_records_reads_variants_of_a_file_alike(tmp_path: Path, content: str) -> None:
    assert captions_of(make_folder(tmp_path, content)) == {"1.jpg": ("a dog",)}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a | b || c", "a | b || c"),
        ('"a ""big"" dog"', 'a "big" dog'),
        ('"hi" says "he"', '"hi" says "he"'),
        ('a "dog', 'a "dog'),
    ],
)
def test_read_records_keeps_separators_and_quotes_inside_a_caption(
    tmp_path: Path, written: str, expected: str
) -> None:
    assert captions_of(make_folder(tmp_path, f"{HEADER}1.jpg| 0| {written}\n")) == {"1.jpg": (expected,)}


def test_read_records_takes_column_names_from_the_configuration(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "file| text\n1.jpg| a dog\n")
    assert captions_of(folder, image_column="file", caption_column="text") == {"1.jpg": ("a dog",)}


def test_read_records_finds_pictures_in_images(tmp_path: Path) -> None:
    assert captions_of(make_folder(tmp_path, HEADER + "1.jpg| 0| a\n", into="images")) == {"1.jpg": ("a",)}


def test_read_records_reports_names_that_do_not_fit(tmp_path: Path) -> None:
    rows = "1.jpg| 0| a\n1.jpg| 1|  \n9.jpg| 0| gone\n"
    _, findings = read(make_folder(tmp_path, HEADER + rows, "1.jpg 2.jpg 3.JP2 notes.txt"))
    assert findings == Findings(
        empty_captions=["line 3: 1.jpg"], missing_pictures=["9.jpg"], unused_pictures=["2.jpg", "3.JP2"]
    )


def test_findings_shorten_long_lists() -> None:
    findings = Findings(missing_pictures=[f"{number}.jpg" for number in range(1200)])
    assert findings.lines() == ["1,200 captioned pictures missing (0.jpg; 1.jpg; 2.jpg, and 1,197 more)"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        (HEADER, "only the header"),
        (HEADER + "1.jpg| 0| \n", "no row holds a caption"),
        ("hello\n", "text that begins 'hello'|Expected one of: results.csv"),
        ("image_nam| comment_number| comment\n1.jpg| 0| a\n", "did you mean image_nam?|--captions.image_column"),
        ("image_name| number| kommentar\n1.jpg| 0| a\n", "column with the caption|kommentar|--captions.caption_column"),
        ((HEADER + "1.jpg| 0| a dog\n1.jpg| 1| a café\n").encode("latin-1"), "line 3 holds byte 0xe9|iconv -f LATIN1"),
        ((HEADER + "1.jpg| 0| a dog\n").encode("utf-16"), "line 1 holds byte 0xff|iconv -f UTF-16"),
        (HEADER + "8.jpg| 0| a\n9.jpg| 0| b\n", "all 2 captioned pictures are missing|flickr30k_images|for '8.jpg'"),
    ],
)
def test_read_records_refuses_a_bad_file_with_the_fix(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(make_folder(tmp_path, content))
    assert str(tmp_path) in str(caught.value)
    for part in message.split("|"):
        assert part in str(caught.value)


def test_read_records_names_missing_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder.*--data"):
        read(tmp_path / "data")
    with pytest.raises(DataError, match="Found nothing. Expected one of: results.csv"):
        read(tmp_path)


characters = st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")
text = st.text(characters, min_size=1).filter(lambda text: text.strip() == text)


@given(st.lists(text, min_size=1, max_size=5))
def test_read_results_csv_reads_what_the_csv_module_writes(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("data")
    file = io.StringIO()
    writer = csv.writer(file, delimiter="|", quoting=csv.QUOTE_ALL)
    writer.writerow(["image_name", "comment_number", "comment"])
    writer.writerows(["1.jpg", number, caption] for number, caption in enumerate(captions))
    (folder / "results.csv").write_bytes(file.getvalue().encode())
    rows = read_table(CaptionFile(folder / "results.csv", folder), CaptionsConfig(), Findings())
    assert [row.caption for row in rows] == captions


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="needs ../shared")
def test_read_records_of_flickr8k_reads_all_of_it() -> None:
    records, findings = read(FLICKR8K)
    assert (len(records), sum(len(record.captions) for record in records)) == (7000, 35000)
    assert findings == Findings()
