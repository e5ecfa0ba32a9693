import json

import mmeb
import numpy as np
import pytest


def load(name, root, **options):
    from hardwon.evaluation import load_benchmark

    return load_benchmark(name, root, **options)


@pytest.mark.parametrize(("name", "captions"), [("flickr30k", 5), ("coco", 5)])
def test_five_captions_each_both_ways(tmp_path, name, captions):
    mmeb.write_karpathy(tmp_path, name)
    t2i, i2t = load(name, tmp_path).tasks
    assert (t2i.name, i2t.name) == (f"{name}_t2i", f"{name}_i2t")
    assert (len(t2i.queries), len(t2i.corpus)) == (3 * captions, 3)
    assert (len(i2t.queries), len(i2t.corpus)) == (3, 3 * captions)
    assert [len(gold) for gold in i2t.gold] == [captions] * 3
    assert i2t.corpus[0].text == "a heron seen by person 0"
    assert t2i.candidates is None
    assert i2t.candidates is None


def test_any_of_the_captions_in_the_first_place_is_a_hit(tmp_path, fake):
    """The trap of picture to text with five captions: one of them, not a certain one, has to be first."""
    from hardwon.evaluation import evaluate

    mmeb.write_karpathy(tmp_path, "flickr30k", pictures=2)
    made = load("flickr30k", tmp_path)
    i2t = made.tasks[1]
    encoder = fake(dim=4)
    near, far = np.eye(4)[0], np.eye(4)[1]
    encoder.vectors = {item.key: far for item in i2t.corpus} | {query.key: near for query in i2t.queries}
    encoder.vectors[i2t.corpus[3].key] = near  # the fourth caption of the first picture
    report = evaluate(encoder, made, progress=False, tasks=["flickr30k_i2t"])
    assert report.result("flickr30k_i2t").hits == (1.0, 0.0)
    assert report.result("flickr30k_i2t").measures["hit@5"] == 0.5


def test_a_caption_that_two_pictures_share_is_gold_for_both(tmp_path):
    mmeb.write_karpathy(tmp_path, "coco", pictures=2)
    path = tmp_path / "dataset_coco.json"
    told = json.loads(path.read_text())
    told["images"][2]["sentences"][4]["raw"] = told["images"][1]["sentences"][0]["raw"]
    path.write_text(json.dumps(told))
    t2i, i2t = load("coco", tmp_path).tasks
    assert len(i2t.corpus) == 9
    assert set(i2t.gold[0]) & set(i2t.gold[1]) == {0}
    assert len(t2i.queries) == 10


def test_sharegpt4v_asks_the_first_thousand(tmp_path, monkeypatch):
    from hardwon.evaluation import neighbours

    mmeb.write_sharegpt4v(tmp_path)
    assert [len(task.queries) for task in load("sharegpt4v", tmp_path).tasks] == [3, 3]
    monkeypatch.setattr(neighbours, "_ASKED", 2)
    t2i, i2t = load("sharegpt4v", tmp_path).tasks
    assert [query.text for query in t2i.queries] == ["A long tale of a heron, 0.", "A long tale of a kettle, 1."]
    assert i2t.gold == ((0,), (1,))


@pytest.mark.parametrize("base", ["Urban1k", ""])
def test_urban1k(tmp_path, base):
    mmeb.write_urban1k(tmp_path, base)
    t2i, _ = load("urban1k", tmp_path).tasks
    pairs = [(query.text, t2i.corpus[gold].images[0].name) for query, (gold,) in zip(t2i.queries, t2i.gold, strict=True)]
    assert pairs == [(f"A street with a {mmeb.WORDS[n]}.", f"{n}.jpg") for n in range(3)]


def test_sugarcrepe_is_a_choice_of_two(tmp_path, constant):
    from hardwon.evaluation import evaluate

    mmeb.write_sugarcrepe(tmp_path)
    made = load("sugarcrepe", tmp_path)
    assert len(made.tasks) == 7
    for task in made.tasks:
        assert all(len(searched) == 2 for searched in task.candidates)
        right = [task.corpus[gold].text for (gold,) in task.gold]
        assert right == [f"a {word} on a table" for word in mmeb.WORDS[:4]]
    assert evaluate(constant(), made, progress=False).mean().mean == 0.5


