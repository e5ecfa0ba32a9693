"""Items of every kind. hardwon is imported inside functions: the shape checks install themselves before it."""

import pytest


@pytest.fixture
def pictures(tmp_path):
    """Paths of three files that stand for pictures: an index looks at nothing but their bytes."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    paths = [folder / "a.png", folder / "more" / "b.png", folder / "more" / "c d\u2028é.png"]
    for n, path in enumerate(paths):
        path.write_bytes(b"picture %d" % n)
    return paths


@pytest.fixture
def mixed(pictures):
    """Words, pictures and both."""
    from hardwon.items import Item

    a, b, c = pictures
    return [
        Item(text="words\u2028\nand \ud800 more"),
        Item(images=(a,)),
        Item("both", (b, a)),
        Item(images=(c,), instruction="find"),
        Item(text="film", video=(c, a, b)),
    ]
