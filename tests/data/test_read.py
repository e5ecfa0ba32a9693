"""Reading training data: every form of row, and what makes a Dataset."""

import json

import jaxtyping
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import hardwon.data
from hardwon.data import Dataset, images, read
from hardwon.errors import BadRows, RecipeError
from hardwon.items import Candidate, Example, Item, write_examples


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name, colour in (("red", "red"), ("blue", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path


@pytest.fixture
def as_users_run():
    """Without the run-time checks of annotations, which would answer before our own messages do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def lines(folder, *rows, name="pairs.jsonl"):
    file = folder / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return file


def gold(query, *positives, negatives=(), source=""):
    candidates = [*(Candidate(item, origin="gold") for item in positives), *(Candidate(item) for item in negatives)]
    return Example(query, tuple(candidates), source)


def text(words, instruction=""):
    return Item(text=words, instruction=instruction)


def shown(folder, name, words="", instruction=""):
    return Item(words, (folder.resolve() / "pictures" / f"{name}.png",), instruction)


# -- forms ------------------------------------------------------------------------------------------------------------


def test_the_public_names():
    assert hardwon.data.__all__ == ["Dataset", "images", "read"]


def test_pairs_in_json_lines(folder):
    red = {"image": "pictures/red.png"}
    file = lines(
        folder,
        {"query": "a", "positive": "b"},
        {"query": "a kite", "query_instruction": "Find it.", "positive": red, "negative": "owl", "source": "birds", "id": 7},
        {"query_image": "pictures/red.png", "positive": ["red", {"text": "rouge"}], "negatives": ["blue", {"text": "bleu"}]},
        {"query": "with blue", "query_image": "pictures/red.png", "positive_image": "pictures/blue.png", "positive": None},
        {
            "query": {"text": "q", "images": ["pictures/red.png", "pictures/blue.png"]},
            "positive": "p",
            "positive_image": "pictures/red.png",
        },
    )
    data = read(file)
    both = tuple(folder.resolve() / "pictures" / f"{name}.png" for name in ("red", "blue"))
    assert list(data) == [
        gold(text("a"), text("b")),
        gold(text("a kite", "Find it."), shown(folder, "red"), negatives=[text("owl")], source="birds"),
        gold(shown(folder, "red"), text("red"), text("rouge"), negatives=[text("blue"), text("bleu")]),
        gold(shown(folder, "red", "with blue"), shown(folder, "blue")),
        gold(Item("q", both), shown(folder, "red", "p")),
    ]
    assert (len(data), data.rows, data.bad, data.path) == (5, 5, (), file)


def film(folder, *names, words="", instruction=""):
    return Item(words, instruction=instruction, video=tuple(folder.resolve() / "pictures" / f"{name}.png" for name in names))


def test_videos_are_lists_of_frames(folder):
    there, back = (["pictures/red.png", "pictures/blue.png"][::step] for step in (1, -1))
    rows = [
        {"query_video": there, "positive": "p"},
        {"query": "q", "query_video": there, "query_instruction": "Find it.", "positive_video": back, "negative_video": there},
        {"query": "q", "positive": {"video": back, "text": "w"}, "negatives": [{"video": there}, "n"]},
        {"query": "r", "positive": "p", "positive_instruction": "Look.", "negative": "n", "negative_video": back},
    ]
    expected = [
        gold(film(folder, "red", "blue"), text("p")),
        gold(
            film(folder, "red", "blue", words="q", instruction="Find it."),
            film(folder, "blue", "red"),
            negatives=[film(folder, "red", "blue")],
        ),
        gold(text("q"), film(folder, "blue", "red", words="w"), negatives=[film(folder, "red", "blue"), text("n")]),
        gold(text("r"), text("p", "Look."), negatives=[film(folder, "blue", "red", words="n", instruction="Look.")]),
    ]
    assert list(read(lines(folder, *rows))) == expected
    columns = rows[1].keys() | rows[3].keys()
    plain = [{name: row.get(name) for name in columns} for row in (rows[0], rows[1], rows[3])]
    pq.write_table(pa.Table.from_pylist(plain), folder / "p.parquet")  # a column of it has one type: no objects beside text
    assert list(read(folder / "p.parquet")) == [expected[0], expected[1], expected[3]]
    write_examples(folder / "again.jsonl", expected)
    assert list(read(folder / "again.jsonl")) == expected


def test_tables_have_no_videos(folder):
    (folder / "pairs.csv").write_text("query,positive_video\na,pictures/red.png\n")
    with pytest.raises(BadRows, match=r"positive_video must be a list of paths, got string: CSV has no lists, so take JSON"):
        read(folder / "pairs.csv")


def test_the_instruction_of_positives_goes_for_negatives_too(folder):
    own = {"text": "c", "instruction": "Other."}
    row = {"query": "q", "positive": "a", "positive_instruction": "Look.", "negatives": ["b", own]}
    example = read(lines(folder, row))[0]
    assert [candidate.item for candidate in example.candidates] == [text("a", "Look."), text("b", "Look."), text("c", "Other.")]


@pytest.mark.parametrize(("name", "mark"), [("pairs.csv", ","), ("pairs.tsv", "\t"), ("PAIRS.CSV", ",")])
def test_tables(folder, name, mark):
    rows = [
        ["query", "positive", "positive_image", "negative", "source", "id"],
        ['"a, b\nand ""c"""', "x", "", "y", "s", "1"],
        ['"[1, 2]"', "", "pictures/red.png", "", "", "2"],
    ]
    (folder / name).write_text(
        "\ufeff" + "\r\n".join(mark.join(row) for row in rows) + "\r\n\r\n", encoding="utf-8", newline=""
    )
    assert list(read(folder / name)) == [
        gold(text('a, b\nand "c"'), text("x"), negatives=[text("y")], source="s"),
        gold(text("[1, 2]"), shown(folder, "red")),
    ]


def test_parquet(folder):
    rows = [
        {"query": {"text": "q", "image": None}, "positive": ["a", "b"], "negatives": None, "id": 1},
        {"query": {"text": None, "image": "pictures/red.png"}, "positive": ["c"], "negatives": ["d"], "id": 2},
        {"query": None, "positive": ["c"], "negatives": None, "id": 3},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    data = read(folder / "pairs.parquet", on_error="skip", max_bad_fraction=0.5)
    assert list(data) == [
        gold(text("q"), text("a"), text("b")),
        gold(shown(folder, "red"), text("c"), negatives=[text("d")]),
    ]
    assert [(row.line, row.reason) for row in data.bad] == [(3, "has no query: give it text, an image or a video")]


def test_examples_as_we_write_them(folder):
    examples = [
        Example(
            shown(folder, "red", "q", "Find it."),
            (Candidate(text("a"), origin="gold"), Candidate(text("b"), 0.25, "mined"), Candidate(shown(folder, "blue"), 1.0)),
            "birds",
            frozenset({"ab" * 16}),
        ),
        gold(text("q"), text("p")),
    ]
    write_examples(folder / "train.jsonl", examples)
    assert list(read(folder / "train.jsonl")) == examples


def test_whole_numbers_are_relevances(folder):
    row = {"query": "q", "candidates": [{"item": "a", "origin": "gold", "relevance": 1}, {"item": "b", "relevance": 0}]}
    assert [c.relevance for c in read(lines(folder, row))[0].candidates] == [1.0, 0.0]


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "metadata.jsonl"])
def test_a_folder_with_a_file_of_captions(folder, name):
    rows = [("pictures/red.png", "all red"), ("pictures/blue.png", "http://is.text/"), ("pictures/red.png", "rouge")]
    if name.endswith("csv"):
        content = "file_name,text\n" + "".join(f"{file},{words}\n" for file, words in rows)
    else:
        content = "".join(json.dumps({"file_name": file, "text": words}) + "\n" for file, words in rows)
    (folder / name).write_text(content)
    assert list(read(folder)) == [
        gold(text("all red"), shown(folder, "red")),
        gold(text("http://is.text/"), shown(folder, "blue")),
        gold(text("rouge"), shown(folder, "red")),
    ]


