"""MMEB-train: the folder of all data sets that one trains on.

    ROOT/NAME/original-00000-of-00001.parquet       and more files; `diverse_instruction-...` holds them in other words
    ROOT/images/PATH                                pictures; `image/` and the root itself are tried as well

What a row holds: `hardwon.data.mmeb_rows`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hardwon.data.mmeb.table import IMAGES, TRAIN
from hardwon.data.read import Dataset, collect
from hardwon.data.read_files import read_table
from hardwon.data.read_rows import Rows
from hardwon.errors import DataError, OnError, unknown

Split = Literal["original", "diverse_instruction"]
_PICTURES = ("images", "image", "")


def read_train(
    root: Path,
    names: Sequence[str] | None = None,
    *,
    split: Split = "original",
    on_error: OnError = "raise",
    max_bad_fraction: float = 0.01,
) -> dict[str, Dataset]:
    """Read MMEB-train.

    Args:
        root: folder of the data sets.
        names: of the data sets, as in MMEB-train ("ImageNet_1K"); all that are there if None.
        split: which wording of the instructions.
        on_error: as in `hardwon.data.read`, for each data set by itself.
        max_bad_fraction: as in `hardwon.data.read`.

    Returns:
        A data set by name, in the order of the table; its examples have the name as `source`.

    Raises:
        BadRows: rows that cannot be used.
        DataError: a data set that is not there; says what to download.
    """
    known = [one.train for one in IMAGES if one.train]
    for name in names or ():
        if name not in known:
            raise DataError(unknown("data set of MMEB-train", name, known))
    files = {name: sorted(root.glob(f"{name}/{split}*.parquet")) for name in known}
    wanted = names if names is not None else [name for name in known if files[name]]
    missing = [name for name in wanted if not files[name]]
    if missing or not wanted:
        raise DataError(
            f"{root} holds no {split} rows of {', '.join(missing or known)}: download NAME/ and its pictures "
            f"(images_zip/NAME.zip, unpacked into images/) of the data set {TRAIN}"
        )
    made = {}
    for name in wanted:
        records = [record for file in files[name] for record in read_table(file)]
        if not records:
            raise DataError(f"{root / name} holds no rows")
        first = next((p for r in records for p in (r.row.get("qry_image_path"), r.row.get("pos_image_path")) if p), "")
        pictures = next(
            (root / base for base in _PICTURES if first and (root / base / str(first)).exists()), root / _PICTURES[0]
        )
        made[name] = collect(
            root / name, records, Rows(pictures), on_error=on_error, max_bad_fraction=max_bad_fraction, source=name
        )
    return made
