import math
from dataclasses import replace

import processes
import pytest
import torch
from tiny import gradient_of, relative
from torch.nn.functional import normalize

from hardwon.errors import RecipeError
from hardwon.losses import (
    AmplifiedInfoNCE,
    FalseNegatives,
    InfoNCE,
    JudgeAlignment,
    KnownPairs,
    Listwise,
    Pairwise,
    Targets,
    TopKInfoNCE,
    gradient_report,
)
from hardwon.models import Embedder
from hardwon.training.batches import shared
from hardwon.training.objective import LearnedTemperature, Objective, at_temperature
from hardwon.training.step import Memory, embedder_step

ANY = LearnedTemperature(low=1e-3, high=10.0)


def problem(q=5, n=9, d=12, seed=0):
    """Unit vectors, places of queries and of candidates among them, and known pairs; some items are both."""
    rng = torch.Generator().manual_seed(seed)
    vectors = normalize(torch.randn(n, d, generator=rng), dim=1)
    asked, offered = list(range(q)), [*range(q - 2, n), 0]
    shape = (q, len(offered))
    gold = torch.zeros(shape, dtype=torch.bool)
    gold[torch.arange(q), torch.arange(q)] = True
    gold[1, 5] = True
    known = torch.rand(shape, generator=rng) < 0.7
    judged = known & (torch.rand(shape, generator=rng) < 0.8)
    comparable = gold | ~(known & (torch.rand(shape, generator=rng) < 0.2))
    rows, columns = (known | gold).nonzero(as_tuple=True)
    grades = torch.rand(shape, generator=rng)
    parts = (matrix[rows, columns] for matrix in (gold, judged, grades, comparable))
    return vectors, asked, offered, KnownPairs(shape, rows, columns, *parts)


# Losses written anew, query by query, with a temperature that autograd sees.


def contrast(gold, others, t, hardness=0.0):
    """InfoNCE of one gold candidate."""
    logits = torch.stack([gold / t, *(s / t + hardness * s.detach() for s in others)])
    return logits.logsumexp(dim=0) - gold / t


def lists(scores, targets):
    """Scores of gold and of negatives, query by query."""
    for row, gold, comparable in zip(scores, targets.gold, targets.comparable, strict=True):
        yield list(row[gold]), list(row[comparable & ~gold])


def infonce(scores, targets, t, hardness=0.0):
    return mean(mean(contrast(g, others, t, hardness) for g in golds) for golds, others in lists(scores, targets))


def symmetric(scores, targets, t, hardness=0.0):
    asked = targets.gold.any(dim=0)
    turned = (matrix.T[asked] for matrix in (targets.gold, targets.judged, targets.relevance, targets.comparable))
    return mean([infonce(scores, targets, t, hardness), infonce(scores.T[asked], Targets(*turned), t, hardness)])


def hardest(scores, targets, t, k, beta):
    losses = []
    for golds, others in lists(scores, targets):
        left = sorted((s for s in others if s <= max(golds) + beta), key=lambda s: -s.item())
        losses.append(mean(contrast(gold, left[:k], t) for gold in golds))
    return mean(losses)


def amplified(scores, targets, t, alpha=1.0, width=0.1):
    """The value of InfoNCE, with the slope that the amplifier wants."""
    wanted = 0.0
    for golds, others in lists(scores, targets):
        for gold in golds:
            shares = (torch.stack([gold, *others]) / t).softmax(dim=0)[1:].detach()
            for p, s in zip(shares, others, strict=True):
                weight = p * (1 + alpha * torch.sigmoid((s - gold).detach() / width))
                wanted = wanted + weight * (s - gold) / t / len(golds) / len(scores)
    return infonce(scores, targets, t).detach() + wanted - wanted.detach()


def listwise(scores, targets, t):
    """Other gold candidates are on the list as well."""
    losses = []
    for golds, others in lists(scores, targets):
        losses.append(mean(contrast(g, [*others, *golds[:n], *golds[n + 1 :]], t) for n, g in enumerate(golds)))
    return mean(losses)


def judge(scores, targets, t, judge_t):
    total = scores.new_zeros(())
    for row, judged, grades in zip(scores, targets.judged, targets.relevance, strict=True):
        if judged.sum() > 1:
            p, q = (row[judged] / t).softmax(dim=0), (grades[judged].double() / judge_t).softmax(dim=0)
            total = total + ((p - q) * (p.log() - q.log())).sum() / 2
    return total / len(scores)