def test_a_folder_with_captions_beside_the_pictures(folder):
    (folder / "pictures" / "red.txt").write_text("\ufeffall red\n", encoding="utf-8")
    (folder / "pictures" / "blue.txt").write_text("all blue\nindeed")
    (folder / "pictures" / "._blue.png").write_bytes(b"made by the system")
    assert list(read(folder)) == [
        gold(text("all blue\nindeed"), shown(folder, "blue")),
        gold(text("all red"), shown(folder, "red")),
    ]


def test_captions_and_pictures_that_miss_each_other(folder):
    (folder / "pictures" / "red.txt").write_text("all red")
    (folder / "pictures" / "green.txt").write_text("all green")
    data = read(folder, on_error="skip", max_bad_fraction=0.9)
    assert (len(data), data.rows) == (1, 3)
    assert [(row.file.rpartition("/")[2], row.reason.partition(":")[0]) for row in data.bad] == [
        ("blue.png", "has no caption"),
        ("green.txt", "is a caption without a picture beside it"),
    ]


def test_captions_without_a_file_name_or_text(folder):
    lines(folder, {"text": "a"}, {"file_name": "pictures/red.png"}, {"file_name": 3, "text": "a"}, name="captions.jsonl")
    with pytest.raises(BadRows) as caught:
        read(folder)
    assert [row.reason.partition(":")[0] for row in caught.value.rows] == [
        "has no file_name",
        "has no query",
        "positive_image must be a string, got number",
    ]


