"""Models of the same weights for several threads."""

import copy
import random
import threading

import numpy as np
import torch

from hardwon.items import Item
from hardwon.models import Reranker
from hardwon.models.twins import twin


def mixed(shapes):
    """Texts of many lengths, pictures, and both where a model reads them together."""
    texts = ["a", "a red square", "blue circle " * 20, "green " * 7, "triangle"]
    return [*(Item(text) for text in texts), *(Item(images=(shapes[name],)) for name in ("plain", "wide", "large"))]


def test_vectors_are_those_of_the_model(any_model, shapes):
    items = mixed(shapes)
    other = twin(any_model.ours)
    assert np.array_equal(other.encode(items), any_model.ours.encode(items))
    assert other.fingerprint == any_model.ours.fingerprint


def test_weights_are_shared_and_nothing_else_is(any_model):
    model, other = any_model.ours.body.model, twin(any_model.ours).body.model
    for (name, mine), (again, its) in zip(
        (*model.named_parameters(), *model.named_buffers()), (*other.named_parameters(), *other.named_buffers()), strict=True
    ):
        assert name == again and mine is its
    assert other is not model and other[0] is not model[0]
    assert any_model.ours.body.tokenizer is not twin(any_model.ours).body.tokenizer
    assert {id(module) for module in model.modules()}.isdisjoint(id(module) for module in other.modules())


def test_threads_do_not_meet(any_model, shapes):
    """Each thread has a twin of its own; what it gives is what the model gives alone, for batches in any order."""
    items, truth = mixed(shapes), any_model.ours.encode(mixed(shapes))
    wrong, start = [], threading.Barrier(3)

    def work(model, seed):
        rng = random.Random(seed)
        start.wait()
        for _ in range(6):
            some = rng.sample(range(len(items)), 3)
            made = model.encode([items[n] for n in some])
            wrong.extend(n for n, row in zip(some, made, strict=True) if not np.allclose(row, truth[n], atol=2e-5))

    threads = [threading.Thread(target=work, args=(twin(any_model.ours), seed)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads) and not wrong


def test_of_a_reranker(vlm):
    reranker = Reranker.start_from(copy.deepcopy(vlm))
    pairs = [(Item("red square"), Item("red")), (Item("blue"), Item("a circle " * 9)), (Item("a"), Item("b"))]
    other = twin(reranker)
    assert np.array_equal(other.score_pairs(pairs), reranker.score_pairs(pairs))
    with torch.no_grad():  # a weight that changes changes in both
        next(iter(reranker.module.parameters())).add_(1.0)
    assert np.array_equal(other.score_pairs(pairs), reranker.score_pairs(pairs))
