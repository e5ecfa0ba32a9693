import math

import pytest
import torch
from tiny import gradient_of, relative
from torch.nn.functional import normalize

from hardwon.errors import DataError
from hardwon.items import Candidate, Example, Item
from hardwon.losses import AmplifiedInfoNCE, FalseNegatives, InfoNCE, JudgeAlignment, Targets, TopKInfoNCE
from hardwon.training import Memory, SentenceTransformersLoss
from hardwon.training.batches import shared
from hardwon.training.step import embedder_step

ANCHORS = ["red square", "blue circle", "green bar", "a black triangle, find it", "yellow"]
COLUMNS = [
    ["the square is red", "the circle is blue", "the bar is green", "the triangle is black", "it is yellow"],
    ["the square is blue", "the circle is red", "a bar", "the black bar", "green"],
    ["the red circle", "the blue square, not the circle", "the green triangle", "the triangle", "the yellow bar"],
]
GRADES = [[1.0, 0.2, 0.4], [0.9, 0.3, 0.8], [1.0, 0.7, 0.1], [0.8, 0.5, 0.9], [1.0, 0.0, 0.3]]
LOSSES = {
    "hardness": InfoNCE(0.1, hardness=2.0),
    "symmetric": InfoNCE(0.1, hardness=2.0, symmetric=True),
    "amplified": AmplifiedInfoNCE(0.1),
    "hardest": TopKInfoNCE(0.1, k=3),
    "judge": JudgeAlignment(0.2),
    "sum": JudgeAlignment(0.2) + 0.5 * InfoNCE(0.1),
}


@pytest.fixture
def still(text_model):
    """An embedder without dropout."""
    text_model.module.eval()
    return text_model


def features(model, columns):
    return [dict(model.preprocess(texts)) for texts in columns]


def ours(model, loss, columns, grades=None):
    """Value and gradient of our own step on the same texts."""
    examples = []
    for row, (anchor, *texts) in enumerate(zip(ANCHORS, *columns, strict=True)):
        given = grades[row] if grades else [None] * len(texts)
        origins = ["gold", *["given"] * (len(texts) - 1)]
        candidates = (Candidate(Item(text=t), grade, origin) for t, grade, origin in zip(texts, given, origins, strict=True))
        examples.append(Example(Item(text=anchor), tuple(candidates)))
    value = embedder_step(model, loss, shared(examples, 0), Memory())
    return float(value), gradient_of(model)


@pytest.mark.parametrize("size", [None, 2, 5, 100], ids=["at once", "cached by 2", "cached by 5", "cached by 100"])
class TestIsOurStep:
    @pytest.mark.parametrize("negatives", [0, 1, 2])
    @pytest.mark.parametrize("name", ["hardness", "symmetric", "amplified", "hardest"])
    def test_pairs_and_negatives(self, still, name, negatives, size):
        columns, model = COLUMNS[: 1 + negatives], still.body.model
        truth, gradient = ours(still, LOSSES[name], columns)
        value = SentenceTransformersLoss(model, LOSSES[name], mini_batch_size=size)(features(model, [ANCHORS, *columns]))
        value.backward()
        assert value.shape == ()
        assert float(value.detach()) == pytest.approx(truth, rel=1e-5)
        assert relative(gradient_of(still), gradient) < 1e-5

    @pytest.mark.parametrize("negatives", [1, 2])
    @pytest.mark.parametrize("name", ["judge", "sum"])
    def test_a_judges_grades(self, still, name, negatives, size):
        columns, model = COLUMNS[: 1 + negatives], still.body.model
        grades = [row[: 1 + negatives] for row in GRADES]
        truth, gradient = ours(still, LOSSES[name], columns, grades)
        loss = SentenceTransformersLoss(model, LOSSES[name], mini_batch_size=size)
        value = loss(features(model, [ANCHORS, *columns]), torch.tensor(grades))
        value.backward()
        assert float(value.detach()) == pytest.approx(truth, rel=1e-5)
        assert relative(gradient_of(still), gradient) < 1e-5

    def test_an_upstream_factor_reaches_the_weights(self, still, size):
        """As in gradient accumulation, or with the scaler of float16."""
        model = still.body.model
        _, gradient = ours(still, LOSSES["hardness"], COLUMNS)
        loss = SentenceTransformersLoss(model, LOSSES["hardness"], mini_batch_size=size)
        (loss(features(model, [ANCHORS, *COLUMNS])) * 0.25).backward()
        assert relative(gradient_of(still), 0.25 * gradient) < 1e-5

    def test_rules_take_copies_out(self, still, size):
        model = still.body.model
        positives = [*COLUMNS[0][:4], COLUMNS[0][0]]  # the first text once more
        vectors = still.forward([Item(text=text) for text in ANCHORS]), still.forward([Item(text=text) for text in positives])
        targets = Targets.of_gold(torch.eye(5, dtype=torch.bool))
        targets.comparable[0, 4] = targets.comparable[4, 0] = False
        truth = InfoNCE(0.1)(vectors[0] @ vectors[1].T, targets)
        truth.backward()
        gradient = gradient_of(still)
        loss = SentenceTransformersLoss(model, InfoNCE(0.1), rules=FalseNegatives(copies=0.999), mini_batch_size=size)
        value = loss(features(model, [ANCHORS, positives]))
        value.backward()
        assert float(value.detach()) == pytest.approx(float(truth.detach()), rel=1e-5)
        assert relative(gradient_of(still), gradient) < 1e-5

    def test_without_gradients(self, still, size):
        """As in an evaluation."""
        model = still.body.model
        truth, _ = ours(still, LOSSES["hardness"], COLUMNS)
        with torch.no_grad():
            value = SentenceTransformersLoss(model, LOSSES["hardness"], mini_batch_size=size)(
                features(model, [ANCHORS, *COLUMNS])
            )
        assert float(value) == pytest.approx(truth, rel=1e-5)
        assert not value.requires_grad

    def test_scores_stay_in_float32_under_autocast(self, still, size):
        model = still.body.model
        with torch.autocast("cpu", torch.bfloat16):
            vectors = [model(column)["sentence_embedding"].detach() for column in features(model, [ANCHORS, COLUMNS[0]])]
            value = SentenceTransformersLoss(
                model, InfoNCE(0.02), rules=FalseNegatives(copies=0.999), mini_batch_size=size and 100
            )(features(model, [ANCHORS, COLUMNS[0]]))
        queries, candidates = (normalize(column.float(), dim=1) for column in vectors)
        truth = InfoNCE(0.02)(queries @ candidates.T, Targets.of_gold(torch.eye(5, dtype=torch.bool)))
        assert float(value.detach()) == pytest.approx(float(truth), rel=1e-5)


