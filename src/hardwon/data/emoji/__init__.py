"""The built-in sample data: pairs and the small MMEB from the emoji universe (see `catalogue`)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardwon.data.assets import fetch
from hardwon.data.emoji.catalogue import SPLIT, TRAINED_STYLES, draw, read_codes, read_concepts
from hardwon.data.emoji.collage import Collage, make_collages
from hardwon.data.emoji.pairs import World, training_pairs
from hardwon.data.emoji.tasks import TaskRows, small_mmeb
from hardwon.errors import RecipeError
from hardwon.items import write_examples

__all__ = ["Size", "build"]

FEWEST = 16  # a quarter of them is in the smallest split, where four make a collage


@dataclass(frozen=True)
class Size:
    """How much of the universe is used.

    Attributes:
        collages: collages per trained style for the training pairs (the others take a fraction of it).
        queries: queries per test data set at most.
        concepts: concepts (without their skin tones) that training pairs are made of, about, and in proportion those that
            are asked about; all if None. Others are not drawn.
        including: names of pictures whose concepts are always among them.
        languages: names in other languages as well: pairs in six that are trained on, and tasks in these and in seven others.
        division: name of the draw of what is trained on and what is held out; another one tests concepts that the built-in one
            trains on, and nothing that a recipe was chosen on.
    """

    collages: int = 1200
    queries: int = 200
    concepts: int | None = None
    including: tuple[str, ...] = ()
    languages: bool = False
    division: str = SPLIT

    def __post_init__(self) -> None:
        if self.concepts is not None and self.concepts < FEWEST:
            raise RecipeError(f"concepts must be at least {FEWEST}, or None for all, got {self.concepts}")


def build(
    folder: Path,
    size: Size | None = None,
    *,
    seed: int = 0,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write pictures, `train.jsonl`, `val.jsonl`, the benchmark `mmeb-small/` and its validation twin `mmeb-val/`.

    Args:
        folder: where to; the rows name pictures relative to it.
        size: how much of it; see `Size`.
        seed: of the wording and order of pairs; splits never depend on it.
        cache: where assets are kept.
        say: told what is happening, one line at a time.

    Returns:
        Counts of what was written.
    """
    size = size or Size()
    needed = ("emoji-png", "emoji-svg", "emoji-names", "emoji-keywords", *(("emoji-languages",) if size.languages else ()))
    assets = fetch(needed, cache, say)
    world = World(read_concepts(assets, size.division), folder / "pictures")
    counts: dict[str, Any] = {"concepts": len(world.concepts)}
    if size.concepts is not None:
        for split, share in (("train", 1.0), ("val", 0.25), ("test", 0.5), ("far", 0.25)):
            world = world.with_some(split, int(share * size.concepts), size.including)
    counts["kept"] = len(world.concepts)
    say(f"drawing {len(world.concepts)} concepts in 3 styles")
    draw(assets, world.concepts, read_codes(assets), world.pictures)

    def test_collages(split: str, style: str) -> list[Collage]:
        return make_collages(world, world.of(split), [style], max(size.queries * 3 // 5, 20), split)

    trained = make_collages(world, world.of("train"), TRAINED_STYLES, size.collages, "train")
    train = training_pairs(world, trained, ["train"], seed)
    validation = make_collages(world, world.of("val"), TRAINED_STYLES, min(60, size.collages), "val-pairs")
    counts["train"] = write_examples(folder / "train.jsonl", train)
    counts["val"] = write_examples(folder / "val.jsonl", training_pairs(world, validation, ["val"], seed))
    for name, split, limit in (("mmeb-small", "test", size.queries), ("mmeb-val", "val", min(60, size.queries))):
        tasks = small_mmeb(world, test_collages, split, limit)
        counts[name] = {task.name: _write(folder, name, task) for task in tasks}
        listed = [
            {"name": t.name, "meta_task": t.meta_task, "distribution": t.distribution}
            | {"queries": f"{t.name}/queries.jsonl", "corpus": f"{t.name}/corpus.jsonl"}
            for t in tasks
        ]
        text = json.dumps({"name": name, "root": "..", "tasks": listed}, indent=1)
        (folder / name / "benchmark.json").write_text(text, encoding="utf-8")
    return counts


def _write(folder: Path, name: str, task: TaskRows) -> int:
    corpus, rows = task.rows()
    target = folder / name / task.name
    target.mkdir(parents=True, exist_ok=True)
    with open(target / "corpus.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(item.to_json(folder), ensure_ascii=False) + "\n" for item in corpus)
    with open(target / "queries.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row | {"query": row["query"].to_json(folder)}, ensure_ascii=False) + "\n" for row in rows)
    return len(rows)
