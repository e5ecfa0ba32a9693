"""The table and the page, from results that are made up and therefore known."""

import random

import pytest

from hardwon.errors import ArtifactError

TASKS = {"category": 40, "text_to_image": 40, "text_to_image_far": 20, "grounding_openmoji": 20}


def cell(name, seed, share, cpu=2.0, **more):
    """A result with a share of hits; queries that are hit at a smaller share are hit at a larger one too."""
    hits = {}
    for task, count in TASKS.items():
        order = random.Random(task).sample(range(count), count)
        hits[task] = "".join("1" if order[n] < share * count else "0" for n in range(count))
    row = {"name": name, "seed": seed, "hits": hits, "validation": share, "gap": dict.fromkeys(TASKS, share / 10)}
    return row | {"encodings": {"training": 1000}, "cpu": {"train": cpu}, "seconds": {"train": 3.0}} | more


@pytest.fixture
def results(tmp_path):
    """Two seeds of four rows: LLaVE ahead of both InfoNCE and its control, the margin behind, mining with its cost."""
    from studies.table import keep, load

    rows = []
    for seed, luck in ((0, 0.0), (1, 0.025)):
        rows += [cell(name, seed, share + luck) for name, share in SHARES.items()]
        rows += [cell("judge", seed, 0.5) | {"encodings": {"training": 10, "mining": 20}}]
        rows += [cell("mine-judged", seed, 0.5) | {"encodings": {"mining": 30, "judging": 40}}]
    keep(rows, tmp_path / "small.json")
    return load(tmp_path, "small")


SHARES = {"infonce": 0.5, "colder": 0.45, "llave": 0.6, "margin": 0.4, "filtered": 0.5}


def test_lines_know_gain_fair_control_and_cost(results):
    from studies.table import lines

    found = {line.entry.name: line for line in lines(results)}
    assert set(found) == set(SHARES)
    assert found["infonce"].gained is None and found["infonce"].means["all"] == pytest.approx(0.5125, abs=0.02)
    assert found["llave"].gained.mean == pytest.approx(0.1, abs=0.01) and found["llave"].gained.clear
    assert found["llave"].fair.mean == pytest.approx(0.15, abs=0.01)
    assert found["margin"].fair is None and found["margin"].gained.high < 0
    # The teacher's training, the judge's mining and training, the mining and judging of the round.
    assert found["filtered"].before == 1000 + 30 + 70 and found["llave"].before == 0


def test_keeping_some_rows_leaves_the_others(results, tmp_path):
    """`--only llave --keep` does one row anew; the rest of the page's results stay."""
    from studies.table import keep, lines, load

    keep([cell("llave", seed, 0.9) for seed in (0, 1)], tmp_path / "small.json")
    found = {line.entry.name: line.means["all"] for line in lines(load(tmp_path, "small"))}
    assert set(found) == set(SHARES)
    assert found["llave"] == pytest.approx(0.9, abs=0.02) and found["margin"] == pytest.approx(0.4125, abs=0.02)


def test_groups_of_data_sets():
    from studies.table import group_of, means

    assert group_of("text_to_image_far") == ("retrieval", "ood") and group_of("category") == ("classification", "ind")
    assert group_of("position_openmoji") == ("vqa", "ood") and group_of("grounding") == ("grounding", "ind")
    import numpy as np

    made = means({"category": np.array([[1.0, 0.0]]), "skin_tone": np.array([[1.0, 1.0]]), "grounding": np.array([[0.0]])})
    assert made["all"] == 0.5 and made["classification"] == 0.75 and made["grounding"] == 0.0


def test_verdict_says_what_the_numbers_say(results):
    from studies.verdict import verdict

    said = verdict(results)
    assert "**LLaVE one-way**" in said and "on held-out concepts in the same time is reached: of the rows" in said
    ahead, behind, neither = (line for line in said.splitlines() if line.startswith("- **"))
    assert "LLaVE one-way" in ahead and "constant margin" in behind and "judge filters" in neither
    assert "5 of 5 rows have fewer than three seeds" in said and "LLaVE one-way (2)" in said
    assert "There is no result yet of: InfoNCE, symmetric" in said


def test_page_is_written_with_its_plots(results, tmp_path):
    from studies.page import write

    write(tmp_path, tmp_path)
    page = (tmp_path / "studies.md").read_text()
    assert "| LLaVE one-way |" in page and "(InfoNCE at tau')" in page and "studies-rows.svg" in page
    for name in ("studies-rows.svg", "studies-gap.svg"):
        assert "LLaVE" in (tmp_path / name).read_text() or "llave" in (tmp_path / name).read_text()


