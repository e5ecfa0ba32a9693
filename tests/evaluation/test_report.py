import json
from dataclasses import replace

import pytest

from hardwon.errors import ArtifactError, RecipeError
from hardwon.evaluation import Report, comparison_table, evaluate
from hardwon.evaluation.result import GROUPS


def test_means_are_over_data_sets_never_over_means(make_report):
    report = make_report(labels=[1, 1], words=[0, 0, 0, 0], names=[1, 0], words_far=[1])
    means = report.means()
    assert list(means) == ["classification", "retrieval", "ind", "ood", "all"]
    assert means["classification"].mean == 1
    assert means["retrieval"].mean == pytest.approx((0 + 0.5 + 1) / 3)
    assert means["ind"].mean == pytest.approx((1 + 0 + 0.5) / 3)
    assert means["all"].mean == pytest.approx((1 + 0 + 0.5 + 1) / 4)  # not the mean of 1 and 0.5
    assert means["all"] == report.mean()
    assert means["all"].low < means["all"].mean < means["all"].high
    assert report.chance("retrieval") == 0.25


def test_no_mean_over_a_part(make_report):
    report = make_report(labels=[1, 0], tasks=("labels", "words", "names"))
    assert report.missing == ("words", "names")
    with pytest.raises(ArtifactError, match=r"no mean over tiny: 2 of 3 data sets are missing \(words, names\).*partial=True"):
        report.mean()
    with pytest.raises(ArtifactError, match="data sets are missing"):
        report.means()
    with pytest.raises(ArtifactError, match="data sets are missing"):
        report.chance()
    assert report.mean(partial=True).mean == 0.5
    assert list(report.means(partial=True)) == ["classification", "ind", "all"]
    assert report.chance(partial=True) == 0.25


def test_unknown_names_are_told(make_report):
    report = make_report(labels=[1, 0])
    with pytest.raises(RecipeError, match="unknown group 'odd': did you mean 'ood'"):
        report.mean("odd")
    with pytest.raises(RecipeError, match="has no data sets in group 'vqa'"):
        report.mean("vqa")
    with pytest.raises(RecipeError, match="unknown task of tiny with a result 'label': did you mean 'labels'"):
        report.result("label")


def test_a_report_that_cannot_be_is_refused(make_report):
    with pytest.raises(ArtifactError, match="unknown task of tiny 'labels'"):
        make_report(labels=[1], tasks=("words",))
    with pytest.raises(ArtifactError, match="at least one task"):
        make_report(tasks=("words",))
    report = make_report(labels=[1])
    with pytest.raises(ArtifactError, match="task labels has 2 results in one report"):
        replace(report, results=report.results * 2)


def test_ties_are_counted_both_ways(benchmark_of, constant):
    result = evaluate(constant(), benchmark_of(), progress=False).result("labels")
    assert result.interval().mean == pytest.approx(1 / 3)
    assert (result.strict, result.tied) == (0, 1)


# ---- JSON


def test_json_and_back(benchmark_of, fake, constant):
    for model in (fake(), constant()):
        report = evaluate(model, benchmark_of(), label="ä", progress=False)
        text = json.dumps(report.to_json())
        again = Report.from_json(json.loads(text))
        assert again == report
        assert again.means() == report.means()
        assert json.loads(text)["results"][0]["hits"] == list(report.results[0].hits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(labell="x"), "unknown field of a report 'labell': did you mean 'label'"),
        (lambda r: r.pop("revision"), "a report lacks revision"),
        (lambda r: r.update(format=3), "a report of format 3; this version reads formats 1 and 2"),
        (lambda r: r.update(model=None), "model of a report must be a string, got None"),
        (lambda r: r.update(tasks="labels"), "tasks of a report must be a list of names"),
        (lambda r: r.update(tasks=["words"]), "unknown task of tiny 'labels'"),
        (lambda r: r.update(results={}), "results of a report must be a list"),
        (lambda r: r.update(made=[]), "made an object"),
        (lambda r: r.update(results=[]), "at least one task"),
        (lambda r: r.update(results=[5]), "a task's result must be an object, got int"),
        (lambda r: r["results"][0].pop("hits"), "a task's result lacks hits"),
        (lambda r: r["results"][0].update(hit=1), "unknown field of a task's result 'hit': did you mean 'hits'"),
        (lambda r: r["results"][0].update(name=3), "must be strings"),
        (lambda r: r["results"][0].update(meta_task="vq"), "task labels: unknown meta_task 'vq'"),
        (lambda r: r["results"][0].update(hits=[1.0]), "every column needs one value per query"),
        (lambda r: r["results"][0].update(hits=[], ranks=[], ties=[]), "every column needs one value per query"),
        (lambda r: r["results"][0].update(hits=[1, 1.5]), r"task labels: hits holds 1.5, which does not lie in \[0, 1\]"),
        (lambda r: r["results"][0].update(hits=[1, float("nan")]), "hits holds nan"),
        (lambda r: r["results"][0].update(hits=[1, "0"]), "task labels: hits must be a list of numbers"),
        (lambda r: r["results"][0].update(hits=1), "task labels: hits must be a list of numbers"),
        (lambda r: r["results"][0].update(hits=[True, False]), "task labels: hits must be a list of numbers"),
        (lambda r: r["results"][0].update(ranks=[0, 1]), "ranks holds 0"),
        (lambda r: r["results"][0].update(ties=[0, 0.5]), "task labels: ties must be a list of integers"),
        (lambda r: r["results"][0].update(candidates=[4]), "task labels: candidates must be one integer"),
        (lambda r: r["results"][0].update(chance=2), "chance holds 2"),
    ],
)
def test_json_that_is_no_report_is_refused(make_report, change, message):
    row = json.loads(json.dumps(make_report(labels=[1, 0]).to_json()))
    change(row)
    with pytest.raises(ArtifactError, match=message):
        Report.from_json(row)


