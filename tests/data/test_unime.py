"""UniME-V2's JSON: their rows read as examples, ours written as their rows, and back."""

import json
import random

import pytest
from fakes import AngledEncoder, RuleJudge
from PIL import Image

from hardwon.data import read, read_files, unime
from hardwon.errors import BadRows, DataError
from hardwon.items import Candidate, Example, Item
from hardwon.mining import Mining, mine

# As their released files have them: a placeholder where there is an image, a line break at the end, negatives twice.
ROW = {
    "query_text": "<|image_1|>\nRepresent the given image with the following question: What is prohibited?\n",
    "query_image": "images/red.png",
    "pos_text": "parking",
    "pos_image": "",
    "query_pos_scores": 0.7215937972068787,
    "hard_negatives": [["no turn", ""], ["stop", ""], ["stop", ""], ["<|image_1|>\n", "images/blue.png"]],
    "hard_negatives_scores": [0.44075605273246765, 0.0171, 0.0171, 0.25],
}
WORDS = ROW | {
    "query_text": "Wörter",
    "query_image": "",
    "pos_text": "<|image_1|>\nRepresent it.",
    "pos_image": "images/blue.png",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"images/{colour}.png")
    return tmp_path


def written(folder, *rows, name="train.json"):
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def test_a_row_of_theirs(folder):
    first, second = read(written(folder, ROW, WORDS))
    assert first.query == Item("Represent the given image with the following question: What is prohibited?\n",
                               (folder / "images/red.png",))  # fmt: skip
    assert first.candidates[0] == Candidate(Item("parking"), 0.7215937972068787, "gold")
    assert [(c.item.text, c.relevance, c.origin) for c in first.negatives] == [
        ("no turn", 0.44075605273246765, "mined"),
        ("stop", 0.0171, "mined"),
        ("stop", 0.0171, "mined"),  # duplicates as they occur
        ("", 0.25, "mined"),
    ]
    assert first.negatives[3].item.images == (folder / "images/blue.png",)
    assert second.gold == (Item("Represent it.", (folder / "images/blue.png",)),)


def test_rows_come_back_as_they_were(folder):
    path = written(folder, ROW, WORDS | {"hard_negatives": [["a", ""]] * 4})
    assert unime.write(folder / "again.json", read(path), folder, negatives=4) == unime.Written(2, 0, 0)
    again = json.loads((folder / "again.json").read_text())
    assert again == json.loads(path.read_text())
    assert [list(row) for row in again] == [list(unime.COLUMNS)] * 2


def test_images_lie_under_another_root(folder):
    (folder / "lists").mkdir()
    path = written(folder / "lists", ROW)
    assert read(path, root=folder)[0].query.images == (folder / "images/red.png",)
    with pytest.raises(BadRows, match=r"train\.json:1: .*red\.png"):
        read(path)


def test_too_few_negatives_are_repeated_and_none_left_out(folder):
    gold, other = (Candidate(Item(text), 0.9, "gold") for text in ("yes", "also"))
    few = Example(Item("q"), (gold, other, Candidate(Item("a"), 0.1, "mined"), Candidate(Item("b"), 0.2, "mined")))
    without = Example(Item("r"), (gold,))
    found = unime.write(folder / "x.json", [few, without], folder, negatives=5)
    assert found == unime.Written(rows=2, filled=2, left_out=1)
    rows = json.loads((folder / "x.json").read_text())
    assert [row["pos_text"] for row in rows] == ["yes", "also"]  # one row for each positive
    assert [text for text, _ in rows[0]["hard_negatives"]] == ["a", "a", "a", "b", "b"]
    assert rows[0]["hard_negatives_scores"] == [0.1, 0.1, 0.1, 0.2, 0.2]


def test_what_has_no_grade_is_left_out_and_counted(folder):
    graded = (Candidate(Item("yes"), 0.9, "gold"), Candidate(Item("a"), 0.1, "mined"))
    ungraded = (Candidate(Item("also"), origin="gold"), Candidate(Item("b")), Candidate(Item("c")))
    nothing = Example(Item("r"), ungraded)
    found = unime.write(folder / "x.json", [Example(Item("q"), (*ungraded, *graded)), nothing], folder, negatives=2)
    assert found == unime.Written(rows=1, filled=1, left_out=1, positives=2, negatives=4)
    (again,) = read(folder / "x.json")
    assert [(c.item.text, c.relevance) for c in again.candidates] == [("yes", 0.9), ("a", 0.1), ("a", 0.1)]


