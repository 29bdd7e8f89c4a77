import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from myllm.config import PreprocessConfig
from myllm.data.images import (
    FORMATS,
    MAX_PIXELS,
    PICTURE_SUFFIXES,
    Preprocess,
    load_image,
    load_thumbnail,
    server_picture,
    suffix_of_content,
)
from myllm.errors import DataError

RNG = np.random.default_rng(0)


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG with a header for this size and no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_load_image_takes_path_string_bytes_and_picture(tmp_path: Path) -> None:
    image = noise()
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))
    loaded = [load_image(source) for source in (path, str(path), path.read_bytes(), image)]
    assert all(result.mode == "RGB" and result.tobytes() == image.tobytes() for result in loaded)


def test_picture_suffixes_are_all_that_pillow_has_for_the_formats() -> None:
    registered = {suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
    assert registered == PICTURE_SUFFIXES >= {".jp2", ".j2k", ".jpe", ".pnm", ".apng", ".dib", ".ico"}


def test_a_jpeg_with_a_preview_is_read_as_a_jpeg(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), "red")
    image.save(tmp_path / "x", format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    assert load_image(tmp_path / "x").getpixel((4, 4)) == (254, 0, 0)
    assert suffix_of_content(tmp_path / "x") == ".jpg"


@pytest.mark.parametrize("suffix", sorted(PICTURE_SUFFIXES - {".pfm"}))  # a .pfm holds floats
def test_load_image_reads_each_suffix_as_pillow_writes_it(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    image.save(tmp_path / f"a{suffix}")
    assert np.allclose(load_image(tmp_path / f"a{suffix}").resize((1, 1)).getpixel((0, 0)), (255, 0, 0), atol=6) or (
        suffix in (".pbm", ".pgm")  # without colour
    )


def test_heic_is_read_with_pillow_heif(tmp_path: Path) -> None:
    """A stand-in for the package registers an opener for a format of its own."""
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, PngImagePlugin\n"
        "class Heif(PngImagePlugin.PngImageFile): format = 'HEIF'\n"
        "def register_heif_opener(): Image.register_open('HEIF', Heif)\n"
    )
    noise().save(tmp_path / "a.heic", "PNG")
    code = "from myllm.data.images import *; print(load_image('a.heic').size, '.heic' in PICTURE_SUFFIXES)"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"}
    output = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    assert output == "(40, 30) True\n"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_image_turns_pictures_upright(orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientation -> the transposition that turns it upright
    image = noise()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    expected = image if orientation == 1 else image.transpose(Image.Transpose(undo[orientation]))
    assert load_image(encoded(image, exif=exif)).tobytes() == expected.tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_load_image_ignores_broken_camera_data() -> None:
    image = noise()
    assert load_image(encoded(image, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")).tobytes() == image.tobytes()


def test_load_image_converts_cmyk() -> None:
    image = Image.new("CMYK", (20, 20), (0, 255, 255, 0))
    pixel = load_image(encoded(image, "JPEG", quality=95)).getpixel((10, 10))
    assert np.allclose(pixel, (255, 0, 0), atol=6)


def test_load_image_converts_palettes() -> None:
    assert load_image(encoded(Image.new("RGB", (40, 40), "blue").quantize(2), "GIF")).getpixel((30, 5)) == (0, 0, 255)


def test_load_image_scales_sixteen_bit_grey() -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(2, 0)
    for kind in ("PNG", "TIFF"):
        loaded = np.asarray(load_image(encoded(Image.fromarray(ramp), kind)))
        assert np.array_equal(loaded[0, :, 0], np.arange(256))


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0.0, 0.5, 1.0], "float32", [0, 128, 255]),
        ([0.0, 128.0, 255.0], "float32", [0, 128, 255]),
        ([0, 128, 255], "int32", [0, 128, 255]),
        ([0, 257, 65535], "int32", [0, 1, 255]),
        ([0, 255, 20], "uint16", [0, 1, 0]),  # 16 bits: white is always 65,535
        ([-10.0, 0.0, 30.0], "float32", [0, 64, 255]),
        ([0, 50_000, 100_000], "int32", [0, 128, 255]),
        ([0, np.nan, 1], "float32", [0, 0, 255]),
        ([-3.0, -3.0], "float32", [0, 0]),  # a single value
        ([1e38, 1e38], "float32", [0, 0]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_load_image_scales_grey_by_its_range(values: list[float], kind: str, expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=kind))
    assert np.asarray(load_image(encoded(image, "TIFF")))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_load_image_puts_transparency_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    half = load_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128))))
    assert half.getpixel((0, 0)) == (127, 127, 127)


