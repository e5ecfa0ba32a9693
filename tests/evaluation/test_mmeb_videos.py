import json

import mmeb
import pytest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The 18 video tasks, tiny; never write into it."""
    return mmeb.write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def tasks(whole):
    from hardwon.evaluation import load_benchmark

    return {task.name: task for task in load_benchmark("mmeb-v2-video", whole).tasks}


def why(root, name, change):
    from hardwon.evaluation import load_benchmark

    mmeb.write_video_set(root, name, change)
    mmeb.write_video_set(root, "MSVD" if name != "MSVD" else "VATEX")
    missing = load_benchmark("mmeb-v2-video", root, on_error="skip").missing
    return next(gone.why for gone in missing if gone.name == name)


def test_all_18_are_read(tasks):
    from collections import Counter

    from hardwon.data.mmeb import VIDEOS

    assert list(tasks) == [one.name for one in VIDEOS]
    assert Counter(task.meta_task for task in tasks.values()) == {
        "classification": 5, "vqa": 5, "retrieval": 5, "moments": 3,
    }  # fmt: skip
    for one in VIDEOS:
        task = tasks[one.name]
        assert len(task.queries) == mmeb.VIDEOS
        assert all(bool(item.video) == ("V" in one.candidate) for item in task.corpus)
        if one.name != "MomentSeeker":
            assert all(bool(query.video) == ("V" in one.query) for query in task.queries)


def test_labels_and_videos_are_searched_as_a_whole_and_options_by_row(tasks):
    own = {name for name, task in tasks.items() if task.candidates is not None}
    assert own == {
        "SmthSmthV2", "MVBench", "Video-MME", "NExTQA", "EgoSchema", "ActivityNetQA", "QVHighlight", "Charades-STA",
        "MomentSeeker",
    }  # fmt: skip
    assert [item.text for item in tasks["UCF101"].corpus] == list(mmeb.WORDS[:3])
    assert len(tasks["VATEX"].corpus) == mmeb.VIDEOS


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("SmthSmthV2", mmeb.WORDS[1]), ("MVBench", f"(C) a {mmeb.WORDS[2]}"), ("Video-MME", mmeb.WORDS[2]),
        ("NExTQA", mmeb.WORDS[3]), ("EgoSchema", mmeb.WORDS[4]), ("ActivityNetQA", "yes"),
    ],
)  # fmt: skip
def test_the_right_option_is_gold(tasks, name, right):
    task = tasks[name]
    (gold,) = task.gold[0]
    assert task.corpus[gold].text.removeprefix("a ") == right


def test_questions_hold_their_options(tasks):
    first = {name: task.queries[0].text for name, task in tasks.items()}
    assert first["NExTQA"].split("\n")[1:3] == ["Options:", f"(A) a {mmeb.WORDS[0]}"]
    assert first["Video-MME"].split("\n")[2] == f"B. a {mmeb.WORDS[1]}"
    assert first["ActivityNetQA"] == "is it 0? (A) yes; (B) no."


def test_clips_of_a_moment(tasks):
    assert [len(searched) for searched in tasks["QVHighlight"].candidates] == [3] * mmeb.VIDEOS
    for gold, task in ((tasks[name].gold[0][0], tasks[name]) for name in ("QVHighlight", "Charades-STA")):
        assert task.corpus[gold].video[0].parent.name == "positive_0"
    seeker = tasks["MomentSeeker"]
    assert [len(gold) for gold in seeker.gold] == [1, 2, 1, 2]
    assert [query.modality for query in seeker.queries] == ["text", "image+text", "video+text", "text"]


def test_eight_frames_are_taken_in_the_order_of_their_numbers(tmp_path):
    from hardwon.data.frames import frames_of

    for n in (*range(1, 22), 100):
        mmeb.draw(tmp_path / f"clip/frame_{n}.png", n)
    (tmp_path / "clip/._frame_1.png").write_bytes(b"x")
    names = [path.removeprefix("clip/frame_").removesuffix(".png") for path in frames_of(tmp_path, "clip", "none")]
    assert names == ["1", "4", "7", "10", "13", "16", "19", "100"]
    assert len(frames_of(tmp_path, "clip", "none", count=50)) == 22


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("Video-MME", {"answer": "E"}, "its answer 'E' is none of its 4 options"),
        ("SmthSmthV2", {"pos_text": "a whale"}, "its answer 'a whale' is not among its candidates"),
        ("SmthSmthV2", {"neg_text": []}, "neg_text must be a list of strings"),
        ("K700", {"video_id": "gone"}, "neither frames in "),
        ("MSR-VTT", {"caption": None}, "has no caption"),
        ("QVHighlight", {"video_path": "gone.mp4"}, "no folder positive"),
        ("MomentSeeker", {"positive_frames": []}, "no candidate belongs to it"),
        ("MomentSeeker", {"negative_frames": ["x"]}, "objects with output_path"),
    ],
)
def test_a_bad_row_is_named_with_its_set(tmp_path, name, change, reason):
    told = why(tmp_path, name, mmeb.spoiled(1, **change))
    assert reason in told
    assert f"{name if name != 'K700' else 'Kinetics-700'}/data/test-0.jsonl:2: " in told


def test_what_is_missing_is_named_with_what_to_download(tmp_path):
    from hardwon.errors import DataError
    from hardwon.evaluation import load_benchmark

    with pytest.raises(DataError, match=r"K700: .*Kinetics-700 holds no rows: .*frames/video_cls/K700, from .*MMEB-V2"):
        load_benchmark("mmeb-v2-video", tmp_path)


def test_other_words_for_instructions(tmp_path):
    from hardwon.errors import DataError
    from hardwon.evaluation import load_benchmark

    mmeb.write_video_set(tmp_path, "MSVD")

    def read():
        return load_benchmark("mmeb-v2-video", tmp_path, on_error="skip").tasks[0]

    usual = read()
    (tmp_path / "instructions.json").write_text(json.dumps({"MSVD": {"query": "Which video?"}}))
    other = read()
    assert {query.instruction for query in other.queries} == {"Which video?"}
    assert [item.instruction for item in other.corpus] == [item.instruction for item in usual.corpus]
    (tmp_path / "instructions.json").write_text(json.dumps({"MSVD": {"question": "Which video?"}}))
    with pytest.raises(DataError, match=r"instructions.json must hold"):
        read()
