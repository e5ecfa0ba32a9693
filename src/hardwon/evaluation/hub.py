"""MMEB from the hub: the published files are brought into a folder, which is then read like any other."""

import zipfile
import zlib
from pathlib import Path

from hardwon.data.mmeb.table import EVAL_V1
from hardwon.errors import DataError, MissingExtra

_ARCHIVE = "images.zip"


def download_mmeb(root: Path, *, revision: str | None = None) -> str:
    """Bring MMEB v1 (rows and pictures) into a folder; what is there already is not fetched again.

    Args:
        root: where to.
        revision: commit, tag or branch of the published data set; the newest if None.

    Returns:
        The commit that was brought: write it down to bring the same data again.

    Raises:
        DataError: the data set, or this revision of it, cannot be had; an archive that is broken.
        MissingExtra: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
    except ImportError:
        raise MissingExtra("huggingface_hub") from None
    wanted = ["*/test*.parquet", _ARCHIVE]
    try:
        commit = HfApi().dataset_info(EVAL_V1, revision=revision).sha or ""
        snapshot_download(EVAL_V1, repo_type="dataset", revision=commit, local_dir=root, allow_patterns=wanted)
    except RevisionNotFoundError as error:
        raise DataError(f"{EVAL_V1} has no revision {revision!r}: give a commit, tag or branch of it") from error
    except (HfHubHTTPError, OSError) as error:
        raise DataError(f"{EVAL_V1} cannot be had ({error}): check the network, or copy its files into {root}") from error
    unpack(root)
    return commit


def unpack(root: Path) -> None:
    """Unpack the pictures of MMEB v1 into `images/`; pictures of the right size that are there already stay.

    Raises:
        DataError: the archive is not there or is broken.
    """
    archive = root / _ARCHIVE
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                # ZipFile.extract drops "..", drive letters and leading slashes, so nothing lands outside.
                there = root / "images" / member.filename
                if member.is_dir() or Path(member.filename).name.startswith("._"):
                    continue
                if not there.is_file() or there.stat().st_size != member.file_size:
                    opened.extract(member, root / "images")
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}): remove it and download it again") from error
