"""Pictures: the same pixels from every encoding, and nothing but BadMedia from what is broken."""

import io
import os
import random
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from tiny import encoded

from hardwon.errors import BadMedia
from hardwon.pictures import check_picture, open_picture, portable

# Two rows of three: no two turns of it are equal.
COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [128, 64, 32], [255, 255, 0]]], np.uint8)
GREY = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def grey_as_rgb(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def with_alpha(alpha):
    return Image.merge("RGBA", [*Image.fromarray(COLOURS).split(), Image.fromarray(np.array(alpha, np.uint8))])


def over_white(colour, alpha):
    share = np.array(alpha, np.float64)[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)


ALPHA = [[0, 255, 255], [0, 0, 255]]


def modes():
    """Name -> (encoded picture, the pixels it must decode to)."""
    colour, grey = Image.fromarray(COLOURS), Image.fromarray(GREY)
    palette = colour.quantize(6)
    sixteen = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    bits = Image.fromarray(GREY > 120)
    found = {
        "RGB": (encoded(colour), COLOURS),
        "L": (encoded(grey), grey_as_rgb(GREY)),
        "1": (encoded(bits), grey_as_rgb(np.where(GREY > 120, 255, 0))),
        "P": (encoded(palette), COLOURS),
        "P gif": (encoded(palette, "GIF"), COLOURS),
        "RGBA": (encoded(with_alpha(ALPHA)), over_white(COLOURS, ALPHA)),
        "RGBA webp": (encoded(with_alpha(ALPHA), "WEBP", lossless=True), over_white(COLOURS, ALPHA)),
        "LA": (
            encoded(Image.merge("LA", [grey, Image.fromarray(np.array(ALPHA, np.uint8))])),
            over_white(grey_as_rgb(GREY), ALPHA),
        ),
        "L with one transparent value": (
            encoded(grey, transparency=50),
            grey_as_rgb(np.where(GREY == 50, 255, GREY)),
        ),
        "RGB with one transparent colour": (
            encoded(colour, transparency=(0, 0, 0)),
            np.where((COLOURS == 0).all(axis=2, keepdims=True), 255, COLOURS).astype(np.uint8),
        ),
        "I;16 png": (encoded(Image.fromarray(sixteen)), grey_as_rgb([[0, 0, 1], [128, 255, 255]])),
        "I;16 tiff": (encoded(Image.fromarray(sixteen), "TIFF"), grey_as_rgb([[0, 0, 1], [128, 255, 255]])),
        "I;16B tiff": (encoded(Image.fromarray(sixteen.astype(">u2")), "TIFF"), grey_as_rgb([[0, 0, 1], [128, 255, 255]])),
        "CMYK": (encoded(ink(), "TIFF"), np.array([[[255, 255, 255], [0, 255, 255]], [[255, 0, 255], [0, 0, 0]]], np.uint8)),
        "RGB bmp": (encoded(colour, "BMP"), COLOURS),
    }
    see_through = palette.copy()
    see_through.info["transparency"] = bytes(0 if tuple(c) == (255, 0, 0) else 255 for c in palette_colours(palette))
    reds = (COLOURS == [255, 0, 0]).all(axis=2, keepdims=True)
    found["P with transparency"] = (encoded(see_through), np.where(reds, 255, COLOURS).astype(np.uint8))
    return found


def palette_colours(image):
    return np.array(image.getpalette(), np.uint8).reshape(-1, 3)


def ink():
    """White, cyan, magenta and black."""
    return Image.frombytes("CMYK", (2, 2), bytes([0, 0, 0, 0, 255, 0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 255]))


@pytest.mark.parametrize("name", modes())
def test_every_mode_gives_its_golden_pixels(name, tmp_path):
    data, golden = modes()[name]
    file = tmp_path / "picture.any"
    file.write_bytes(data)
    for picture in (data, file):
        check_picture(picture)
        image = open_picture(picture)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), golden)


def test_half_transparent_lies_over_white():
    image = open_picture(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128))))
    np.testing.assert_allclose(np.asarray(image)[0, 0], [255, 127, 127], atol=1)


