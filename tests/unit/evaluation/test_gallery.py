import base64
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from myllm.data.records import Record
from myllm.evaluation.gallery import (
    MAP_BYTES,
    MAX_REFERENCES,
    PICTURES_PER_ORDER,
    GalleryCaptions,
    Order,
    WordMap,
    WordSpan,
    build_gallery,
    comparison_orders,
    describe_position,
    gallery_orders,
    relative_strength,
)

RNG = np.random.default_rng(0)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """A hundred pictures."""
    Image.new("RGB", (40, 20), "green").save(tmp_path / "picture.png")
    for number in range(100):
        (tmp_path / f"{number}.png").symlink_to(tmp_path / "picture.png")
    return [Record(f"{number}.png", tmp_path / f"{number}.png", (f"reference {number}",)) for number in range(100)]


def make_captions(count: int = 100) -> GalleryCaptions:
    return GalleryCaptions(
        [f"caption {index}" for index in range(count)], RNG.random(count), [-1.0] * count, list(RNG.random(count))
    )


def unpack_map(span: WordSpan) -> NDArray[np.uint8]:
    width, height, content = span.map.split(",")
    return np.frombuffer(base64.b64decode(content), np.uint8).reshape(int(height), int(width))


def test_gallery_begins_each_order_with_the_first_of_all_pictures(records: list[Record]) -> None:
    captions = make_captions()
    gallery = build_gallery(records, [captions], gallery_orders(captions))
    assert 2 * PICTURES_PER_ORDER < len(gallery) <= 5 * PICTURES_PER_ORDER
    assert len({picture.name for picture in gallery}) == len(gallery)
    keys = {
        "best": lambda index: -captions.cider_d[index], "worst": lambda index: captions.cider_d[index],
        "confident": lambda index: -captions.confidence[index], "unconfident": lambda index: captions.confidence[index],
    }
    for order, key in keys.items():
        first = sorted(gallery, key=lambda picture: picture.ranks[order])[:PICTURES_PER_ORDER]
        expected = sorted(range(100), key=key)[:PICTURES_PER_ORDER]
        assert [picture.name for picture in first] == [f"{index}.png" for index in expected]
    assert [picture.ranks["random"] for picture in gallery] == list(range(len(gallery)))


def test_gallery_random_order_does_not_depend_on_scores() -> None:
    captions = make_captions()
    negated = GalleryCaptions(
        captions.captions, -np.asarray(captions.cider_d), captions.scores, captions.confidence
    )
    random, again = gallery_orders(captions)[0], gallery_orders(negated)[0]
    assert random.key == "random" and random.indices == again.indices != list(range(100))
    assert sorted(random.indices) == list(range(100))


def test_comparison_orders_sort_by_which_captioner_is_better() -> None:
    a, b = GalleryCaptions(["x"] * 4, [0.0, 3.0, 2.0, 0.1]), GalleryCaptions(["x"] * 4, [1.0, 0.0, 2.5, 0.0])
    orders = {order.key: list(order.indices) for order in comparison_orders(a, b)}
    assert orders["b_better"] == [0, 2, 3, 1] == orders["a_better"][::-1]
    assert orders["best"] == [2, 1, 0, 3] == orders["worst"][::-1]


def test_gallery_of_one_picture(records: list[Record]) -> None:
    (picture,) = build_gallery(records[:1], [make_captions(1)], gallery_orders(make_captions(1)))
    assert set(picture.ranks.values()) == {0} and picture.captions[0].text == "caption 0"


def spans_of(records: list[Record], text: str, words: list[WordMap]) -> list[WordSpan]:
    captions = GalleryCaptions([text], [1.0], word_maps=lambda _: words)
    (picture,) = build_gallery(records[:1], [captions], [Order("random", "Random", [0])])
    return list(picture.captions[0].spans)


@given(st.lists(st.sampled_from(["a", "dog", ".", "<b>", "a dog", "", "été"]), max_size=6), st.text(max_size=20))
def test_word_spans_make_up_the_whole_caption(words: list[str], text: str) -> None:
    word_maps = [WordMap(word, np.eye(2)) for word in words]
    for caption in (text, " ".join(words)):
        spans = spans_of([Record("missing", Path("missing"), ("x",))], caption, word_maps)
        assert "".join(span.text for span in spans) == caption


def test_word_spans_of_a_repeated_word_have_different_maps(records: list[Record]) -> None:
    first, second = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    spans = spans_of(records, "a dog, a cat", [WordMap("a", first), WordMap("dog"), WordMap("a", second)])
    assert [span.text for span in spans] == ["a", " dog, ", "a", " cat"]
    left, right = unpack_map(spans[0])[0].tolist(), unpack_map(spans[2])[0].tolist()
    assert left == right[::-1] and left[0] > 128 and left[1] == 0


