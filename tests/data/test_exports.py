"""Exports for sentence-transformers, read by its own data loading and trained with by its own trainers."""

import json
import random

import pytest
from PIL import Image

from hardwon.data import exports
from hardwon.errors import DataError
from hardwon.items import Candidate, Example, Item

pytestmark = pytest.mark.filterwarnings("ignore")  # of trainers that are not ours


def mined(query, *negatives, gold=("yes",), related=(), source=""):
    """An example; a negative is a text, or a text and its grade."""
    pairs = [n if isinstance(n, tuple) else (n, None) for n in negatives]
    return Example(
        Item(query),
        (
            *(Candidate(Item(f"{text} {query}"), 0.9, "gold") for text in gold),
            *(Candidate(Item(text), grade, "mined") for text, grade in pairs),
        ),
        source,
        frozenset(Item(text).content for text in related),
    )


def test_tuples_one_for_each_positive():
    examples = [mined("q", "a", "b", "c", gold=("yes", "also")), mined("r", "a", "b"), mined("s", "a")]
    rows = exports.tuples(examples, negatives=2)
    assert rows == [
        {"query": "q", "positive": "yes q", "negative_1": "a", "negative_2": "b"},
        {"query": "q", "positive": "also q", "negative_1": "a", "negative_2": "b"},
        {"query": "r", "positive": "yes r", "negative_1": "a", "negative_2": "b"},
    ]
    assert exports.tuples(examples) == rows  # 2 keeps 2 x 2 negatives, 1 and 3 keep three
    assert len(exports.tuples(examples, negatives=1)) == 4
    with pytest.raises(DataError, match="no example has 4 negatives: ask for fewer"):
        exports.tuples(examples, negatives=4)


def test_no_positive_is_ever_exported_as_a_negative():
    rng = random.Random(0)
    texts = [f"t{n}" for n in range(6)]
    for _ in range(600):
        gold = [Candidate(Item(t, (), rng.choice(["", "i"])), 0.9, "gold") for t in rng.sample(texts, rng.randint(1, 2))]
        others = [Candidate(Item(t), rng.choice([None, 0.3]), rng.choice(["mined", "given"])) for t in rng.sample(texts, 4)]
        related = frozenset(Item(t).content for t in rng.sample(texts, rng.randint(0, 3)))
        example = Example(Item("q"), (*gold, *others), "", related)
        barred = {c.item.content for c in gold} | related
        good = [c for c in others if c.item.content not in barred]
        if good:
            row = exports.tuples([example])[0]
            assert [row[f"negative_{n}"] for n in range(1, len(good) + 1)] == [c.item.text for c in good]
            assert len(row) == 2 + len(good)
        (row,) = exports.lists([example])
        kept = [c for c in (*gold, *others) if c.origin == "gold" or c in good or c.relevance is not None]
        assert row["labels"] == [0.0 if c.relevance is None else c.relevance for c in kept]


def test_lists_hold_every_candidate_with_its_grade():
    ungraded = Example(Item("r"), (Candidate(Item("y"), origin="gold"), Candidate(Item("n"))))
    rows = exports.lists([mined("q", ("a", 0.25), ("b", 0.85), related=("b",)), ungraded])
    assert rows == [
        {"query": "q", "docs": ["yes q", "a", "b"], "labels": [0.9, 0.25, 0.85]},
        {"query": "r", "docs": ["y", "n"], "labels": [1.0, 0.0]},
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_files_are_read_by_datasets(tmp_path, name):
    import datasets

    kind = {"jsonl": "json"}.get(name.split(".")[1], "parquet")
    for rows in (exports.tuples([mined("q", "ä"), mined("r", "b")]), exports.lists([mined("q", ("ä", 0.5))])):
        exports.write(tmp_path / name, rows)
        back = datasets.load_dataset(kind, data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "cache"))
        assert back.to_list() == rows
        assert back.column_names == list(rows[0])


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"unknown kind of file '.jsonll': did you mean '.jsonl'"):
        exports.write(tmp_path / "x.jsonll", [])


def test_pictures_and_what_has_no_place(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    picture = Item(images=(tmp_path / "a.png",))
    both = Item("w", (tmp_path / "a.png",), "Look:")
    example = Example(Item("q", instruction="Find:"), (Candidate(picture, origin="gold"), Candidate(both)))
    path = str(tmp_path / "a.png")
    assert exports.tuples([example]) == [
        {"query": "Find: q", "positive": {"image": path}, "negative_1": {"image": path, "text": "Look: w"}}
    ]
    with pytest.raises(
        DataError, match=r"docs holds items of several kinds \(1 x image, 1 x image and text\): export each source"
    ):
        exports.lists([example])
    for bad, reason in ((Item(video=(tmp_path / "a.png",)), "a video"), (Item(images=(b"x",)), "held as bytes")):
        with pytest.raises(DataError, match=reason):
            exports.tuples([Example(Item("q"), (Candidate(bad, origin="gold"), Candidate(Item("n"))))])


def rows_of_eight():
    words = ["red square", "blue circle", "green bar", "black triangle"] * 2
    return [mined(f"{word} {n}", ("the", 0.2), ("a", 0.1)) for n, word in enumerate(words)]


def moved(model, train):
    """Whether training moved any weight."""
    before = [p.detach().clone() for p in model.parameters()]
    train()
    return any(not a.equal(b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_ranking_loss_of_sentence_transformers_takes_the_tuples(tiny_text, tmp_path):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(str(tiny_text), device="cpu")
    rows = exports.tuples(rows_of_eight())
    told = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True, save_strategy="no",
        disable_tqdm=True, learning_rate=0.1,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model, told, train_dataset=Dataset.from_list(rows), loss=MultipleNegativesRankingLoss(model)
    )
    assert moved(model, trainer.train)
    assert trainer.state.global_step == 1


def test_a_list_loss_of_a_cross_encoder_takes_the_labelled_lists(tiny_text, tmp_path):
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import LambdaLoss

    model = CrossEncoder(str(tiny_text), num_labels=1, device="cpu")
    rows = [json.loads(json.dumps(row)) for row in exports.lists(rows_of_eight())]
    told = CrossEncoderTrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True, save_strategy="no",
        disable_tqdm=True, learning_rate=0.1,
    )  # fmt: skip
    trainer = CrossEncoderTrainer(model, told, train_dataset=Dataset.from_list(rows), loss=LambdaLoss(model))
    assert moved(model, trainer.train)
    assert trainer.state.global_step == 1
