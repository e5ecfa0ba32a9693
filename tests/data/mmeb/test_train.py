import mmeb
import pytest


def row(n, **changes):
    """A row of MMEB-train: a picture with an instruction, and what it shows in words."""
    made = {
        "qry": "<|image_1|>\nFind what the picture shows.\n",
        "qry_image_path": f"NIGHTS/q{n}.png",
        "pos_text": f"a {mmeb.WORDS[n]}",
        "pos_image_path": "",
        "neg_text": f"a {mmeb.WORDS[n + 1]}",
        "neg_image_path": None,
    }
    return made | changes


def write(root, name="NIGHTS", rows=None, pictures="images", file="original-00000-of-00001.parquet"):
    rows = [row(n) for n in range(3)] if rows is None else rows
    for n in range(len(rows)):
        mmeb.draw(root / pictures / f"NIGHTS/q{n}.png", n)
    mmeb.write(root / name / file, rows)
    return root


@pytest.mark.parametrize("pictures", ["images", "image", ""])
def test_rows_are_pairs_with_their_negative(tmp_path, pictures):
    from hardwon.data.mmeb.train import read_train

    made = read_train(write(tmp_path, pictures=pictures))
    assert list(made) == ["NIGHTS"]
    first = made["NIGHTS"][0]
    assert first.query.text == "Find what the picture shows."
    assert first.query.images == ((tmp_path / pictures / "NIGHTS/q0.png").resolve(),)
    assert [(c.item.text, c.origin) for c in first.candidates] == [("a heron", "gold"), ("a kettle", "given")]
    assert first.source == "NIGHTS"


def test_one_file_is_read_like_any_other(tmp_path):
    from hardwon.data import read

    write(tmp_path)
    data = read(tmp_path / "NIGHTS/original-00000-of-00001.parquet", root=tmp_path / "images")
    assert len(data) == 3
    assert data[2].gold[0].text == "a violin"


def test_rows_with_the_same_query_know_each_others_positives(tmp_path):
    from hardwon.data.mmeb.train import read_train

    rows = [row(0), row(0, pos_text="the heron", qry_image_path="NIGHTS/q0.png")]
    one, two = read_train(write(tmp_path, rows=rows))["NIGHTS"]
    assert one.related == {two.gold[0].content}
    assert two.related == {one.gold[0].content}


def test_no_negative_and_a_copy_of_the_positive_leave_the_positive(tmp_path):
    from hardwon.data.mmeb.train import read_train

    rows = [row(0, neg_text=""), row(1, neg_text="a kettle")]
    assert [len(example.candidates) for example in read_train(write(tmp_path, rows=rows))["NIGHTS"]] == [1, 1]


def test_several_sets_wordings_and_files(tmp_path):
    from hardwon.data.mmeb.train import read_train

    write(tmp_path, "WebQA", file="original-00001-of-00002.parquet")
    write(tmp_path, "WebQA", file="original-00000-of-00002.parquet")
    write(tmp_path, "ImageNet_1K")
    write(tmp_path, "ImageNet_1K", [row(0)], file="diverse_instruction-00000-of-00001.parquet")
    assert {name: len(data) for name, data in read_train(tmp_path).items()} == {"ImageNet_1K": 3, "WebQA": 6}
    assert {name: len(data) for name, data in read_train(tmp_path, split="diverse_instruction").items()} == {"ImageNet_1K": 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"qry": "", "qry_image_path": ""}, "has no qry"),
        ({"pos_text": "<|image_1|>"}, "has no pos_text"),
        ({"qry_image_path": "gone.png"}, "gone.png does not exist"),
        ({"qry_image_path": "../../x.png"}, "leads out of the data root"),
    ],
)
def test_a_bad_row_is_named(tmp_path, changes, reason):
    from hardwon.data.mmeb.train import read_train
    from hardwon.errors import BadRows

    write(tmp_path, rows=[row(0), row(1, **changes), row(2)])
    with pytest.raises(BadRows) as caught:
        read_train(tmp_path)
    (bad,) = caught.value.rows
    assert (bad.file, bad.line) == (str(tmp_path / "NIGHTS/original-00000-of-00001.parquet"), 2)
    assert reason in bad.reason
    data = read_train(tmp_path, on_error="skip", max_bad_fraction=0.5)["NIGHTS"]
    assert (len(data), len(data.bad)) == (2, 1)


def test_what_is_missing_is_named_with_what_to_download(tmp_path):
    from hardwon.data.mmeb.train import read_train
    from hardwon.errors import DataError

    with pytest.raises(DataError, match=r"no original rows of ImageNet_1K, .*TIGER-Lab/MMEB-train"):
        read_train(tmp_path)
    with pytest.raises(DataError, match="no original rows of WebQA:"):
        read_train(write(tmp_path), ["WebQA"])
    with pytest.raises(DataError, match="unknown data set of MMEB-train 'ImageNet-1K': did you mean 'ImageNet_1K'"):
        read_train(tmp_path, ["ImageNet-1K"])