def test_load_image_puts_a_transparent_colour_on_white() -> None:
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    assert load_image(encoded(image, transparency=(1, 2, 3))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_load_image_takes_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    loaded = load_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert loaded.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"hello, I am a text", "not a picture; readable are JPEG"),
        (encoded(noise(), "JPEG")[:-600], "damaged picture .*truncated"),
        (encoded(noise())[:-600], "damaged picture"),
        (encoded(noise())[:20], "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (png_header(9_000, 9_000), "refused, 9000 x 9000 is above the limit of 80,000,000 pixels"),
        (png_header(60_000, 60_000), "refused"),
    ],
)
def test_load_image_refuses_a_bad_picture_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"bad.jpg: {reason}"):
        load_image(path)


def test_load_image_refuses_missing_files_folders_and_devices(tmp_path: Path) -> None:
    for path in (tmp_path / "no.jpg", tmp_path, Path("/dev/zero"), "a\0b"):
        with pytest.raises(DataError, match="cannot be read"):
            load_image(path)


def test_load_image_refuses_a_huge_file_without_reading_it(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded(noise(), "JPEG"))
    os.truncate(tmp_path / "x.jpg", 60 * 2**30)  # sparse: it takes no room on the disk
    with pytest.raises(DataError, match=r"x.jpg: cannot be read \(larger than the limit of 536,870,912 bytes"):
        load_image(tmp_path / "x.jpg")


def test_load_image_leaves_no_warning_of_pillow_about_large_pictures() -> None:
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS < 12_000 * 9_000  # Pillow warns about this picture
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="refused, 12000 x 9000 is above the limit of 80,000,000 pixels"):
            load_image(png_header(12_000, 9_000))


@pytest.mark.parametrize("is_compressed", [False, True])
def test_load_image_reads_a_png_with_megabytes_of_text(is_compressed: bool) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 3_000_000, zip=is_compressed)
    image = noise()
    assert load_image(encoded(image, pnginfo=text)).tobytes() == image.tobytes()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (224, 224), (3, 700)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_preprocess_takes_pictures_of_any_shape(size: tuple[int, int], mode: str) -> None:
    tensor = Preprocess(PreprocessConfig(image_size=(32, 48), crop_mode=mode, crop_pct=0.9))(Image.new("RGB", size))
    assert tensor.shape == (3, 32, 48) and tensor.dtype == np.float32


