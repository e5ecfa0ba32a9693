"""`hardwon evaluate MODEL BENCHMARK` and `hardwon compare`, from the command line to the page."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import mmeb
import numpy as np
import pytest
from fakes import FakeEncoder

from hardwon import cli
from hardwon.errors import ArtifactError, ModelError
from hardwon.evaluation import Benchmark, Report, Task, evaluate, load_benchmark, write_benchmark
from hardwon.items import Candidate, Example, Item, write_examples
from hardwon.search import Fused
from hardwon.stages import evaluating
from hardwon.stages.evaluating import Evaluation, benchmark_of, source


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hardwon", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "140")
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture
def asked(pictures, tmp_path):
    """A benchmark of pictures and words in a folder, beside its pictures."""
    home = tmp_path / "data"
    (home / "pictures").mkdir(parents=True)
    kept = {}
    for caption, path in pictures.items():
        kept[caption] = home / "pictures" / path.name
        kept[caption].write_bytes(path.read_bytes())
    words, shown = [Item(text=caption) for caption in kept], [Item(images=(path,)) for path in kept.values()]
    gold = tuple((n,) for n in range(len(words)))
    tasks = (
        Task("text_to_image", "retrieval", "ind", tuple(words), tuple(shown), gold),
        Task("image_to_text", "classification", "ood", tuple(shown), tuple(words), gold),
    )
    write_benchmark(Benchmark("shapes", tasks), home / "bench")
    return home / "bench"


def report(path):
    return Report.from_json(json.loads(path.read_text()))


def test_a_model_is_evaluated_cached_and_compared(call, asked, tiny_vlm, vlm, tmp_path):
    import torch

    with torch.no_grad():
        for weight in vlm.module.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    vlm.save(tmp_path / "other")
    a, b = tmp_path / "a.json", tmp_path / "out" / "b.json"
    code, out, err = call("evaluate", tiny_vlm, asked, "--out", a, "--label", "first", "--device", "cpu")
    assert code == 0
    assert "text_to_image" in err
    assert "first: fingerprint" in " ".join(out.split())
    assert report(a).made["items_encoded"] == 40
    assert report(a).made["source"]["benchmark"] == str(asked)
    code, out, err = call("evaluate", tiny_vlm, asked, "--out", tmp_path / "again.json", "--device", "cpu")
    assert report(tmp_path / "again.json").made["items_encoded"] == 0
    assert report(tmp_path / "again.json").results == report(a).results
    assert call("evaluate", tmp_path / "other", asked, "--out", b, "--cache", tmp_path / "features", "--device", "cpu")[0] == 0
    assert report(b).made["items_encoded"] == 40  # other weights: nothing is used again
    code, out, _ = call("compare", b, a, "--html", tmp_path / "page.html")
    assert code == 0
    assert "other − first on shapes" in out
    page = (tmp_path / "page.html").read_text()
    both = report(b).diff(report(a))
    for row in both.tasks:
        assert f"{row.won} won, {row.lost} lost" in re.sub(r"<[^>]+>", "", page)
    assert sum(row.won + row.lost for row in both.tasks) > 0
    assert page.count("<article") == sum(row.won + row.lost for row in both.tasks)
    assert "background-image:url(data:image/webp" in page
    moved = asked.rename(asked.parent / "moved")
    assert call("compare", b, a, "--html", tmp_path / "blind.html")[0] == 0
    assert "No queries are shown" in (tmp_path / "blind.html").read_text()
    assert call("compare", b, a, "--html", tmp_path / "found.html", "--benchmark", moved)[0] == 0
    assert (tmp_path / "found.html").read_text().count("<article") == page.count("<article")


def test_a_budget_asks_a_sample_and_says_what_it_costs(call, asked, tiny_vlm, tmp_path):
    for name in ("a.json", "b.json"):
        code, out, _ = call("evaluate", tiny_vlm, asked, "--out", tmp_path / name, "--budget", "10", "--device", "cpu")
        assert code == 0
        assert "10 of 40 queries asked: the mean of all of them lies within ±" in out
    assert [result.queries for result in report(tmp_path / "a.json").results] == [5, 5]
    code, out, _ = call("compare", tmp_path / "a.json", tmp_path / "b.json", "--html", tmp_path / "page.html")
    assert code == 0
    assert "No query changed." in (tmp_path / "page.html").read_text()  # the sample was drawn again, the same
    call("evaluate", tiny_vlm, asked, "--out", tmp_path / "whole.json", "--device", "cpu")
    code, out, err = call("compare", tmp_path / "whole.json", tmp_path / "a.json")
    assert (code, out) == (1, "")
    assert "only answers to the same questions compare" in err


@pytest.mark.parametrize("published", ["mmeb", "sugarcrepe"])
def test_own_data_that_are_named_like_published_ones_have_no_place_among_them(published, call, tiny_vlm, tmp_path):
    rows = [{"query": {"text": f"{colour} thing"}, "gold": {"text": colour}} for colour in ("red", "green", "blue")]
    own = tmp_path / f"{published}.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = call("evaluate", tiny_vlm, own, "--out", tmp_path / "a.json", "--device", "cpu")
    assert (code, report(tmp_path / "a.json").benchmark) == (0, published), err
    assert "stands" not in out
    assert not (tmp_path / "a.leaderboard.json").exists()


def test_another_run_writes_another_report():
    usual = Evaluation("m", "mmeb")
    assert str(usual.home) == "runs/evaluations/m-mmeb.json"
    changes = [
        {"model": "org/m"}, {"model": "other/m"}, {"benchmark": "data/mmeb.jsonl"}, {"root": Path("data")}, {"budget": 100},
        {"budget": 100, "seed": 1}, {"tasks": ("A",)}, {"tasks": ("B",)}, {"rerank": "r"}, {"rerank": "r", "depth": 20},
        {"rerank": "r", "weight": 0.1}, {"rerank": "r", "held_out": "pairs.jsonl"}, {"on_error": "skip"}, {"device": "cpu"},
        {"model": "a/m", "label": "m"}, {"model": "b/m", "label": "m"},
    ]  # fmt: skip
    homes = {str(replace(usual, **change).home) for change in changes}
    assert len(homes | {str(usual.home)}) == len(changes) + 1
    assert all(re.fullmatch(r"runs/evaluations/m-(reranked-)?mmeb-\w{8}\.json", home) for home in homes)
    assert replace(usual, budget=100).home == Evaluation("m", "mmeb", budget=100).home


def asked_and_told(name, root, **options):
    """A report on a benchmark, as `hardwon evaluate` writes it."""
    made = evaluate(FakeEncoder(), load_benchmark(name, root, **options), progress=False, **options)
    return replace(made, made=made.made | {"source": source(name, root, **options)})


def test_a_benchmark_that_was_read_in_part_is_found_again(tmp_path):
    mmeb.write_set(tmp_path, "N24News")
    told = asked_and_told("mmeb", tmp_path, on_error="skip")
    assert len(told.missing) == 35
    assert benchmark_of([told, told]).revision == told.revision
    assert benchmark_of([told, told], "mmeb", tmp_path).revision == told.revision


def test_the_page_of_a_part_and_all_of_a_benchmark(tmp_path):
    for root, names in ((tmp_path / "part", ["N24News"]), (tmp_path / "more", ["N24News", "VOC2007"])):
        for name in names:
            mmeb.write_set(root, name)
    part, more = (asked_and_told("mmeb", tmp_path / name, on_error="skip") for name in ("part", "more"))
    assert [row.name for row in more.diff(part, partial=True).tasks] == ["N24News"]
    assert "N24News" in [task.name for task in benchmark_of([more, part]).tasks]
    assert [task.name for task in benchmark_of([part, more]).tasks] == ["N24News"]
    with pytest.raises(ArtifactError, match="name the benchmark that was asked"):
        benchmark_of([more, more], "mmeb", tmp_path / "part")


def test_a_folder_that_is_called_like_a_benchmark_does_not_stand_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("coco", "mmeb-small", "own"):
        (tmp_path / name).mkdir()
    mmeb.write_karpathy(tmp_path / "coco", "coco")
    told = asked_and_told("coco", Path("coco"))
    assert told.made["source"]["benchmark"] == "coco"
    assert source("mmeb-small")["benchmark"] == "mmeb-small"
    assert source("own")["benchmark"] == str(tmp_path / "own")
    assert source("own", Path("data"))["benchmark"] == "own"  # data/own
    monkeypatch.chdir("/")
    assert benchmark_of([told]).revision == told.revision


def test_what_was_learned_of_a_reranker_is_written(call, asked, tiny_vlm, tmp_path, monkeypatch):
    class Likes:
        fingerprint = "likes"

        def score_pairs(self, pairs, *, progress=""):
            return np.array([9.0 if query.text and item.images else -9.0 for query, item in pairs], dtype=np.float32)

    monkeypatch.setattr(evaluating, "load_reranker", lambda *_, **__: Likes())
    given = ("--device", "cpu", "--rerank", "any", "--held-out", asked)
    assert call("evaluate", tiny_vlm, asked, "--out", tmp_path / "a.json", *given)[0] == 0
    row = json.loads((tmp_path / "a.fusion.json").read_text())
    told = report(tmp_path / "a.json").made["rerank"]
    fused = Fused.from_json(row, Likes())
    assert fused.gate is not None
    assert [kind["weight"] for kind in told["gate"]["kinds"]] == [kind.weight for kind in fused.gate.kinds]


def test_a_reranker_keeps_to_its_budget(call, asked, tiny_vlm, tmp_path, monkeypatch):
    class Counts:
        fingerprint = "counts"
        read = 0

        def score_pairs(self, pairs, *, progress=""):
            self.read += len(pairs)
            return np.array([float(len(item.text)) for _, item in pairs], dtype=np.float32)

    def run(*options):
        counts = Counts()
        monkeypatch.setattr(evaluating, "load_reranker", lambda *_, **__: counts)
        code, out, err = call("evaluate", tiny_vlm, asked, "--out", tmp_path / "a.json", "--device", "cpu", *options)
        return code, " ".join((out + err).replace("│", " ").split()), counts.read

    code, told, read = run("--rerank", "any")
    assert (code, read) == (0, 400)  # ten of each of the 40 queries
    assert "The reranker read 400 pairs, 10.0 per query of at most 10" in told
    code, told, read = run("--rerank", "any", "--depth", "4", "--pairs", "1.6")
    assert (code, read) == (0, 64)
    assert "The reranker read 64 pairs, 1.6 per query of at most 4; it was asked about 16 of 40 queries (40 %)." in told
    told_of = report(tmp_path / "a.json").made["rerank"]["budget"]
    assert (told_of["pairs"], told_of["milliseconds"]) == (1.6, None)
    code, told, read = run("--rerank", "any", "--milliseconds", "0")
    assert (code, read) == (0, 0)
    for options, message in (
        (("--pairs", "2", "--depth", "3"), "--depth and --pairs are about a reranker: name it (--rerank)"),
        (("--rerank", "any", "--weight", "0.1", "--held-out", "x"), "--held-out finds the weights: leave --weight out"),
    ):
        code, told, _ = run(*options)
        assert code == 2
        assert message in told


def test_the_report_of_the_embedder_outlives_the_reranker(call, asked, tiny_vlm, tmp_path, monkeypatch):
    class Fails:
        fingerprint = "fails"

        def score_pairs(self, pairs, *, progress=""):
            raise ModelError("it fell asleep")

    monkeypatch.setattr(evaluating, "load_reranker", lambda *_, **__: Fails())
    given = ("--out", tmp_path / "out" / "a.json", "--device", "cpu", "--on-error", "skip", "--rerank", "any", "--label", "m")
    code, _, err = call("evaluate", tiny_vlm, asked, *given)
    assert code == 1
    assert "it fell asleep" in err
    alone = report(tmp_path / "out" / "a.alone.json")
    assert (alone.label, alone.missing, alone.made["source"]["benchmark"]) == ("m without reranker", (), str(asked))


def test_a_budget_is_for_the_data_sets_that_are_asked(call, asked, tiny_vlm, tmp_path):
    out = tmp_path / "a.json"
    given = ("--budget", "12", "--task", "text_to_image", "--device", "cpu")
    assert call("evaluate", tiny_vlm, asked, "--out", out, *given)[0] == 0
    assert [(result.name, result.queries) for result in report(out).results] == [("text_to_image", 12)]
    assert report(out).missing == ("image_to_text",)
    assert benchmark_of([report(out)]).revision == report(out).revision


def test_leaks_are_listed_beside_the_report(call, asked, tiny_vlm, pictures, tmp_path):
    copy = tmp_path / "another name.png"
    copy.write_bytes(pictures["red square"].read_bytes())
    rows = [Example(Item(text="what is it"), (Candidate(Item(images=(copy,)), origin="gold"),), "s")]
    write_examples(tmp_path / "train.jsonl", rows)
    out = tmp_path / "a.json"
    code, _, err = call("evaluate", tiny_vlm, asked, "-o", out, "--leaks", tmp_path / "train.jsonl", "--device", "cpu")
    assert code == 0
    assert "items are in the training data:" in err
    listed = json.loads((tmp_path / "a.leaks.json").read_text())
    assert {"text_to_image, corpus, exact", "image_to_text, query, exact"} <= set(listed["found"])
    assert report(out).made["leaks"]["found"] == listed["found"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model",), "name a benchmark after the model"),
        (("model", "bench", "--stage", "a"), "belong to a recipe"),
        (("recipe.py",), "a recipe needs --out"),
        (("recipe.py", "bench", "--out", "x"), "a recipe names its benchmarks itself"),
        (("model", "bench", "--precision", "fp8"), "fp8"),
    ],
)
def test_arguments_that_do_not_go_together(call, arguments, words):
    code, _, err = call("evaluate", *arguments)
    assert code == 2
    assert words in " ".join(re.sub(r"[│╭╮╰╯─]", " ", err).split())


def test_what_is_no_report(call, tmp_path, asked, tiny_vlm):
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text.json").write_text("no")
    for name, words in (("gone.json", "cannot be read"), ("list.json", "must be an object"), ("text.json", "not JSON")):
        code, out, err = call("compare", tmp_path / name, tmp_path / name)
        assert (code, out) == (1, "")
        assert words in err
    assert call("compare", tmp_path / "a", tmp_path / "b", "--benchmark", "x")[0] == 2
    call("evaluate", tiny_vlm, asked, "--out", tmp_path / "a.json", "--device", "cpu")
    (asked / "text_to_image" / "queries.jsonl").write_text(
        (asked / "text_to_image" / "queries.jsonl").read_text().replace("red square", "a red square")
    )
    both = (tmp_path / "a.json", tmp_path / "a.json", "--html", tmp_path / "p.html")
    code, _, err = call("compare", *both, "--benchmark", asked)
    assert code == 1
    assert "but the reports are about shapes" in err
    assert call("compare", *both)[0] == 0
    assert "No queries are shown" in (tmp_path / "p.html").read_text()