def test_sixteen_bits_with_a_transparent_value():
    values = np.array([[0, 1000, 65535]], np.uint16)
    data = encoded(Image.fromarray(values))
    end_of_header = 8 + 25  # signature and IHDR
    chunk = b"tRNS" + (1000).to_bytes(2, "big")
    data = data[:end_of_header] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[end_of_header:]
    np.testing.assert_array_equal(np.asarray(open_picture(data)), grey_as_rgb([[0, 255, 255]]))


# Orientation -> what a viewer makes of stored pixels.
TURNS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, 1),
}
TURNED = {orientation: turn(COLOURS) for orientation, turn in TURNS.items()}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_once(format_, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format_ == "WEBP" else {}
    image = open_picture(encoded(Image.fromarray(COLOURS), format_, exif=exif, **options))
    np.testing.assert_array_equal(np.asarray(image), TURNED[orientation])
    # Whoever turns it again, as model processors do, must find nothing left to turn.
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(image)), TURNED[orientation])


@pytest.mark.parametrize("name", [name for name in modes() if "gif" not in name and "bmp" not in name])
def test_every_mode_in_every_orientation(name):
    data, golden = modes()[name]
    stored = Image.open(io.BytesIO(data))
    options = {"transparency": stored.info["transparency"]} if "transparency" in stored.info else {}
    options |= {"lossless": True} if stored.format == "WEBP" else {}
    for orientation, turn in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = open_picture(encoded(stored, stored.format, exif=exif, **options))
        np.testing.assert_array_equal(np.asarray(image), turn(golden))


def test_orientation_of_a_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    blocks = Image.fromarray(np.kron(COLOURS, np.ones((16, 16, 1), np.uint8)))
    image = open_picture(encoded(blocks, "JPEG", quality=100, subsampling=0, exif=exif))
    assert image.size == (32, 48)
    golden = np.kron(TURNED[6], np.ones((16, 16, 1), np.uint8)).astype(int)
    assert np.abs(np.asarray(image).astype(int) - golden).max() <= 8


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow says so itself
@pytest.mark.parametrize("exif", [b"Exif\x00\x00nonsense", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"", b"Exif\x00\x00MM\x00*"])
def test_broken_exif_does_not_make_a_bad_picture(exif):
    assert open_picture(encoded(Image.new("RGB", (8, 8), "red"), "JPEG", exif=exif)).size == (8, 8)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_counts(format_):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format_ == "WEBP" else {}
    image = open_picture(encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options))
    assert (np.asarray(image) == [255, 0, 0]).all()


def test_a_broken_later_frame_does_no_harm():
    frames = [Image.effect_noise((64, 64), 80).convert("P") for _ in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    cut = data[: len(data) * 2 // 3]
    check_picture(cut)
    np.testing.assert_array_equal(np.asarray(open_picture(cut)), np.asarray(open_picture(data)))


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (20_000, 20), (1, 65_000)])
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "BMP"])
def test_extreme_shapes(format_, size):
    data = encoded(Image.new("L", size, 7), format_)
    check_picture(data)
    assert open_picture(data).size == size


# -- what is refused --------------------------------------------------------------------------------------------------


def both_refuse(picture, match):
    for look in (check_picture, open_picture):
        with pytest.raises(BadMedia, match=match):
            look(picture)


