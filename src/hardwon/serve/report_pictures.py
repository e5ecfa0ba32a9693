"""Thumbnails for the report: every distinct picture is embedded once, as the background of a CSS class."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from hardwon.errors import BadMedia
from hardwon.items import Picture
from hardwon.pictures import open_picture

SIDE = 72  # pixels; shown at half of it, so it is sharp on dense screens
BUDGET = 4_500_000  # bytes of encoded pictures in one report


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """How the page shows a picture.

    Attributes:
        style: CSS class that carries the pixels; "" if the picture cannot be shown.
        alt: text in place of the picture.
    """

    style: str
    alt: str


class Thumbnails:
    """Pictures that a page has used so far. A broken picture becomes a placeholder: a report is no place to fail."""

    def __init__(self, budget: int = BUDGET):
        self.left = budget
        self._styles: dict[str, str] = {}  # data URI -> class
        self._seen: dict[Picture, Thumbnail] = {}

    def __call__(self, picture: Picture) -> Thumbnail:
        """The thumbnail of a picture; pictures with the same pixels share a class."""
        if picture not in self._seen:
            self._seen[picture] = self._add(picture)
        return self._seen[picture]

    def css(self) -> str:
        """Rules for all classes handed out so far."""
        return "\n".join(f".{style}{{background-image:url({uri})}}" for uri, style in self._styles.items())

    def _add(self, picture: Picture) -> Thumbnail:
        name = "" if isinstance(picture, bytes) else picture.stem.replace("-", " ").replace("_", " ")
        try:
            uri = _data_uri(open_picture(picture))
        except BadMedia:
            return Thumbnail("", f"picture that cannot be read: {name or 'unnamed'}")
        if uri not in self._styles:
            if len(uri) > self.left:
                return Thumbnail("", f"picture left out to keep the report small: {name or 'unnamed'}")
            self.left -= len(uri)
            self._styles[uri] = f"p{len(self._styles)}"
        return Thumbnail(self._styles[uri], f"picture: {name}" if name else "picture")


def _data_uri(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85, method=6)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
