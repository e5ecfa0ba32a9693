import pytest


def test_a_folder_is_read_as_it_is(benchmark_of, tmp_path):
    from hardwon.evaluation import load_benchmark, write_benchmark

    made = benchmark_of()
    write_benchmark(made, tmp_path / "mine")
    assert load_benchmark(str(tmp_path / "mine")).revision == made.revision
    assert load_benchmark("mine", tmp_path).revision == made.revision


def test_the_built_in_one_is_made_once_below_its_root(benchmark_of, tmp_path, monkeypatch):
    from hardwon.evaluation import load, write_benchmark

    built = []

    def build(folder):
        built.append(folder)
        write_benchmark(benchmark_of(), folder / "mmeb-small")

    monkeypatch.setattr(load, "build", build)
    first, second = (load.load_benchmark("mmeb-small", tmp_path / "sample") for _ in range(2))
    assert first.revision == second.revision
    assert built == [tmp_path / "sample"]


def test_an_unknown_name_gets_the_nearest_match(tmp_path, monkeypatch):
    from hardwon.errors import DataError
    from hardwon.evaluation import load_benchmark

    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"unknown benchmark 'mmeb-smal': did you mean 'mmeb-small'.* or a folder"):
        load_benchmark("mmeb-smal")
    with pytest.raises(DataError, match=r"benchmark\.json does not exist"):
        load_benchmark("here/not")


def test_what_is_missing_stands_in_the_report_and_refuses_means(benchmark_of, fake):
    from dataclasses import replace

    from hardwon.errors import ArtifactError, DataError
    from hardwon.evaluation import Missing, evaluate

    whole = benchmark_of()
    partly = replace(whole, missing=(Missing("SUN397", "no such folder"),))
    report = evaluate(fake(), partly, progress=False)
    assert report.missing == ("SUN397",)
    assert report.failed == {"SUN397": "no such folder"}
    with pytest.raises(ArtifactError, match=r"1 of 5 data sets are missing \(SUN397\)"):
        report.mean()
    assert report.mean(partial=True) == evaluate(fake(), whole, progress=False).mean()
    with pytest.raises(DataError, match="several tasks are named words"):
        replace(whole, missing=(Missing("words", ""),))


def test_a_wrong_revision_names_both_and_the_odd_sets(tmp_path):
    import mmeb

    from hardwon.errors import DataError
    from hardwon.evaluation import load_benchmark

    mmeb.write_set(tmp_path, "NIGHTS")
    made = load_benchmark("mmeb", tmp_path, on_error="skip")
    again = load_benchmark("mmeb", tmp_path, on_error="skip", revision=made.revision[:10])
    assert again.revision == made.revision
    with pytest.raises(
        DataError, match=f"{made.revision}, asked for was abc: .*35 of its data sets.*NIGHTS has 4 queries, not 1000"
    ):
        load_benchmark("mmeb", tmp_path, on_error="skip", revision="abc")