def test_pictures_are_found_below_another_root(folder):
    (folder / "rows").mkdir()
    file = lines(folder / "rows", {"query": "q", "positive_image": "pictures/red.png"})
    assert read(str(file), root=folder)[0].gold == (shown(folder, "red"),)
    with pytest.raises(BadRows, match=r"rows/pictures/red\.png does not exist"):
        read(file)


def test_blank_lines_are_not_rows(folder):
    data = read(lines(folder, "", {"query": "a", "positive": "b"}, " \t", {"query": "c", "positive": "d"}, ""))
    assert (len(data), data.rows) == (2, 2)


# -- a Dataset ---------------------------------------------------------------------------------------------------------


def test_a_dataset_is_a_sequence(folder):
    data = read(lines(folder, *({"query": f"q{n}", "positive": f"p{n}"} for n in range(4))))
    assert data[1].query.text == "q1"
    assert [example.query.text for example in data[2:]] == ["q2", "q3"]
    assert data[-1] in data
    assert [example.query.text for example in reversed(data)] == ["q3", "q2", "q1", "q0"]
    with pytest.raises(IndexError):
        data[4]


def test_a_dataset_accounts_for_every_row(folder):
    with pytest.raises(AssertionError):
        Dataset((), (), 1, folder)


def test_the_fingerprint_is_that_of_content_and_order(folder):
    rows = [{"query": "a", "positive": "b"}, {"query": "c", "positive_image": "pictures/red.png"}]
    one, same = read(lines(folder, *rows)), read(lines(folder, *rows, name="other.jsonl"))
    assert one.fingerprint == same.fingerprint
    assert len(one.fingerprint) == 32
    others = [rows[::-1], rows[:1], [rows[0] | {"source": "s"}, rows[1]], [rows[0] | {"negative": "n"}, rows[1]]]
    prints = {read(lines(folder, *other, name=f"{n}.jsonl")).fingerprint for n, other in enumerate(others)}
    Image.new("RGB", (4, 4), "lime").save(folder / "pictures" / "red.png")
    prints |= {one.fingerprint, read(folder / "other.jsonl").fingerprint}
    assert len(prints) == len(others) + 2


