"""The emoji universe, built from a tiny tree of assets made here: what is held out stays out of the training pairs."""

import json
import re
import sys

import pytest
from emoji_tree import NAMES
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hardwon.data import emoji, read
from hardwon.data.emoji import catalogue
from hardwon.data.emoji.catalogue import FAR, SPLIT, family_of, is_far, split_of
from hardwon.errors import MissingExtra, RecipeError
from hardwon.evaluation import read_benchmark


@pytest.fixture(scope="module")
def build(assets, tmp_path_factory):
    pytest.importorskip("resvg_py")

    def make(seed=0, concepts=None, languages=False):
        folder = tmp_path_factory.mktemp("emoji")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(emoji, "fetch", lambda names, cache, say: {name: assets[name] for name in names})
            counts = emoji.build(folder, emoji.Size(6, 12, concepts, languages=languages), seed=seed)
        return folder, counts

    return make


@pytest.fixture(scope="module")
def built(build):
    return build()


def test_family_is_what_variants_share():
    assert family_of("woman astronaut: dark skin tone") == family_of("man astronaut") == family_of("astronaut") == "astronaut"
    assert family_of("Person in Tuxedo") == "in tuxedo"
    assert family_of("man: light skin tone, red hair") == family_of("woman") == "human"
    assert family_of("manatee") == "manatee"  # whole words only
    assert family_of("face: grinning, big") == "face grinning big"


@given(st.text(min_size=1, max_size=12))
def test_a_split_depends_on_the_family_alone_unless_far(family):
    found = {split_of(family, category) for category in ("a", "object-home", "")}
    assert len(found) == 1
    assert found <= {"train", "val", "test"}
    assert {split_of(family, category) for category in FAR} == {"far"}


def test_splits_have_about_their_shares():
    found = [split_of(f"family {n}", "") for n in range(3000)]
    assert [round(found.count(s) / 3000, 1) for s in ("train", "val", "test")] == [0.7, 0.1, 0.2]
    # Pinned: a model trained before must never meet what it was tested on.
    found = [split_of(name, "") for name in ("anvil", "astronaut", "fox", "human", "candle", "island")]
    assert found == ["train", "train", "test", "train", "train", "test"]


def test_another_division_holds_out_others():
    families = [f"family {n}" for n in range(1000)]
    here, there = ([split_of(f, "", division) for f in families] for division in (SPLIT, "another"))
    both = sum(a == b == "test" for a, b in zip(here, there, strict=True))
    assert 0.1 < both / here.count("test") < 0.3  # a fifth, as of any families
    far = [f"category {n}" for n in range(1000)]
    assert 50 < sum(is_far(category, "another") for category in far) < 140
    assert not any(is_far(category) for category in far)


def test_another_division_tests_nothing_that_was_held_out_before(assets, concepts):
    held_out = {c.family for c in concepts.values() if c.split != "train"}
    some = {name: path for name, path in assets.items() if name != "emoji-languages"}
    tested, trained = set(), set()
    for division in ("a", "b", "c", "d"):
        found = catalogue.read_concepts(some, division).values()
        tested |= {c.family for c in found if c.split != "train"}
        trained |= {c.family for c in found if c.split == "train"}
    assert tested and not tested & held_out
    assert held_out & trained  # they are learned from instead


def test_which_concepts_there_are(concepts):
    assert {c.name for c in concepts.values()} == NAMES  # no flags, no pairs of tones, nothing that an artist left out
    by_name = {c.name: c for c in concepts.values()}
    assert by_name["gull"].split == by_name["man gull"].split == "far"
    assert by_name["wren"].category == "animal bird"
    assert by_name["wren"].group == "all things"
    assert all(c.name.lower() not in (word.lower() for word in c.keywords) for c in concepts.values())
    assert {len(c.keywords) for c in concepts.values()} == {0, 2}


