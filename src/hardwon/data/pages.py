"""Pages of PDF files as pictures."""

from pathlib import Path

from hardwon.artifacts import replacing
from hardwon.errors import BadMedia, MissingExtra
from hardwon.pictures import MAX_PIXELS

DPI = 144
POINTS = 72  # to the inch


def render(file: Path, into: Path, name: str, *, dpi: int = DPI) -> list[Path]:
    """Every page of a PDF file as a JPEG file, in order; those that are there already are not rendered again.

    Args:
        file: the PDF.
        into: folder for the pictures.
        name: that theirs begin with; it must stand for what the PDF holds, and for `dpi`.
        dpi: dots to the inch; fewer where a page would have more than 32 million pixels.

    Raises:
        BadMedia: the file is no PDF, damaged, or locked by a password.
        MissingExtra: pypdfium2 is not installed.
    """
    try:
        import pypdfium2
    except ImportError:
        raise MissingExtra("pypdfium2", "pdf") from None
    into.mkdir(parents=True, exist_ok=True)
    try:
        document = pypdfium2.PdfDocument(file)
    except (pypdfium2.PdfiumError, OSError) as error:
        raise BadMedia(f"{file} cannot be read as a PDF ({error}): export it again, without a password") from error
    made = []
    try:
        for number in range(len(document)):
            target = into / f"{name}-{number + 1}.jpg"
            if not target.is_file():
                page = document[number]
                width, height = page.get_size()
                scale = min(dpi / POINTS, (MAX_PIXELS / max(width * height, 1)) ** 0.5 * 0.99)
                with replacing(target) as neighbour:
                    drawn = page.render(scale=scale)  # pyright: ignore[reportArgumentType]  (a fraction, whatever it says)
                    drawn.to_pil().convert("RGB").save(neighbour, "JPEG", quality=90)
                page.close()
            made.append(target)
    except pypdfium2.PdfiumError as error:
        raise BadMedia(f"{file}: page {len(made) + 1} cannot be rendered ({error}): export it again") from error
    finally:
        document.close()
    if not made:
        raise BadMedia(f"{file} has no pages")
    return made