def test_rows_with_the_same_query_learn_of_each_other(folder):
    data = read(
        lines(
            folder,
            {"query": "q", "positive": "a"},
            {"query": "q", "positive": ["b", "a"]},
            {"query": "q", "positive": {"text": "c", "instruction": "Look."}},
            {"query": "q", "query_instruction": "Other.", "positive": "d"},
            {"query": "q", "positive": "e", "source": "elsewhere"},
        )
    )
    a, b, c = (text(words).content for words in "abc")
    assert [example.related for example in data] == [{b, c}, {c}, {a, b}, set(), set()]


def test_related_rows_keep_what_they_knew(folder):
    rows = [{"query": "q", "candidates": [{"item": p, "origin": "gold"}], "related": ["known"]} for p in "ab"]
    assert [example.related for example in read(lines(folder, *rows))] == [
        {"known", text("b").content},
        {"known", text("a").content},
    ]


def test_the_quarantine_names_every_bad_row(folder):
    file = lines(folder, {"query": "a", "positive": "b"}, "{", {"query": "a"})
    data = read(file, on_error="skip", max_bad_fraction=1.0)
    data.write_quarantine(folder / "quarantine.parquet")
    rows = pq.read_table(folder / "quarantine.parquet").to_pylist()
    assert [(row["file"], row["line"]) for row in rows] == [(str(file), 2), (str(file), 3)]
    assert [row["reason"] for row in rows] == [row.reason for row in data.bad]
    read(lines(folder, {"query": "a", "positive": "b"})).write_quarantine(folder / "empty.parquet")
    assert pq.read_table(folder / "empty.parquet").schema.names == ["file", "line", "reason"]


def test_names_that_are_not_unicode_can_be_quarantined(folder):
    file = lines(folder, {"query": "a", "positive": "b"}, "{", name="caf\udce9.jsonl")
    read(file, on_error="skip", max_bad_fraction=1.0).write_quarantine(folder / "quarantine.parquet")
    assert pq.read_table(folder / "quarantine.parquet").to_pylist()[0]["file"].endswith("caf\\udce9.jsonl")


# -- what to do about bad rows ----------------------------------------------------------------------------------------


def test_raise_names_all_bad_rows_and_the_remedy(folder):
    file = lines(folder, {"query": "a", "positive": "b"}, "{", {"query": "a"})
    with pytest.raises(BadRows) as caught:
        read(file)
    assert [row.line for row in caught.value.rows] == [2, 3]
    message = str(caught.value)
    assert message.startswith("2 of 3 rows cannot be used:")
    assert f"{file}:3: has no positive: give it text, an image or a video" in message
    assert 'on_error="skip"' in message


def test_skip_up_to_the_allowed_fraction(folder):
    rows = [{"query": f"q{n}", "positive": "p"} for n in range(99)]
    assert len(read(lines(folder, *rows, "{"), on_error="skip")) == 99
    with pytest.raises(BadRows, match=r'2 of 101 rows .*(?s:.*)on_error="skip" allows 1\.0% of the rows: .*max_bad_fraction'):
        read(lines(folder, *rows, "{", "{"), on_error="skip")


def test_nothing_left_is_an_error(folder):
    with pytest.raises(BadRows):
        read(lines(folder, "{"), on_error="skip", max_bad_fraction=1.0)


@pytest.mark.usefixtures("as_users_run")
def test_options_outside_their_values(folder):
    file = lines(folder, {"query": "a", "positive": "b"})
    with pytest.raises(RecipeError, match="unknown on_error 'skp': did you mean 'skip'"):
        read(file, on_error="skp")
    with pytest.raises(RecipeError, match=r"max_bad_fraction must lie in \[0, 1\], got 5"):
        images(folder, max_bad_fraction=5)


def test_a_bar_is_shown_for_many_rows_only(folder, capsys):
    rows = [{"query": str(n), "positive": "p"} for n in range(5_001)]
    read(lines(folder, *rows[:-1]))
    assert capsys.readouterr() == ("", "")
    read(lines(folder, *rows))
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading pairs.jsonl: 5001/5001 rows" in err