@pytest.mark.parametrize(
    ("name", "file", "rows"),
    [
        (
            "msrvtt",
            "MSRVTT_JSFUSION_test.csv",
            [{"key": f"ret{n}", "video_id": f"v{n}", "sentence": f"film {n}"} for n in range(3)],
        ),
        ("msrvtt", "msrvtt_test_1k.json", [{"video_id": f"v{n}", "caption": f"film {n}"} for n in range(3)]),
        ("msvd", "msvd_test.json", [{"video_id": f"v{n}", "caption": [f"film {n}", f"it is {n}"]} for n in range(3)]),
    ],
)
def test_videos_by_caption(tmp_path, fake, name, file, rows):
    from hardwon.evaluation import evaluate

    mmeb.write_films(tmp_path, file, rows)
    (tmp_path / "msrvtt_train_9k.json").write_text("[]")
    (task,) = load(name, tmp_path).tasks
    each = 2 if name == "msvd" else 1
    assert task.gold == tuple((n,) for n in range(3) for _ in range(each))
    assert all(len(item.video) == 3 for item in task.corpus)
    result = evaluate(fake(), load(name, tmp_path), progress=False).result(f"{name}_t2v")
    assert result.measures["recall@5"] == result.measures["recall@10"] == 1.0
    assert result.measures["recall@1"] == sum(result.hits) / len(result.hits)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flickr30k", "dataset_flickr30k.json does not exist: download Karpathy's split"),
        ("coco", "dataset_coco.json does not exist"),
        ("sharegpt4v", "Lin-Chen/ShareGPT4V"),
        ("urban1k", "BeichenZhang/Urban1k"),
        ("sugarcrepe", "replace_obj: .*download replace_obj.json of SugarCrepe"),
        ("msrvtt", "one file of rows .none found.: those of friedrichor/MSR-VTT"),
        ("msvd", "friedrichor/MSVD"),
    ],
)
def test_what_is_missing_is_named_with_what_to_download(tmp_path, name, reason):
    from hardwon.errors import DataError

    with pytest.raises(DataError, match=reason):
        load(name, tmp_path)


def test_bad_rows_are_named(tmp_path):
    from hardwon.errors import DataError

    mmeb.write_karpathy(tmp_path / "k", "flickr30k")
    path = tmp_path / "k/dataset_flickr30k.json"
    told = json.loads(path.read_text())
    told["images"][1]["sentences"] = []
    told["images"][2]["filename"] = "gone.jpg"
    told["images"][3] = 7
    path.write_text(json.dumps(told))
    with pytest.raises(DataError) as caught:
        load("flickr30k", tmp_path / "k")
    message = str(caught.value)
    assert f"{path}:2: picture 1.jpg has no captions" not in message
    for said in (
        f"{path}:2: picture 0.jpg has no captions",
        f"{path}:3: ",
        "gone.jpg does not exist",
        f"{path}:4: must be an object",
    ):
        assert said in message
    mmeb.write_sugarcrepe(tmp_path / "s")
    path = tmp_path / "s/data/swap_att.json"
    rows = json.loads(path.read_text())
    rows["1"]["negative_caption"] = rows["1"]["caption"]
    rows["2"].pop("caption")
    path.write_text(json.dumps(rows))
    made = load("sugarcrepe", tmp_path / "s", on_error="skip")
    ((name, why),) = made.missing
    assert name == "swap_att"
    assert f"{path}:2: its true and its false caption are the same" in why
    assert f"{path}:3: has no caption" in why
    path.write_text("{")
    assert "cannot be read" in load("sugarcrepe", tmp_path / "s", on_error="skip").missing[0].why
    mmeb.write_films(tmp_path / "v", "test.json", [{"video_id": "a", "caption": "x"}])
    (tmp_path / "v/test.json").write_text('[{"video_id": "a"}, {"video_id": "b", "caption": "y"}]')
    with pytest.raises(DataError, match=r"test.json:1: needs a video_id and a caption(?s:.*):2: neither frames"):
        load("msrvtt", tmp_path / "v")
