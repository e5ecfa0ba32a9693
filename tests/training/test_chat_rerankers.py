"""Chat models learn to rerank, pair by pair and in lists, in the same loop as everything else."""

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import vlms

from hardwon.errors import RecipeError
from hardwon.items import Candidate, Example, Item
from hardwon.losses import Listwise, Pairwise
from hardwon.models import Listing, ListwiseReranker, LoRA, Question, Reranker, load_reranker
from hardwon.models.listwise import orders
from hardwon.training import Memory, Settings, run, train
from hardwon.training.batches import listed, shuffled
from hardwon.training.step import reranker_step

LOSS = Pairwise() + Listwise()
QUESTION, LISTING = Question("Fits? {yes} or {no}."), Listing("Which?", window=4, permutations=2)
SETTINGS = Settings(batch_size=4, negatives=2, random_negatives=1, learning_rate=3e-3, freeze=("vision",))
MODES = ("pairwise", "listwise")


def load(mode, folder, window=4, **options):
    if mode == "pairwise":
        return Reranker.load(folder, device="cpu", question=QUESTION, **options)
    return ListwiseReranker.load(folder, device="cpu", listing=replace(LISTING, window=window), **options)


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """Folder of a language model that reads text only."""
    return vlms.build_words(tmp_path_factory.mktemp("words") / "words")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """Folders of chat models that see, by architecture."""
    homes = {name: tmp_path_factory.mktemp("seeing") / name for name in ("qwen2-vl", "llava")}
    return {name: vlms.bare(vlms.DECODERS[name](home)) for name, home in homes.items()}


def planted(count, start=0):
    """Whatever is asked, what is wanted has it in it and what is not is a fox."""
    made = []
    for n in range(start, start + count):
        wrong = [Candidate(Item(f"fox {n}{letter}")) for letter in "abc"]
        made.append(Example(Item(f"red {n}"), (Candidate(Item(f"it {n}"), 1.0, "gold"), *wrong), "planted"))
    return made


def described(pictures):
    """Pictures with a text each, as query, gold and negatives."""
    made = []
    for n, example in enumerate(tiny.examples(pictures)[:6]):
        given = [replace(c, item=replace(c.item, text=f"text {n}{k}")) for k, c in enumerate(example.candidates)]
        made.append(replace(example, candidates=tuple(given)))
    return made


def losses_of(out):
    return [row["loss"] for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


@pytest.mark.parametrize(("mode", "steps"), [("pairwise", 12), ("listwise", 60)])
def test_learns_what_is_preferred(mode, steps, reading, tmp_path):
    model = load(mode, reading, window=3)  # lists of four are read in several windows
    held_out = planted(8, start=50)
    settings = replace(SETTINGS, batch_size=8, negatives=2, random_negatives=0, freeze=())
    train(model, planted(16), LOSS, steps=steps, settings=settings, out=tmp_path)
    losses = losses_of(tmp_path)
    assert np.mean(losses[-4:]) < 0.3 * np.mean(losses[:2])
    lists = [[c.item for c in reversed(example.candidates)] for example in held_out]
    scores = model.score_lists([example.query for example in held_out], lists)
    assert all(row.argmax() == len(row) - 1 for row in scores)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["qwen2-vl", "llava"])
def test_every_prompt_holds_the_text_of_every_item(mode, name, seeing, pictures, monkeypatch):
    model = load(mode, seeing[name], lora=LoRA(rank=2))
    prompts, rows = [], []
    tokenizer = model.body.tokenizer

    def note(_module, _args, given):
        for ids, kept in zip(given["input_ids"], given["attention_mask"], strict=True):
            prompts.append(tokenizer.decode(ids[kept.bool()]))

    def step(of, objective, batch, *rest):
        wanted = batch.pairs if mode == "pairwise" else [(query, *items) for query, items in batch.lists]
        rows.extend([query.instruction, *(item.text for item in (query, *items))] for query, *items in wanted)
        return reranker_step(of, objective, batch, *rest)

    monkeypatch.setattr(run, "reranker_step", step)
    model.body.transformer.register_forward_pre_hook(note, with_kwargs=True)
    train(model, described(pictures), LOSS, steps=3, settings=SETTINGS)
    seen = [prompt for prompt in prompts if any(all(text in prompt for text in row) for row in rows)]
    assert len(rows) == 3 * 4 * (4 if mode == "pairwise" else 1)
    assert len(prompts) >= len(rows)
    tried = len(prompts) - len(rows)  # before the first step, on an item of each kind
    assert len(seen) >= len(prompts) - tried
    for row in rows:
        assert any(all(text in prompt for text in row) for prompt in prompts), row
    for prompt in prompts:  # no text of another list in it, and none left out
        assert prompt.count("text ") == (1 if mode == "pairwise" or prompt in prompts[:tried] else 4)


def test_gold_stands_in_every_place_as_often(reading, monkeypatch):
    model, places, by_query = load("listwise", reading, window=6), Counter(), {}
    examples = planted(20)

    def step(_model, _objective, batch, *_rest):
        golds = batch.targets.gold.int().argmax(dim=1).tolist()
        places.update(golds)
        for key, (query, items), gold in zip(batch.keys, batch.lists, golds, strict=True):
            by_query.setdefault(key, set()).add(gold)
            assert items[gold].text.startswith("it")
            assert query.key == key
        return torch.zeros(())

    monkeypatch.setattr(run, "reranker_step", step)
    settings = replace(SETTINGS, batch_size=10, negatives=3, random_negatives=2, freeze=())
    train(model, examples, LOSS, steps=60, settings=settings)
    counts = np.array([places[n] for n in range(6)])
    assert counts.sum() == 600
    assert ((counts - 100) ** 2 / 100).sum() < 15.1  # chi-square with five degrees of freedom: 1 of 100 by chance
    assert all(len(found) == 6 for found in by_query.values())


