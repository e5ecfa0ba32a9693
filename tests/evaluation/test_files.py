import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardwon.errors import ArtifactError, BadRows, DataError
from hardwon.evaluation import Benchmark, read_benchmark, write_benchmark
from hardwon.items import Item


@pytest.fixture
def folder(tmp_path, picture, make_task):
    """A benchmark with pictures, in files."""
    images = [picture(f"pictures/{n}.png", n) for n in range(3)]
    found = make_task("pictures", q=3, c=3, corpus=tuple(Item(images=(path,)) for path in images))
    like = Item(text="like this", images=(images[0],), instruction="Find it.", video=(images[2], images[1]))
    asked = (like, Item(text="ä \u2028 \n line"), Item(text="c"))
    some = make_task("some", q=3, c=4, queries=asked, candidates=((0, 1), (0, 1, 2, 3), (2, 1)), meta_task="vqa")
    write_benchmark(Benchmark("tiny", (found, some)), tmp_path / "tiny")
    return tmp_path / "tiny"


def change(folder, file, line, row):
    """Replace a line (from 1) of a file by a JSON value or by bytes."""
    path = folder / file
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = row if isinstance(row, bytes) else json.dumps(row).encode()
    path.write_bytes(b"\n".join(lines))


def head(folder, **changes):
    path = folder / "benchmark.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read_back(folder, make_task):
    found = read_benchmark(folder)
    assert found.name == "tiny"
    assert [task.name for task in found.tasks] == ["pictures", "some"]
    assert found.tasks[0].candidates is None
    assert found.tasks[1].candidates == ((0, 1), (0, 1, 2, 3), (2, 1))
    assert found.tasks[1].queries[1].text == "ä \u2028 \n line"
    assert found.tasks[1].queries[0].instruction == "Find it."
    assert found.tasks[1].meta_task == "vqa"
    again = folder.with_name("again")
    write_benchmark(found, again)
    assert read_benchmark(again) == found
    assert read_benchmark(again).revision == found.revision


def test_the_revision_survives_a_move(folder, tmp_path):
    before = read_benchmark(folder).revision
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("tiny", "pictures"):
        (tmp_path / name).rename(moved / name)
    assert read_benchmark(moved / "tiny").revision == before


def test_every_bad_row_is_named_with_data_set_and_line(folder):
    change(folder, "some/queries.jsonl", 1, {"query": "a", "gold": []})
    change(folder, "some/queries.jsonl", 2, {"query": "a", "gold": [2], "candidates": [0, 1]})
    change(folder, "pictures/corpus.jsonl", 3, {"images": ["pictures/9.png"]})
    with pytest.raises(BadRows) as caught:
        read_benchmark(folder)
    assert [(row.file, row.line) for row in caught.value.rows] == [
        ("pictures/corpus.jsonl", 3),
        ("some/queries.jsonl", 1),
        ("some/queries.jsonl", 2),
    ]
    text = str(caught.value)
    assert "3 of 13 rows cannot be used" in text
    assert "9.png" in text
    assert "some/queries.jsonl:1: no gold" in text
    assert "some/queries.jsonl:2: gold 2 is not among its candidates" in text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"", "a blank line"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"query": "\xff", "gold": [0]}', "not Unicode"),
        (b'{"query": "\\ud800", "gold": [0]}', "not Unicode"),
        ([], "a row of queries is an object with query and gold, got list"),
        ({"gold": [0]}, "no query"),
        ({"query": None, "gold": [0]}, "no query"),
        ({"query": "", "gold": [0]}, "an item needs text, a picture or a video"),
        ({"query": 5, "gold": [0]}, "an item is a string or an object, got int"),
        ({"query": {"txt": "a"}, "gold": [0]}, "unknown item field 'txt': did you mean 'text'"),
        ({"query": {"images": 5}, "gold": [0]}, "images must be a list of paths"),
        ({"query": {"images": [5]}, "gold": [0]}, "images must be a list of paths"),
        ({"query": {"video": ["pictures/0.png", "pictures/9.png"]}, "gold": [0]}, "9.png does not exist"),
        ({"query": {"image": "https://example.org/a.png"}, "gold": [0]}, "is a URL"),
        ({"query": {"image": "../up.png"}, "gold": [0]}, "leads out of the data root"),
        ({"query": {"image": "/etc/passwd"}, "gold": [0]}, "leads out of the data root"),
        ({"query": {"image": "a\x00b"}, "gold": [0]}, "NUL"),
        ({"query": {"image": "pictures"}, "gold": [0]}, "pictures is not a file"),
        ({"query": {"image": "tiny/benchmark.json"}, "gold": [0]}, "benchmark.json is none of PNG, JPEG"),
        ({"query": "a"}, "no gold"),
        ({"query": "a", "gold": 0}, r"gold must be a list of positions"),
        ({"query": "a", "gold": "0"}, r"gold must be a list of positions"),
        ({"query": "a", "gold": [True]}, r"gold must be a list of positions"),
        ({"query": "a", "gold": [0.0]}, r"gold must be a list of positions"),
        ({"query": "a", "gold": [4]}, "gold 4 is not in the corpus, whose positions are 0 to 3"),
        ({"query": "a", "gold": [0], "candidates": []}, "no candidates"),
        ({"query": "a", "gold": [0], "candidates": {"0": 1}}, "candidates must be a list of positions"),
        ({"query": "a", "golds": [0]}, "unknown field 'golds': did you mean 'gold'"),
    ],
)
def test_a_bad_query_is_told_why(folder, row, reason):
    change(folder, "some/queries.jsonl", 2, row)
    with pytest.raises(BadRows, match=reason) as caught:
        read_benchmark(folder)
    assert [(bad.file, bad.line) for bad in caught.value.rows] == [("some/queries.jsonl", 2)]