def test_json_that_is_no_object_is_refused():
    with pytest.raises(ArtifactError, match="a report must be an object, got list"):
        Report.from_json([])


def test_a_report_of_the_first_format_is_read(make_report):
    report = make_report(labels=[1, 0])
    row = json.loads(json.dumps(report.to_json())) | {"format": 1}
    for result in row["results"]:
        del result["worst"], result["firsts"]
    assert Report.from_json(row) == report
    assert report.results[0].worst == ()


# ---- fingerprints


def test_every_result_carries_a_fingerprint_of_all_that_made_it(benchmark_of, text_model, make_report):
    report = evaluate(text_model, benchmark_of(), label="a", progress=False)
    told = report.made["model"]
    assert told["fingerprint"] == report.model == text_model.fingerprint
    assert (told["dtype"], told["device"], told["computed_in"], told["max_length"]) == (["float32"], "cpu", "fp32", 64)
    assert {"weights", "preprocessing", "prompts", "attention"} <= set(told)
    again = evaluate(text_model, benchmark_of(), label="another name", progress=False)
    assert again.fingerprint == report.fingerprint
    assert f"a: fingerprint {report.fingerprint[:12]}, model {report.model[:12]}" in str(report)
    for change in ({"device": "cuda"}, {"dtype": ["bfloat16"]}, {"prompts": {"query": "find"}}, {"preprocessing": "other"}):
        other = replace(report, made=report.made | {"model": told | change})
        assert other.fingerprint != report.fingerprint
    for changed in (replace(report, revision="other"), replace(report, made=report.made | {"code": "other"})):
        assert changed.fingerprint != report.fingerprint
    assert replace(report, made=report.made | {"at": "later", "seconds": 5}).fingerprint == report.fingerprint


# ---- tables


def test_a_report_can_be_printed(make_report):
    text = str(make_report(labels=[1, 0, 1, 0], words=[1, 1]))
    assert "tiny rrrrrrrrrrrr, hit@1 in %" in text
    lines = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in text.splitlines()
        if "│" in line
    }
    assert lines["labels"][:3] == ["4", "4", "25.0"]
    assert lines["labels"][3].startswith("50.0 ±")
    assert lines["words"] == ["2", "4", "25.0", "100.0 ±0.0"]
    assert lines["mean: all data sets"][2] == "25.0"
    assert lines["mean: all data sets"][3].startswith("75.0 ±")
    assert "vqa" not in text
    assert GROUPS["vqa"] not in text


def test_the_repr_is_one_line_without_the_hits(make_report):
    report = make_report(labels=[1, 0] * 500, words=[1, 1, 1, 0], tasks=("labels", "words", "names"))
    assert repr(report) == "<Report of a on tiny: 2 of 3 data sets, mean hit@1 62.5 %>"
    assert [repr(result) for result in report.results] == [
        "<TaskResult of labels: 1000 queries, hit@1 50.0 %>",
        "<TaskResult of words: 4 queries, hit@1 75.0 %>",
    ]


def test_a_part_is_printed_without_means_and_says_so(make_report):
    text = str(make_report(labels=[1, 0], tasks=("labels", "words")))
    assert "50.0" in text
    assert "mean:" not in text
    assert "a: no means, 1 of 2 data sets are missing (words)" in text


def test_ties_above_one_percent_are_said(benchmark_of, constant, fake, shown):
    text = " ".join(shown(evaluate(constant(), benchmark_of(), label="flat", progress=False)).split())
    assert "WARNING: flat: gold ties with other candidates for 100.0 % of queries (labels, labels_far, words, boxes)" in text
    assert "were every tie lost, the mean would be 0.0 %" in text
    calm = shown(evaluate(fake(), benchmark_of(), label="fine", progress=False))
    assert "fine: gold ties with other candidates for 0.0 % of queries" in calm
    assert "WARNING" not in calm


def test_a_report_without_label_is_called_by_its_model(make_report, shown):
    assert "model abcdefabcdef" in shown(make_report("", "abcdef" * 5, labels=[1]).table())


def test_reports_side_by_side(make_report, shown):
    reports = {"before": make_report(labels=[0, 0], words=[0, 1]), "after": make_report(labels=[1, 1], words=[0, 1])}
    text = shown(comparison_table(reports))
    rows = {line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]] for line in text.splitlines() if "│" in line}
    assert text.index("chance") < text.index("before") < text.index("after")
    assert rows["labels"] == ["2", "4", "25.0", "0.0 ±0.0", "100.0 ±0.0"]
    assert rows["mean: classification"] == ["", "", "25.0", "0.0 ±0.0", "100.0 ±0.0"]
    assert rows["mean: all data sets"][3].startswith("25.0 ±")
    assert rows["mean: all data sets"][4].startswith("75.0 ±")


def test_side_by_side_with_a_part(make_report, shown):
    reports = {"whole": make_report(labels=[0], words=[1]), "part": make_report(labels=[1], tasks=("labels", "words"))}
    text = shown(comparison_table(reports))
    rows = {line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]] for line in text.splitlines() if "│" in line}
    assert rows["words"][3:] == ["100.0 ±0.0", "missing"]
    assert rows["mean: all data sets"][3:] == ["50.0 ±0.0", ""]
    assert "part: no means, 1 of 2 data sets are missing (words)" in text


def test_only_answers_to_the_same_questions_stand_side_by_side(make_report):
    with pytest.raises(ArtifactError, match="only answers to the same questions compare"):
        comparison_table({"a": make_report(labels=[1]), "b": make_report(revision="s" * 32, labels=[1])})
    with pytest.raises(RecipeError, match="no report to show"):
        comparison_table({})
