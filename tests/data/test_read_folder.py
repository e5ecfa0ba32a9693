"""Reading the pictures of a folder."""

import json

import pytest
from PIL import Image

from hardwon.data import images, read
from hardwon.errors import BadRows, DataError
from hardwon.items import Item


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (4, 4), name).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path


def shown(folder, name):
    return Item(images=(folder.resolve() / "pictures" / f"{name}.png",))


def test_images_of_a_folder(folder):
    (folder / "notes.txt").write_text("no picture")
    Image.new("RGB", (2, 2)).save(folder / "A.JPG")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_bytes(b"not ours")
    assert images(folder) == (Item(images=(folder.resolve() / "A.JPG",)), shown(folder, "blue"), shown(folder, "red"))


def test_broken_images_of_a_folder(folder):
    (folder / "broken.png").write_bytes(b"<html>404")
    (folder / "photo.heic").write_bytes(b"\x00\x00\x00\x1cftypheic")
    with pytest.raises(BadRows, match=r"broken\.png is a web page(?s:.*)photo\.heic is none of PNG, JPEG"):
        images(folder)
    with pytest.warns(UserWarning, match=r"2 of 4 pictures below .* are left out: .*broken\.png"):
        found = images(folder, on_error="skip", max_bad_fraction=0.5)
    assert found == (shown(folder, "blue"), shown(folder, "red"))


def test_images_do_not_follow_links_out_of_the_folder(folder):
    (folder / "pictures" / "out.png").symlink_to(folder / "pictures" / "red.png")
    (folder / "inner").mkdir()
    (folder / "inner" / "out.png").symlink_to(folder / "pictures" / "red.png")
    assert len(images(folder / "pictures")) == 3
    with pytest.raises(BadRows, match="leads out of the data root"):
        images(folder / "inner")


def test_folders_without_pictures(folder):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no pictures: looked for .*\.png"):
        images(folder / "empty")
    with pytest.raises(DataError, match=r"pictres does not exist: did you mean 'pictures'\?"):
        images(folder / "pictres")
    with pytest.raises(DataError, match="is not a folder"):
        images(folder / "pictures" / "red.png")


def test_damage_inside_a_picture_is_found_by_decoding(folder):
    file = folder / "pictures" / "red.png"
    Image.effect_noise((64, 64), 90).save(file)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    rows = folder / "pairs.jsonl"
    rows.write_text(json.dumps({"query": "q", "positive_image": "pictures/red.png"}))
    assert len(read(rows)) == 1
    for reading in (lambda: read(rows, decode_pictures=True), lambda: images(folder, decode_pictures=True)):
        with pytest.raises(BadRows, match=r"red\.png is broken or truncated"):
            reading()
