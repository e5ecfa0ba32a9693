"""What an index in a folder is, and what a row of it is."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hardwon.items import Item
from hardwon.search.compressed import Form
from hardwon.search.stores.base import Entry, Space
from hardwon.search.stores.embedded import read_sealed, write_sealed

_KEPT = ("content", "source", "place", "mark", "root", "key", "file")  # of a row, beside its id and its item


@dataclass(frozen=True)
class Row:
    """A row of an index.

    Attributes:
        id: 32 hexadecimal digits; stays as long as the thing stays where it is.
        content: hash of what it shows, `Item.content`: equal for copies.
        source: what it belongs to, in a few words: to colour a map by.
        place: where it is, for people: a path below its root, with page, time or line.
        item: what was encoded; pictures as absolute paths.
        mark: size and time of its file when it was read, so that what has not changed need not be read again.
        root: name of the root it lies below; "" for what the index has made itself (pages, frames).
        key: of what was encoded, `Item.key`: rows with equal ones have one vector; "" if an earlier version wrote the row.
        file: name of its root and path of its file below that; "" if an earlier version wrote the row.
    """

    id: str
    content: str
    source: str
    place: str
    item: Item
    mark: str = ""
    root: str = ""
    key: str = ""
    file: str = ""

    def entry(self, base: Path) -> Entry:
        """As stores keep it; paths become relative to `base`, where its root lies."""
        body = {name: getattr(self, name) for name in _KEPT}
        return Entry(self.id, json.dumps(body | {"item": self.item.to_json(base)}))

    @property
    def picture(self) -> Path | None:
        """The first picture to be seen of it: the image, the page, the first frame."""
        return next((each for each in self.item.pictures if isinstance(each, Path)), None)


@dataclass(frozen=True)
class About:
    """What an index is: its `index.json`.

    Attributes:
        model: folder (relative to the index, if it begins with a dot) or name of the model.
        space: what its vectors are.
        store: as `--store` says, without a password.
        name: of the table in the store; another after a rebuild.
        form: in which vectors are searched, if embedded.
        roots: folders and files that were indexed: name -> path relative to the index.
        settings: how things were read (frames of a video, resolution of a page).
        measured: what the form costs: rows, recall, its interval; "narrowed": what the numbers that are kept find of what whole
            vectors find. Empty if nothing was measured.
        paths: what was indexed, relative to the index.
        before: store and name of the table of an earlier build that readers may still have open.
    """

    model: str
    space: Space
    store: str
    name: str
    form: Form = field(default_factory=Form)
    roots: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    before: tuple[tuple[str, str], ...] = ()

    def write(self, file: Path) -> None:
        """Write it to a file, whole or not at all."""
        write_sealed(file, json.loads(json.dumps({"kind": "index", **asdict(self)})))

    @classmethod
    def read(cls, file: Path) -> About:
        """What `write` wrote.

        Raises:
            ArtifactError: not there, or damaged.
        """
        body = read_sealed(file)
        body.pop("kind")
        space, form = Space(**body.pop("space")), Form(**body.pop("form"))
        paths, before = tuple(body.pop("paths")), tuple((store, name) for store, name in body.pop("before"))
        return cls(**body, space=space, form=form, paths=paths, before=before)

    def at(self, folder: Path, root: str) -> Path:
        """Where a root lies now."""
        return (folder / self.roots[root]).resolve() if root else folder.resolve()


def new_name() -> str:
    """Name of a table that nobody has."""
    return f"rows_{secrets.token_hex(6)}"