def test_a_picture_that_many_rows_share_is_looked_at_once(folder, monkeypatch):
    from hardwon.evaluation import files

    looked = []
    monkeypatch.setattr(files, "check_picture", looked.append)
    read_benchmark(folder)
    assert sorted(path.name for path in looked) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nam": "x"}, "unknown field 'nam': did you mean 'name'"),
        ({"name": ""}, "name must be a string"),
        ({"name": 3}, "name must be a string"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": {}}, "at least one task"),
        ({"tasks": ["a"]}, "task 0 must be an object"),
        ({"tasks": [{"name": "some"}]}, "task 0: meta_task must be a string"),
        ({"root": 1}, "root must be a string"),
        ({"root": "../.."}, "leads further up"),
        ({"root": "/"}, "leads further up"),
    ],
)
def test_a_bad_head_is_told_why(folder, changes, message):
    head(folder, **changes)
    with pytest.raises(DataError, match=message):
        read_benchmark(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta_task": "retreival"}, "unknown meta_task 'retreival': did you mean 'retrieval'"),
        ({"distribution": "id"}, "unknown distribution 'id'"),
        ({"name": "a/b"}, "cannot name a folder"),
        ({"name": "pictures"}, "several tasks are named pictures"),
        ({"metric": "ndcg"}, "unknown metric 'ndcg': did you mean 'ndcg@5'"),
        ({"measure": "ndcg"}, "unknown field 'measure'"),
        ({"queries": "some/gone.jsonl"}, "some/gone.jsonl cannot be read"),
        ({"queries": "../../gone.jsonl"}, "leads out of the data root"),
        ({"corpus": "some"}, "some cannot be read"),
    ],
)
def test_a_bad_task_is_told_why(folder, changes, message):
    tasks = json.loads((folder / "benchmark.json").read_text())["tasks"]
    head(folder, tasks=[tasks[0], tasks[1] | changes])
    with pytest.raises(DataError, match=message):
        read_benchmark(folder)


def test_what_is_not_a_benchmark_is_told_so(folder, tmp_path):
    with pytest.raises(DataError, match=r"benchmark.json does not exist: a benchmark is a folder"):
        read_benchmark(tmp_path / "nowhere")
    (folder / "benchmark.json").write_text("[1]")
    with pytest.raises(DataError, match="must hold an object"):
        read_benchmark(folder)
    (folder / "benchmark.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_benchmark(folder)


@pytest.mark.parametrize("name", ["queries", "corpus"])
def test_an_empty_file_is_an_error(folder, name):
    (folder / "some" / f"{name}.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=f"some/{name}.jsonl is empty"):
        read_benchmark(folder)


def test_a_root_of_its_own(folder, tmp_path):
    (tmp_path / "pictures").rename(folder / "pictures_of")
    (folder / "pictures_of").rename(tmp_path / "moved")
    (folder / "here").mkdir()
    (tmp_path / "moved").rename(folder / "here" / "pictures")
    head(folder, root="here")
    assert read_benchmark(folder).tasks[0].corpus[0].images == (folder.resolve() / "here" / "pictures" / "0.png",)


def test_writing_refuses_what_could_not_be_read_back(tmp_path, make_task, picture, folder):
    with pytest.raises(ArtifactError, match="is not empty; choose another folder"):
        write_benchmark(read_benchmark(folder), folder)
    inside = tmp_path / "deep" / "b"
    away = Benchmark("b", (make_task(q=1, c=1, corpus=(Item(images=(picture("far.png"),)),)),))
    with pytest.raises(DataError, match=r"task words: .*far.png does not lie below .*deep; write the benchmark beside"):
        write_benchmark(away, inside)
    held = Benchmark("b", (make_task(q=1, c=1, corpus=(Item(images=(b"bytes",)),)),))
    with pytest.raises(DataError, match="write it to a file first"):
        write_benchmark(held, inside)
    assert not inside.exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "images", "gold", "image"]), inner),
    max_leaves=6,
)
mutated = st.one_of(
    st.binary(max_size=30),
    st.fixed_dictionaries({}, optional={"query": json_values, "gold": json_values, "candidates": json_values}).map(
        lambda row: json.dumps(row).encode()
    ),
)


@given(line=mutated, file=st.sampled_from(["some/queries.jsonl", "some/corpus.jsonl"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_line_causes_anything_but_our_errors(folder, line, file):
    before = (folder / file).read_bytes()
    change(folder, file, 1, line)
    try:
        read_benchmark(folder)
    except DataError:
        pass
    finally:
        (folder / file).write_bytes(before)


def test_a_benchmark_with_missing_tasks_is_not_written_as_if_it_were_complete(benchmark_of, tmp_path):
    from dataclasses import replace

    from hardwon.errors import DataError
    from hardwon.evaluation import Missing, write_benchmark

    with pytest.raises(DataError, match=r"lacks 1 tasks \(SUN397\)"):
        write_benchmark(replace(benchmark_of(), missing=(Missing("SUN397", "gone"),)), tmp_path / "made")
    assert not (tmp_path / "made").exists()
