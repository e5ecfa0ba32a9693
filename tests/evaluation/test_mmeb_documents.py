import mmeb
import pytest


def sets():
    from hardwon.data.mmeb import DOCUMENTS

    return {one.name: one for one in DOCUMENTS}


def why(root, name, change):
    from hardwon.evaluation import load_benchmark

    mmeb.write_document_set(root, sets()[name], change=change)
    mmeb.write_document_set(root, sets()["VisRAG_PlotQA"])
    missing = load_benchmark("mmeb-v2-visdoc", root, on_error="skip").missing
    return next(gone.why for gone in missing if gone.name == name)


def test_all_24_are_read_and_told_in_ndcg(tmp_path, fake, constant):
    from hardwon.evaluation import evaluate, load_benchmark

    made = load_benchmark("mmeb-v2-visdoc", mmeb.write_documents(tmp_path))
    assert [task.name for task in made.tasks] == list(sets())
    for task in made.tasks:
        assert (task.meta_task, task.metric, task.candidates) == ("documents", "ndcg@5", None)
        assert (len(task.queries), len(task.corpus)) == (3, mmeb.PAGES)
        assert (task.gold[1], task.grades[1]) == ((1, 2), (2.0, 1.0))
    assert load_benchmark("mmeb-v2-visdoc", tmp_path).revision == made.revision  # the second time from written pictures
    report = evaluate(fake(), made, progress=False)
    assert report.mean("documents") == report.mean()
    flat = evaluate(constant(), made, progress=False)
    assert flat.mean().mean == pytest.approx(flat.chance())


def test_folders_may_be_called_by_the_set_or_without_fixed(tmp_path):
    from hardwon.evaluation import load_benchmark

    mmeb.write_document_set(tmp_path, sets()["ViDoSeek-page"], folder="ViDoSeek-page")
    mmeb.write_document_set(tmp_path, sets()["MMLongBench-page"], folder="MMLongBench-page-fixed")
    made = load_benchmark("mmeb-v2-visdoc", tmp_path, on_error="skip")
    assert [task.name for task in made.tasks] == ["ViDoSeek-page", "MMLongBench-page"]


def test_a_page_that_looks_like_a_gold_one_is_gold(tmp_path):
    from hardwon.evaluation import load_benchmark

    def copied(tables):
        tables["corpus"].append({"corpus-id": 90, "image": tables["corpus"][0]["image"]})
        tables["qrels"].append({"query-id": 0, "corpus-id": 90, "score": 7})
        return tables

    mmeb.write_document_set(tmp_path, sets()["VisRAG_PlotQA"], change=copied)
    (task,) = load_benchmark("mmeb-v2-visdoc", tmp_path, on_error="skip").tasks
    assert len(task.corpus) == mmeb.PAGES
    assert (task.gold[0], task.grades[0]) == ((0, 1), (7.0, 1.0))


def changed(part, row, **columns):
    def change(tables):
        tables[part] = mmeb.spoiled(row, **columns)(tables[part])
        return tables

    return change


@pytest.mark.parametrize(
    ("change", "where", "reason"),
    [
        (changed("qrels", 1, **{"corpus-id": 99}), "qrels", "page '99' is not in the corpus"),
        (changed("qrels", 1, score=None), "qrels", "has no score"),
        (changed("queries", 1, query=""), "queries", "has no query"),
        (changed("queries", 1, **{"query-id": 77}), "queries", "which page belongs to query '77'"),
        (changed("corpus", 1, image={"bytes": b"GIF", "path": None}), "corpus", "picture"),
        (changed("corpus", 1, image={"bytes": None, "path": None}), "corpus", "has no image"),
        (changed("corpus", 1, image={"bytes": None, "path": "../x.png"}), "corpus", "leads out of the data root"),
    ],
)
def test_a_bad_row_is_named_with_its_set(tmp_path, change, where, reason):
    told = why(tmp_path, "VisRAG_ChartQA", change)
    assert f"VisRAG-Ret-Test-ChartQA/{where}/test-00000-of-00001.parquet:2: " in told
    assert reason in told


def test_what_is_missing_is_named_with_what_to_download(tmp_path):
    from hardwon.errors import DataError
    from hardwon.evaluation import load_benchmark

    with pytest.raises(DataError, match=r"ViDoRe_arxivqa: .*vidore/arxivqa_test_subsampled_beir"):
        load_benchmark("mmeb-v2-visdoc", tmp_path)
    told = why(tmp_path, "VisRAG_ChartQA", lambda tables: {part: tables[part] for part in ("queries", "corpus")})
    assert "has no qrels" in told
