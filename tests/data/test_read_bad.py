"""Files and rows that cannot be used: each has a reason, none is lost, and nothing but our own errors comes out."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hardwon.data import read
from hardwon.errors import BadRows, DataError, HardwonError

GOOD = {"query": "q", "positive": "p"}
OWN = {"query": "q", "candidates": [{"item": "p", "origin": "gold"}]}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    return tmp_path


def reason(folder, row, name="rows.jsonl"):
    """Why a row, the second of three, is refused."""
    raw = row if isinstance(row, bytes) else json.dumps(row).encode()
    (folder / name).write_bytes(b'{"query": "1", "positive": "p"}\n' + raw + b'\n{"query": "3", "positive": "p"}\n')
    data = read(folder / name, on_error="skip", max_bad_fraction=0.5)
    assert [example.query.text for example in data] == ["1", "3"]
    assert len(data) + len(data.bad) == data.rows == 3
    assert (data.bad[0].file, data.bad[0].line) == (str(folder / name), 2)
    return data.bad[0].reason


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"positive": "p"}, "has no query: give it text, an image or a video"),
        ({"query": "q"}, "has no positive: give it text, an image or a video"),
        ({"query": "", "positive": "p"}, "has no query"),
        ({"query": " \n", "positive": "p"}, "has no query"),
        ({"query": "q", "positive": []}, "has no positive"),
        ({"query": "q", "positive": ["a", ""]}, "has no positive"),
        ({"query": {"instruction": "Find."}, "positive": "p"}, "has no query"),
        ({"query": 3, "positive": "p"}, "query must be a string or an object, got number"),
        ({"query": ["a", "b"], "positive": "p"}, "query must be a string or an object, got list"),
        ({"query": "q", "positive": True}, "positive must be a string or an object, got boolean"),
        ({"query": "q", "positive": [["a"]]}, "positive must be a string or an object, got list"),
        (GOOD | {"negatives": [3]}, "negatives must be a string or an object, got number"),
        (GOOD | {"negative": 3}, "negative must be a string or an object, got number"),
        (GOOD | {"source": 3}, "source must be a string, got number"),
        (GOOD | {"query_image": ["a"]}, "query_image must be a string, got list"),
        (GOOD | {"id": 1.5}, "id must be a string or an integer, got number"),
        (GOOD | {"id": True}, "id must be a string or an integer, got boolean"),
        ({"query": {"txt": "q"}, "positive": "p"}, "query: unknown item field 'txt': did you mean 'text'?"),
        ({"query": {"text": 3}, "positive": "p"}, "query: text must be a string, got int"),
        ({"query": {"images": {"a": 1}}, "positive": "p"}, "query: images must be a list of paths"),
        ({"query": {"images": 3}, "positive": "p"}, "query: images must be a list of paths"),
        (
            {"query": {"image": "red.png"}, "query_image": "red.png", "positive": "p"},
            "query has an image of its own and one in",
        ),
        (
            {"query": {"text": "q", "instruction": "a"}, "query_instruction": "b", "positive": "p"},
            "query has an instruction of its own and one in query_instruction: keep one",
        ),
        (
            {"query": "q", "positive": ["a", "b"], "positive_image": "red.png"},
            "positive_image goes with one positive, there are 2",
        ),
        ({"query": "q", "positive": ["a", "b"], "positive_video": ["red.png"]}, "put a video into each of them"),
        (GOOD | {"negative": ["a", "b"], "negative_video": ["red.png"]}, "negative_video goes with one negative, there are 2"),
        (GOOD | {"query_video": "red.png"}, "query_video must be a list of paths, got string"),
        (GOOD | {"query_video": {"a": 1}}, "query_video must be a list of paths"),
        (GOOD | {"query_video": [None]}, "query_video must be a list of paths"),
        (GOOD | {"query_video": ["red.png", "broken.png"]}, "broken.png is broken or truncated"),
        (GOOD | {"query_video": ["red.png", "../x.png"]}, "query: '../x.png' leads out of the data root"),
        (
            GOOD | {"positive": {"video": ["red.png"]}, "positive_video": ["red.png"]},
            "positive has a video of its own and one in",
        ),
        (GOOD | {"positive": {"video": "red.png"}}, "positive: video must be a list of paths, one for each frame"),
        (GOOD | {"positive": {"video": []}}, "has no positive: give it text, an image or a video"),
        (
            {"query": "q", "positive_video": ["red.png"], "negative_video": ["red.png"]},
            "is a positive and a negative of the same row",
        ),
        (GOOD | {"negatives": ["x", "p"]}, "'p' is a positive and a negative of the same row: remove one"),
        (GOOD | {"query_image": "../x.png"}, "query: '../x.png' leads out of the data root"),
        (GOOD | {"query_image": "/etc/passwd"}, "query: '/etc/passwd' leads out of the data root"),
        (GOOD | {"query_image": "https://host/a.png"}, "query: 'https://host/a.png' is a URL"),
        (GOOD | {"query_image": "a\x00.png"}, "query: a path cannot hold a NUL"),
        (GOOD | {"query_image": "missing.png"}, "missing.png does not exist: check its name and the data root"),
        (GOOD | {"query_image": "."}, "is not a file"),
        (GOOD | {"query_image": "x" * 5000}, "check its name and permissions"),
        (GOOD | {"query_image": "broken.png"}, "broken.png is broken or truncated"),
        (GOOD | {"query_image": "page.png"}, "page.png is a web page"),
        (GOOD | {"query_image": "loop.png"}, "cannot be a path"),
        (GOOD | {"query": "\ud800"}, "holds text that is not Unicode"),
        (GOOD | {"query_image": "\ud800.png"}, "holds text that is not Unicode"),
        ({"query": "q", "positive": {"text": "a", "\udfff": 1}}, "holds text that is not Unicode"),
        ([1, 2], "must be a JSON object, got list"),
        (None, "must be a JSON object, got null"),
        (b"{", "is not JSON ("),
        (b'{"query": "q", "positive": "p"', "is not JSON ("),
        (b'{"query": "q", "positive": "p"} {}', "is not JSON (Extra data"),
        (b'{"query": "caf\xe9", "positive": "p"}', "is not UTF-8 (invalid continuation byte at byte 14)"),
        (b"\x00" * 40, "is not JSON ("),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"query": ' + b"[" * 900 + b"]" * 900 + b', "positive": "p"}', "is nested too deeply"),
        (b'{"query": ' + b"9" * 5000 + b', "positive": "p"}', "is not JSON ("),
        (OWN | {"candidates": "p"}, "candidates must be a list, got string"),
        (OWN | {"candidates": []}, "no candidate has origin 'gold': say which one belongs to the query"),
        (OWN | {"candidates": [{"item": "p"}]}, "no candidate has origin 'gold'"),
        (OWN | {"candidates": ["p"]}, "a candidate is an object, got string"),
        (OWN | {"candidates": [{"itm": "p"}]}, "unknown candidate field 'itm': did you mean 'item'?"),
        (OWN | {"candidates": [{"origin": "gold"}]}, "has no item"),
        (OWN | {"candidates": [{"item": "p", "origin": "golden"}]}, "unknown origin 'golden': did you mean 'gold'?"),
        (OWN | {"candidates": [{"item": "p", "origin": ["gold"]}]}, "unknown origin"),
        (OWN | {"candidates": [{"item": "p", "relevance": "1"}]}, "relevance must be a number, got string"),
        (OWN | {"candidates": [{"item": "p", "relevance": True}]}, "relevance must be a number, got boolean"),
        (OWN | {"candidates": [{"item": "p", "relevance": 1.5}]}, "relevance must lie in [0, 1], got 1.5"),
        (OWN | {"candidates": [{"item": "p", "relevance": float("nan")}]}, "relevance must lie in [0, 1], got nan"),
        (OWN | {"related": "abc"}, "related must be a list of strings"),
        (OWN | {"query": None}, "has no query"),
    ],
)
def test_bad_rows_have_a_reason(folder, row, expected):
    (folder / "broken.png").write_bytes((folder / "red.png").read_bytes()[:50])
    (folder / "page.png").write_bytes(b"<html>not found</html>")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    assert expected in reason(folder, row)


def test_reasons_are_short(folder):
    for row in (GOOD | {"query_image": "../" + "x" * 1_000_000}, OWN | {"candidates": [{"y" * 100_000: 1}]}):
        assert len(reason(folder, row)) < 600


def test_an_id_can_be_used_once(folder):
    rows = [
        GOOD | {"id": "a"},
        {"query": "q", "id": "b"},
        GOOD | {"id": "b"},
        GOOD | {"id": "a"},
        GOOD | {"id": 1},
        GOOD | {"id": "1"},
    ]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = read(folder / "rows.jsonl", on_error="skip", max_bad_fraction=0.9)
    assert [(row.line, row.reason.partition(":")[0]) for row in data.bad] == [
        (2, "has no positive"),
        (4, "id 'a' was used by an earlier row"),
        (6, "id '1' was used by an earlier row"),
    ]


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "\u2028", "\x85\x0b\x1c", "<image>", "x" * 1_000_000, "\N{KITE}" * 250_000])
def test_text_is_text(folder, text):
    words = text if text.strip() else text + "."
    (folder / "rows.jsonl").write_text(
        json.dumps({"query": words, "positive": "p"}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert read(folder / "rows.jsonl")[0].query.text == words


@pytest.mark.parametrize("text", ["a\x00b", "\u2028.", "x" * 1_000_000, "\N{KITE}" * 250_000])
def test_text_is_text_in_tables_too(folder, text):
    (folder / "rows.csv").write_text(f'query,positive\n"{text}",p\n', encoding="utf-8", newline="")
    assert read(folder / "rows.csv")[0].query.text == text


# -- tables -----------------------------------------------------------------------------------------------------------


def test_bad_rows_of_a_table_are_named_by_the_line_they_start_at(folder):
    file = folder / "rows.csv"
    file.write_bytes(
        b'query,positive\n"two\nlines",p\n\nonly one cell\n,p\na,b,c\ncaf\xe9,p\n"a"b,p\nlast,p\n"never closed,p\nq,p\n'
    )
    data = read(file, on_error="skip", max_bad_fraction=0.9)
    assert [example.query.text for example in data] == ["two\nlines", "last"]
    assert [(row.line, row.reason.partition(":")[0][:24]) for row in data.bad] == [
        (5, "has 1 cells, the header "),
        (6, "has no query"),
        (7, "has 3 cells, the header "),
        (8, "holds text that is not U"),
        (9, "is not CSV (',' expected"),
        (11, "is not CSV (unexpected e"),
    ]
    assert data.rows == 8


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "rows.csv is empty: it holds no rows"),
        (b"\n\n", "is empty"),
        (b"query,positive\n", "is empty"),
        (b"query,postive\nq,p\n", r"unknown column 'postive': did you mean 'positive'\?.* Rename the column or remove it"),
        (b"query, positive\nq,p\n", "unknown column ' positive': did you mean 'positive'"),
        (b"query,positive,query\nq,p,q\n", "column 'query' appears twice"),
        ("query,positive\nq,p\n".encode("utf-16"), "the header is not UTF-8; save the file as UTF-8"),
        (b'"query,positive\nq,p\n', "the header cannot be read"),
    ],
)
def test_tables_that_are_wrong_as_a_whole(folder, content, match):
    (folder / "rows.csv").write_bytes(content)
    with pytest.raises(DataError, match=match):
        read(folder / "rows.csv", on_error="skip")


def test_the_limit_of_the_csv_module_is_put_back(folder):
    import csv

    before = csv.field_size_limit()
    (folder / "rows.csv").write_text("query,positive\nq,p\n")
    read(folder / "rows.csv")
    (folder / "rows.csv").write_text("query,wrong\nq,p\n")
    with pytest.raises(DataError):
        read(folder / "rows.csv")
    assert csv.field_size_limit() == before


# -- other files ------------------------------------------------------------------------------------------------------


def test_unknown_columns_are_a_mistake_in_the_file(folder):
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"negativ": "n"}) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: unknown column 'negativ': did you mean 'negative'") as caught:
        read(file, on_error="skip", max_bad_fraction=1.0)
    assert not isinstance(caught.value, BadRows)
    file.write_text(json.dumps(OWN | {"positive": "p"}) + "\n")
    with pytest.raises(DataError, match=r"unknown column 'positive'.* Valid: candidates, id, query, related, source"):
        read(file)


def test_parquet_that_is_wrong_as_a_whole(folder):
    file = folder / "rows.parquet"
    pq.write_table(pa.table({"query": ["q"], "postive": ["p"]}), file)
    with pytest.raises(DataError, match="unknown column 'postive': did you mean 'positive'"):
        read(file)
    pq.write_table(pa.table({"query": pa.array([], pa.string()), "positive": pa.array([], pa.string())}), file)
    with pytest.raises(DataError, match="is empty"):
        read(file)
    for content in (b"", b"PAR1 not really PAR1"):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"rows\.parquet cannot be read after row 0 .*: write it again"):
            read(file)


def test_parquet_rows_that_are_no_text(folder):
    pq.write_table(pa.table({"query": [b"\xff", b"ok"], "positive": ["p", "p"]}), folder / "bytes.parquet")
    with pytest.raises(BadRows, match="query must be a string or an object, got bytes"):
        read(folder / "bytes.parquet")
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xe9", b"ok"]).buffers())
    pq.write_table(pa.table({"query": broken, "positive": ["p", "p"]}), folder / "latin.parquet")
    data = read(folder / "latin.parquet", on_error="skip", max_bad_fraction=0.5)
    assert (len(data), data.bad[0].line) == (1, 1)
    assert data.bad[0].reason.startswith("is not UTF-8 (")


def test_paths_that_are_wrong(folder):
    (folder / "pairs.jsonl").write_text("")
    (folder / "pairs.jsn").write_text("[]")
    (folder / "none").mkdir()
    for path, match in (
        ("pair.jsonl", r"pair\.jsonl does not exist: did you mean 'pairs\.jsonl'\?"),
        ("zzz", "zzz does not exist$"),
        ("no/such/folder.csv", r"folder\.csv does not exist$"),
        ("pairs.jsonl", r"pairs\.jsonl is empty: it holds no rows"),
        ("pairs.jsn", r"unknown kind of file '\.jsn': did you mean '\.json'\? Valid: .*a folder of pictures"),
        ("none", "none holds no pictures"),
    ):
        with pytest.raises(DataError, match=match):
            read(folder / path)


def test_two_files_of_captions_are_one_too_many(folder):
    for name in ("captions.csv", "metadata.jsonl"):
        (folder / name).write_text("file_name,text\nred.png,red\n")
    with pytest.raises(DataError, match=r"holds captions\.csv and metadata\.jsonl: keep one of them"):
        read(folder)


# -- anything at all --------------------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["red.png", "../x", "\ud800"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "image", "images", "video", "instruction", "item", "origin", "relevance", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
COLUMNS = st.sampled_from(
    [
        *("query", "positive", "negative", "negatives", "query_image", "positive_image", "query_instruction", "source", "id"),
        *("query_video", "positive_video", "negative_video"),
    ]
)
ROWS = st.one_of(
    st.just(json.dumps(GOOD)),
    st.builds(lambda changes: json.dumps(GOOD | changes), st.dictionaries(COLUMNS, VALUES, max_size=2)),
    st.builds(
        lambda changes: json.dumps(OWN | changes),
        st.dictionaries(st.sampled_from(["query", "candidates", "source", "related", "id"]), VALUES, max_size=2),
    ),
    st.builds(lambda row, cut: row[:cut], st.just(json.dumps(GOOD)), st.integers(1, 30)),
    st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(ROWS, max_size=6))
def test_any_json_lines_are_accounted_for(folder, rows):
    file = folder / "fuzz.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + "".join(row + "\n" for row in rows), encoding="utf-8", newline="\n")
    try:
        data = read(file, on_error="skip", max_bad_fraction=1.0)
    except DataError as error:
        assert "unknown column" in str(error)
        return
    assert len(data) + len(data.bad) == data.rows == 1 + sum(bool(row.encode().strip()) for row in rows)
    assert all(example.gold for example in data)
    assert all(1 < row.line <= 1 + len(rows) and row.reason for row in data.bad)
    data.write_quarantine(folder / "quarantine.parquet")
    assert pq.read_metadata(folder / "quarantine.parquet").num_rows == len(data.bad)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.sampled_from([".jsonl", ".csv", ".tsv", ".parquet"]))
def test_any_bytes_raise_our_errors_only(folder, content, suffix):
    file = folder / f"fuzz{suffix}"
    file.write_bytes((b"query,positive\n" if suffix == ".csv" else b"") + content)
    try:
        data = read(file, on_error="skip", max_bad_fraction=1.0)
    except HardwonError:
        return
    assert len(data) + len(data.bad) == data.rows
