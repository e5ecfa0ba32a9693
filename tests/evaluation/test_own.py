import json

import pytest

from hardwon.errors import BadRows, DataError
from hardwon.evaluation import evaluate, read_benchmark
from hardwon.items import Item


@pytest.fixture
def write(tmp_path):
    def lines(name, *rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return lines


def test_a_file_of_queries_with_candidates_is_a_task(write, picture, fake):
    picture("cat.png")
    path = write(
        "my cats.jsonl",
        {"query": {"text": "a cat", "instruction": "Find it."}, "gold": {"image": "cat.png"}, "candidates": [{"text": "x"}]},
        {"query": {"text": "two"}, "gold": [{"text": "b"}, {"text": "c"}], "candidates": [{"text": "c"}, {"text": "x"}]},
        {"query": {"text": "three"}, "gold": {"text": "x"}},
    )
    benchmark = read_benchmark(path)
    (task,) = benchmark.tasks
    assert (benchmark.name, task.name) == ("my_cats", "my_cats")
    assert task.queries[0] == Item(text="a cat", instruction="Find it.")
    assert [item.text for item in task.corpus] == ["", "x", "b", "c"]
    assert (task.gold, task.candidates) == (((0,), (2, 3), (1,)), ((0, 1), (2, 3, 1), (0, 1, 2, 3)))
    assert evaluate(fake(), benchmark, progress=False).results[0].queries == 3


def test_candidates_may_be_left_out_everywhere(write):
    path = write("own.jsonl", *({"query": {"text": f"q{n}"}, "gold": {"text": f"g{n % 2}"}} for n in range(3)))
    path.write_bytes(
        path.read_bytes().replace(b"\n", b"\r\n") + '{"query": {"text": "q\u2028"}, "gold": {"text": "g1"}}'.encode()
    )
    (task,) = read_benchmark(path).tasks
    assert task.queries[3].text == "q\u2028"
    assert (len(task.corpus), task.gold, task.candidates) == (2, ((0,), (1,), (0,), (1,)), None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "is not JSON"),
        ("[]", "a row is an object with query, gold, candidates, got list"),
        ({"query": {"text": "a"}, "gold": {"text": "b"}, "candidate": []}, "did you mean 'candidates'"),
        ({"gold": {"text": "b"}}, "no query"),
        ({"query": {"text": "a"}, "gold": []}, "no gold"),
        ({"query": {"text": "a"}, "candidates": [{"text": "b"}]}, "no gold"),
        ({"query": {"text": "a"}, "gold": {"text": "b"}, "candidates": {"text": "c"}}, "candidates must be a list"),
        ({"query": {"text": "a"}, "gold": {"text": "b"}, "candidates": []}, "candidates is empty"),
        ({"query": {"text": "a"}, "gold": [{"text": "b"}, {"text": "c"}], "candidates": [{"text": "c"}]}, "gold, so that any"),
        ({"query": {"text": "a"}, "gold": {"image": "gone.png"}}, "gone.png does not exist"),
        ({"query": {"text": "a"}, "gold": {"image": "../up.png"}}, "up.png"),
    ],
)
def test_rows_that_cannot_be_used_are_named_with_file_and_line(write, row, reason):
    path = write("own.jsonl", {"query": {"text": "q"}, "gold": {"text": "g"}}, row)
    with pytest.raises(BadRows, match="1 of 2 rows cannot be used") as error:
        read_benchmark(path)
    (bad,) = error.value.rows
    assert (bad.file, bad.line) == (str(path), 2)
    assert reason in bad.reason


def test_an_empty_file_is_refused(write):
    with pytest.raises(DataError, match=r"own.jsonl holds no rows"):
        read_benchmark(write("own.jsonl", ""))


@pytest.fixture
def beir(write, picture):
    """Writes a folder as BEIR lays it out; returns it."""

    def build(
        qrels=("query-id\tcorpus-id\tscore", "q2\td1\t1", "q1\td2\t2", "q1\td3\t1", "q1\td1\t0"), name="qrels/test.tsv", **more
    ):
        picture("beir/seen.png", 3)
        seen = {"image": "seen.png"}
        queries = [{"_id": "q1", "text": "one", "instruction": "Find."}, {"_id": "q2"} | seen, {"_id": "q3", "text": "3"}]
        titled = {"_id": "d1", "title": "A title", "text": "and text"}
        rows = {
            "queries": queries,
            "corpus": [titled, {"_id": "d2", "text": "two"}, {"_id": "d3", "metadata": {}} | seen],
        } | more
        for part, lines in rows.items():
            write(f"beir/{part}.jsonl", *lines)
        return write(f"beir/{name}", *qrels).parents[name.count("/")]

    return build


def test_queries_corpus_and_qrels_are_a_task(beir, fake):
    (task,) = read_benchmark(beir()).tasks
    assert task.name == "beir"
    assert [query.modality for query in task.queries] == ["text", "image"]  # q3 has no gold
    assert task.corpus[0].text == "A title and text"
    assert (task.gold, task.candidates) == (((1, 2), (0,)), None)
    (same,) = read_benchmark(
        beir(qrels=("q2 0 d1 1".replace(" ", "\t"), "q1\t0\td2\t2", "q1\t0\td3\t1"), name="qrels.tsv")
    ).tasks
    assert same.gold == task.gold
    assert evaluate(fake(), read_benchmark(beir()), progress=False).results[0].queries == 2


@pytest.mark.parametrize(
    ("change", "file", "line", "reason"),
    [
        ({"qrels": ("q1\td1\t1", "q1\td9\t1")}, "qrels/test.tsv", 2, "corpus id 'd9' is not in corpus.jsonl"),
        ({"qrels": ("q1\td1\t1", "q9\td1\t1")}, "qrels/test.tsv", 2, "query id 'q9' is not in queries.jsonl"),
        ({"qrels": ("q1\td1\t1", "q1 d1 1")}, "qrels/test.tsv", 2, "with tabs between them, got 1 cells"),
        ({"qrels": ("q1\td1\t1", "q1\td1\tyes")}, "qrels/test.tsv", 2, "and a number"),
        ({"queries": [{"_id": "q1", "text": "a"}, {"_id": "q1", "text": "b"}]}, "queries.jsonl", 2, "'q1' is there twice"),
        ({"corpus": [{"_id": "d1", "text": "a"}, {"text": "b"}]}, "corpus.jsonl", 2, "its id as _id"),
        ({"corpus": [{"_id": "d1", "text": ""}]}, "corpus.jsonl", 1, "needs text"),
    ],
)
def test_a_folder_with_a_bad_row_is_refused(beir, change, file, line, reason):
    folder = beir(**change)
    with pytest.raises(BadRows) as error:
        read_benchmark(folder)
    (bad, *_) = error.value.rows
    assert (bad.file, bad.line) == (str(folder / file), line)
    assert reason in bad.reason


def test_a_folder_that_says_nothing_is_refused(beir, tmp_path):
    with pytest.raises(DataError, match="gives no query a score above 0"):
        read_benchmark(beir(qrels=("q1\td1\t0",)))
    folder = beir()
    (folder / "qrels" / "test.tsv").unlink()
    with pytest.raises(DataError, match=r"neither qrels/test.tsv nor qrels.tsv"):
        read_benchmark(folder)
    with pytest.raises(DataError, match=r"a benchmark is a folder with a benchmark.json, a folder with queries.jsonl"):
        read_benchmark(tmp_path / "gone")
