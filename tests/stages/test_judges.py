"""Every kind of judge that a recipe can name: a model folder, a server, answers on file."""

from dataclasses import replace

import numpy as np
import pytest
import servers
import vlms

from hardwon import artifacts
from hardwon.errors import RecipeError
from hardwon.items import Candidate, Example, Item, write_examples
from hardwon.mining import Hardest, Mining, read_ledger
from hardwon.mining.judging import INJECTED
from hardwon.models import Judge, ListwiseReranker, RemoteSettings, record
from hardwon.stages import ChatModel, Mine, Server, Workspace
from hardwon.stages.inspection import inspect_negatives

SETTINGS = Mining(depth=8, keep=2, min_auc=0.0, selector=Hardest())


def pairs():
    """Every query has a positive that the server believes in, and a negative that it does not."""
    rights = [Item(text=f"kind {n} p=0.9") for n in range(6)]
    wrongs = [Item(text=f"other {n} p=0.05") for n in range(6)]
    return [
        Example(Item(text=f"thing {n}"), (Candidate(right, origin="gold"), Candidate(wrong, 0.0, "given")), "things")
        for n, (right, wrong) in enumerate(zip(rights, wrongs, strict=True))
    ]


@pytest.fixture
def workspace(tmp_path):
    write_examples(tmp_path / "pairs.jsonl", pairs(), tmp_path)
    return Workspace(tmp_path / "run")


@pytest.fixture
def mine(workspace, tiny_text, tmp_path):
    """Mines with a judge; gives what was kept and rejected, as texts, and the ledger."""

    def run(out, judge, settings=SETTINGS, **more):
        stage = Mine(out, str(tiny_text), str(tmp_path / "pairs.jsonl"), judge=judge, settings=settings, **more)
        workspace.run(stage)
        ledger = read_ledger(workspace.root / out / "ledger.parquet")
        texts = {c.item.key: c.item.text for example in pairs() for c in example.candidates}
        by = {verdict: {texts[e.candidate] for e in ledger if e.verdict == verdict} for verdict in ("kept", "rejected")}
        return by, ledger

    return run


def test_a_server_and_its_answers_on_file(mine, workspace, tmp_path, capsys):
    with servers.fake_server() as address:
        plan = servers.Plan(address, "mine").set()
        server = Server(plan.url, settings=RemoteSettings(concurrency=4))
        by, ledger = mine("asked", server)
        assert by["kept"] <= {f"other {n} p=0.05" for n in range(6)}
        assert by["rejected"] <= {f"kind {n} p=0.9" for n in range(6)}
        assert by["kept"]
        assert by["rejected"]
        said = [e for e in ledger if e.yes is not None]
        assert {round(float(np.exp(e.yes - e.no)), 3) for e in said} == {round(0.05 / 0.95, 3), 9.0}
        capsys.readouterr()
        asked = len(plan.log)
        assert mine("again", server)[0] == by
        assert len(plan.log) == asked  # every pair is asked about once in the life of a workspace

        # What a judge says can be written down, and read in its place.
        recorder = record(Judge.remote(plan.url), tmp_path / "answers.jsonl")
        everything = [c.item for example in pairs() for c in example.candidates]
        told = [Item(text=f"{INJECTED} {item.text}") for item in everything]
        recorder.judge([(example.query, item) for example in pairs() for item in (*everything, *told)])
    assert mine("read", str(tmp_path / "answers.jsonl"))[0] == by
    folder = workspace.root / "asked"
    inspect_negatives(folder, artifacts.load(folder), tmp_path / "page.html")
    for said in (capsys.readouterr().out, (tmp_path / "page.html").read_text()):
        assert "moved the grades of 6 random pairs by +0.000 on average, and 0% of them above one half" in " ".join(
            said.split()
        )


def test_a_chat_model(mine, tmp_path_factory):
    folder = vlms.bare(vlms.DECODERS["qwen2-vl"](tmp_path_factory.mktemp("judge") / "vlm"))
    # Pairs with an injected instruction are longer than so small a model reads.
    _, ledger = mine("asked", ChatModel(str(folder)), replace(SETTINGS, max_unusable=0.2))
    judge = Judge.load(folder)
    query = pairs()[ledger[0].row].query
    first = next(c.item for example in pairs() for c in example.candidates if c.item.key == ledger[0].candidate)
    truth = judge.judge([(query, first)])
    assert (ledger[0].yes, ledger[0].no) == pytest.approx((float(truth.yes[0]), float(truth.no[0])), abs=1e-3)


def test_what_cannot_be(mine, tmp_path):
    with pytest.raises(RecipeError, match=r"write judge=Server\('http://localhost:1/v1'\)"):
        mine("url", "http://localhost:1/v1")
    with pytest.raises(RecipeError, match="calibrate blends a reranker with the embedder"):
        mine("blend", "", calibrate=str(tmp_path / "pairs.jsonl"))


def test_a_reranker_of_lists_judges_no_pairs(mine, tmp_path):
    folder = vlms.build_words(tmp_path / "words")
    ListwiseReranker.load(folder, device="cpu").save(tmp_path / "lists")
    with pytest.raises(RecipeError, match="reads whole lists and does not judge a candidate by itself"):
        mine("lists", str(tmp_path / "lists"))
