"""Pictures that are too large are refused from their headers."""

import resource
import struct
import time
import zlib

import pytest
from PIL import Image
from tiny import encoded

from hardwon.errors import BadMedia
from hardwon.pictures import check_picture, open_picture


def png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\x00" * 1000)) + chunk(b"IEND", b"")


def jpeg_header(width, height):
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_header(width, height):
    data = bytearray(encoded(Image.new("P", (8, 8)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def gif_frame(width, height):
    """The canvas is small, the frame on it is not."""
    data = bytearray(encoded(Image.new("P", (8, 8)), "GIF"))
    place = data.index(b"\x2c", 13 + 3 * 2) + 5
    data[place : place + 4] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_header(width, height):
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    place = data.index(b"VP8L") + 9
    data[place : place + 4] = struct.pack("<I", (min(width, 16384) - 1) | (min(height, 16384) - 1) << 14)
    return bytes(data)


def bmp_header(width, height):
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def tiff_header(width, height):
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "TIFF"))
    for tag, value in ((256, width), (257, height)):
        entry = next(e for e in (struct.pack("<HHI", tag, kind, 1) for kind in (3, 4)) if e in data)
        place = data.index(entry)
        data[place : place + 12] = struct.pack("<HHII", tag, 4, 1, value)
    return bytes(data)


HEADERS = (png_header, jpeg_header, gif_header, gif_frame, webp_header, bmp_header, tiff_header)


@pytest.mark.parametrize("make", HEADERS)
@pytest.mark.parametrize("size", [(8_000, 8_000), (12_000, 12_000), (60_000, 60_000)])
def test_bombs_are_refused_from_the_header(make, size):
    data = make(*size)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for look in (check_picture, open_picture):
        start = time.perf_counter()
        with pytest.raises(BadMedia, match="pixels"):
            look(data)
        assert time.perf_counter() - start < 0.05
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50 * 1024  # kilobytes


def test_the_message_about_pixels_names_the_remedy():
    with pytest.raises(
        BadMedia, match=r"bytes has 8000 x 8000 = 64,000,000 pixels, more than the 32,000,000 allowed: .*max_pixels"
    ):
        check_picture(png_header(8_000, 8_000))


def test_caps_can_be_set_and_are_exact(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(encoded(Image.new("RGB", (10, 10))))
    size = file.stat().st_size
    assert open_picture(file, max_pixels=100, max_bytes=size).size == (10, 10)
    check_picture(file, max_pixels=100, max_bytes=size)
    with pytest.raises(BadMedia, match=r"a\.png has 10 x 10 = 100 pixels, more than the 99 allowed"):
        check_picture(file, max_pixels=99)
    with pytest.raises(BadMedia, match=rf"a\.png has {size} bytes, more than the {size - 1} allowed: compress it"):
        check_picture(file, max_bytes=size - 1)