def test_what_was_mined_with_several_positives_and_given_negatives_comes_back(folder):
    texts = {f"q{n}": float(n) for n in range(8)} | {f"t{n}": float(n) for n in range(8)}
    second, given = Candidate(Item("t0 said otherwise"), origin="gold"), Candidate(Item("far away"))
    examples = [Example(Item(f"q{n}"), (Candidate(Item(f"t{n}"), origin="gold"),)) for n in range(8)]
    examples[0] = examples[0].adding([second, given])
    judge = RuleJudge(lambda query, item: 3.0 if query.text[1] == item.text[1] else -3.0)
    mined = mine(
        examples, AngledEncoder(texts | {"t0 said otherwise": 1.0, "far away": 180.0}), judge, settings=Mining(depth=4)
    )
    assert [c.relevance for c in mined.examples[0].candidates if c.item == given.item] == [None]  # nobody was asked
    found = unime.write(folder / "x.json", mined.examples, folder)
    assert (found.rows, found.left_out, found.positives, found.negatives) == (9, 0, 0, 1)
    rows = read(folder / "x.json").examples
    assert [e.gold[0].text for e in rows[:3]] == ["t0", "t0 said otherwise", "t1"]
    assert given.item not in {c.item for e in rows for c in e.candidates}
    grades = {(e.query.text, c.item.text): c.relevance for e in mined.examples for c in e.candidates}
    assert all(c.relevance == grades[e.query.text, c.item.text] for e in rows for c in e.candidates)


def test_instructions_are_written_in_front_of_the_words(folder):
    picture = Item("", (folder / "images/red.png",), "Represent it.")
    example = Example(Item("words", instruction="Find:"), (Candidate(picture, 0.5, "gold"), Candidate(Item("n"), 0.0)))
    unime.write(folder / "x.json", [example], folder, negatives=1)
    row = json.loads((folder / "x.json").read_text())[0]
    assert (row["query_text"], row["query_image"]) == ("Find: words", "")
    assert (row["pos_text"], row["pos_image"]) == ("<|image_1|>\nRepresent it.", "images/red.png")


def test_what_may_belong_to_the_query_is_never_written_as_a_negative(folder):
    rng = random.Random(0)
    for _ in range(100):
        texts = [f"t{n}" for n in range(6)]
        gold = tuple(Candidate(Item(t, (), rng.choice(["", "i"])), 0.9, "gold") for t in rng.sample(texts, 2))
        mined = tuple(Candidate(Item(t), 0.1, "mined") for t in rng.sample(texts, 4))
        related = frozenset(Item(t).content for t in rng.sample(texts, rng.randint(0, 3)))
        example = Example(Item("q"), (*gold, *mined), "", related)
        unime.write(folder / "x.json", [example], folder, negatives=3)
        for row in json.loads((folder / "x.json").read_text()):
            barred = related | {c.item.content for c in gold}
            assert not barred & {Item(text).content for text, _ in row["hard_negatives"]}


