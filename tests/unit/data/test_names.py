import pytest

from myllm.data.names import NameIndex

COCO = NameIndex(
    ["COCO_val2014_000000391895.jpg", "000000000042.jpg", "b/7.jpg"],
    {"391895": "COCO_val2014_000000391895.jpg", "1234": "b/7.jpg"},
)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("391895", "COCO_val2014_000000391895.jpg"), ("000000391895", "COCO_val2014_000000391895.jpg"),
        ("000000391895.jpg", "COCO_val2014_000000391895.jpg"), ("x/000000391895.jpg", "COCO_val2014_000000391895.jpg"),
        ("COCO_val2014_000000391895", "COCO_val2014_000000391895.jpg"), ("42", "000000000042.jpg"),
        ("COCO_train2014_000000000042.jpg", "000000000042.jpg"), ("000000001234.jpg", "b/7.jpg"), ("7", "b/7.jpg"),
        ("x/7.jpg", None), ("x/42.jpg", None), ("43", None),
    ],
)
def test_coco_ids_match_with_leading_zeros_and_suffix(written: str, name: str | None) -> None:
    assert COCO.find(written) == name


def test_a_name_that_two_pictures_share_is_none_and_has_both_as_candidates() -> None:
    index = NameIndex(["a/1.jpg", "b/1.jpg"])
    assert index.find("1.jpg") is None and index.candidates("1.jpg") == {"a/1.jpg", "b/1.jpg"}
    assert index.find("b/1") == "b/1.jpg"