def test_splits_are_disjoint_by_family(concepts):
    splits = {}
    for concept in concepts.values():
        splits.setdefault(concept.family, set()).add(concept.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {s for found in splits.values() for s in found} == {"train", "val", "test", "far"}


def test_every_toned_concept_knows_its_base(concepts):
    toned = [c for c in concepts.values() if c.tone]
    assert len(toned) == 15
    for concept in toned:
        assert concept.name == f"{concepts[concept.base].name}: {concept.tone} skin tone"
        assert concept.split == concepts[concept.base].split


def test_codes_are_the_same_however_they_are_written():
    assert catalogue._codes("U+1F64D U+200D U+FE0F") == catalogue._codes("1f64d-200d") == ("1F64D", "200D")
    assert catalogue._codes("00a9-fe0f") == ("A9",)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def items(rows):
    return [item for row in rows for item in (row["query"], *(c["item"] for c in row["candidates"]))]


def slugs(pictures):
    return {picture.split("/")[-1].removesuffix(".png") for picture in pictures if "/collage/" not in picture}


def test_nothing_held_out_is_in_the_training_pairs(built, concepts):
    folder, _ = built
    for file, split in (("train.jsonl", "train"), ("val.jsonl", "val")):
        allowed = {slug for slug, c in concepts.items() if c.split == split}
        names = {c.name for c in concepts.values() if c.split != split}
        keywords = {word for c in concepts.values() if c.split != split for word in c.keywords}
        shown = items(lines(folder / file))
        pictures = {picture for item in shown for picture in item.get("images", ())}
        assert slugs(pictures) == allowed  # all of them, and no other
        assert not any("/openmoji/" in picture for picture in pictures)  # the style that no model is trained on
        for item in shown:
            assert item.get("text") not in names
            assert not any(re.search(rf"\b{re.escape(name)}\b", item.get("text", "")) for name in names)
            assert not keywords & set(item.get("text", "").split(", "))


def test_collages_for_training_hold_training_pictures_only(built, concepts):
    folder, _ = built
    for file, split in (("train.jsonl", "train"), ("val.jsonl", "val")):
        known = {}
        for slug, concept in concepts.items():
            for style in ("noto", "twemoji"):
                known[flat(folder / "pictures" / style / f"{slug}.png").tobytes()] = concept.split
        collages = {p for item in items(lines(folder / file)) for p in item.get("images", ()) if "/collage/" in p}
        assert len(collages) == {"train": 12, "val": 12}[split]
        for collage in collages:
            with Image.open(folder / collage) as sheet:
                tiles = [sheet.crop((x, y, x + 72, y + 72)).tobytes() for y in (0, 72) for x in (0, 72)]
            assert {known[tile] for tile in tiles} == {split}
            assert len(set(tiles)) == 4


def flat(path):
    with Image.open(path) as opened:
        tile = opened.convert("RGBA")
    sheet = Image.new("RGB", tile.size, "white")
    sheet.paste(tile, (0, 0), tile)
    return sheet


def test_answers_about_collages_are_true(built, concepts):
    folder, _ = built
    by_name = {c.name: c for c in concepts.values()}
    places = {"top left": (0, 0), "top right": (72, 0), "bottom left": (0, 72), "bottom right": (72, 72)}
    asked = [row for row in lines(folder / "train.jsonl") if row["source"] == "position"]
    assert len(asked) == 12
    for row in asked:
        (collage,), place = row["query"]["images"], row["query"]["text"]
        concept, style = by_name[row["candidates"][0]["item"]["text"]], collage.split("-")[-2]
        x, y = places[place]
        with Image.open(folder / collage) as sheet:
            assert (
                sheet.crop((x, y, x + 72, y + 72)).tobytes()
                == flat(folder / "pictures" / style / f"{concept.slug}.png").tobytes()
            )


def test_changes_change_what_they_say(built, concepts):
    folder, _ = built
    changes = [row for row in lines(folder / "train.jsonl") if row["source"] == "composed"]
    told = set()
    for row in changes:
        (start,), (end,) = row["query"]["images"], row["candidates"][0]["item"]["images"]
        before, after = (concepts[next(iter(slugs([path])))] for path in (start, end))
        assert before.slug != after.slug
        assert before.family == after.family
        assert start.rsplit("/", 1)[0] == end.rsplit("/", 1)[0]  # by the same artist
        text = row["query"]["text"]
        told.add(text)
        if text.startswith("with "):
            assert text == f"with {after.tone} skin tone"
            assert before.base == after.base
        else:
            assert text == f"as a {after.name.split()[0]}"
    assert {"as a man", "as a woman"} <= told
    assert len(told) > 3


def test_every_kind_of_pair_is_there(built):
    folder, _ = built
    kinds = {"text_to_image", "image_to_text", "image_to_image", "category", "text_to_text", "skin_tone", "composed"}
    for file in ("train.jsonl", "val.jsonl"):
        rows = lines(folder / file)
        assert {row["source"] for row in rows} == kinds | {"position", "grounding"}
        assert all([c["origin"] for c in row["candidates"]] == ["gold"] for row in rows)


def test_every_picture_is_there_and_can_be_read(built):
    folder, counts = built
    assert len(read(folder / "train.jsonl", decode_pictures=True)) == counts["train"]
    assert len(read(folder / "val.jsonl", decode_pictures=True)) == counts["val"]
    for style in ("noto", "twemoji", "openmoji"):
        assert len(list((folder / "pictures" / style).glob("*.png"))) == counts["concepts"] == len(NAMES)
    with Image.open(next((folder / "pictures" / "openmoji").glob("*.png"))) as drawn:
        assert drawn.size == (72, 72)


def test_counts_are_the_rows_that_were_written(built):
    folder, counts = built
    assert counts["train"] == len(lines(folder / "train.jsonl"))
    assert counts["val"] == len(lines(folder / "val.jsonl"))
    for name, limit in (("mmeb-small", 12), ("mmeb-val", 12)):
        written = {path.parent.name: len(lines(path)) for path in (folder / name).glob("*/queries.jsonl")}
        assert written == counts[name]
        assert all(0 < count <= limit + 2 for count in written.values())  # a share is rounded up for each style


def test_the_benchmarks_ask_about_held_out_concepts_only(built, concepts):
    folder, _ = built
    small, validation = (read_benchmark(folder / name) for name in ("mmeb-small", "mmeb-val"))
    for benchmark, split in ((small, "test"), (validation, "val")):
        for task in benchmark.tasks:
            wanted = {"far"} if task.name.endswith("_far") else {split}
            shown = [*task.queries, *task.corpus]
            pictures = {str(path) for item in shown for path in item.images}
            assert {concepts[slug].split for slug in slugs(pictures)} <= wanted, task.name
            names = {c.name: c.split for c in concepts.values()}
            assert {names[item.text] for item in task.corpus if item.text in names} <= wanted, task.name
    assert {task.meta_task for task in small.tasks} == {"classification", "vqa", "retrieval", "grounding"}
    assert {task.distribution for task in validation.tasks} == {"ind"}
    ood = {task.name for task in small.tasks if task.distribution == "ood"}
    assert ood == {name for name in (t.name for t in small.tasks) if name.endswith(("_far", "_openmoji"))}
    openmoji = next(task for task in small.tasks if task.name == "text_to_image_openmoji")
    assert all("/openmoji/" in str(item.images[0]) for item in openmoji.corpus)


def test_a_composed_query_never_finds_the_picture_it_starts_from(built):
    folder, _ = built
    asked = 0
    for name in ("mmeb-small", "mmeb-val"):
        for task in read_benchmark(folder / name).tasks:
            if task.name.startswith("composed"):
                for number, query in enumerate(task.queries):
                    found = {task.corpus[place].images for place in task.searched(number)}
                    assert query.images not in found
                    assert len(found) > 1
                    asked += 1
    assert asked > 10


def test_each_query_searches_pictures_by_one_artist(built):
    """The same concept by another artist would be counted as a miss; unless it was asked for in both styles."""
    folder, _ = built
    task = next(task for task in read_benchmark(folder / "mmeb-small").tasks if task.name == "text_to_image")

    def styles(places):
        return {task.corpus[place].images[0].parent.name for place in places}

    assert [styles(task.searched(n)) for n in range(len(task.queries))] == [styles(gold) for gold in task.gold]
    assert {len(styles(gold)) for gold in task.gold} >= {1}


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_other_pairs(built, build):
    folder, counts = built
    again, same = build()
    assert same == counts
    assert contents(again) == contents(folder)
    other, _ = build(seed=1)
    assert (other / "train.jsonl").read_bytes() != (folder / "train.jsonl").read_bytes()
    assert contents(other / "mmeb-small") == contents(folder / "mmeb-small")  # what is asked never depends on the seed
    assert slugs(p for i in items(lines(other / "train.jsonl")) for p in i.get("images", ())) == slugs(
        p for i in items(lines(folder / "train.jsonl")) for p in i.get("images", ())
    )


def test_fewer_concepts_are_whole_families_of_the_same_ones(concepts, tmp_path):
    from hardwon.data.emoji.pairs import World

    world = World(concepts, tmp_path)
    some = world.with_some("train", 5)
    assert 5 <= len(some.of("train")) < len(world.of("train"))
    families = {c.family for c in some.of("train")}
    assert [c for c in world.of("train") if c.family in families] == some.of("train")
    assert some.of("test", "val", "far") == world.of("test", "val", "far")
    left_out = next(c for c in world.of("train") if c.family not in families)
    assert left_out in world.with_some("train", 5, [left_out.slug]).of("train")
    assert some.of("train") == world.with_some("train", 5, ["no such picture"]).of("train")


def test_only_what_is_used_is_drawn(build):
    folder, counts = build(concepts=16)
    drawn = {path.stem for path in (folder / "pictures/noto").glob("*.png")}
    assert len(drawn) == counts["kept"] < counts["concepts"]
    with pytest.raises(RecipeError, match="concepts must be at least 16, or None for all, got 4"):
        emoji.Size(concepts=4)


def test_names_in_other_languages(built, build, concepts):
    """The other pairs stay as they are; languages that are not trained on are asked about in the test alone."""
    folder, counts = build(languages=True)
    plain = lines(built[0] / "train.jsonl")
    rows = lines(folder / "train.jsonl")
    added = [row for row in rows if row["source"] in ("languages", "translation")]
    written = sorted(json.dumps(row) for row in rows if row not in added)
    assert written == sorted(json.dumps(row) for row in plain)
    assert {row["source"] for row in added} == {"languages", "translation"}
    # A name of the tree is the language's and the English name.
    assert {row["query"]["text"].split()[0] for row in added} <= set(catalogue.TRAINED_LANGUAGES)
    for row in added:
        (gold,) = row["candidates"]
        name = row["query"]["text"].split(" ", 1)[1]
        shown = {slug: c.name for slug, c in concepts.items() if c.split == "train"}
        if row["source"] == "translation":
            assert gold["item"]["text"] == name
            assert name in shown.values()
        else:
            assert [shown[slug] for slug in slugs(gold["item"]["images"])] == [name]
    for name, kinds in (("mmeb-small", ("ind", "ood")), ("mmeb-val", ("ind",))):
        tasks = {t.name: t for t in read_benchmark(folder / name).tasks if t.name.startswith(("languages", "translation"))}
        assert {t.distribution for t in tasks.values()} == set(kinds)
        for task in tasks.values():
            allowed = catalogue.TRAINED_LANGUAGES if task.distribution == "ind" else catalogue.UNSEEN_LANGUAGES
            assert {query.text.split()[0] for query in task.queries} <= set(allowed)
            assert counts[name][task.name] == len(task.queries) > 0


def test_drawing_without_the_extra_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingExtra, match=r"pip install 'hardwon\[demo\]'"):
        catalogue._render(tmp_path / "x.svg")
