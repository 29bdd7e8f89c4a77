"""Files behind pictures on pages, and pictures that captions cannot describe."""

from base64 import b64encode
from io import BytesIO
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from myllm.apps.alt_pages import PageFile, read_page
from myllm.apps.alt_pictures import complexity, find_picture, spacer_by_pixels
from myllm.data.images import load_image
from myllm.data.scenes import draw_scene
from myllm.errors import DataError


def picture_of(folder: Path, markup: str) -> Path | bytes:
    (folder / "page.html").write_text(markup)
    page = read_page(PageFile(folder / "page.html", folder))
    return find_picture(page.tree.pictures[0].element, page)


@pytest.mark.parametrize(
    "markup",
    [
        "<img src=blank.gif data-src=dog.jpg>", "<img src=blank.gif data-srcset='dog.jpg 2x'>",
        "<img src=blank.gif srcset='dog.jpg 2x'>", "<img src=blank.gif data-picture=dog.jpg>",
        "<picture><source srcset=dog.jpg><img src=blank.gif></picture>", "<img src=other.jpg srcset=dog.jpg>",
        "<picture><source data-srcset=dog.jpg><img src=other.jpg></picture>", "<img src=a.svg srcset=dog.jpg>",
        "<img src=dog.jpg srcset='http://[ 2x'>", "<img src=dog.jpg srcset='http://example.org/a.jpg 2x'>",
        "<img src=dog.jpg>", "<img src='dog.jpg?w=100'>", "<img src=gone.jpg srcset='gone.jpg 1x, dog.jpg 2x'>",
        "<img srcset='dog.jpg, gone.jpg 2x'>", "<img src='data:image/gif;base64,R0lGODlh' data-src=dog.jpg>",
        "<img src=other.jpg data-lazy-src=dog.jpg>", "<img data-srcset='gone.jpg 1w,\n dog.jpg 2w'>",
        "<picture><source srcset='gone.webp'><source srcset='dog.jpg 2x'><img src=gone.jpg></picture>",
    ],
)
def test_picture_is_the_first_file_that_its_addresses_lead_to(tmp_path: Path, markup: str) -> None:
    for name in ("dog.jpg", "other.jpg"):
        Image.linear_gradient("L").save(tmp_path / name)
    Image.new("RGB", (1, 1)).save(tmp_path / "blank.gif")
    assert picture_of(tmp_path, markup) == tmp_path / "dog.jpg"


def test_spacer_is_the_picture_only_if_every_other_file_is_a_spacer(tmp_path: Path) -> None:
    for name in ("blank.gif", "blank2.gif"):
        Image.new("RGB", (1, 1)).save(tmp_path / name)
    assert picture_of(tmp_path, "<img src=blank2.gif srcset='blank.gif 2x'>") == tmp_path / "blank.gif"
    others = ("data-src=gone.jpg", "data-srcset=gone.jpg", "srcset=gone.jpg", "data-src=blank.gif data-srcset=gone.jpg")
    for other in others:
        with pytest.raises(FileNotFoundError, match="there is no file .*gone.jpg"):
            picture_of(tmp_path, f"<img src=blank.gif {other}>")


def test_picture_in_its_address_is_its_content(tmp_path: Path) -> None:
    assert picture_of(tmp_path, f"<img src='data:image/png;base64,{b64encode(b'dog').decode()}'>") == b"dog"


@pytest.mark.parametrize(
    ("markup", "reason"),
    [("<img src=gone.jpg>", "there is no file .*gone.jpg"), ("<img src=http://example.org/a.jpg>", "another server"),
     ("<img src=a.svg?x>", "SVG"), ("<img src='data:image/svg+xml,<svg/>'>", "SVG"), ("<img>", "no address"),
     ("<img src='data:image/png;base64,x'>", "damaged data"), (f"<img src={'x' * 300}.jpg>", "there is no file"),
     ("<img src=%00.jpg>", "there is no file")],
)
def test_picture_that_cannot_be_captioned_has_a_reason(tmp_path: Path, markup: str, reason: str) -> None:
    with pytest.raises((DataError, FileNotFoundError), match=reason):
        picture_of(tmp_path, markup)


def chart() -> Image.Image:
    figure, file = Figure(figsize=(6, 4)), BytesIO()
    figure.subplots().plot([1, 3, 2])
    figure.savefig(file, format="jpeg")
    return load_image(file.getvalue())


def screenshot() -> Image.Image:
    image = Image.new("RGB", (800, 600), (240, 240, 245))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 800, 60), (40, 60, 90))
    for line in range(80, 580, 20):
        draw.text((40, line), "text of a program " * 5, (20, 20, 20))
    return image


def test_charts_screenshots_and_names_of_such_are_complex_and_scenes_are_not() -> None:
    scenes = [draw_scene(seed=0, part="val", number=number)[0] for number in range(20)]
    assert [complexity(scene, "dog-on-grass.png") for scene in scenes] == [""] * 20
    assert "chart" in complexity(chart(), "a.jpg") and "screenshot" in complexity(screenshot(), "a.png")
    for name in ("sales-chart.png", "ScreenShot2020.png", "flowchart_v2.png", "loginDiagram.png"):
        assert "in its name" in complexity(scenes[0], name)
    assert complexity(scenes[0], "photographer-in-charters.png") == ""


@pytest.mark.parametrize(
    ("image", "shows_nothing"),
    [(Image.new("RGB", (1, 1)), True), (Image.new("RGB", (200, 2)), True), (Image.new("RGB", (90, 90), "red"), True),
     (Image.linear_gradient("L").convert("RGB"), False)],
)
def test_tiny_and_plain_pictures_show_nothing(image: Image.Image, shows_nothing: bool) -> None:
    assert bool(spacer_by_pixels(image)) == shows_nothing
