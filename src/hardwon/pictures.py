"""The one place where pictures are decoded, so that training, mining, evaluation and serving see the same pixels.

A file comes from anyone: it is looked at header first, refused when it is too large, and whatever goes wrong inside it
is a `BadMedia` that names the file and says what to do.
"""

import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from hardwon.errors import BadMedia
from hardwon.items import Picture

MAX_PIXELS = 32_000_000
MAX_BYTES = 20_000_000

_Stream = io.BytesIO | io.BufferedReader


@dataclass(frozen=True)
class _Format:
    """A format that is read: how its files begin, who decodes them, and how a complete file ends (None: no fixed end)."""

    starts: tuple[bytes, ...]
    decoder: Callable[[_Stream], ImageFile.ImageFile]
    ends: bytes | None = None


# The decoders are called by name instead of through Image.open: that one tries every format Pillow knows, and warns
# about size by a limit that is global to the process.
_FORMATS = {
    "PNG": _Format((b"\x89PNG\r\n\x1a\n",), PngImageFile, b"\x00\x00\x00\x00IEND\xaeB`\x82"),
    "JPEG": _Format((b"\xff\xd8\xff",), JpegImageFile, b"\xff\xd9"),
    "WebP": _Format((b"RIFF",), WebPImageFile),
    "GIF": _Format((b"GIF87a", b"GIF89a"), GifImageFile, b"\x3b"),
    "BMP": _Format((b"BM",), BmpImageFile),
    "TIFF": _Format((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), TiffImageFile),
}

# EXIF orientation -> what has to be done to the stored pixels.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


