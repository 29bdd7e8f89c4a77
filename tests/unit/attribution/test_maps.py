import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from myllm.attribution.maps import PreparedImage, prepare_image, project_to_image
from myllm.config import PreprocessConfig
from myllm.data.images import Preprocess


def preprocess(crop_mode: str = "center", crop_pct: float = 1.0) -> Preprocess:
    grey = (0.5, 0.5, 0.5)
    return Preprocess(PreprocessConfig((32, 32), grey, grey, "bilinear", crop_pct, crop_mode))


def one_hot(rows: int, columns: int, *place: int) -> torch.Tensor:
    grid = torch.zeros(1, rows, columns)
    grid[0, place[0], place[1]] = 1
    return grid


def peak(heat: torch.Tensor) -> tuple[int, int]:
    """Column and row of the middle of the hottest pixels."""
    rows, columns = torch.where(heat == heat.max())
    return round(float(columns.float().mean())), round(float(rows.float().mean()))


def test_without_crop_a_place_lies_where_it_is_on_the_grid() -> None:
    [heat] = project_to_image(one_hot(4, 4, 1, 3), PreparedImage.whole(torch.zeros(3, 64, 64)))
    assert heat.shape == (64, 64) and heat.sum() == pytest.approx(1)
    assert 56 <= peak(heat)[0] < 64 and peak(heat)[1] in (23, 24)
    assert heat[:8].max() == 0 and heat[40:].max() == 0  # bilinear: nothing beyond the neighbours' middles


def test_what_was_cropped_away_has_zero() -> None:
    shown = prepare_image(Image.new("RGB", (200, 100)), preprocess())
    assert shown.window == pytest.approx((50, 0, 150, 100))
    [heat] = project_to_image(torch.ones(1, 4, 4), shown)
    assert heat[:, :50].max() == heat[:, 150:].max() == 0
    torch.testing.assert_close(heat[:, 50:150], torch.full((100, 100), 1e-4))


def test_what_lay_on_a_border_is_gone() -> None:
    shown = prepare_image(Image.new("RGB", (200, 100)), preprocess("border"))
    assert shown.window == pytest.approx((0, -50, 200, 150))
    grid = one_hot(4, 4, 0, 0) + one_hot(4, 4, 2, 3)  # the first row is all border
    [heat] = project_to_image(grid, shown)
    x, y = peak(heat)
    assert heat.shape == (100, 200) and x >= 175 and y in (74, 75) and heat.sum() == pytest.approx(1)


@given(
    size=st.tuples(st.integers(40, 400), st.integers(40, 400)), place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    crop_mode=st.sampled_from(["center", "squash", "border"]), crop_pct=st.sampled_from([1.0, 0.9]),
)
def test_a_mark_seen_by_the_model_maps_back_to_where_it_was(
    size: tuple[int, int], place: tuple[float, float], crop_mode: str, crop_pct: float
) -> None:
    picture = Image.new("RGB", size)
    reach = max(size) // 12
    x, y = (int(at * (side - 1)) for at, side in zip(place, size, strict=True))
    ImageDraw.Draw(picture).rectangle((x - reach, y - reach, x + reach, y + reach), "white")
    shown = prepare_image(picture, preprocess(crop_mode, crop_pct))
    left, top, right, bottom = shown.window
    if not (left < x - reach and x + reach < right and top < y - reach and y + reach < bottom):
        return  # cropped, or cut at an edge
    brightness = (shown.tensor.mean(0) + 1) * (shown.tensor.mean(0) > 0)  # without the border's grey
    [heat] = project_to_image(brightness[None], shown)
    found = torch.stack(torch.where(heat > heat.max() / 2)).float().mean(1)
    pixel = max(right - left, bottom - top) / 32
    assert abs(float(found[1]) - x) <= 1 + pixel and abs(float(found[0]) - y) <= 1 + pixel


def test_maps_are_no_larger_than_asked_for() -> None:
    shown = PreparedImage(torch.zeros(3, 32, 32), (4000, 3000), (0, 0, 4000, 3000))
    assert project_to_image(torch.ones(2, 4, 4), shown).shape == (2, 768, 1024)
    assert project_to_image(torch.ones(2, 4, 4), shown, longest=100).shape == (2, 75, 100)
    assert project_to_image(torch.ones(1, 4, 4), shown, longest=None).shape == (1, 3000, 4000)
    thin = PreparedImage(torch.zeros(3, 32, 32), (9000, 2), (4484, 0, 4516, 2))
    assert project_to_image(torch.ones(1, 4, 4), thin, longest=50).shape == (1, 1, 50)


def test_a_map_of_nothing_stays_one() -> None:
    assert project_to_image(torch.zeros(1, 4, 4), PreparedImage.whole(torch.zeros(3, 8, 8))).max() == 0


def test_places_that_see_beside_their_cell_are_moved_to_what_they_see() -> None:
    shown = PreparedImage.whole(torch.zeros(3, 32, 64))
    column, row = peak(project_to_image(one_hot(4, 8, 2, 5), shown)[0])
    moved = peak(project_to_image(one_hot(4, 8, 2, 5), shown, shift=(-8.0, 4.0))[0])
    assert moved == (column - 8, row + 4)
