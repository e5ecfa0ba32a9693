"""Controls: what they are equal to, and that every row steps with a gradient of the same norm."""

from dataclasses import replace

import pytest
import torch


def slope_of(loss, scores, targets):
    free = scores.clone().requires_grad_()
    loss(free, targets).backward()
    return free.grad


@pytest.fixture
def scores():
    return 0.5 * torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def targets():
    from hardwon.losses import Targets

    return Targets.of_gold(torch.eye(6, dtype=torch.bool))


def test_margin_is_what_the_formula_says(scores, targets):
    from studies.controls import Margin

    logits = (scores - 0.1 * torch.eye(6, dtype=torch.float64)) / 0.05
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(6))
    assert Margin(0.05)(scores, targets) == pytest.approx(float(expected))


@pytest.mark.parametrize("name", ["ega-R0", "ega-R1", "ega-R2", "ega-R3", "llave"])
def test_control_weighs_negatives_as_its_row_does(name, scores, targets):
    """R0 is its control but for the scale; LLaVE and R1 share the weights among negatives; R2 and R3 near the positive."""
    from studies.suites import small

    suite = small()
    row = suite.entry(name)
    one, other = (slope_of(loss, scores, targets) for loss in (row.loss, suite.entry(row.control).loss))
    if name == "ega-R0":
        torch.testing.assert_close(one / one.norm(), other / other.norm())
        return
    if name in ("llave", "ega-R1"):
        off = ~torch.eye(6, dtype=torch.bool)
        shares = [grad.masked_fill(~off, 0) / grad.masked_fill(~off, 0).sum(dim=1, keepdim=True) for grad in (one, other)]
        torch.testing.assert_close(*shares)
        return
    # Two negatives just below the positive: how fast their weights part is what the control was matched in.
    near = torch.tensor([[0.5, 0.5 - 1e-5, 0.5 - 2e-5]], dtype=torch.float64)
    known = type(targets).of_gold(torch.tensor([[True, False, False]]))
    ratios = [
        float(torch.log(g[0, 1] / g[0, 2])) for g in (slope_of(r.loss, near, known) for r in (row, suite.entry(row.control)))
    ]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-3)


@pytest.mark.parametrize("name", ["infonce", "llave-sym", "margin", "ega-R2", "topk", "aligned-alone"])
def test_every_step_has_the_same_norm(name, material, monkeypatch):
    """Clipping acts in every step of every row, so what the optimizer sees has one norm."""
    from studies import cells
    from studies.suites import TINY, tiny

    row = replace(tiny().entry(name), mined="", only_mined=False)
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def seen(parameters, limit, **more):
        before = clip(parameters, limit, **more)
        norms.append(float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()))
        return before

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", seen)
    examples = material.train
    if name == "aligned-alone":
        examples = graded(examples)
    done = cells.train(cells.start(material, TINY, 0), examples, row, TINY, 3, 0)
    assert done["clipped"] == 1.0
    assert norms == pytest.approx([cells.CLIP] * 3, rel=1e-4)


def graded(examples):
    """With a grade for the gold and for one candidate of another example."""
    from hardwon.items import Candidate

    made = []
    for n, example in enumerate(examples):
        other = examples[(n + 4) % len(examples)].gold[0]
        gold = replace(example.candidates[0], relevance=0.9)
        made.append(replace(example, candidates=(gold, Candidate(other, 0.2, "mined"))))
    return tuple(made)
