"""The gallery: whole in each order at its front, and maps that keep their place."""

import base64
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from myllm.data.records import Record
from myllm.evaluation.gallery import (
    EACH,
    MAP_BYTES,
    MAX_REFERENCES,
    GalleryCaptions,
    Order,
    WordMap,
    WordSpan,
    build_gallery,
    comparison_orders,
    describe_position,
    gallery_orders,
)

RNG = np.random.default_rng(0)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """A hundred pictures."""
    Image.new("RGB", (40, 20), "green").save(tmp_path / "picture.png")
    for number in range(100):
        (tmp_path / f"{number}.png").symlink_to(tmp_path / "picture.png")
    return [Record(tmp_path / f"{number}.png", (f"reference {number}",)) for number in range(100)]


def said(count: int = 100) -> GalleryCaptions:
    return GalleryCaptions(
        [f"caption {at}" for at in range(count)], RNG.random(count), [-1.0] * count, list(RNG.random(count))
    )


def unpacked(piece: WordSpan) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    width, height, content = piece.seen.split(",")
    return np.frombuffer(base64.b64decode(content), np.uint8).reshape(int(height), int(width))


def test_each_order_begins_as_that_of_the_whole_split(records: list[Record]) -> None:
    ours = said()
    shown = build_gallery(records, [ours], gallery_orders(ours))
    assert 2 * EACH < len(shown) <= 5 * EACH and len({one.name for one in shown}) == len(shown)
    by = {
        "best": lambda at: -ours.cider_d[at], "worst": lambda at: ours.cider_d[at],
        "sure": lambda at: -ours.confidence[at], "unsure": lambda at: ours.confidence[at],
    }
    for key, value in by.items():
        front = sorted(shown, key=lambda one: one.ranks[key])[:EACH]
        assert [one.name for one in front] == [f"{at}.png" for at in sorted(range(100), key=value)[:EACH]]
    assert [one.ranks["random"] for one in shown] == list(range(len(shown)))  # as they hang


def test_random_pictures_are_not_picked_by_what_they_score() -> None:
    ours = said()
    other = GalleryCaptions(ours.captions, -np.asarray(ours.cider_d), ours.scores, ours.confidence)
    random, again = gallery_orders(ours)[0], gallery_orders(other)[0]
    assert random.key == "random" and random.places == again.places != list(range(100))
    assert sorted(random.places) == list(range(100))


def test_two_are_ordered_by_who_is_ahead() -> None:
    a, b = GalleryCaptions(["x"] * 4, [0.0, 3.0, 2.0, 0.1]), GalleryCaptions(["x"] * 4, [1.0, 0.0, 2.5, 0.0])
    orders = {order.key: list(order.places) for order in comparison_orders(a, b)}
    assert orders["ahead"] == [0, 2, 3, 1] == orders["behind"][::-1]
    assert orders["best"] == [2, 1, 0, 3] == orders["worst"][::-1]


def test_one_picture_is_a_gallery(records: list[Record]) -> None:
    (shown,) = build_gallery(records[:1], [said(1)], gallery_orders(said(1)))
    assert set(shown.ranks.values()) == {0} and shown.spoken[0].text == "caption 0"


def hung(records: list[Record], text: str, words: list[WordMap]) -> list[WordSpan]:
    ours = GalleryCaptions([text], [1.0], look=lambda _: words)
    (shown,) = build_gallery(records[:1], [ours], [Order("random", "Random", [0])])
    return list(shown.spoken[0].pieces)


@given(st.lists(st.sampled_from(["a", "dog", ".", "<b>", "a dog", "", "été"]), max_size=6), st.text(max_size=20))
def test_pieces_make_the_caption_whatever_the_words_are(words: list[str], text: str) -> None:
    given_words = [WordMap(word, np.eye(2)) for word in words]
    for caption in (text, " ".join(words)):
        assert "".join(piece.text for piece in hung([Record(Path("gone"), ("x",))], caption, given_words)) == caption


def test_words_that_are_there_twice_have_each_its_own_map(records: list[Record]) -> None:
    first, second = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    pieces = hung(records, "a dog, a cat", [WordMap("a", first), WordMap("dog"), WordMap("a", second)])
    assert [piece.text for piece in pieces] == ["a", " dog, ", "a", " cat"]
    assert unpacked(pieces[0]).tolist() == [[255, 0]] and unpacked(pieces[2]).tolist() == [[0, 255]]


def test_a_large_map_is_the_same_in_small(records: list[Record]) -> None:
    seen = np.zeros((300, 600))
    seen[150:, 450:] = 2.0  # the lower half of the right quarter
    (piece,) = hung(records, "dog", [WordMap("dog", seen, 0.875)])
    small = unpacked(piece)
    assert small.shape == (16, 32)
    assert (small[8:, 24:] == 255).all() and small.sum() == 255 * 8 * 8
    assert piece.told == "“dog”: looked mostly at the lower right; confidence 88%"


@pytest.mark.parametrize("seen", [np.zeros((3, 3)), np.full((3, 3), np.nan), np.zeros((0, 3)), None])
def test_a_word_for_which_nothing_was_looked_at_is_plain_text(records: list[Record], seen: None) -> None:
    assert hung(records, "dog", [WordMap("dog", seen)]) == [WordSpan("dog")]


def test_an_even_map_is_told_and_packed(records: list[Record]) -> None:
    (piece,) = hung(records, "dog", [WordMap("dog", np.ones((7, 7)))])
    assert not unpacked(piece).any() and piece.told.startswith("“dog”: looked all over")


@pytest.mark.parametrize(("row", "column", "where"), [
    (0, 0, "at the upper left"), (0, 4, "at the top"), (0, 8, "at the upper right"), (4, 0, "on the left"),
    (4, 4, "in the middle"), (4, 8, "on the right"), (8, 0, "at the lower left"), (8, 4, "at the bottom"),
    (8, 8, "at the lower right"),
])
def test_where_most_was_looked_at_is_told(row: int, column: int, where: str) -> None:
    seen = np.full((9, 9), 0.01)
    seen[row, column] = 1
    assert describe_position(seen) == f"mostly {where}"
    assert describe_position(np.full((1, 1), 0.5)) == "mostly in the middle"


def test_the_more_maps_there_are_the_coarser_they_get(records: list[Record]) -> None:
    seen = RNG.random((64, 64))
    ours = GalleryCaptions(["a"] * 100, RNG.random(100), look=lambda _: [WordMap("a", seen)] * 90)
    captions = GalleryCaptions([" ".join(["a"] * 90)] * 100, ours.cider_d, look=ours.look)
    shown = build_gallery(records, [captions, captions], comparison_orders(captions, ours))
    maps = [unpacked(piece) for one in shown for spoken in one.spoken for piece in spoken.pieces if piece.seen]
    assert len(maps) == 180 * len(shown) and 0.8 * MAP_BYTES < sum(one.size for one in maps) <= MAP_BYTES


def test_very_many_references_are_counted(records: list[Record]) -> None:
    record = Record(records[0].image, tuple(f"reference {number}" for number in range(25)))
    (shown,) = build_gallery([record], [said(1)], gallery_orders(said(1)))
    assert len(shown.references) == MAX_REFERENCES and shown.left_out == 25 - MAX_REFERENCES
