"""What the frozen parts make of everything in the data, computed once: a study trains hundreds of times on the same items.

The backbone of the studies is the demo's, cut where it is frozen: EfficientNet-lite0 looks at a picture (128 pixels; its 16
tokens averaged to the four quarters), MiniLM reads text and instruction (one vector each); both are turned to their 256 main
directions. What is trained stands behind, see
`studies.trunk`. So a training of hundreds of steps takes seconds, and objectives meet a model that has learned what it can.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hardwon.artifacts import fingerprint, write_json
from hardwon.items import Example, Item, picture_key
from hardwon.mining.judging import INJECTED

QUARTERS, WIDTH = 4, 256
PICTURES, TEXTS = "pictures.safetensors", "texts.safetensors"
MOST = 8192  # vectors that directions are found on, about
_AT_ONCE = 512  # pictures that are looked at before their features are averaged


class Seen(NamedTuple):
    """Where the features of an item stand; -1 for what it does not have."""

    instruction: int
    text: int
    picture: int


@dataclass
class Features:
    """Frozen features of all items of a study.

    Attributes:
        pictures: [n 4 256], those of training of unit length on average.
        texts: [n 256], unit vectors.
        picture_rows: row of a picture by its content's hash.
        text_rows: row of a text or instruction by itself.
        fingerprint: of the weights, and of all that was looked at and read.
    """

    pictures: Float[Tensor, "n t w"]
    texts: Float[Tensor, "n w"]
    picture_rows: dict[str, int]
    text_rows: dict[str, int]
    fingerprint: str = ""
    _known: dict[Item, Seen] = field(default_factory=dict, repr=False)

    def seen(self, item: Item) -> Seen:
        """Where the features of a thin item stand."""
        if item not in self._known:
            picture = self.picture_rows[named(item)] if item.images else -1
            self._known[item] = Seen(self._row(item.instruction), self._row(item.text), picture)
        return self._known[item]

    def _row(self, text: str) -> int:
        if not text:
            return -1
        # Whether a judge obeys what a candidate says is asked by mining; frozen parts that have read neither cannot.
        return self.text_rows[text if text in self.text_rows else text.removeprefix(INJECTED).strip()]

    @classmethod
    def none(cls) -> "Features":
        """Of nothing: where a whole model reads the items themselves."""
        return cls(torch.zeros(0, QUARTERS, WIDTH), torch.zeros(0, WIDTH), {}, {})

    def same_text(self, text: str, as_other: str) -> None:
        """A text that reads like another."""
        self.text_rows[text] = self.text_rows[as_other]

    def same_picture(self, key: str, as_other: str) -> None:
        """A picture that looks like another."""
        self.picture_rows[key] = self.picture_rows[as_other]

    def save(self, folder: Path) -> None:
        """Write it; `load` reads it."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({"rows": self.pictures.half().contiguous()}, folder / PICTURES)
        save_file({"rows": self.texts.contiguous()}, folder / TEXTS)
        about = {"pictures": list(self.picture_rows), "texts": list(self.text_rows), "fingerprint": self.fingerprint}
        write_json(folder / "features.json", about)

    @classmethod
    def load(cls, folder: Path) -> "Features":
        """What `save` wrote."""
        from safetensors.torch import load_file

        about = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        pictures, texts = (load_file(folder / name)["rows"].float() for name in (PICTURES, TEXTS))
        rows = ({name: n for n, name in enumerate(about[kind])} for kind in ("pictures", "texts"))
        return cls(pictures, texts, *rows, about["fingerprint"])


def thin(item: Item) -> Item:
    """The same with the hash of its picture in the picture's place: nobody looks at it again, and hashing files takes time."""
    return replace(item, images=tuple(picture_key(picture).encode() for picture in item.images))


def thin_example(example: Example) -> Example:
    """An example of thin items; what it calls related are hashes of contents, which are others now."""
    if example.related:
        raise ValueError("an example with related contents cannot be made thin: the hashes of its contents change")
    return replace(
        example, query=thin(example.query), candidates=tuple(replace(c, item=thin(c.item)) for c in example.candidates)
    )


def named(item: Item) -> str:
    """The hash of a thin item's picture."""
    (picture,) = item.images
    assert isinstance(picture, bytes)
    return picture.decode()


def items_of(examples: Iterable[Example]) -> list[Item]:
    """Every query and candidate."""
    return [item for example in examples for item in (example.query, *(c.item for c in example.candidates))]


def look(embedder: "object", items: Sequence[Item], trained: Sequence[Item]) -> Features:
    """Run the frozen parts over all items; what they give is turned to its main directions, to save time.

    Args:
        embedder: the untrained built-in backbone (`hardwon.models.Embedder`): its tower sees, its MiniLM reads.
        items: of training, validation and test.
        trained: of training; the directions are found on them.
    """
    import numpy as np

    from hardwon.models import Embedder

    assert isinstance(embedder, Embedder) and embedder.body.vision is not None
    files = {picture_key(picture): picture for item in items for picture in item.images}
    names = sorted(files)
    parts = []
    for start in range(0, len(names), _AT_ONCE):
        seen = embedder.body.vision.features([files[name] for name in names[start : start + _AT_ONCE]])
        embedder.body.vision.forget()
        parts.append(quarters(seen))
    texts = sorted({text for item in items for text in (item.text, item.instruction) if text})
    vectors = torch.from_numpy(np.asarray(embedder.encode([Item(text=text) for text in texts])))
    rows = [{name: n for n, name in enumerate(those)} for those in (names, texts)]
    own = sorted({rows[0][picture_key(picture)] for item in trained for picture in item.images})
    read = sorted({rows[1][text] for item in trained for text in (item.text, item.instruction) if text})
    pictures = main_directions(torch.cat(parts), own, centred=True)
    words = F.normalize(main_directions(vectors, read, centred=False), dim=-1)
    return Features(
        pictures / pictures[own].norm(dim=-1).mean(),
        words,
        rows[0],
        rows[1],
        fingerprint([embedder.fingerprint, *names, *texts]),
    )


def main_directions(values: Float[Tensor, "*n w"], fit: Sequence[int], *, centred: bool) -> Float[Tensor, "*n v"]:
    """Principal components, at most `WIDTH`, found on some rows; as many as there are if those are fewer, then zeros."""
    some = values[list(fit)].reshape(-1, values.shape[-1])
    centre = some.mean(dim=0) if centred else torch.zeros(values.shape[-1])
    _, _, directions = torch.linalg.svd(some[:: max(len(some) // MOST, 1)] - centre, full_matrices=False)
    made = (values - centre) @ directions[:WIDTH].T
    return F.pad(made, (0, WIDTH - made.shape[-1]))


def quarters(seen: Float[Tensor, "n t w"]) -> Float[Tensor, "n 4 w"]:
    """A square of tokens averaged to its four quarters: top left, top right, bottom left, bottom right."""
    side = round(seen.shape[1] ** 0.5)
    square = seen.float().reshape(len(seen), 2, side // 2, 2, side // 2, seen.shape[2])
    return square.mean(dim=(2, 4)).reshape(len(seen), QUARTERS, seen.shape[2])
