import random
import zipfile

import httpx2
import mmeb
import pytest


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that holds one data set of MMEB-eval with its pictures in an archive; remembers what it was asked for."""
    import huggingface_hub
    from huggingface_hub.errors import RevisionNotFoundError

    asked = []
    mmeb.write_set(tmp_path / "hub", "NIGHTS")
    with zipfile.ZipFile(tmp_path / "hub/images.zip", "w") as archive:
        for path in sorted((tmp_path / "hub/images").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "hub/images"))
        archive.writestr("NIGHTS/._query-0.png", b"twin")

    def info(self, repository, *, revision):
        if revision == "nowhere":
            raise RevisionNotFoundError(
                "no such revision", response=httpx2.Response(404, request=httpx2.Request("GET", "http://hub"))
            )
        return type("Info", (), {"sha": "c0ffee"})()

    def download(repository, *, repo_type, revision, local_dir, allow_patterns):
        asked.append((repository, repo_type, revision, tuple(allow_patterns)))
        for name in ("NIGHTS/test-00000-of-00001.parquet", "images.zip"):
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (local_dir / name).write_bytes((tmp_path / "hub" / name).read_bytes())

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_what_is_brought_is_read_like_any_folder(hub, tmp_path):
    from hardwon.evaluation import load_benchmark
    from hardwon.evaluation.hub import download_mmeb

    assert download_mmeb(tmp_path / "here") == "c0ffee"
    assert hub == [("TIGER-Lab/MMEB-eval", "dataset", "c0ffee", ("*/test*.parquet", "images.zip"))]
    here, there = (load_benchmark("mmeb", tmp_path / name, on_error="skip") for name in ("here", "hub"))
    assert here.revision == there.revision
    assert not list((tmp_path / "here").rglob("._*"))


def test_pictures_that_are_there_are_left_and_broken_ones_mended(hub, tmp_path):
    from hardwon.evaluation.hub import download_mmeb

    download_mmeb(tmp_path / "here")
    first, second = (tmp_path / f"here/images/NIGHTS/query-{n}.png" for n in range(2))
    before, whole = first.stat().st_mtime_ns, second.read_bytes()
    second.write_bytes(whole[:20])
    download_mmeb(tmp_path / "here")
    assert first.stat().st_mtime_ns == before
    assert second.read_bytes() == whole


def test_a_wrong_revision_and_a_broken_archive_are_named(hub, tmp_path):
    from hardwon.errors import DataError
    from hardwon.evaluation.hub import download_mmeb, unpack

    with pytest.raises(DataError, match=r"TIGER-Lab/MMEB-eval has no revision 'nowhere'"):
        download_mmeb(tmp_path / "here", revision="nowhere")
    (tmp_path / "images.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match=r"images\.zip cannot be unpacked"):
        unpack(tmp_path)


def test_a_damaged_picture_in_an_archive_is_named(tmp_path):
    from hardwon.errors import DataError
    from hardwon.evaluation.hub import unpack

    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("NIGHTS/a.png", random.Random(0).randbytes(2000) + b"a" * 30000)
    raw = bytearray(path.read_bytes())
    raw[100:400] = bytes(255 - byte for byte in raw[100:400])
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"images\.zip cannot be unpacked"):
        unpack(tmp_path)
