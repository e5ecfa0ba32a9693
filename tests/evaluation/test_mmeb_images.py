import mmeb
import pytest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Tiny MMEB in the form of MMEB-eval; never write into it."""
    return mmeb.write_images(tmp_path_factory.mktemp("mmeb"))


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """The same in the form with columns for instructions."""
    return mmeb.write_images(tmp_path_factory.mktemp("newer"), form="v2")


def only(root, name, **changes):
    """A folder with one data set, and how the benchmark is read when the others are passed over."""
    from hardwon.evaluation import load_benchmark

    mmeb.write_set(root, name, **changes)
    return load_benchmark("mmeb", root, on_error="skip")


def why(root, name, **changes):
    """The reason for which a data set cannot be read."""
    mmeb.write_set(root, "NIGHTS" if name != "NIGHTS" else "CIRR")
    made = only(root, name, **changes)
    return next(gone.why for gone in made.missing if gone.name == name)


def test_the_table_holds_what_the_papers_count():
    from collections import Counter

    from hardwon.data.mmeb import DOCUMENTS, IMAGES, VIDEOS

    assert Counter(one.meta_task for one in IMAGES) == {"classification": 10, "vqa": 10, "retrieval": 12, "grounding": 4}
    assert Counter(one.distribution for one in IMAGES) == {"ind": 20, "ood": 16}
    assert {bool(one.train) == (one.distribution == "ind") for one in IMAGES} == {True}
    assert (len(VIDEOS), len(DOCUMENTS)) == (18, 24)
    assert {one.metric for one in (*IMAGES, *VIDEOS)} == {"hit@1"}
    assert {one.metric for one in DOCUMENTS} == {"ndcg@5"}
    names = [one.name for one in (*IMAGES, *VIDEOS, *DOCUMENTS)]
    assert len(set(names)) == 78


def test_all_36_are_read_in_both_forms(whole, newer):
    from hardwon.data.mmeb import IMAGES
    from hardwon.evaluation import load_benchmark

    first, second = load_benchmark("mmeb", whole), load_benchmark("mmeb", newer)
    for made in (first, second):
        assert [task.name for task in made.tasks] == [one.name for one in IMAGES]
        assert made.missing == ()
        for task, one in zip(made.tasks, IMAGES, strict=True):
            assert (task.meta_task, task.distribution) == (one.meta_task, one.distribution)
            assert len(task.queries) == mmeb.QUERIES
            assert len(task.corpus) == mmeb.CANDIDATES
            assert [len(gold) for gold in task.gold] == [1] * mmeb.QUERIES
            assert all(("I" in one.query) == bool(query.images) for query in task.queries)
            assert all(("I" in one.candidate) == bool(item.images) for item in task.corpus)
            assert not any("<|image_1|>" in item.text + item.instruction for item in (*task.queries, *task.corpus))
    # The words are the same; the newer form knows which of them are the instruction.
    for old, new in zip(first.tasks, second.tasks, strict=True):
        for a, b in zip((*old.queries, *old.corpus), (*new.queries, *new.corpus), strict=True):
            assert a.text == " ".join(part for part in (b.instruction, b.text) if part)
            assert [p.name for p in a.images] == [p.name for p in b.images]
        assert (old.gold, old.candidates) == (new.gold, new.candidates)


def test_the_gold_candidate_is_the_first_of_its_row(whole):
    from hardwon.evaluation import load_benchmark

    table = mmeb.rows("WebQA", "T", "IT")
    task = next(task for task in load_benchmark("mmeb", whole).tasks if task.name == "WebQA")
    for row, query, gold in zip(table, task.queries, task.gold, strict=True):
        assert row["qry_text"].strip() == query.text
        (item,) = (task.corpus[n] for n in gold)
        assert item.images[0].name == row["tgt_img_path"][0].split("/")[1]
        assert item.text == row["tgt_text"][0].removeprefix("<|image_1|>\n")


def test_the_seven_means_are_over_data_sets(whole, fake):
    import statistics

    from hardwon.evaluation import evaluate, load_benchmark

    report = evaluate(fake(), load_benchmark("mmeb", whole), progress=False)
    hits = {result.name: sum(result.hits) / len(result.hits) for result in report.results}
    means = report.means()
    assert list(means) == ["classification", "vqa", "retrieval", "grounding", "ind", "ood", "all"]
    for group, mean in means.items():
        members = [hits[result.name] for result in report.results if result.within(group)]
        assert mean.mean == pytest.approx(statistics.mean(members), abs=1e-12)
    four = statistics.mean(means[group].mean for group in ("classification", "vqa", "retrieval", "grounding"))
    assert means["all"].mean != pytest.approx(four, abs=1e-6)


def test_mscoco_is_grounding_and_its_namesakes_are_retrieval(whole):
    from hardwon.evaluation import load_benchmark

    groups = {task.name: task.meta_task for task in load_benchmark("mmeb", whole).tasks if "MSCOCO" in task.name}
    assert groups == {"MSCOCO": "grounding", "MSCOCO_t2i": "retrieval", "MSCOCO_i2t": "retrieval"}


def test_what_is_missing_is_named_with_what_to_download(tmp_path, fake):
    from hardwon.errors import ArtifactError, DataError
    from hardwon.evaluation import evaluate, load_benchmark

    mmeb.write_set(tmp_path, "NIGHTS")
    with pytest.raises(DataError, match=r"35 of 36 data sets .*(?s:.)*SUN397: .*TIGER-Lab/MMEB-eval(?s:.)*on_error"):
        load_benchmark("mmeb", tmp_path)
    made = load_benchmark("mmeb", tmp_path, on_error="skip")
    assert [task.name for task in made.tasks] == ["NIGHTS"]
    report = evaluate(fake(), made, progress=False)
    assert len(report.missing) == 35
    with pytest.raises(ArtifactError, match="no mean over mmeb: 35 of 36 data sets are missing"):
        report.mean("retrieval")
    assert report.mean("retrieval", partial=True).mean == pytest.approx(sum(report.result("NIGHTS").hits) / mmeb.QUERIES)
    with pytest.raises(DataError, match="36 of 36"):
        load_benchmark("mmeb", tmp_path / "NIGHTS", on_error="skip")
    with pytest.raises(DataError, match="mmeb needs the folder that holds its data"):
        load_benchmark("mmeb")
    with pytest.raises(DataError, match="is not a folder"):
        load_benchmark("mmeb", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tgt_text": [], "tgt_img_path": []}, "has no candidates"),
        ({"tgt_text": ["", "a"], "tgt_img_path": ["", ""]}, "candidate 0, the one that belongs to the query, is empty"),
        ({"tgt_text": ["a", ""], "tgt_img_path": ["", ""]}, "candidate 1 is empty"),
        ({"tgt_text": ["a", "b"], "tgt_img_path": [""]}, "lists of the same length"),
        ({"qry_text": "", "qry_img_path": ""}, "the query is empty"),
        ({"qry_img_path": "gone.png"}, "gone.png does not exist"),
        ({"qry_img_path": "../../gone.png"}, "leads out of the data root"),
        ({"tgt_text": None}, "lists of the same length"),
    ],
)
def test_a_bad_row_is_named_with_its_set(tmp_path, changes, reason):
    told = why(tmp_path, "OVEN", change=mmeb.spoiled(2, **changes))
    assert "1 of 4 rows cannot be used" in told
    assert f"{tmp_path}/OVEN/test-00000-of-00001.parquet:3: " in told
    assert reason in told


def test_instructions_of_another_type_are_named(tmp_path):
    told = why(tmp_path, "OVEN", change=lambda table: [row | {"tgt_inst": ["a", "b"]} for row in table])
    assert "4 of 4 rows cannot be used" in told
    assert "tgt_inst must be a string, got list" in told


def test_damage_is_named(tmp_path):
    picture = tmp_path / "images/OVEN/candidate-1.png"

    def damage(table):
        picture.write_bytes(picture.read_bytes()[:60])
        return table

    assert "candidate-1.png" in why(tmp_path, "OVEN", change=damage)
    (tmp_path / "OVEN/test-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    assert "cannot be read" in next(gone.why for gone in only(tmp_path, "CIRR").missing if gone.name == "OVEN")


def test_other_columns_are_refused(tmp_path):
    assert "has no tgt_img_path" in why(
        tmp_path, "OVEN", change=lambda table: [{k: v for k, v in row.items() if k != "tgt_img_path"} for row in table]
    )


def test_twins_that_the_system_left_and_the_training_part_are_not_read(tmp_path):
    mmeb.write_set(tmp_path, "OVEN")
    (tmp_path / "OVEN/._test-00000-of-00001.parquet").write_bytes(b"\0\5\26\7")
    mmeb.write(tmp_path / "OVEN/train-00000-of-00001.parquet", [{"else": 1}])
    assert len(only(tmp_path, "CIRR").tasks) == 2


def test_a_copy_of_the_positive_is_no_miss_and_no_candidate_counts_twice(tmp_path, constant):
    from hardwon.evaluation import evaluate

    def doubled(table):
        for row in table:
            row["tgt_text"], row["tgt_img_path"] = ([*row[k], row[k][0], row[k][1]] for k in ("tgt_text", "tgt_img_path"))
        return table

    made = only(tmp_path, "NIGHTS", change=doubled)
    assert [len(searched) for searched in made.tasks[0].candidates] == [mmeb.CANDIDATES] * mmeb.QUERIES
    report = evaluate(constant(), made, progress=False)
    assert report.result("NIGHTS").chance == pytest.approx(1 / mmeb.CANDIDATES)
    assert report.mean(partial=True).mean == pytest.approx(1 / mmeb.CANDIDATES)


def test_the_same_picture_with_another_instruction_is_another_item(tmp_path, fake):
    """The trap of caches that know a candidate by its path alone: an old vector for a new instruction."""
    from hardwon.evaluation import evaluate

    before = only(tmp_path / "a", "NIGHTS", form="v2", pictures="image-tasks")
    change = lambda table: [row | {"tgt_inst": "<|image_1|>\nRepresent it otherwise."} for row in table]  # noqa: E731
    after = only(tmp_path / "b", "NIGHTS", form="v2", pictures="image-tasks", change=change)
    pairs = list(zip(before.tasks[0].corpus, after.tasks[0].corpus, strict=True))
    assert all(old.content == new.content and old.key != new.key for old, new in pairs)
    encoder = fake()
    for made in (before, after):
        evaluate(encoder, made, progress=False)
    assert not {item.key for item, _ in pairs} & set(encoder.calls[1])


def test_all_queries_of_a_label_set_share_one_tuple(whole):
    from hardwon.evaluation import load_benchmark

    task = load_benchmark("mmeb", whole).tasks[0]
    assert len({id(searched) for searched in task.candidates}) == 1


def test_a_constant_model_gets_chance_on_every_set(whole, constant):
    """The trap of ties: the right candidate stands first in its row, and an arg-max takes the first of equals."""
    from hardwon.evaluation import evaluate, load_benchmark

    report = evaluate(constant(), load_benchmark("mmeb", whole), progress=False)
    for result in report.results:
        assert result.hits == pytest.approx([1 / mmeb.CANDIDATES] * mmeb.QUERIES)
        assert result.measures["hit@1"] == 0
        assert result.tied == 1


def test_json_lines_may_hold_anything(tmp_path):
    import json

    table = mmeb.write_set(tmp_path, "OVEN")
    (tmp_path / "OVEN/test-00000-of-00001.parquet").unlink()
    table[1]["tgt_text"] = [["a list"], *table[1]["tgt_text"][1:]]
    table[2]["qry_text"] = 7
    table[3] = ["no object"]
    (tmp_path / "OVEN/test.jsonl").write_text("\n".join(json.dumps(row) for row in table) + "\n{")
    told = next(gone.why for gone in only(tmp_path, "CIRR").missing if gone.name == "OVEN")
    for line, reason in (
        (2, "lists of strings"),
        (3, "the query must be strings"),
        (4, "must be a JSON object"),
        (5, "is not JSON"),
    ):
        assert f"OVEN/test.jsonl:{line}: " in told
        assert reason in told


def test_a_real_model_answers_all_shapes_of_queries(tmp_path, vlm):
    from hardwon.evaluation import evaluate

    for name in ("N24News", "OK-VQA", "WebQA", "CIRR"):
        mmeb.write_set(tmp_path, name)
    report = evaluate(vlm, only(tmp_path, "RefCOCO-Matching"), progress=False)
    assert len(report.results) == 5
    assert 0 <= report.mean(partial=True).mean <= 1
    assert all(result.tied < 1 for result in report.results)
