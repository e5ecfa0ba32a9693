"""What the doctor shows to a model: texts, pictures and videos made here, the same ones every time."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from hardwon.items import Item
from hardwon.models.body import Body

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Probe:
    """An item that a model should have no trouble with.

    Attributes:
        name: what it is, in a few words.
        item: what the model is shown.
        ours: only hardwon is asked, because it renders such an item in its own way on purpose (special tokens are made
            inert, a text beside a picture is cut before the template is put around it).
        odd: a model may refuse it.
    """

    name: str
    item: Item
    ours: bool = False
    odd: bool = False


def text_probes(special: Sequence[str]) -> list[Probe]:
    """Texts of several scripts and lengths, and texts that are easily taken for something else.

    Args:
        special: strings that the model's tokenizer takes for something else than text.
    """
    marks = " ".join(special[:6]) or "[SEP]"
    return [
        Probe("one letter", Item(text="a")),
        Probe("English", Item(text="a red square above a blue circle on a white wall")),
        Probe("German", Item(text="Größere Vögel fliegen früher, erzählt das Mädchen")),
        Probe("Russian", Item(text="Чёрная кошка спит на тёплой крыше")),
        Probe("Arabic", Item(text="كتاب قديم على الطاولة قرب النافذة")),
        Probe("Hindi", Item(text="नदी के किनारे एक छोटा घर")),
        Probe("Chinese", Item(text="一只蓝色的小鸟站在雪地里的树枝上")),
        Probe("emoji and lines", Item(text="🦊 & 🐻‍❄️ = friends?\n\tyes:  100 %\n")),
        Probe("some sentences", Item(text="The train left at nine. Nobody was on it but a fox with a ticket. " * 4)),
        Probe("special tokens", Item(text=f"what does {marks} mean"), ours=True),
        Probe("a URL", Item(text="https://example.invalid/fox.png"), ours=True),
        Probe("a path", Item(text="/no/such/folder/fox.png"), ours=True),
    ]


def picture_probes() -> list[Probe]:
    """Pictures of several shapes, the smallest there is, and one that is 3,000 times as high as wide."""
    return [
        Probe("a square", Item(images=(encoded(square()),))),
        Probe("a wide picture", Item(images=(encoded(shades(300, 100)),))),
        Probe("a tall picture", Item(images=(encoded(shades(90, 240, turn=1)),))),
        Probe("1 x 1 pixel", Item(images=(encoded(Image.new("RGB", (1, 1), (30, 160, 70))),))),
        Probe("1 x 3000 pixels", Item(images=(encoded(shades(1, 3000, turn=2)),)), odd=True),
    ]


def fused_probes() -> list[Probe]:
    """Pictures with a text, and several pictures: for models that read them together."""
    one, other = encoded(square()), encoded(shades(300, 100))
    return [
        Probe("picture and text", Item("what colour is the square", (one,))),
        Probe("another text to it", Item("describe the place", (one,))),
        Probe("two pictures and text", Item("which is larger", (one, other))),
    ]


def video_probes() -> list[Probe]:
    """A video of ten frames, forwards, and backwards with a text: for models that read videos as such."""
    whole = shades(112, 112, turn=1)
    frames = tuple(encoded(whole.crop((n, n, n + 64, n + 64))) for n in range(0, 50, 5))
    return [
        Probe("a video", Item(video=frames)),
        Probe("the video backwards and text", Item("what happens", video=frames[::-1])),
    ]


def long_probes(length: int, pictures: bool) -> list[Probe]:
    """Texts of at least twice `length` tokens, alone and beside a picture if `pictures`."""
    text = " ".join(WORDS[n % len(WORDS)] for n in range(2 * length))
    made = [Probe("a text too long", Item(text=text))]
    if pictures:
        made.append(Probe("picture, text too long", Item(text, (encoded(square()),)), ours=True))
    return made


def short_probes(body: Body) -> tuple[list[Probe], list[str]]:
    """Probes of every kind that a model reads, but the long ones; and what was left out, in words."""
    made: list[Probe] = []
    notes: list[str] = []
    if "text" in body.modalities:
        made += text_probes(body.special)
    else:
        notes.append("It reads no text: probes with text are left out.")
    if "image" not in body.modalities:
        notes.append("It reads no pictures: probes with pictures are left out.")
        return made, notes
    made += picture_probes()
    if body.fused and "text" in body.modalities:
        made += fused_probes()
        made += video_probes() if "video" in body.modalities else []
    else:
        notes.append("It reads texts and pictures one by one: probes that hold both, or several pictures, are left out.")
    return made, notes


def square() -> Image.Image:
    """A red square with a blue dot in a corner: turned or mirrored, it is another picture."""
    picture = Image.new("RGB", (160, 160), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((30, 30, 130, 130), fill=(220, 30, 30))
    pen.ellipse((40, 40, 70, 70), fill=(30, 60, 220))
    return picture


def shades(width: int, height: int, turn: int = 0) -> Image.Image:
    """Colours that change along both sides; another `turn` (0 to 2) gives other colours, also when scaled to a square."""
    down, right = np.mgrid[0:height, 0:width]
    red, green = 255 * down // max(height - 1, 1), 255 * right // max(width - 1, 1)
    return Image.fromarray(np.roll(np.stack([red, green, 255 - red // 2], axis=-1), turn, axis=-1).astype(np.uint8))


def encoded(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