def test_ungated_rerankers_stand_beside_the_gated(tmp_path):
    """Of one seed, whose intervals are of queries alone: +10 points gated, +20 everywhere, -10 alone."""
    from studies.page import ungated
    from studies.table import keep, load

    ways = {"everywhere": cell("", 0, 0.7)["hits"], "alone": cell("", 0, 0.4)["hits"]}
    rows = [cell("infonce", 0, 0.5), cell("rerank-joint", 0, 0.6) | ways, cell("rerank-pairwise", 0, 0.6)]
    keep(rows, tmp_path / "small.json")
    (row,) = [line for line in ungated(load(tmp_path, "small")).splitlines() if line.startswith("| reranker")]
    _, title, *values, _ = (part.strip(" *") for part in row.split("|"))
    assert title == "reranker, joint"
    assert [float(value.split()[0]) for value in values] == pytest.approx([10, 20, -10], abs=1.5)


def test_verdict_compares_a_reranker_with_training_longer(tmp_path):
    from studies.table import keep, load
    from studies.verdict import verdict

    shares = {"infonce": 0.5, "longer": 0.6, "rerank-joint": 0.53, "rerank-targeted": 0.54}
    keep([cell(name, 0, share) for name, share in shares.items()], tmp_path / "small.json")
    said = verdict(load(tmp_path, "small"))
    assert (
        "by a reranker is reached: validation, on which their gates were learned, chooses **reranker, joint, two kinds" in said
    )
    assert "- reranker, joint: +" in said and "over InfoNCE; -" in said and "over InfoNCE, three times the steps" in said


def test_two_runs_side_by_side(results, tmp_path, capsys):
    """The same results lie within their own intervals; a row that has moved does not."""
    from studies.__main__ import main
    from studies.table import keep

    (tmp_path / "again" / "small").mkdir(parents=True)
    new = tmp_path / "again" / "small"
    rows = [cell(name, seed, share + luck) for seed, luck in ((0, 0.0), (1, 0.025)) for name, share in SHARES.items()]
    keep(rows, new / "results.json")
    assert main(["compare", str(new), str(tmp_path)]) == 0
    assert "4 of 4 rows lie within" in capsys.readouterr().err
    keep([cell("margin", seed, 0.7) for seed in (0, 1)], new / "results.json")
    assert main(["compare", str(new), str(tmp_path)]) == 0
    assert "3 of 4 rows lie within" in capsys.readouterr().err


def test_names_in_the_plot_of_gaps_do_not_cover_each_other():
    """Three points in a row, so near that no two names fit on the same side."""
    import altair as alt

    from studies.charts import _named

    rows = [{"row": f"a long name {n}", "gap": 0.4 + n / 100, "p1": 50.0} for n in range(3)]
    sides = _named(rows, rows, [alt.Scale(domain=[0, 1]), alt.Scale(domain=[0, 100])])
    assert len({str(side) for side in sides.values()}) == 3


def test_only_takes_controls_and_needs():
    from studies.suites import small

    names = [one.name for one in small().only(["filtered", "llave"]).entries]
    assert names == ["infonce", "colder", "llave", "judge", "mine-nearest", "mine-judged", "mined", "filtered"]


def test_every_suite_is_whole():
    """Controls and needs are entries of the plan, after what they need, and no name stands twice."""
    from studies.suites import SUITES

    for make in SUITES.values():
        suite = make()
        names = [entry.name for entry in suite.entries]
        assert len(set(names)) == len(names)
        for place, entry in enumerate(suite.entries):
            assert set(entry.needs) <= set(names[:place])
            assert not getattr(entry, "control", "") or entry.control in names


def test_unknown_names_are_told():
    from hardwon.errors import RecipeError
    from studies.suites import small, suite_of

    with pytest.raises(RecipeError, match="smal"):
        suite_of("smal")
    with pytest.raises(RecipeError, match="llave"):
        small().only(["llav"])


def test_runs_that_cannot_be_compared_are_told(results, tmp_path):
    from studies.__main__ import main
    from studies.again import again
    from studies.table import keep, load

    (tmp_path / "small").mkdir()
    keep([cell("llave", 0, 0.6)], tmp_path / "small" / "results.json")
    with pytest.raises(ArtifactError, match="both runs need results of InfoNCE"):
        again(results, load(tmp_path / "small", "results"))
    with pytest.raises(ArtifactError, match="`python -m studies run --suite large` makes it"):
        load(tmp_path / "large", "results")
    assert main(["compare", str(tmp_path / "elsewhere")]) == 1
