"""JSON lines as they come: whatever stands in the file, every row is read or reported, and nothing else happens."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trials import trials

from hardwon.data import read
from hardwon.data.read_files import EXAMPLE_COLUMNS, PAIR_COLUMNS
from hardwon.errors import BadRows, DataError

FEW = 100  # of 1,000: HARDWON_TRIALS=10

COLUMNS = st.sampled_from([*PAIR_COLUMNS, *EXAMPLE_COLUMNS])
TEXT = st.text(max_size=20) | st.sampled_from(
    ["", " ", "\x00", "../../etc/passwd", "https://a.org/x.png", "a.png", "\ud800", "\u2028"]
)
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUE = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.sampled_from(["text", "image", "item"]), inner, max_size=3)
    ),
    max_leaves=6,
)
GOOD = st.builds(lambda q, p: {"query": f"q {q}", "positive": f"p {p}"}, st.integers(), st.integers())
NEAR = st.builds(lambda row, name, value: row | {name: value}, GOOD, COLUMNS, VALUE)  # one column is anything
ROW = st.one_of(GOOD, GOOD, NEAR, NEAR, st.dictionaries(COLUMNS, VALUE, max_size=4), VALUE)
FOREIGN = st.builds(lambda row, name: row | {name: 1}, GOOD, TEXT)  # a column that nobody knows


def encoded(row):
    """As a line; lone surrogates are written as escapes, or as bytes that are no UTF-8."""
    return json.dumps(row, ensure_ascii=False).replace("\n", " ").encode("utf-8", "surrogatepass")


@st.composite
def line(draw):
    """A row, whole or damaged."""
    made = bytearray(encoded(draw(ROW)))
    how = draw(st.sampled_from(["whole"] * 6 + ["cut", "flip", "insert", "bytes", "blank", "deep", "cr"]))
    place = draw(st.integers(0, len(made)))
    if how == "cut":
        made = made[:place]
    elif how == "flip" and made:
        made[place % len(made)] ^= 1 << draw(st.integers(0, 7))
    elif how == "insert":
        made[place:place] = draw(st.binary(max_size=4))
    elif how == "bytes":
        made = bytearray(draw(st.binary(max_size=30)))
    elif how == "blank":
        made = bytearray(draw(st.sampled_from([b"", b" ", b"\t", b"\r"])))
    elif how == "deep":
        made = bytearray(b'{"query": ' + b"[" * 3000 + b"]" * 3000 + b"}")
    elif how == "cr":
        made += b"\r"
    return bytes(made)


def rows_in(data):
    """How many rows there are: lines that hold anything; a mark of byte order at the beginning is none."""
    return sum(bool(part.strip()) for part in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))


@settings(max_examples=trials(FEW), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lines=st.lists(line(), max_size=12), end=st.sampled_from([b"", b"\n"]), start=st.sampled_from([b"", b"", b"\xef\xbb\xbf"])
)
def test_every_row_is_read_or_reported(lines, end, start, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    data = start + b"\n".join(lines) + end
    path.write_bytes(data)
    count = rows_in(data)
    try:
        found = read(path, on_error="skip", max_bad_fraction=1.0)
    except BadRows as error:  # none of them is of any use
        assert len(error.rows) == count
        bad = list(error.rows)
    except DataError as error:  # the file as a whole: empty, or with a column that nobody knows, and it says which
        said = str(error)
        assert ("holds no rows" in said) == (count == 0)
        assert count == 0 or "unknown column" in said
        return
    else:
        assert found.rows == count == len(found.examples) + len(found.bad)
        bad = list(found.bad)
        assert all(example.gold for example in found.examples)
    numbers = [n for n, part in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1) if part.strip()]
    lines_told = [row.line for row in bad]
    assert lines_told == sorted(set(lines_told)) and set(lines_told) <= set(numbers)  # each once, where it stands
    assert all(row.reason for row in bad)
    if bad:
        try:
            read(path)
        except BadRows as error:
            assert list(error.rows) == bad  # told the same when nothing is skipped
        else:
            raise AssertionError("bad rows were not told of")


@settings(max_examples=trials(10), deadline=None)
@given(rows=st.lists(GOOD, min_size=1, max_size=5), foreign=FOREIGN)
def test_a_column_that_nobody_knows_is_told(rows, foreign, tmp_path_factory):
    (unknown,) = foreign.keys() - {"query", "positive"} or {""}
    if unknown in PAIR_COLUMNS:
        return
    path = tmp_path_factory.getbasetemp() / "foreign.jsonl"
    path.write_bytes(b"\n".join(map(encoded, [*rows, foreign])))
    try:
        read(path, on_error="skip", max_bad_fraction=1.0)
    except DataError as error:
        assert "column" in str(error) or isinstance(error, BadRows)
    else:
        assert not unknown or "\ud800" in unknown