def smooth_jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    """A JPEG like a photograph: little detail at the scale of a pixel."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("crop_pct", [1.0, 0.5])
def test_preprocess_of_a_large_jpeg_is_nearly_that_of_all_its_pixels(orientation: int, crop_pct: float) -> None:
    preprocess = Preprocess(PreprocessConfig((64, 64), crop_pct=crop_pct))
    content = smooth_jpeg(1200, 900, orientation)
    reduced = preprocess.load(content)
    assert min(reduced.size) == (225 if crop_pct == 1 else 450)  # a quarter, a half
    whole = load_image(content)
    assert (reduced.width > reduced.height) == (whole.width > whole.height)
    difference = np.abs(preprocess.resize(reduced).astype(int) - preprocess.resize(whole))
    assert difference.mean() < 0.006 * 255 and difference.max() < 0.06 * 255


@pytest.mark.parametrize(("width", "height"), [(256, 255), (400, 200)])
def test_preprocess_of_a_jpeg_below_four_times_the_input_is_of_all_its_pixels(width: int, height: int) -> None:
    content = smooth_jpeg(width, height)
    loaded = Preprocess(PreprocessConfig((64, 64))).load(content)
    assert loaded.tobytes() == load_image(content).tobytes()


def test_normalise_of_a_batch_equals_normalise_of_each() -> None:
    preprocess = Preprocess(PreprocessConfig(image_size=(16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)))
    images = [noise() for _ in range(4)]
    batch = preprocess.normalise(np.stack([preprocess.resize(image) for image in images]))
    assert np.array_equal(batch, np.stack([preprocess(image) for image in images]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_load_thumbnail_is_the_upright_picture(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    slope = np.add.outer(np.linspace(0, 200, 900), np.linspace(0, 50, 1300)).astype(np.uint8)
    image = Image.fromarray(np.stack([slope, slope // 2, 255 - slope], axis=2))
    (tmp_path / "picture").write_bytes(encoded(image, kind, exif=exif))
    pixels = load_thumbnail(tmp_path / "picture", 16, "L")
    whole = load_image(tmp_path / "picture").convert("L").resize((16, 16))
    assert whole.getpixel((15, 0)) != whole.getpixel((0, 15))
    np.testing.assert_allclose(pixels.astype(int), np.asarray(whole, dtype=int), atol=3)


def test_load_thumbnail_refuses_a_damaged_picture(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_bytes(encoded(noise(), "JPEG")[:200])
    with pytest.raises(DataError, match="notes.jpg"):
        load_thumbnail(tmp_path / "notes.jpg", 16, "L")


@pytest.mark.parametrize(("crop_mode", "crop_pct", "size", "window"), [
    ("squash", 1.0, (90, 30), (0, 0, 90, 30)),
    ("center", 1.0, (90, 30), (30, 0, 60, 30)),
    ("center", 0.5, (90, 30), (37.5, 7.5, 52.5, 22.5)),
    ("border", 1.0, (90, 30), (0, -30, 90, 60)),
    ("center", 1.0, (9000, 2), (4499, 0, 4501, 2)),
])
def test_window_is_the_part_that_the_backbone_reads(
    crop_mode: str, crop_pct: float, size: tuple[int, int], window: tuple[float, ...]
) -> None:
    grey = (0.5, 0.5, 0.5)
    preprocess = Preprocess(PreprocessConfig((32, 32), grey, grey, "bilinear", crop_pct, crop_mode))
    assert preprocess.window(size) == pytest.approx(window, abs=3)  # one of 32 pixels of the input is up to 3 wide


def test_server_picture_sends_small_usual_pictures_as_they_are(tmp_path: Path) -> None:
    types = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
    for kind, media_type in types.items():
        path = tmp_path / kind
        path.write_bytes(encoded(noise(40, 30), kind))
        assert server_picture(path, max_side=40) == (media_type, path.read_bytes())
    assert server_picture(tmp_path / "GIF", 40, formats=("PNG",))[0] == "image/jpeg"


def smooth(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def oriented() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # rotated by a quarter
    return exif


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (encoded(smooth(80, 60)), (40, 30)),
        (encoded(smooth(40, 30), "BMP"), (40, 30)),
        (encoded(smooth(40, 30), "JPEG", exif=oriented()), (30, 40)),
        (encoded(smooth(40, 30).convert("CMYK"), "JPEG"), (40, 30)),
        (encoded(smooth(40, 30), "GIF", save_all=True, append_images=[noise(40, 30)]), (40, 30)),
        (encoded(Image.new("I;16", (40, 30), 9000)), (40, 30)),
    ],
    ids=["large", "bmp", "exif", "cmyk", "animated", "16 bits"],
)
def test_server_picture_makes_a_jpeg_of_other_pictures(tmp_path: Path, content: bytes, size: tuple[int, int]) -> None:
    (tmp_path / "a").write_bytes(content)
    media_type, sent = server_picture(tmp_path / "a", max_side=40)
    with Image.open(io.BytesIO(sent)) as image:
        assert (media_type, image.format, image.size, dict(image.getexif())) == ("image/jpeg", "JPEG", size, {})
        expected = load_image(tmp_path / "a").resize(size, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(image, float) - np.asarray(expected, float)).mean() < 4  # JPEG's loss


def test_server_picture_turns_the_picture_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 40), "red")
    picture.paste("blue", (20, 0, 40, 40))
    (tmp_path / "a").write_bytes(encoded(picture, "JPEG", exif=oriented()))
    with Image.open(io.BytesIO(server_picture(tmp_path / "a", 1024)[1])) as image:
        assert image.getpixel((20, 5))[0] > 200 and image.getpixel((20, 35))[2] > 200  # red above blue


def test_server_picture_keeps_large_files_under_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("myllm.data.images.MAX_SERVER_BYTES", 3000)
    (tmp_path / "a").write_bytes(encoded(noise()))
    assert server_picture(tmp_path / "a", 1024)[0] == "image/jpeg"


@pytest.mark.parametrize("content", [b"", b"no picture", encoded(noise())[:200]])
def test_server_picture_refuses_a_broken_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=str(tmp_path / "a")):
        server_picture(tmp_path / "a", 1024)