class Stop(Exception):
    pass


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_run_ends_as_an_undisturbed_one(mode, seeing, pictures, tmp_path, monkeypatch):
    def start():
        return load(mode, seeing["qwen2-vl"], lora=LoRA(rank=2, dropout=0.1))

    monkeypatch.setattr(run, "SAVE_EVERY_S", 0.0)
    settings, examples, calls = replace(SETTINGS, dropout=True), described(pictures), []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise Stop
        return 0.0

    frozen = {n: p.clone() for n, p in start().module.named_parameters() if "lora_" not in n}
    whole = train(start(), examples, LOSS, steps=4, settings=settings, out=tmp_path / "whole")
    with pytest.raises(Stop):
        train(start(), examples, LOSS, steps=4, settings=settings, out=tmp_path / "parts", validate=(1, check))
    resumed = train(start(), examples, LOSS, steps=4, settings=settings, out=tmp_path / "parts")
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "parts")
    ours, theirs = (model.module.state_dict() for model in (whole, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.equal(ours[name], weight) for name, weight in frozen.items())
    learned = [name for name in ours if "lora_B" in name and bool(ours[name].any())]
    assert learned
    assert all("language_model" in name for name in learned)

    query, items = examples[0].query, [c.item for c in examples[0].candidates]
    truth = whole.score(query, items)
    assert np.abs(truth - start().score(query, items)).max() > 1e-4
    for merge in (False, True):
        whole.save(tmp_path / f"{merge}", merge=merge)
        assert (tmp_path / f"{merge}" / "adapter_config.json").exists() is not merge
        loaded = load_reranker(tmp_path / f"{merge}", device="cpu")
        assert type(loaded) is type(whole)
        np.testing.assert_allclose(loaded.score(query, items), truth, atol=1e-5 if merge else 0)


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_does_not_depend_on_chunks(mode, seeing, pictures):
    """Lists of several lengths, in chunks that are encoded twice."""
    model = load(mode, seeing["qwen2-vl"])
    model.module.eval()
    some = described(pictures)[:4]
    some[1] = replace(some[1], candidates=some[1].candidates[:2])
    if mode == "listwise":
        some = [shuffled(example, random.Random(n)) for n, example in enumerate(some)]
    batch = listed(some, 0)
    values, gradients = [], []
    for memory in (Memory(chunk_tokens=10**6), Memory(chunk_tokens=200, keep_tokens=0)):
        values.append(float(reranker_step(model, LOSS, batch, memory)))
        gradients.append(tiny.gradient_of(model))
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert tiny.relative(gradients[1], gradients[0]) < 1e-4
    if mode == "listwise":  # what the loss sees are the logits of the labels
        with torch.no_grad():
            rows = model.forward(list(batch.lists))
        scores = rows[:, : batch.filled.shape[1]]
        assert values[0] == pytest.approx(float(LOSS(scores, batch.targets)), rel=1e-5)


def test_scores_give_the_loss_that_training_saw(reading):
    """One permutation, and lists that training shows in its order."""
    model = ListwiseReranker.load(reading, device="cpu", listing=replace(LISTING, permutations=1))
    shown = []
    for example in planted(6):
        known = sorted(example.candidates, key=lambda candidate: candidate.item.key)
        (places,) = orders(len(known), 4, model.listing, example.query.key)
        shown.append(replace(example, candidates=tuple(known[place] for place in places)))
    batch = listed(shown, 0)
    assert len(set(batch.targets.gold.int().argmax(dim=1).tolist())) > 1
    scores = model.score_lists([e.query for e in shown], [[c.item for c in e.candidates] for e in shown])
    value = float(reranker_step(model, LOSS, batch, Memory()))
    assert value == pytest.approx(float(LOSS(torch.tensor(np.stack(scores)), batch.targets)), rel=1e-5)


def test_lists_that_are_too_long(reading, seeing, pictures, monkeypatch):
    model = load("listwise", reading)
    with pytest.raises(RecipeError, match=r"up to 7 candidates \(gold, .* do not fill the model's window of 4"):
        train(model, planted(4), LOSS, steps=1, settings=replace(SETTINGS, negatives=3, random_negatives=3, freeze=()))
    # Pictures that leave no room are left out of a list, and never its gold.
    model, sizes = load("listwise", seeing["qwen2-vl"], lora=LoRA(rank=2)), set()
    many = (pictures["red square"],) * 4
    examples = [
        replace(e, candidates=(e.candidates[0], *(Candidate(Item(f"{n}{k}", images=many)) for k in "abc")))
        for n, e in enumerate(described(pictures))
    ]

    def step(of, objective, batch, *rest):
        sizes.update(len(items) for _, items in batch.lists)
        assert bool(batch.targets.gold.any(dim=1).all())
        return reranker_step(of, objective, batch, *rest)

    monkeypatch.setattr(run, "reranker_step", step)
    train(model, examples, LOSS, steps=1, settings=replace(SETTINGS, negatives=3, random_negatives=0))
    assert sizes == {2}