def test_large_word_map_is_reduced_without_moving(records: list[Record]) -> None:
    word_map = np.zeros((300, 600))
    word_map[150:, 450:] = 2.0  # the lower half of the right quarter
    (span,) = spans_of(records, "dog", [WordMap("dog", word_map, 0.875)])
    small = unpack_map(span)
    assert small.shape == (16, 32)
    assert small[8:, 24:].min() == small.max() > 200 and small.sum() == int(small.max()) * 8 * 8
    assert span.description == "“dog”: looked mostly at the lower right; confidence 88%"


@pytest.mark.parametrize("word_map", [np.zeros((3, 3)), np.full((3, 3), np.nan), np.zeros((0, 3)), None])
def test_word_span_without_a_usable_map_is_plain_text(records: list[Record], word_map: None) -> None:
    assert spans_of(records, "dog", [WordMap("dog", word_map)]) == [WordSpan("dog")]


def test_even_word_map_is_packed_and_described(records: list[Record]) -> None:
    (span,) = spans_of(records, "dog", [WordMap("dog", np.ones((7, 7)))])
    assert set(unpack_map(span).flatten().tolist()) == {128} and span.description.startswith("“dog”: looked all over")


def test_maps_have_a_common_scale() -> None:
    even, nearly_even, sharp = np.full((4, 4), 0.3), np.full((4, 4), 0.3), np.zeros((4, 4))
    nearly_even[0, 0], sharp[0, 0] = 0.33, 0.3
    assert np.allclose(relative_strength(even), 0.5) and np.abs(relative_strength(nearly_even) - 0.5).max() < 0.03
    assert relative_strength(sharp)[0, 0] == 1 and relative_strength(sharp)[1:].max() == 0
    assert np.array_equal(relative_strength(sharp), relative_strength(100 * sharp))
    assert not relative_strength(np.zeros((2, 2))).any()


def test_invented_words_are_marked_with_and_without_maps(records: list[Record]) -> None:
    text, invented = "a hot dog, a cat", [(2, 9), (13, 16)]
    for maps in ((), [WordMap(word, np.eye(2)) for word in ("a", "hot", "dog,", "a", "cat")]):
        captions = GalleryCaptions(
            [text], [1.0], word_maps=lambda _, maps=maps: maps, invented=lambda index: invented  # type: ignore[misc]
        )
        (picture,) = build_gallery(records[:1], [captions], [Order("random", "Random", [0])])
        spans = picture.captions[0].spans
        assert "".join(span.text for span in spans) == text
        marked = [span for span in spans if span.is_invented]
        assert [span.text for span in marked] == (["hot", "dog,", "cat"] if maps else ["hot dog", "cat"])
        assert all("invented" in span.description for span in marked if span.map)


@pytest.mark.parametrize(("row", "column", "position"), [
    (0, 0, "at the upper left"), (0, 4, "at the top"), (0, 8, "at the upper right"), (4, 0, "on the left"),
    (4, 4, "in the middle"), (4, 8, "on the right"), (8, 0, "at the lower left"), (8, 4, "at the bottom"),
    (8, 8, "at the lower right"),
])
def test_describe_position_names_the_ninth_with_most_of_the_map(row: int, column: int, position: str) -> None:
    word_map = np.full((9, 9), 0.01)
    word_map[row, column] = 1
    assert describe_position(word_map) == f"mostly {position}"
    assert describe_position(np.full((1, 1), 0.5)) == "mostly in the middle"


def test_gallery_reduces_maps_when_there_are_many(records: list[Record]) -> None:
    word_map = RNG.random((64, 64))
    captions = GalleryCaptions(
        [" ".join(["a"] * 90)] * 100, RNG.random(100), word_maps=lambda _: [WordMap("a", word_map)] * 90
    )
    gallery = build_gallery(records, [captions, captions], comparison_orders(captions, captions))
    maps = [
        unpack_map(span) for picture in gallery for caption in picture.captions for span in caption.spans if span.map
    ]
    assert len(maps) == 180 * len(gallery) and 0.8 * MAP_BYTES < sum(array.size for array in maps) <= MAP_BYTES


def test_gallery_counts_the_references_that_it_omits(records: list[Record]) -> None:
    record = Record(records[0].image.name, records[0].image, tuple(f"reference {number}" for number in range(25)))
    (picture,) = build_gallery([record], [make_captions(1)], gallery_orders(make_captions(1)))
    assert len(picture.references) == MAX_REFERENCES and picture.omitted_references == 25 - MAX_REFERENCES