def mean(values):
    return torch.stack(list(values)).mean()


TWINS = {
    "infonce": (InfoNCE(0.2), infonce),
    "hardness": (InfoNCE(0.2, hardness=3.0), lambda s, y, t: infonce(s, y, t, 3.0)),
    "symmetric": (InfoNCE(0.2, hardness=3.0, symmetric=True), lambda s, y, t: symmetric(s, y, t, 3.0)),
    "hardest": (TopKInfoNCE(0.2, k=2, beta=0.2), lambda s, y, t: hardest(s, y, t, 2, 0.2)),
    "amplified": (AmplifiedInfoNCE(0.2), amplified),
    "listwise": (Listwise(0.2), listwise),
    "judge": (JudgeAlignment(0.2), lambda s, y, t: judge(s, y, t, 0.2)),
    "a colder judge": (JudgeAlignment(0.2, judge_temperature=0.1), lambda s, y, t: judge(s, y, t, 0.1)),
    "sum": (
        0.5 * InfoNCE(0.2) + 2.0 * JudgeAlignment(0.3),
        lambda s, y, t: 0.5 * infonce(s, y, t) + 2.0 * judge(s, y, 1.5 * t, 0.3),
    ),
}


class TestNaively:
    """Value and gradients are those of the losses above, in float64."""

    @pytest.mark.parametrize("widths", [(), (7,), (3, 7)], ids=str)
    @pytest.mark.parametrize("name", TWINS)
    def test_value_and_both_gradients(self, name, widths):
        loss, twin = TWINS[name]
        vectors, asked, offered, targets = problem()
        free = vectors.double().requires_grad_()
        log_t = torch.tensor(math.log(0.2), dtype=torch.float64, requires_grad=True)
        truth = torch.zeros((), dtype=torch.float64)
        for width in (*widths, 12):
            short = normalize(free[:, :width], dim=1) if width < 12 else free
            truth = truth + twin(short[asked] @ short[offered].T, targets[:], log_t.exp()) / (len(widths) + 1)
        truth.backward()
        objective = Objective(loss, widths=widths, temperature=ANY)
        value, slope = objective.slope(vectors, asked, offered, targets)
        assert float(value) == pytest.approx(float(truth.detach()), rel=1e-5)
        torch.testing.assert_close(slope.double(), free.grad, rtol=1e-4, atol=1e-5)
        assert float(objective.log_temperature.grad) == pytest.approx(float(log_t.grad), rel=1e-4)
        # A fixed temperature gives the same.
        fixed = Objective(loss, widths=widths).slope(vectors, asked, offered, targets)
        assert float(fixed.value) == pytest.approx(float(value), rel=1e-5)
        torch.testing.assert_close(fixed.vectors, slope, rtol=1e-5, atol=1e-5)

    def test_known_pairs_and_matrices_are_the_same(self):
        vectors, asked, offered, targets = problem()
        made = [Objective(InfoNCE(0.2), widths=(5,)).slope(vectors, asked, offered, t) for t in (targets, targets[:])]
        assert torch.equal(made[0].value, made[1].value)
        assert torch.equal(made[0].vectors, made[1].vectors)


@pytest.mark.parametrize("name", processes.CASES)
def test_a_step_is_one_pass_over_everything(text_model, name):
    """The whole score matrix and autograd through the model: the truth for every loss, rule and width."""
    loss, around = processes.CASES[name]
    batch = shared(processes.examples(), 0)
    text_model.module.eval()
    items = {item.key: item for item in (*batch.queries, *batch.candidates)}
    made = dict(zip(items, text_model.forward(list(items.values())), strict=True))
    queries, candidates = (torch.stack([made[item.key] for item in side]) for side in (batch.queries, batch.candidates))
    values = []
    for width in (*around.get("widths", ()), text_model.dim):
        q, c = normalize(queries[:, :width], dim=1), normalize(candidates[:, :width], dim=1)
        targets = batch.targets[:]
        if "rules" in around:
            alike = torch.stack([(c[gold] @ c.T).detach().amax(dim=0) for gold in targets.gold])
            targets = around["rules"]((q @ c.T).detach(), targets, alike)
            assert not torch.equal(targets.comparable, batch.targets[:].comparable)
        values.append(loss(q @ c.T, targets))
    truth = torch.stack(values).mean()
    truth.backward()
    gradient = gradient_of(text_model)
    value = embedder_step(text_model, Objective(loss, **around), batch, Memory(60))
    assert float(value) == pytest.approx(float(truth.detach()), rel=1e-5)
    assert relative(gradient_of(text_model), gradient) < 1e-5