def test_a_copy_of_the_positive_is_no_negative(folder):
    row = ROW | {"hard_negatives": [["parking", ""], ["a", ""]], "hard_negatives_scores": [0.7, 0.1]}
    assert [c.item.text for c in read(written(folder, row))[0].negatives] == ["a"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hard_negatives_scores": [0.1]}, "must be lists of the same length"),
        ({"hard_negatives": None}, "has no hard_negatives"),
        ({"query_pos_scores": None}, "has no query_pos_scores"),
        ({"query_pos_scores": 1.5}, r"query_pos_scores must be a number in \[0, 1\], got '1.5'"),
        ({"query_pos_scores": True}, r"query_pos_scores must be a number"),
        ({"hard_negatives_scores": [0, 0, "x", 0]}, "the score of hard negative 3 must be a number"),
        ({"hard_negatives_scores": [0, 0, float("nan"), 0]}, r"hard negative 3 must be a number in \[0, 1\], got 'nan'"),
        ({"hard_negatives": [["a"], *ROW["hard_negatives"][1:]]}, "hard negative 1 must be a list of a text and an image"),
        ({"hard_negatives": [["", ""], *ROW["hard_negatives"][1:]]}, "has no hard negative 1: give it text"),
        ({"pos_text": 3}, "pos must have a text and an image, both strings"),
        ({"pos_image": "images/none.png"}, r"none\.png"),
        ({"query_image": "../secret.png"}, "leads out of the data root"),
        ({"query_image": "http://127.0.0.1/x.png"}, "is a URL"),
        ({"pos_text": "\ud800"}, "text that is not Unicode"),
    ],
)
def test_rows_that_cannot_be_used(folder, change, reason):
    path = written(folder, ROW, ROW | change, ROW)
    with pytest.raises(BadRows, match=rf"train\.json:2: .*{reason}"):
        read(path)
    assert len(read(path, on_error="skip", max_bad_fraction=0.5)) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "row 1 is not JSON .*not a list of rows"),
        ('{"query": "a"}', r"named \.jsonl"),
        ("[", "row 1 is not JSON"),
        ('[{"query": "a", "positive": "b"}', "row 2 is not JSON .*expected a comma, got ''"),
        ('[{"query": "a", "positive": "b"} {}]', "row 2 is not JSON .*expected a comma"),
        ('[{"query": "a", "positive": "b"},]', "row 2 is not JSON"),
        ("[" * 100_000, "row 1 is nested too deeply"),
        ('[{"query_txt": "a", "hard_negatives": []}]', "row 1: unknown column 'query_txt': did you mean 'query_text'"),
        ("[]", "is empty: it holds no rows"),
    ],
)
def test_files_that_are_wrong_as_a_whole(folder, text, reason):
    (folder / "x.json").write_text(text)
    with pytest.raises(DataError, match=reason):
        read(folder / "x.json")


def test_a_list_may_hold_rows_of_every_form_and_bad_ones(folder):
    path = written(folder, {"query": "a", "positive": "b"}, 3, ROW, name="mixed.json")
    found = read(path, on_error="skip", max_bad_fraction=0.5)
    assert [example.query.text[:9] for example in found] == ["a", "Represent"]
    assert [(row.line, row.reason) for row in found.bad] == [(2, "must be a JSON object, got number")]


def test_a_list_is_read_in_pieces(folder, monkeypatch):
    """Chunks that end anywhere, within a row, a space or a letter."""
    rows = [ROW, {"query": "ü" * 30, "positive": 'a "quoted" ]}, \\'}, WORDS]
    (folder / "x.json").write_text("\ufeff \n" + json.dumps(rows, ensure_ascii=False, indent=2) + "\n\n", encoding="utf-8")
    whole = read(folder / "x.json").examples
    assert len(whole) == 3
    for size in (1, 2, 7, 64, 1000):
        monkeypatch.setattr(read_files, "_CHUNK", size)
        assert read(folder / "x.json").examples == whole


def test_what_the_form_has_no_place_for(folder):
    red = folder / "images/red.png"
    gold, bad = Candidate(Item("yes"), 0.9, "gold"), Candidate(Item("no"), 0.1)
    for example, reason in (
        (Example(Item("q"), (gold, Candidate(Item("no")))), "0 positives and 1 negatives have no grade: mine with a judge"),
        (Example(Item("q"), (Candidate(Item("yes"), origin="gold"), bad)), "1 positives and 0 negatives have no grade"),
        (Example(Item("q", (red, red)), (gold, bad)), "several pictures"),
        (Example(Item("q", video=(red,)), (gold, bad)), "a video"),
        (Example(Item("q", (b"png",)), (gold, bad)), "held as bytes"),
    ):
        with pytest.raises(DataError, match=reason):
            unime.write(folder / "x.json", [example], folder)
    assert not (folder / "x.json").exists()  # nothing half-written


def test_a_file_of_theirs_trains(folder, text_model):
    import hardwon
    from hardwon.losses import JudgeAlignment

    rows = [
        ROW | {"query_text": f"red {n}", "query_image": "", "hard_negatives": [["a", ""], ["the", ""]],
               "hard_negatives_scores": [0.1, 0.2], "pos_text": f"it {n}"}
        for n in range(4)
    ]  # fmt: skip
    before = text_model.encode([Item("red 1")])
    settings = hardwon.Settings(batch_size=2, negatives=2)
    hardwon.train(text_model, read(written(folder, *rows)), JudgeAlignment(0.02), steps=2, settings=settings)
    assert abs(text_model.encode([Item("red 1")]) - before).max() > 1e-6