@pytest.mark.parametrize("rules", [FalseNegatives(copies=0.999), FalseNegatives(student=0.1)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_all_is_exact_under_autocast(text_model, name, rules):
    """In bfloat16 a cosine of 0.9985 is 1: near copies would be taken for copies."""
    rng = torch.Generator().manual_seed(4)
    queries = torch.randn(5, 8, generator=rng)
    golds = normalize(torch.randn(5, 8, generator=rng), dim=1)
    away = torch.randn(5, 8, generator=rng)
    away = normalize(away - (away * golds).sum(dim=1, keepdim=True) * golds, dim=1)
    columns = [queries, golds, 0.9985 * golds + math.sqrt(1 - 0.9985**2) * away]
    loss = SentenceTransformersLoss(text_model.body.model, LOSSES[name], rules=rules)
    labels = torch.tensor([row[:2] for row in GRADES])
    values, slopes = [], []
    for enabled in (False, True):
        free = [column.clone().requires_grad_() for column in columns]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = loss.calculate_loss([[column] for column in free], labels)
        value.backward()
        values.append(float(value.detach()))
        slopes.append(torch.cat([column.grad for column in free]))
    assert values[1] == pytest.approx(values[0], rel=1e-6)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [None, 2], ids=["at once", "cached"])
class TestRefuses:
    def test_one_column(self, still, size):
        loss = SentenceTransformersLoss(still.body.model, InfoNCE(), mini_batch_size=size)
        message = r"the data set needs at least the columns anchor and positive, got 1 column\(s\)"
        with pytest.raises(DataError, match=message):
            loss(features(still.body.model, [ANCHORS]))

    @pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3)], ids=str)
    def test_grades_that_do_not_match(self, still, size, shape):
        loss = SentenceTransformersLoss(still.body.model, JudgeAlignment(), mini_batch_size=size)
        held = shape[1] if len(shape) > 1 else 1
        message = (
            rf"the labels hold {held} grade\(s\) a row, the data set 2 candidate\(s\): one grade for the positive and one for"
        )
        with pytest.raises(DataError, match=message):
            loss(features(still.body.model, [ANCHORS, *COLUMNS[:2]]), torch.ones(shape))


@pytest.mark.parametrize("size", [0, -3])
def test_small_batches_of_nothing_are_refused(text_model, size):
    with pytest.raises(ValueError, match=f"mini_batch_size must be at least 1, got {size}"):
        SentenceTransformersLoss(text_model.body.model, InfoNCE(), mini_batch_size=size)


def test_the_model_card_says_what_it_was(text_model):
    loss = SentenceTransformersLoss(text_model.body.model, InfoNCE(0.05), rules=FalseNegatives(copies=0.99))
    said = loss.get_config_dict()
    assert "InfoNCE(temperature=0.05" in said["objective"]
    assert "copies=0.99" in said["rules"]


@pytest.mark.filterwarnings("ignore")  # of libraries that are not ours
@pytest.mark.parametrize("size", [None, 2], ids=["at once", "cached"])
@pytest.mark.parametrize("graded", [False, True], ids=["plain", "graded"])
def test_their_trainer_takes_it(text_model, tmp_path, size, graded):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    model = text_model.body.model
    rows = {"anchor": ANCHORS, "positive": COLUMNS[0], "negative": COLUMNS[1]}
    loss = LOSSES["hardness"]
    if graded:
        rows, loss = rows | {"label": [row[:2] for row in GRADES]}, LOSSES["sum"]
    before = {name: value.clone() for name, value in model.named_parameters()}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(rows),
        loss=SentenceTransformersLoss(model, loss, mini_batch_size=size),
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 2
    assert all(math.isfinite(value) and value > 0 for value in losses)
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert len(moved) > 0.9 * len(before)
    assert all(torch.isfinite(value).all() for value in model.parameters())