def noise(side=96):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("share", [0.03, 0.3, 0.6, 0.97])
def test_truncated_files_are_refused(format_, share, tmp_path):
    data = encoded(noise(), format_)
    cut = data[: int(len(data) * share)]
    file = tmp_path / "cut.jpg"
    file.write_bytes(cut)
    both_refuse(cut, "^bytes ")
    both_refuse(file, r"cut\.jpg ")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\x89PNG\r\n\x1a\n", "broken or truncated"),
        (b"\xff\xd8\xff", "broken or truncated"),
        (b"GIF89a", "broken or truncated"),
        (b"BM", "broken or truncated"),
        (b"RIFF\x00\x00\x00\x00WEBP", "broken or truncated"),
        (b"RIFF\x00\x00\x00\x00WAVE", "none of PNG, JPEG, WebP, GIF, BMP, TIFF: convert it"),
        (b"<!DOCTYPE html><title>404</title>", "is a web page, not a picture: fetch it again"),
        (b"\n <html><body>", "is a web page"),
        (b"\x00" * 4096, "none of PNG"),
        (b"a picture of a red kite", "none of PNG"),
        (b"\x00\x00\x00\x1cftypavif", "none of PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "none of PNG"),
    ],
)
def test_what_is_no_picture_is_refused(data, match, tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(data)
    both_refuse(data, "^bytes .*" + match)
    both_refuse(file, rf"picture\.png .*{match}")


def test_files_that_cannot_be_opened(tmp_path):
    both_refuse(tmp_path / "no.png", r"no\.png does not exist: check its name and the data root")
    both_refuse(tmp_path, "is not a file")
    both_refuse(tmp_path / ("x" * 300), "cannot be read")
    both_refuse(tmp_path / "nul\x00.png", "cannot be read")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer
    both_refuse(tmp_path / "pipe.png", "is not a file")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_white_are_refused(mode):
    with pytest.raises(BadMedia, match=f"mode {mode}, which does not say what is white: save it as RGB or grey"):
        open_picture(encoded(Image.new(mode, (2, 2), 7), "TIFF"))


@pytest.mark.parametrize("format_", FORMATS)
def test_mutated_files_raise_nothing_but_bad_media(format_):
    rng = random.Random(format_)
    data = encoded(noise(24), format_)
    refused = 0
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 4, 30))):
            broken[rng.randrange(len(broken) if rng.random() < 0.5 else min(64, len(broken)))] = rng.randrange(256)
        try:
            check_picture(bytes(broken))
            assert open_picture(bytes(broken)).mode == "RGB"
        except BadMedia as error:
            refused += 1
            assert str(error).startswith("bytes ")
    assert refused > 5


def test_check_reads_little(tmp_path):
    file = tmp_path / "large.png"
    file.write_bytes(encoded(Image.new("RGB", (5_000, 5_000))))
    check_picture(file)
    start = time.perf_counter()
    check_picture(file)
    assert time.perf_counter() - start < 0.02


def as_others_see(data):
    """What a decoder that knows nothing of ours makes of a portable picture."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", modes())
@pytest.mark.parametrize("as_file", [True, False])
def test_others_see_the_pixels_that_we_see(name, as_file, tmp_path):
    data, _ = modes()[name]
    given = tmp_path / "picture" if as_file else data
    if as_file:
        given.write_bytes(data)
    kind, sent = portable(given)
    assert kind in ("image/png", "image/jpeg")
    np.testing.assert_array_equal(as_others_see(sent), np.asarray(open_picture(data)))


def test_a_plain_file_is_handed_on_as_it_is_and_nothing_of_anybody_is():
    plain = Image.fromarray(COLOURS)
    for format_ in ("PNG", "JPEG"):
        data = encoded(plain, format_)
        assert portable(data) == (f"image/{format_.lower()}", data)
    exif = Image.Exif()
    exif[0x010E] = "my garden, 51.5 N"
    exif[0x0112] = 6
    with_comment = encoded(plain, "JPEG", comment=b"my garden, 51.5 N")
    for data in (encoded(plain, "JPEG", exif=exif), encoded(plain, "PNG", exif=exif), with_comment):
        assert b"my garden" in data
        kind, sent = portable(data)
        assert kind == "image/png"
        assert b"my garden" not in sent
        np.testing.assert_array_equal(as_others_see(sent), np.asarray(open_picture(data)))


def test_a_large_picture_is_scaled_down_where_asked():
    wide = encoded(Image.new("RGB", (400, 100), "red"), "JPEG")
    for most, size in ((40_000, (400, 100)), (39_999, (399, 99)), (10_000, (200, 50)), (1, (2, 1))):
        with Image.open(io.BytesIO(portable(wide, max_pixels=most)[1])) as image:
            assert image.size == size
    with pytest.raises(BadMedia, match="broken or truncated"):
        portable(wide[:400])
