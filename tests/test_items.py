"""Items, candidates and examples: keys that never change, paths that never leave their root."""

import json
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardwon.errors import BadMedia, DataError
from hardwon.items import Candidate, Example, Item, item_from_json, picture_key, read_examples, resolve, write_examples

TEXT = st.text(min_size=1, max_size=20)


@pytest.fixture
def as_users_run():
    """Without the run-time checks of annotations, which would answer before our own messages do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# -- keys -------------------------------------------------------------------------------------------------------------


def test_keys_never_change():
    # Caches, negatives and judgements on disk are found by these: a change of them is a change of format.
    assert Item(text="a red kite").key == "d6421096e82d93c01b33d296fe52bb4e"
    assert (
        Item(text="a red kite", images=(b"not really a picture",), instruction="Find it.").key
        == "ff47c3f62b1da59bc2e69ce376cc3dbf"
    )
    assert Item(text="a red kite", video=(b"first", b"second")).key == "5c8b5b74a4eafc893d97661eb8928404"


def test_the_key_of_a_picture_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"same")
    (tmp_path / "b.jpg").write_bytes(b"same")
    keys = {Item(images=(picture,)).key for picture in (tmp_path / "a.png", tmp_path / "b.jpg", b"same")}
    assert len(keys) == 1


def test_a_changed_file_has_another_key(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"before")
    before = picture_key(file)
    file.write_bytes(b"after it")
    assert picture_key(file) != before


def test_a_file_that_is_not_there_is_named_with_its_item(tmp_path):
    item = Item("a kite", (tmp_path / "gone.png",))
    with pytest.raises(BadMedia, match=r"gone\.png does not exist: check its name .* \(in '<gone\.png> a kite'\)"):
        _ = item.key
    with pytest.raises(BadMedia, match="cannot be read"):
        picture_key(tmp_path)


def test_a_label_is_short_and_holds_no_bytes():
    assert Item("a kite", (Path("far/away/red.png"), b"\x89PNG"), "Find it:").label == "'<red.png> <picture> Find it: a kite'"
    assert Item("x" * 1000).label == repr("x" * 80 + " ...")


def test_instruction_changes_the_key_but_not_the_content():
    plain, asked = Item(text="kite"), Item(text="kite", instruction="Find it.")
    assert plain.key != asked.key
    assert plain.content == asked.content == plain.key


@given(TEXT, st.text(max_size=5), st.lists(st.binary(min_size=1, max_size=4), max_size=2).map(tuple))
def test_the_key_follows_from_the_content(text, instruction, images):
    item = Item(text, images, instruction)
    assert item.key == Item(text, images, instruction).key
    assert item.key != Item(text + "!", images, instruction).key
    assert item.key != Item(text, (*images, b"another"), instruction).key


def test_no_text_has_the_key_of_something_else():
    """Parts of a key are put together with a character that a text may hold."""
    picture = picture_key(b"a picture")
    items = [Item("x", (b"a picture",)), Item(f"x\x00{picture}"), Item(f"x\x01\x02{picture}"), Item(f"x\x01{picture}")]
    items += [
        Item("b\x00c", instruction="a"),
        Item("c", instruction="a\x00b"),
        Item("a\x00b\x00c"),
        Item(f"\x00x\x00{picture}"),
    ]
    assert len({item.key for item in items}) == len(items)


def test_a_video_is_its_frames_in_their_order():
    a, b = b"first", b"second"
    # None of these may be taken for another.
    items = [Item(images=(a, b)), Item(video=(a, b)), Item(video=(b, a)), Item(video=(a,)), Item(images=(a,), video=(b,))]
    items += [Item(text="video", images=(a, b)), Item(text="video", video=(a, b))]
    assert len({item.key for item in items}) == len({item.content for item in items}) == len(items)
    assert Item(video=(a,), instruction="Find it.").content == Item(video=(a,)).content
    assert Item(images=(a,), video=(b, a)).pictures == (a, b, a)


def test_an_item_without_its_words():
    seen = Item(images=(b"a",), video=(b"b", b"c"))
    assert Item("as blue", seen.images, "Change it.", seen.video).wordless == seen
    assert Item(text="words", instruction="Find it.").wordless is None


@pytest.mark.parametrize("text", ["\ud800", "\x00", " ", "\N{KITE}", "a" * 1_000_000])
def test_no_text_breaks_the_key(text):
    assert len(Item(text=text).key) == 32


def test_modality():
    assert Item(text="a").modality == "text"
    assert Item(images=(b"a",), instruction="Find it.").modality == "image"
    assert Item(text="a", images=(b"a",)).modality == "image+text"
    assert Item(video=(b"a",), instruction="Find it.").modality == "video"
    assert Item(text="a", images=(b"a",), video=(b"a",)).modality == "image+video+text"


def test_an_item_needs_content():
    with pytest.raises(DataError, match="an item needs text, a picture or a video"):
        Item(instruction="Find it.")


# -- JSON -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    (tmp_path / "data" / "pictures" / "kite.png").write_bytes(b"kite")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return tmp_path / "data"


def example(root):
    kite = Item(images=(root.resolve() / "pictures" / "kite.png",), instruction="Look.")
    film = Item("flies", video=(*kite.images, root.resolve() / "later.png"))
    owl, bee = Candidate(Item(text="owl"), 0.25, "mined"), Candidate(Item(text="bee"), 0.0)
    candidates = (Candidate(kite, origin="gold"), owl, bee, Candidate(film))
    return Example(Item(text="a \N{KITE}", instruction="Find it."), candidates, "birds", frozenset({"ab", "cd"}))


def test_an_example_survives_json(root):
    there = example(root)
    text = json.dumps(there.to_json(root))
    assert str(root) not in text
    assert Example.from_json(json.loads(text), root) == there


def test_write_and_read_examples(root):
    examples = [example(root), Example(Item(text="q"), (Candidate(Item(text="p"), origin="gold"),))]
    assert write_examples(root / "rows.jsonl", examples) == 2
    assert list(read_examples(root / "rows.jsonl")) == examples


@given(TEXT, st.text(max_size=5))
def test_an_item_survives_json(tmp_path_factory, text, instruction):
    item = Item(text=text, instruction=instruction)
    folder = tmp_path_factory.getbasetemp()
    again = item_from_json(json.loads(json.dumps(item.to_json(folder))), folder)
    assert again == item
    assert again.key == item.key


def test_pictures_held_as_bytes_have_no_json(root):
    with pytest.raises(DataError, match="held as bytes has no path: write it to a file first"):
        Item(images=(b"kite",)).to_json(root)


def test_item_from_json_takes_image_and_images(root):
    (root / "b.png").write_bytes(b"b")
    item = item_from_json({"image": "b.png", "images": ["pictures/kite.png"]}, root)
    assert [path.name for path in item.images] == ["b.png", "kite.png"]
    assert item_from_json("just text", root) == Item(text="just text")
    assert item_from_json({"text": "a", "image": None, "images": None, "instruction": None}, root) == Item(text="a")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (3, "an item is a string or an object, got int"),
        (None, "got NoneType"),
        ({"txt": "a"}, "unknown item field 'txt': did you mean 'text'"),
        ({"text": 3}, "text must be a string, got int"),
        ({"image": ["a.png"]}, "image must be a string, got list"),
        ({"images": "a.png"}, "images must be a list of paths"),
        ({"images": [3]}, "images must be a list of paths"),
        ({"video": "a.mp4"}, r"video must be a list of paths, one for each frame \(extract them beforehand, e.g. with ffmpeg"),
        ({"video": [["a.png"]]}, "video must be a list of paths"),
        ({"video": ["../secret.png"]}, "leads out of the data root"),
        ({}, "an item needs text, a picture or a video"),
    ],
)
def test_item_from_json_refuses(value, match, root):
    with pytest.raises(DataError, match=match):
        item_from_json(value, root)


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "pictures/../../secret.png", "/etc/passwd", "link.png", "folder/secret.png", "../data2/a.png"],
)
def test_paths_that_leave_the_root_are_refused(path, root):
    (root / "link.png").symlink_to(root.parent / "secret.png")
    (root / "folder").symlink_to(root.parent)
    (root.parent / "data2").mkdir()  # begins with the name of the root, but is not in it
    with pytest.raises(DataError, match="leads out of the data root"):
        resolve(root, path)


@pytest.mark.parametrize(
    "url", ["http://host/a.png", "https://host/a.png", "file:///etc/passwd", "s3://b/a", "data:image/png;base64,"]
)
def test_urls_are_refused(url, root):
    with pytest.raises(DataError, match="is a URL; pictures are read from files under"):
        resolve(root, url)


def test_paths_within_the_root_are_taken(root):
    (root / "inner.png").symlink_to(root / "pictures" / "kite.png")
    there = root.resolve() / "pictures" / "kite.png"
    for path in ("pictures/kite.png", "./pictures//kite.png", "pictures/../pictures/kite.png", "inner.png"):
        assert resolve(root, path) == there
    with pytest.raises(DataError, match="NUL"):
        resolve(root, "a\x00.png")


# -- candidates and examples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relevance", [0.0, 0.5, 1.0, None])
def test_relevance_within_its_range(relevance):
    assert Candidate(Item(text="a"), relevance).relevance == relevance


@pytest.mark.parametrize("relevance", [-0.01, 1.01, float("nan"), float("inf")])
def test_relevance_out_of_its_range(relevance):
    with pytest.raises(DataError, match=r"relevance must lie in \[0, 1\], got"):
        Candidate(Item(text="a"), relevance)


@pytest.mark.usefixtures("as_users_run")
def test_unknown_origin():
    with pytest.raises(DataError, match=r"unknown origin 'golden': did you mean 'gold'.* Valid: given, gold, mined"):
        Candidate(Item(text="a"), origin="golden")


def test_gold_is_said_by_origin_not_by_relevance():
    first, second = Candidate(Item(text="a"), 1.0, "mined"), Candidate(Item(text="b"), 0.0, "gold")
    row = Example(Item(text="q"), (first, second))
    assert row.gold == (Item(text="b"),)
    assert row.negatives == (first,)


def test_adding_keeps_what_was_there(root):
    row = example(root)
    more = row.adding([Candidate(Item(text="ant"), origin="mined")], related=["ef"])
    assert more.candidates[:-1] == row.candidates
    assert more.related == {"ab", "cd", "ef"}
    assert row == example(root)


def test_records_are_frozen(root):
    for record, name in ((Item(text="a"), "text"), (Candidate(Item(text="a")), "relevance"), (example(root), "query")):
        with pytest.raises(AttributeError):
            setattr(record, name, None)