def open_picture(picture: Picture, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """Decode a picture: the only way from a file to pixels in this project.

    Orientation is applied as EXIF states it, transparency is laid over white, 16 bits become the upper 8, of an
    animation the first frame counts. Colour profiles are not applied. Nothing of the file's metadata is left on the
    result, so nobody can turn it a second time.

    Args:
        picture: a file, or an encoded picture.
        max_pixels: width x height allowed; checked before any pixel is decoded.
        max_bytes: size of the encoded picture allowed, in bytes.

    Returns:
        A picture of mode RGB.

    Raises:
        BadMedia: missing, empty, too large, truncated, broken, or of a format or kind that is not read.
    """
    name = _name(picture)
    with _opened(picture, max_pixels, max_bytes) as (image, _), _blaming(name):
        image.load()
        turn = _TURNS.get(_orientation(image))
        plain = _to_rgb(image, name)
        if turn is not None:
            plain = plain.transpose(turn)
        plain.info.clear()
        return plain


def check_picture(picture: Picture, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> None:
    """Refuse a picture that cannot be used, by its header and its last bytes; well below a millisecond for most.

    Only a file whose end does not look complete is decoded, to know. Damage in the middle of a file is found by
    `open_picture` alone.

    Args:
        picture: a file, or an encoded picture.
        max_pixels: width x height allowed.
        max_bytes: size of the encoded picture allowed, in bytes.

    Raises:
        BadMedia: as `open_picture` does.
    """
    with _opened(picture, max_pixels, max_bytes) as (_, complete):
        pass
    if not complete:
        open_picture(picture, max_pixels=max_pixels, max_bytes=max_bytes)


def picture_size(picture: Picture, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> tuple[int, int]:
    """Width and height as `open_picture` would give them, from the header alone.

    Raises:
        BadMedia: as `open_picture` does, but for damage that only decoding finds.
    """
    with _opened(picture, max_pixels, max_bytes) as (image, _):
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)  # 5 to 8 lie on their side


def begins_as_picture(content: bytes) -> bool:
    """Whether bytes begin as those of a picture of some format that is read."""
    return content.startswith(tuple(start for form in _FORMATS.values() for start in form.starts))


# What decoders of others may find in a file and nobody has said or been: of a file with more, only the pixels are handed on.
_PLAIN = {
    "jfif",
    "jfif_version",
    "jfif_unit",
    "jfif_density",
    "dpi",
    "progressive",
    "progression",
    "gamma",
    "adobe",
    "adobe_transform",
}


def portable(picture: Picture, *, max_pixels: int | None = None) -> tuple[str, bytes]:
    """A picture for those who decode it themselves, such as a server: MIME type and bytes.

    They get the pixels of `open_picture`, and nothing else: a plain JPEG or PNG goes out as it is; one with metadata, a
    turn, transparency or a colour profile, and every other format, as a PNG of the pixels.

    Args:
        picture: a file, or an encoded picture.
        max_pixels: width x height that it is scaled down to; None leaves it.

    Raises:
        BadMedia: as `open_picture` does.
    """
    opened = open_picture(picture)
    with _opened(picture, MAX_PIXELS, MAX_BYTES) as (image, _):
        format_ = image.format if image.mode == "RGB" and set(image.info) <= _PLAIN else None
    large = max_pixels is not None and opened.width * opened.height > max_pixels
    if format_ in ("JPEG", "PNG") and not large:
        return f"image/{format_.lower()}", picture if isinstance(picture, bytes) else picture.read_bytes()
    if large and max_pixels is not None:
        share = (max_pixels / (opened.width * opened.height)) ** 0.5
        size = max(int(opened.width * share), 1), max(int(opened.height * share), 1)
        opened = opened.resize(size, Image.Resampling.BICUBIC)
    made = io.BytesIO()
    opened.save(made, "PNG", compress_level=1)
    return "image/png", made.getvalue()


def _name(picture: Picture) -> str:
    return "bytes" if isinstance(picture, bytes) else str(picture)


@contextlib.contextmanager
def _opened(picture: Picture, max_pixels: int, max_bytes: int) -> Iterator[tuple[ImageFile.ImageFile, bool]]:
    """The picture with its header read, and whether the file ends as a complete one of its format does."""
    name = _name(picture)
    with _stream(picture, max_bytes) as stream:
        head = stream.read(16)
        format_ = _sniff(head, name)
        complete = _ends_well(stream, _FORMATS[format_], head)
        stream.seek(0)
        with _blaming(name):
            image = _FORMATS[format_].decoder(stream)
        width, height = image.size
        if width * height > max_pixels:
            raise BadMedia(
                f"{name} has {width} x {height} = {width * height:,} pixels, more than the {max_pixels:,} allowed: "
                "scale it down, or allow more with max_pixels"
            )
        yield image, complete


@contextlib.contextmanager
def _stream(picture: Picture, max_bytes: int) -> Iterator[_Stream]:
    """The encoded bytes, if there are any and not too many."""
    name = _name(picture)
    if isinstance(picture, bytes):
        size, stream = len(picture), io.BytesIO(picture)
    else:
        try:
            status = picture.stat()
            # Opening a pipe or a device could wait for ever.
            if not stat.S_ISREG(status.st_mode):
                raise BadMedia(f"{name} is not a file: name the picture itself")
            size, stream = status.st_size, open(picture, "rb")
        except FileNotFoundError:
            raise BadMedia(f"{name} does not exist: check its name and the data root") from None
        except (OSError, ValueError) as error:
            raise BadMedia(f"{name} cannot be read ({error}): check its name and permissions") from error
    with stream:
        if not size:
            raise BadMedia(f"{name} is empty (0 bytes): fetch or export it again")
        if size > max_bytes:
            raise BadMedia(
                f"{name} has {size:,} bytes, more than the {max_bytes:,} allowed: compress it, or allow more with max_bytes"
            )
        yield stream


def _sniff(head: bytes, name: str) -> str:
    """Name of the format that a file begins as; its suffix is not trusted."""
    for format_, known in _FORMATS.items():
        if head.startswith(known.starts) and (format_ != "WebP" or head[8:12] == b"WEBP"):
            return format_
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise BadMedia(f"{name} is a web page, not a picture: fetch it again, the server answered with an error page")
    raise BadMedia(f"{name} is none of {', '.join(_FORMATS)}: convert it to one of them")


def _ends_well(stream: _Stream, format_: _Format, head: bytes) -> bool:
    length = stream.seek(0, os.SEEK_END)
    if head.startswith(b"RIFF"):  # states its own length, without the 8 bytes before it
        return int.from_bytes(head[4:8], "little") + 8 <= length
    if head.startswith(b"BM"):  # states its own length too, though some writers leave 0
        return 0 < int.from_bytes(head[2:6], "little") <= length
    if format_.ends is None or length < len(format_.ends):
        return False
    stream.seek(-len(format_.ends), os.SEEK_END)
    return stream.read() == format_.ends


@contextlib.contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Turn whatever goes wrong inside a file into BadMedia."""
    try:
        yield
    except BadMedia:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Sizes that a decoder meets before it states them; Pillow's own limit is above ours.
        raise BadMedia(f"{name} has too many pixels ({error}): scale it down") from error
    except Exception as error:  # decoders raise a dozen types on damaged files, struct.error to MemoryError
        reason = str(error) or type(error).__name__
        raise BadMedia(f"{name} is broken or truncated ({reason}): fetch or export it again, or leave it out") from error


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation, 1 if there is none or it cannot be read: bad metadata does not make a bad picture."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # as above: EXIF is parsed by the same decoders
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _upper_bits(image)
    if image.mode in ("I", "F", "LAB"):
        raise BadMedia(f"{name} has mode {image.mode}, which does not say what is white: save it as RGB or grey, 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _upper_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8 bits. The upper byte is what Pillow itself takes of 16-bit colour, so grey and colour agree."""
    values = np.asarray(image).astype(np.uint16)
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # one value of 16 bits stands for "nothing here"
        grey[values == transparent] = 255
    return Image.fromarray(grey)
