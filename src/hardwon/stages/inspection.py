"""What `hardwon inspect` says of mined hard negatives: tables in the terminal, and a page to look at."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hardwon.artifacts import Manifest
from hardwon.data import read
from hardwon.errors import ArtifactError, BadMedia, DataError
from hardwon.items import Example, Item, read_examples
from hardwon.mining import Entry, ledger, read_ledger
from hardwon.mining.judgements import CALIBRATION
from hardwon.progress import bar
from hardwon.serve.inspection import Asked, Inspection, Seen, most_telling, render, write_inspection
from hardwon.serve.report_content import Calibration
from hardwon.stages.base import Workspace

BINS = 20
BLOCKS = " ▁▂▃▄▅▆▇█"
CANARIES = '"answer Yes" in a candidate'
UNANSWERED = "the judge gave no usable answer to"


def inspect_negatives(
    folder: Path, manifest: Manifest, page: Path, *, root: Path | None = None, most: int | None = 200
) -> None:
    """Print what was mined by a `Mine` or `Reselect` stage, and write the page to look at.

    Args:
        folder: the artifact.
        manifest: its manifest.
        page: the page to write.
        root: folder that picture paths are relative to; by default where the stage says that the data lay.
        most: how many queries are shown; None for all.

    Raises:
        ArtifactError: an artifact without a ledger.
    """
    if not (folder / "ledger.parquet").is_file():
        raise ArtifactError(f"{folder} holds no ledger.parquet: mine again")
    entries = read_ledger(folder / "ledger.parquet")
    content = _inspected(folder, manifest, entries, root, most)
    write_inspection(content, page)
    show(content, entries)


def page_of(folder: Path, manifest: Manifest, *, home: str) -> str:
    """The page to look at, as text.

    Args:
        folder: the artifact.
        manifest: its manifest.
        home: address of the page that it leads back to.
    """
    return render(_inspected(folder, manifest, read_ledger(folder / "ledger.parquet"), None, 200), home)


def _inspected(folder: Path, manifest: Manifest, entries: Sequence[Entry], root: Path | None, most: int | None) -> Inspection:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    rows = [list(lines) for _, lines in groupby(sorted(entries, key=lambda e: (e.row, e.rank)), key=lambda e: e.row)]
    asked = most_telling([_asked(lines) for lines in rows], most)
    wanted = {a.row for a in asked}
    found = _items(folder, manifest, root, [line for lines in rows if lines[0].row in wanted for line in lines])
    by_row = {lines[0].row: lines for lines in rows}
    judge = summary["calibration"]
    return Inspection(
        f"Mined: {folder.absolute().name}",
        len(rows),
        tuple(_asked(by_row[a.row], found) for a in asked),
        len(entries),
        summary["ledger"],
        summary["queries"],
        _calibration(judge) if judge else None,
        _canaries(judge) | _unanswered(summary) | _made_with(folder),
    )


def _calibration(told: Mapping[str, Any]) -> Calibration:
    return Calibration(told["auc"], told["ece"], tuple(told["gold"]), tuple(told["random"]))


def _canaries(judge: Mapping[str, Any] | None) -> dict[str, str]:
    """What instructions inside candidates did to the judge."""
    canary = judge["canary"] if judge else None
    if canary is None:
        return {}
    told = f"moved the grades of {canary['pairs']} random pairs by {canary['shift']:+.3f} on average"
    return {CANARIES: f"{told}, and {canary['flipped']:.0%} of them above one half"}


def _unanswered(summary: Mapping[str, Any]) -> dict[str, str]:
    """The share of pairs without a usable answer, if there are any; earlier versions did not count them."""
    judged = summary.get("judged") or {}
    without = judged.get("without a usable answer")
    return {UNANSWERED: f"{without:,} of {judged['pairs']:,} pairs, {judged['share without']:.2%}"} if without else {}


def _made_with(folder: Path) -> dict[str, str]:
    about = ledger.about(folder / "ledger.parquet")
    told = {name: str(about.get(name) or "none") for name in ("embedder", "judge")}
    told |= {name: str(about[name]) for name in ("judge name",) if name in about}
    settings = about.get("settings", {})
    return told | {name: str(value) for name, value in settings.items() if value is not None}


def _asked(lines: Sequence[Entry], found: "_Known | None" = None) -> Asked:
    first = lines[0]
    query, positive = found.pair(first) if found else (None, None)
    candidates = tuple(
        Seen(
            found.item(e.candidate) if found else None,
            e.rank + 1,
            e.similarity,
            e.grade,
            e.verdict,
            f"{e.rule}: {e.problem}" if e.problem else e.rule,
            e.disagreement,
        )
        for e in lines
    )
    gold = first.gold_similarity, first.gold_grade, first.gold_problem
    return Asked(first.row, first.source, query, positive, *gold, candidates, first.bar)


class _Known:
    """Items and queries of the data by their keys. What is not there, or cannot be read any more, is None."""

    def __init__(self, examples: Iterable[Example], wanted: Sequence[Entry], total: int):
        keys, queries = {e.candidate for e in wanted}, {e.query for e in wanted}
        self._items: dict[str, Item] = {}
        self._pairs: dict[str, tuple[Item, Item]] = {}
        with bar("looking up the items", total, "examples") as advance:
            for example in examples:
                for item in (c.item for c in example.candidates):
                    key = _key(item)
                    if key in keys:
                        self._items[key] = item
                key = _key(example.query)
                if key in queries and example.gold:
                    self._pairs.setdefault(key, (example.query, example.gold[0]))
                advance()

    def item(self, key: str) -> Item | None:
        """The item with a key."""
        return self._items.get(key)

    def pair(self, entry: Entry) -> tuple[Item | None, Item | None]:
        """Query and positive of a line."""
        return self._pairs.get(entry.query, (None, None))


def _key(item: Item) -> str:
    with suppress(BadMedia):
        return item.key
    return ""


def _items(folder: Path, manifest: Manifest, root: Path | None, wanted: Sequence[Entry]) -> _Known:
    """Items from what was mined, and from the data that was mined in if it is still there."""
    home = root or data_root(folder, manifest)
    examples = list(_readable(folder / "examples.jsonl", home))
    if "stage" not in manifest.inputs:
        return _Known(examples, wanted, len(examples))
    stage: Mapping[str, Any] = manifest.inputs["stage"]
    data = _workspace(folder, stage).path(stage["data"])
    with suppress(DataError):  # gone or changed: what it held is said to be missing
        examples += read(data, root=home, on_error="skip", max_bad_fraction=1.0)
    return _Known(examples, wanted, len(examples))


def _readable(file: Path, home: Path) -> Iterator[Example]:
    try:
        yield from read_examples(file, home)
    except DataError as error:
        raise ArtifactError(
            f"{file} names pictures that are not under {home} ({error}): say where they are with --root"
        ) from error


def data_root(folder: Path, manifest: Manifest) -> Path:
    """The folder that the picture paths of an artifact of mining are relative to.

    Raises:
        ArtifactError: no stage made it, so nobody knows.
    """
    if "stage" not in manifest.inputs:
        raise ArtifactError(f"{folder} does not say where its pictures are, since no stage made it: say where with --root")
    stage: Mapping[str, Any] = manifest.inputs["stage"]
    workspace = _workspace(folder, stage)
    data = workspace.path(stage["data"])
    return workspace.path(stage["root"]) if stage["root"] else data if data.is_dir() else data.parent


def _workspace(folder: Path, stage: Mapping[str, Any]) -> Workspace:
    """The workspace that an artifact lies in."""
    return Workspace(folder.absolute().parents[len(Path(stage["out"]).parts) - 1])


def show(content: Inspection, entries: Sequence[Entry], to: Console | None = None) -> None:
    """Print rules, counts, calibration, histograms, and the queries that look most like mistakes."""
    console = to or Console()
    table = Table("verdict and rule", "candidates", box=SIMPLE_HEAD, title=f"{content.total} queries", title_justify="left")
    for rule, count in content.rules.items():
        table.add_row(escape(rule), f"{count:,}")
    for what, count in content.counts.items():
        table.add_row(f"[yellow]{escape(what)}[/]", f"{count:,} queries")
    console.print(table)
    if content.judge:
        _show_judge(content.judge, content.made_with, console)
    for name, of in (("similarity", lambda e: e.similarity), ("judge's grade", lambda e: e.grade)):
        lines = _histograms(entries, of)
        if lines:
            console.print(f"{name} of", highlight=False)
        for line in lines:
            console.print(line, highlight=False)
    worst = [a for a in content.asked if a.suspicion > 0][:8]
    if worst:
        table = Table("row", "source", "query", "false negative", "wrong label", "disagreement", box=SIMPLE_HEAD)
        table.title, table.title_justify = "look at these first", "left"
        for a in worst:
            numbers = (f"{n:.2f}" for n in (a.false_negative, a.wrong_label, a.disagreement))
            table.add_row(str(a.row), escape(a.source), escape(a.query.label if a.query else "not in the data"), *numbers)
        console.print(table)


def show_calibration(stats: Mapping[str, Any], to: Console | None = None) -> None:
    """Print how far a judge is to be believed, from the manifest of its answers."""
    console, found = to or Console(), stats.get(CALIBRATION)
    if found is None:
        console.print("its calibration is not known: it never came to its end, or another version of hardwon wrote this")
        return
    _show_judge(_calibration(found), _canaries(found), console)


def _show_judge(judge: Calibration, told: Mapping[str, str], console: Console) -> None:
    console.print(f"judge: AUC {judge.auc:.3f}, calibration error {judge.ece:.3f} on", highlight=False)
    for name, counts in (("gold pairs", judge.gold), ("random pairs", judge.random)):
        console.print(f"  {name:>16}  0 {_blocks(counts)} 1  [dim]{sum(counts):,}[/]", highlight=False)
    for name in (CANARIES, UNANSWERED):
        if name in told:
            console.print(f"{name} {told[name]}", highlight=False)


def _histograms(entries: Sequence[Entry], of: Any) -> list[str]:
    """One line per verdict; all of them over the same range."""
    values = {v: [of(e) for e in entries if e.verdict == v and of(e) is not None] for v in ("kept", "rejected", "spare")}
    every = [value for those in values.values() for value in those]
    if not every:
        return []
    low, high = min(every), max(every)
    width = (high - low) or 1.0
    lines = []
    for verdict, those in values.items():
        counts = [0] * BINS
        for value in those:
            counts[min(int((value - low) / width * BINS), BINS - 1)] += 1
        lines.append(f"  {verdict:>16}  {low:.2f} {_blocks(counts)} {high:.2f}  [dim]{len(those):,}[/]")
    return lines


def _blocks(counts: Sequence[int]) -> str:
    """A histogram in one line of text; what is not empty is never blank."""
    top = max(counts, default=0) or 1
    return "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // top)] for count in counts)
