import mmeb
import pytest


def report(make, **changes):
    """A report on all of tiny MMEB with the hits that `make` gives for each data set."""
    from hardwon.data.mmeb import IMAGES
    from hardwon.evaluation import Report
    from hardwon.evaluation.result import TaskResult

    def result(one):
        hits = make(one)
        return TaskResult(one.name, one.meta_task, one.distribution, hits, (1.0,) * len(hits), (0,) * len(hits), 0.1, 10)

    row = {"model": "m" * 32, "benchmark": "mmeb", "revision": "r" * 32, "tasks": tuple(one.name for one in IMAGES)}
    return Report(**(row | {"label": "ours", "results": tuple(result(one) for one in IMAGES)} | changes))


def ours(one):
    return (1.0,) * 71 + (0.0,) * 29


def test_the_published_means_add_up():
    """Numbers that were copied wrongly, or are means of something else, do not; those that say so are passed over."""
    from hardwon.evaluation import references

    rows = [row for row in references() if not row.note.startswith(("its mean over all", "its groups"))]
    assert len(rows) > 40
    for row in rows:
        scores = row.scores
        if {"classification", "vqa", "retrieval", "grounding", "all"} <= set(scores):
            mean = (
                10 * scores["classification"] + 10 * scores["vqa"] + 12 * scores["retrieval"] + 4 * scores["grounding"]
            ) / 36
            assert mean == pytest.approx(scores["all"], abs=0.25), row.model
        if {"ind", "ood", "all"} <= set(scores):
            assert (20 * scores["ind"] + 16 * scores["ood"]) / 36 == pytest.approx(scores["all"], abs=0.25), row.model


def test_the_published_data_sets_add_up():
    from statistics import mean

    from hardwon.data.mmeb import IMAGES
    from hardwon.evaluation import references

    rows = [row for row in references() if "NIGHTS" in row.scores]
    assert [row.model for row in rows] == ["LLaVE-7B", "UniME-V2 Qwen2-VL-7B", "UniME-V2 LLaVA-OV-7B"]
    for row in rows:
        assert mean(row.scores[one.name] for one in IMAGES) == pytest.approx(row.scores["all"], abs=0.3)
        for group in ("classification", "vqa", "retrieval", "grounding"):
            members = [row.scores[one.name] for one in IMAGES if one.meta_task == group]
            assert mean(members) == pytest.approx(row.scores[group], abs=1.3), (row.model, group)


@pytest.mark.parametrize("benchmark", ["mmeb", "flickr30k", "coco", "sharegpt4v", "urban1k", "sugarcrepe", "msrvtt", "msvd"])
def test_every_row_says_where_it_is_from(benchmark):
    from hardwon.evaluation import references

    rows = references(benchmark)
    assert len(rows) >= 7
    assert all(row.source and row.model for row in rows)
    assert len({row.model for row in rows}) == len(rows)
    assert all(0 < value <= 100 for row in rows for value in row.scores.values())


def test_a_report_stands_among_the_published(shown):
    from hardwon.evaluation.references import standing

    text = shown(standing(report(ours)))
    lines = [line for line in text.splitlines() if "│" in line or "┃" in line]
    place = next(n for n, line in enumerate(lines) if "this report" in line)
    assert "71.0" in lines[place]
    assert "UniME-V2 LLaVA-OV-7B" in lines[place - 1]  # 71.2
    assert "EGA" in lines[place + 1] or "UniME LLaVA-OV-7B" in lines[place + 1]  # 70.7
    assert "mean of four means" in text
    narrow = standing(report(ours), sources=False)
    assert [column.header for column in narrow.columns][-1] != "source" and "71.0" in shown(narrow)


def test_data_set_by_data_set(shown):
    from hardwon.data.mmeb import IMAGES
    from hardwon.evaluation.references import by_set

    part = report(ours)
    part = report(ours, results=part.results[1:])
    text = shown(by_set(part))
    assert all(one.name in text for one in IMAGES)
    assert text.count("missing") == 1
    assert "77.1" in text


def test_what_has_no_place(make_task, benchmark_of, fake):
    from hardwon.errors import ArtifactError, RecipeError
    from hardwon.evaluation import evaluate, references
    from hardwon.evaluation.references import by_set, standing

    whole = report(ours)
    with pytest.raises(ArtifactError, match=r"mmeb is not complete \(ImageNet-1K \.\.\. missing\)"):
        standing(report(ours, results=whole.results[1:]))
    other = evaluate(fake(), benchmark_of(), progress=False)
    for ask in (standing, by_set):
        with pytest.raises(RecipeError, match="tiny"):
            ask(other)
    with pytest.raises(RecipeError, match="unknown benchmark with published results 'flicker30k': did you mean 'flickr30k'"):
        references("flicker30k")


def test_neighbours_have_their_columns(tmp_path, fake, shown):
    from hardwon.evaluation import evaluate, load_benchmark
    from hardwon.evaluation.references import scores_of, standing

    mmeb.write_sugarcrepe(tmp_path / "s")
    mmeb.write_karpathy(tmp_path / "f", "flickr30k")
    mmeb.write_films(tmp_path / "v", "test.json", [{"video_id": f"v{n}", "caption": f"film {n}"} for n in range(8)])
    reports = {
        name: evaluate(fake(), load_benchmark(name, tmp_path / folder), progress=False, label="ours")
        for name, folder in (("sugarcrepe", "s"), ("flickr30k", "f"), ("msrvtt", "v"))
    }
    swap = [sum(reports["sugarcrepe"].result(name).hits) / 4 for name in ("swap_obj", "swap_att")]
    assert scores_of(reports["sugarcrepe"])["swap"] == pytest.approx(50 * sum(swap))
    film = reports["msrvtt"].result("msrvtt_t2v")
    assert scores_of(reports["msrvtt"])["msrvtt_t2v@5"] == 100 * sum(rank <= 5 for rank in film.ranks) / 8
    assert scores_of(reports["msrvtt"])["msrvtt_t2v@1"] == 100 * sum(film.hits) / 8
    assert all("this report" in shown(standing(made)) for made in reports.values())


def test_directions_are_not_swapped():
    """The trap of tables whose two headers are the wrong way round: finding one of five captions is always the easier way."""
    from hardwon.evaluation import references

    for name in ("flickr30k", "coco"):
        for row in references(name):
            assert row.scores[f"{name}_i2t"] > row.scores[f"{name}_t2i"], row.model
