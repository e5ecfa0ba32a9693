import json

import mmeb
import pytest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from hardwon.evaluation import load_benchmark

    return load_benchmark("mmeb", mmeb.write_images(tmp_path_factory.mktemp("board")))


def test_the_form_is_the_published_one(whole, fake):
    from hardwon.evaluation import evaluate
    from hardwon.evaluation.leaderboard import METADATA, problems, submission

    report = evaluate(fake(), whole, progress=False)
    made = json.loads(json.dumps(submission([report], {"model_name": "ours", "model_size": "2B"})))
    assert problems(made) == []
    assert list(made["metadata"]) == list(METADATA)
    assert (made["metadata"]["data_source"], made["metadata"]["url"]) == ("Self-Reported", None)
    assert {part: len(rows) for part, rows in made["metrics"].items()} == {"image": 36, "video": 18, "visdoc": 24}
    nights = made["metrics"]["image"]["NIGHTS"]
    assert len(nights) == 26
    assert nights["hit@1"] == sum(report.result("NIGHTS").hits) / mmeb.QUERIES
    assert (nights["num_pred"], nights["hit@10"], nights["precision@10"]) == (mmeb.QUERIES, 1.0, pytest.approx(0.1))
    assert set(made["metrics"]["video"].values()) == {"FILE_N/A"}
    assert {"ViDoSeek-page-fixed", "MMLongBench-page-fixed", "ViDoSeek-doc"} <= set(made["metrics"]["visdoc"])


def test_all_three_parts_of_one_model(whole, fake, tmp_path):
    from hardwon.evaluation import evaluate, load_benchmark
    from hardwon.evaluation.leaderboard import problems, submission

    documents = load_benchmark("mmeb-v2-visdoc", mmeb.write_documents(tmp_path))
    reports = [evaluate(fake(), made, progress=False) for made in (whole, documents)]
    made = submission(reports, {"model_name": "ours"})
    assert problems(made) == []
    page = made["metrics"]["visdoc"]["ViDoSeek-page-fixed"]
    result = reports[1].result("ViDoSeek-page")
    assert page["ndcg_linear@5"] == pytest.approx(sum(result.hits) / 3)


def test_what_cannot_be_submitted_is_refused(whole, fake, benchmark_of):
    from dataclasses import replace

    from hardwon.errors import ArtifactError, RecipeError
    from hardwon.evaluation import evaluate
    from hardwon.evaluation.leaderboard import submission

    report = evaluate(fake(), whole, progress=False)
    named = {"model_name": "ours"}
    with pytest.raises(RecipeError, match="needs a model_name"):
        submission([report], {})
    with pytest.raises(RecipeError, match="unknown field of the leaderboard's metadata 'modelname'"):
        submission([report], named | {"modelname": "x"})
    with pytest.raises(RecipeError, match="two reports on mmeb"):
        submission([report, report], named)
    with pytest.raises(RecipeError, match="unknown benchmark of the leaderboard 'tiny'"):
        submission([evaluate(fake(), benchmark_of(), progress=False)], named)
    with pytest.raises(ArtifactError, match="of different models"):
        submission([report, replace(report, benchmark="mmeb-v2-video", model="other")], named)
    old = replace(report, results=tuple(replace(result, measures={}) for result in report.results))
    with pytest.raises(ArtifactError, match=r"ImageNet-1K has no hit@1: its report was made by an older version"):
        submission([old], named)


@pytest.mark.parametrize("value", [[], {}, {"metadata": {}}, {"metadata": {}, "metrics": []}])
def test_something_else_is_no_submission(value):
    from hardwon.evaluation.leaderboard import problems

    assert problems(value) == ["it must be an object with metadata and metrics, both objects"]
