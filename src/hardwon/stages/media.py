"""Pictures that an index has made itself, of pages and videos: which of them its rows show, and which can go.

Rows of earlier builds show some as well, as long as readers may have those open. What they show is written down when a build
takes their place, since their stores need not be there, or may be out of reach, whenever an index is brought up to date.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hardwon.artifacts import write_json

MEDIA, EARLIER = "media", "earlier.json"


def names(row: dict[str, Any]) -> frozenset[str]:
    """Files and folders in `MEDIA` that a row shows, by its payload."""
    if row["root"]:
        return frozenset()  # a folder of the user may have that name too
    item = row["item"]
    shown = (Path(name).parts for name in [*item.get("images", ()), *item.get("video", ())])
    return frozenset(parts[1] for parts in shown if parts[0] == MEDIA)


def used(payloads: Iterable[str]) -> set[str]:
    """What rows show."""
    return {name for payload in payloads for name in names(json.loads(payload))}


def there(out: Path) -> frozenset[str]:
    """What has been made for the index in a folder."""
    return frozenset(path.name for path in (out / MEDIA).iterdir()) if (out / MEDIA).is_dir() else frozenset()


def note(out: Path, table: str, shown: Iterable[str]) -> None:
    """Write down what the rows of a table show that another one is about to take the place of."""
    write_json(out / EARLIER, {**_noted(out), table: sorted(shown)})


def clean(out: Path, shown: Iterable[str], before: Sequence[str]) -> None:
    """Remove what nobody shows any more; nothing where it is not known of an earlier build what it shows.

    Args:
        out: folder of the index.
        shown: by its rows.
        before: tables of earlier builds that are still there.
    """
    noted = _noted(out)
    if kept := {table: noted[table] for table in before if table in noted}:
        if kept != noted:
            write_json(out / EARLIER, kept)
    else:
        (out / EARLIER).unlink(missing_ok=True)
    if len(kept) < len(set(before)):
        return
    for name in there(out) - set(shown).union(*kept.values()):
        path = out / MEDIA / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _noted(out: Path) -> dict[str, list[str]]:
    try:
        return json.loads((out / EARLIER).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