class TestWidths:
    def test_order_and_repetition_do_not_matter(self):
        vectors, *rest = problem()
        made = [Objective(InfoNCE(0.2), widths=widths).slope(vectors, *rest) for widths in ((3, 7), (7, 3, 7))]
        assert torch.equal(made[0].vectors, made[1].vectors)

    @pytest.mark.parametrize("widths", [(0,), (4, -1)])
    def test_of_nothing_are_refused(self, widths):
        with pytest.raises(RecipeError, match=r"widths must be above 0, got \("):
            Objective(InfoNCE(), widths=widths)

    @pytest.mark.parametrize("width", [12, 13])
    def test_that_the_vectors_do_not_have_are_refused(self, width):
        objective = Objective(InfoNCE(), widths=(4, width))
        message = rf"widths must be below the model's 12 \(which always counts\), got \(4, {width}\)"
        with pytest.raises(RecipeError, match=message):
            objective.slope(*problem())


class TestTemperature:
    def test_is_not_learned_unless_asked_for(self):
        objective = Objective(InfoNCE(0.2))
        assert objective.log_temperature is None
        assert objective.temperature is None
        assert objective.current() == InfoNCE(0.2)

    def test_gradients_add_up(self):
        once, twice = (Objective(InfoNCE(0.2), widths=(3, 7), temperature=ANY) for _ in range(2))
        once.slope(*problem())
        for _ in range(2):
            twice.slope(*problem())
        assert float(twice.log_temperature.grad) == pytest.approx(2 * float(once.log_temperature.grad), rel=1e-6)

    @pytest.mark.parametrize(("inside", "outside"), [(0.05, 0.001), (0.3, 5.0)])
    def test_stays_within_bounds(self, inside, outside):
        objective = Objective(InfoNCE(0.1), temperature=LearnedTemperature(low=0.05, high=0.3))
        with torch.no_grad():
            objective.log_temperature.fill_(math.log(outside))
        assert objective.temperature == inside
        made = objective.slope(*problem())
        assert math.exp(objective.log_temperature.item()) == pytest.approx(inside, rel=1e-6)
        truth = Objective(InfoNCE(inside)).slope(*problem())
        assert float(made.value) == pytest.approx(float(truth.value), rel=1e-5)

    def test_parts_keep_their_ratio_and_the_judge_its_own(self):
        loss = 0.5 * InfoNCE(0.1, hardness=2.0) + JudgeAlignment(0.2) + 2.0 * JudgeAlignment(0.2, judge_temperature=0.05)
        kept = 0.5 * InfoNCE(0.3, hardness=2.0) + JudgeAlignment(0.6, 0.2) + 2.0 * JudgeAlignment(0.6, 0.05)
        made = at_temperature(loss, 3.0)
        for (weight, part), (other, truth) in zip(made.parts, kept.parts, strict=True):
            assert weight == other
            assert type(part) is type(truth)
            assert part.temperature == pytest.approx(truth.temperature)
            assert replace(part, temperature=1.0) == replace(truth, temperature=1.0)
        objective = Objective(loss, temperature=ANY)
        with torch.no_grad():
            objective.log_temperature.add_(math.log(3.0))
        assert objective.temperature == pytest.approx(0.3, rel=1e-6)
        assert [part.temperature for _, part in objective.current().parts] == pytest.approx([0.3, 0.6, 0.6], rel=1e-6)

    @pytest.mark.parametrize("loss", [Pairwise(), InfoNCE(0.05) + Pairwise(), lambda scores, targets: scores.sum()])
    def test_of_a_loss_without_one_is_refused(self, loss):
        with pytest.raises(RecipeError, match=r"the temperature cannot be learned: .* has none"):
            Objective(loss, temperature=LearnedTemperature())

    @pytest.mark.parametrize("start", [0.009, 0.11])
    def test_a_start_out_of_bounds_is_refused(self, start):
        message = f"the loss's temperature {start} is not between 0.01 and 0.1, within which it is learned"
        with pytest.raises(RecipeError, match=message):
            Objective(InfoNCE(start), temperature=LearnedTemperature())

    def test_a_start_at_a_bound_is_fine(self):
        for start in (0.01, 0.1):
            assert Objective(InfoNCE(start), temperature=LearnedTemperature()).temperature == pytest.approx(start, rel=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"low": 0.0}, "a learned temperature needs 0 < low < high, got 0.0 and 0.1"),
            ({"low": 0.1}, "a learned temperature needs 0 < low < high, got 0.1 and 0.1"),
            ({"high": math.nan}, "a learned temperature needs 0 < low < high, got 0.01 and nan"),
            ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ],
    )
    def test_values_that_make_no_sense(self, arguments, message):
        with pytest.raises(RecipeError, match=message):
            LearnedTemperature(**arguments)


