"""The same vectors measured by other evaluation code: mteb, sentence-transformers and, below mteb, pytrec_eval."""

import importlib.util
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from hardwon.evaluation import evaluate

QUERIES, CORPUS = 150, 60
CUTOFFS = (1, 5, 10)


@pytest.fixture
def asked(make_task, benchmark_of, fake):
    """A task with one to four gold entries of different grades for each query, its report, and the vectors."""
    rng = random.Random(5)
    gold = tuple(tuple(rng.sample(range(CORPUS), rng.randint(1, 4))) for _ in range(QUERIES))
    grades = tuple(tuple(float(rng.randint(1, 3)) for _ in row) for row in gold)
    task = make_task("words", QUERIES, CORPUS, gold=gold, grades=grades, metric="ndcg@5")
    encoder = fake(dim=12)
    for query, row in zip(task.queries, gold, strict=True):  # not at random: the first is found more often than not
        encoder.vectors[query.key] = unit(encoder.random(query) + 0.6 * encoder.random(task.corpus[row[0]]))
    result = evaluate(encoder, benchmark_of(task), progress=False).result("words")
    vectors = {item.text: encoder.encode([item])[0] for item in (*task.queries, *task.corpus)}
    return task, result, vectors


def unit(vector):
    return vector / np.linalg.norm(vector)


def apart(ours, theirs):
    return {name: (ours[name], value) for name, value in theirs.items() if not abs(ours[name] - value) <= 1e-9}


def test_mteb_and_pytrec_eval_agree(asked):
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    task, result, vectors = asked
    run = {q.text: {c.text: float(vectors[q.text] @ vectors[c.text]) for c in task.corpus} for q in task.queries}
    judged = zip(task.queries, task.gold, task.grades, strict=True)
    qrels = {q.text: {task.corpus[n].text: int(g) for n, g in zip(row, grades, strict=True)} for q, row, grades in judged}
    found = calculate_retrieval_scores(run, qrels, CUTOFFS).all_scores
    names = {"ndcg_linear": "ndcg_cut", "recall": "recall", "precision": "P", "hit": "success"}
    theirs = {
        f"{ours}@{k}": np.mean([row[f"{name}_{k}"] for row in found.values()]) for ours, name in names.items() for k in CUTOFFS
    }
    assert apart(result.measures, theirs) == {}
    assert np.abs(np.array(result.hits) - [found[q.text]["ndcg_cut_5"] for q in task.queries]).max() <= 1e-9
    assert 0.2 < theirs["hit@1"] < 0.9


class Given:
    """What sentence-transformers' evaluators ask of a model."""

    def __init__(self, vectors):
        self.vectors = vectors

    def encode_query(self, texts, **_):
        return torch.from_numpy(np.stack([self.vectors[text] for text in texts]))

    encode_document = encode_query


def test_sentence_transformers_agrees(asked):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import cos_sim

    task, result, vectors = asked
    ks = list(CUTOFFS)
    queries, corpus = ({item.text: item.text for item in items} for items in (task.queries, task.corpus))
    relevant = {q.text: {task.corpus[n].text for n in row} for q, row in zip(task.queries, task.gold, strict=True)}
    evaluator = InformationRetrievalEvaluator(
        queries, corpus, relevant, mrr_at_k=ks, ndcg_at_k=ks, accuracy_at_k=ks, precision_recall_at_k=ks, map_at_k=ks,
        score_functions={"cosine": cos_sim},
    )  # fmt: skip
    found = evaluator.compute_all_metrics(Given(vectors))["cosine"]
    names = {"hit": "accuracy@k", "precision": "precision@k", "recall": "recall@k", "mrr": "mrr@k", "map": "map@k"}
    theirs = {f"{ours}@{k}": found[name][k] for ours, name in names.items() for k in CUTOFFS}
    assert apart(result.measures, theirs) == {}


@pytest.mark.skipif("HARDWON_VLM2VEC" not in os.environ, reason="HARDWON_VLM2VEC names no checkout of TIGER-AI-Lab/VLM2Vec")
def test_the_code_behind_mmeb_agrees(asked):
    """Its graded nDCG is left out: it sorts labels without their grades."""
    path = Path(os.environ["HARDWON_VLM2VEC"]) / "src" / "utils" / "eval_utils" / "metrics.py"
    spec = importlib.util.spec_from_file_location("vlm2vec_metrics", path)
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    task, result, vectors = asked
    corpus = np.stack([vectors[item.text] for item in task.corpus])
    cases = []
    for query, gold in zip(task.queries, task.gold, strict=True):
        order = np.argsort(-(corpus @ vectors[query.text]))
        labels = [task.corpus[n].text for n in gold]
        cases.append({"prediction": [task.corpus[n].text for n in order], "label": labels, "rel_scores": None})
    names = ["hit", "precision", "recall", "f1", "map", "mrr"]
    found = peer.RankingMetrics(names, CUTOFFS).evaluate(cases)
    assert apart(result.measures, {f"{name}@{k}": found[f"{name}@{k}"] for name in names for k in CUTOFFS}) == {}
