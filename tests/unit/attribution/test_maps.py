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


def one_hot(rows: int, columns: int, row: int, column: int) -> torch.Tensor:
    grid = torch.zeros(1, rows, columns)
    grid[0, row, column] = 1
    return grid


def peak(heat: torch.Tensor) -> tuple[int, int]:
    """Column and row of the centre of the pixels with the highest value."""
    rows, columns = torch.where(heat == heat.max())
    return round(float(columns.float().mean())), round(float(rows.float().mean()))


def test_project_to_image_keeps_grid_positions_without_crop() -> None:
    [heat] = project_to_image(one_hot(4, 4, 1, 3), PreparedImage.from_tensor(torch.zeros(3, 64, 64)))
    assert heat.shape == (64, 64) and heat.sum() == pytest.approx(1)
    assert 56 <= peak(heat)[0] < 64 and peak(heat)[1] in (23, 24)
    assert heat[:8].max() == 0 and heat[40:].max() == 0  # bilinear: nothing beyond the centres of the neighbours


def test_project_to_image_is_zero_outside_the_crop() -> None:
    prepared = prepare_image(Image.new("RGB", (200, 100)), preprocess())
    assert prepared.window == pytest.approx((50, 0, 150, 100))
    [heat] = project_to_image(torch.ones(1, 4, 4), prepared)
    assert heat[:, :50].max() == heat[:, 150:].max() == 0
    torch.testing.assert_close(heat[:, 50:150], torch.full((100, 100), 1e-4))


def test_project_to_image_drops_the_border() -> None:
    prepared = prepare_image(Image.new("RGB", (200, 100)), preprocess("border"))
    assert prepared.window == pytest.approx((0, -50, 200, 150))
    grid = one_hot(4, 4, 0, 0) + one_hot(4, 4, 2, 3)  # the first row is all border
    [heat] = project_to_image(grid, prepared)
    x, y = peak(heat)
    assert heat.shape == (100, 200) and x >= 175 and y in (74, 75) and heat.sum() == pytest.approx(1)


@given(
    size=st.tuples(st.integers(40, 400), st.integers(40, 400)), position=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    crop_mode=st.sampled_from(["center", "squash", "border"]), crop_pct=st.sampled_from([1.0, 0.9]),
)
def test_project_to_image_inverts_preprocessing(
    size: tuple[int, int], position: tuple[float, float], crop_mode: str, crop_pct: float
) -> None:
    picture = Image.new("RGB", size)
    reach = max(size) // 12
    x, y = (int(part * (side - 1)) for part, side in zip(position, size, strict=True))
    ImageDraw.Draw(picture).rectangle((x - reach, y - reach, x + reach, y + reach), "white")
    prepared = prepare_image(picture, preprocess(crop_mode, crop_pct))
    left, top, right, bottom = prepared.window
    if not (max(left, 0) < x - reach and x + reach < min(right, size[0])):
        return  # cropped, or cut at an edge
    if not (max(top, 0) < y - reach and y + reach < min(bottom, size[1])):
        return
    brightness = (prepared.tensor.mean(0) + 1) * (prepared.tensor.mean(0) > 0)  # without the border's grey
    [heat] = project_to_image(brightness[None], prepared)
    centre_y, centre_x = torch.stack(torch.where(heat > heat.max() / 2)).float().mean(1).tolist()
    pixel = max(right - left, bottom - top) / 32
    assert abs(centre_x - x) <= 1 + pixel and abs(centre_y - y) <= 1 + pixel


def test_project_to_image_limits_the_longer_side() -> None:
    prepared = PreparedImage(torch.zeros(3, 32, 32), (4000, 3000), (0, 0, 4000, 3000))
    assert project_to_image(torch.ones(2, 4, 4), prepared).shape == (2, 768, 1024)
    assert project_to_image(torch.ones(2, 4, 4), prepared, longest=100).shape == (2, 75, 100)
    assert project_to_image(torch.ones(1, 4, 4), prepared, longest=None).shape == (1, 3000, 4000)
    thin = PreparedImage(torch.zeros(3, 32, 32), (9000, 2), (4484, 0, 4516, 2))
    assert project_to_image(torch.ones(1, 4, 4), thin, longest=50).shape == (1, 1, 50)


def test_project_to_image_keeps_a_zero_map_zero() -> None:
    assert project_to_image(torch.zeros(1, 4, 4), PreparedImage.from_tensor(torch.zeros(3, 8, 8))).max() == 0


def test_project_to_image_moves_maps_by_the_receptive_field_shift() -> None:
    prepared = PreparedImage.from_tensor(torch.zeros(3, 32, 64))
    column, row = peak(project_to_image(one_hot(4, 8, 2, 5), prepared)[0])
    moved = peak(project_to_image(one_hot(4, 8, 2, 5), prepared, shift=(-8.0, 4.0))[0])
    assert moved == (column - 8, row + 4)