class TestReport:
    @pytest.mark.parametrize("rules", [None, FalseNegatives(student=0.05, judge=0.3, copies=0.5)], ids=["plain", "rules"])
    def test_says_what_the_whole_matrix_says(self, rules):
        vectors, asked, offered, targets = problem()
        loss = InfoNCE(0.2, hardness=3.0)
        scores, matrices = vectors[asked] @ vectors[offered].T, targets[:]
        if rules:
            candidates = vectors[offered]
            alike = torch.stack([(candidates[gold] @ candidates.T).amax(dim=0) for gold in matrices.gold])
            matrices = rules(scores, matrices, alike)
            assert not torch.equal(matrices.comparable, targets[:].comparable)
        truth = gradient_report(loss, scores, matrices).summary()
        made = Objective(loss, rules=rules).report(vectors, asked, offered, targets).summary()
        assert made == pytest.approx(truth, rel=1e-5, nan_ok=True)

    def test_at_the_temperature_of_now(self):
        vectors, asked, offered, targets = problem()
        objective = Objective(InfoNCE(0.2), temperature=ANY)
        with torch.no_grad():
            objective.log_temperature.fill_(math.log(0.05))
        made = objective.report(vectors, asked, offered, targets).summary()
        truth = gradient_report(InfoNCE(0.05), vectors[asked] @ vectors[offered].T, targets[:]).summary()
        assert made == pytest.approx(truth, rel=1e-4, nan_ok=True)

    def test_of_the_first_queries_of_a_large_batch(self):
        vectors, asked, offered, targets = problem()
        made = Objective(InfoNCE(0.2)).report(vectors, asked, offered, targets, most=3)
        truth = gradient_report(InfoNCE(0.2), vectors[asked[:3]] @ vectors[offered].T, targets[:3])
        torch.testing.assert_close(made.positive, truth.positive)
        assert made.norm.shape == (3,)

    @pytest.mark.parametrize("loss", [InfoNCE(0.2), InfoNCE(0.2, hardness=3.0) + Pairwise()], ids=str)
    def test_of_first_queries_with_nothing_to_compare_is_none(self, loss):
        vectors, asked, offered, targets = problem()
        known = targets[:]
        known.comparable[:2] = known.gold[:2]
        rows, columns = torch.ones(targets.shape).nonzero(as_tuple=True)
        parts = (matrix[rows, columns] for matrix in (known.gold, known.judged, known.relevance, known.comparable))
        masked = KnownPairs(targets.shape, rows, columns, *parts)
        objective = Objective(loss)
        assert torch.isfinite(objective.slope(vectors, asked, offered, masked).value)  # the batch itself is fine
        assert objective.report(vectors, asked, offered, masked, most=2) is None
        assert objective.report(vectors, asked, offered, masked, most=3) is not None

    def test_a_step_shows_it_to_whoever_watches(self, tiny_text):
        model, seen = Embedder.load(tiny_text, device="cpu"), []
        model.module.eval()
        batch, loss = shared(processes.examples(), 0), InfoNCE(0.1, hardness=2.0)
        embedder_step(model, loss, batch, Memory(), watch=seen.append)
        with torch.no_grad():
            scores = model.forward(batch.queries) @ model.forward(batch.candidates).T
        truth = gradient_report(loss, scores, batch.targets)
        assert len(seen) == 1
        torch.testing.assert_close(seen[0].hardest, truth.hardest, rtol=1e-4, atol=1e-5)
        assert torch.equal(seen[0].candidates, truth.candidates)
