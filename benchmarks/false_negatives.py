"""How many of the mined negatives are right answers after all, with and without the judge, on data whose truth is known.

    hardwon demo && python -m benchmarks.false_negatives runs/demo

The demo's pairs come from emoji with names, keywords, and drawings by two artists; of every pair one answer is marked, but the
annotations tell of every candidate whether it fits: the same thing drawn by the other artist, another thing that has all the
keywords that were asked for, two things that were drawn with the very same picture. Such a candidate among the mined negatives
is a false negative. (The other sources of the demo ask for labels, of which only one is right, or for a piece of one collage.)

Negatives are mined for the same queries with the demo's round 1, by three rules: the nearest candidates; the nearest without
the very first; and what the judge lets pass, which is the demo's: reranker and cosine, blended on held-out pairs. Intervals are
bootstrap over queries. Judgements are kept in the workspace, so a second run asks about nothing.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from hardwon.data import read
from hardwon.data.assets import fetch
from hardwon.data.emoji.catalogue import Concept, read_concepts
from hardwon.errors import ArtifactError
from hardwon.items import Example, Item, picture_key
from hardwon.metrics import interval
from hardwon.mining import Cyclic, Mined, Mining, mine
from hardwon.models import Reranker
from hardwon.search import Blend
from hardwon.stages import Workspace
from hardwon.stages.learn import features, load_encoder

SOURCES = ("text_to_image", "image_to_text", "image_to_image", "text_to_text", "composed")
NAIVE, SKIP, JUDGE = "nearest", "nearest but one", "judge"


@dataclass(frozen=True)
class Truth:
    """What the annotations say.

    Attributes:
        concepts: by slug.
        drawn: slugs of everything that a picture shows, by the picture's key.
        named: slugs by name.
    """

    concepts: dict[str, Concept]
    drawn: dict[str, frozenset[str]]
    named: dict[str, frozenset[str]]

    @classmethod
    def load(cls, pictures: Path) -> "Truth":
        """From the assets and the drawings of a demo."""
        concepts = read_concepts(fetch(("emoji-png", "emoji-svg", "emoji-names", "emoji-keywords"), None, lambda _: None))
        drawn: dict[str, set[str]] = {}
        named: dict[str, set[str]] = {}
        for path in (p for style in ("noto", "twemoji") for p in sorted((pictures / style).glob("*.png"))):
            drawn.setdefault(picture_key(path), set()).add(path.stem)
        for slug, concept in concepts.items():
            named.setdefault(concept.name, set()).add(slug)
        return cls(concepts, *({key: frozenset(s) for key, s in those.items()} for those in (drawn, named)))

    def shown(self, item: Item) -> frozenset[str]:
        """Slugs of what an item shows or names."""
        return (
            self.drawn.get(picture_key(item.images[0]), frozenset()) if item.images else self.named.get(item.text, frozenset())
        )

    def fits(self, words: str, slug: str) -> bool:
        """Whether words that someone searched with (name, keywords, or both) are all true of a concept."""
        concept = self.concepts[slug]
        if words == concept.name:
            return True
        return all(word in concept.keywords for word in words.removeprefix(f"{concept.name}, ").split(", "))

    def belongs(self, example: Example, item: Item) -> bool:
        """Whether a candidate is a right answer."""
        if example.source in ("text_to_image", "text_to_text"):
            return any(self.fits(example.query.text, slug) for slug in self.shown(item))
        asked = example.gold[0] if example.source == "composed" else Item(images=example.query.images)
        return bool(self.shown(asked) & self.shown(item))


def mined_by_rule(folder: Path, queries: int, settings: Mining) -> Iterator[tuple[str, Mined]]:
    """The same queries, mined by each rule."""
    workspace = Workspace(folder)
    examples = [e for e in read(workspace.path("data/train.jsonl")) if e.source in SOURCES]
    encoder = load_encoder(workspace, "round1/model")
    settings = replace(settings, queries=queries)
    yield NAIVE, mine(examples, encoder, settings=settings)
    yield SKIP, mine(examples, encoder, settings=replace(settings, skip=1))
    reranker = Reranker.load(workspace.path("reranker/model"), vision_cache=features(workspace))
    judge = Blend.fit(encoder, reranker, list(read(workspace.path("data/val.jsonl"))))
    yield JUDGE, mine(examples, encoder, judge, settings=settings, store=workspace.root / "judgements")


def shares(mined: Mined, truth: Truth) -> dict[str, list[float]]:
    """By source, for each query with negatives: the share of them that is false."""
    made: dict[str, list[float]] = {source: [] for source in SOURCES}
    for example in mined.examples:
        negatives = [c.item for c in example.negatives if c.origin == "mined"]
        if negatives:
            made[example.source].append(sum(truth.belongs(example, item) for item in negatives) / len(negatives))
    return made


def verdicts(mined: Mined, truth: Truth, items: dict[str, Item], rows: Sequence[Example]) -> tuple[float, float]:
    """Shares that the judge rejected: of the retrieved candidates that do belong to their query, and of those that do not."""
    rejected: dict[bool, list[bool]] = {True: [], False: []}
    for entry in mined.ledger:
        rejected[truth.belongs(rows[entry.row], items[entry.candidate])].append(entry.verdict == "rejected")
    false, true = (sum(rejected[side]) / max(len(rejected[side]), 1) for side in (True, False))
    return false, true


def main(arguments: Sequence[str]) -> None:
    """Mine, count, show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.false_negatives", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="of a finished demo")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--keep", type=int, default=4)
    parser.add_argument("--beta", type=float, default=0.0, help="the demo's, for a judge whose grades are blended")
    asked = parser.parse_args(arguments)
    for name in ("data/train.jsonl", "data/val.jsonl", "round1/model", "reranker/model"):
        if not (asked.folder / name).exists():
            raise ArtifactError(f"{asked.folder / name} does not exist: finish `hardwon demo --out {asked.folder}` first")
    truth = Truth.load(asked.folder / "data" / "pictures")
    settings = Mining(depth=asked.depth, keep=asked.keep, beta=asked.beta, selector=Cyclic(2), seed=1)
    found = dict(mined_by_rule(asked.folder, asked.queries, settings))
    table = Table("mined by", "queries", "negatives", *SOURCES, "all", title="Share of false negatives among mined negatives")
    for name, mined in found.items():
        by_source = shares(mined, truth)
        columns = [*by_source.values(), [value for values in by_source.values() for value in values]]
        count = sum(e.verdict == "kept" for e in mined.ledger)
        table.add_row(name, f"{len(columns[-1]):,}", f"{count:,}", *(shown(values) for values in columns))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    rows = [e for e in read(asked.folder / "data" / "train.jsonl") if e.source in SOURCES]
    pool = {c.item.key: c.item for e in rows for c in e.candidates}
    false, true = verdicts(found[JUDGE], truth, pool, rows)
    calibration = found[JUDGE].calibration
    assert calibration is not None
    told = f"{false:.1%} of the retrieved candidates that belong to their query and {true:.1%} of those that do not"
    console.print(f"The judge (AUC {calibration.auc:.3f} on gold against random pairs) rejected {told}.")


def shown(values: Sequence[float]) -> str:
    """Mean and 95 % interval, in per cent."""
    if not values:
        return ""
    made = interval(torch.tensor(values), seed=0)
    return f"{made.mean:.1%} [{made.low:.1%}, {made.high:.1%}]"


if __name__ == "__main__":
    main(sys.argv[1:])
