"""docs/studies.md from the results that are kept in studies/results."""

from pathlib import Path

from studies import charts
from studies.plan import TEACHER, Reranking
from studies.table import Line, Results, group_of, lines, load, points, total, versus
from studies.verdict import verdict

WORDS = Path(__file__).parent / "words"  # what a person wrote about the numbers

SHOWN = ("infonce", "symmetric", "llave-sym", "mined", "filtered", "longer", "changes", "changes-longer", "rerank-targeted")


def write(results: Path, docs: Path) -> None:
    """Draw the plots and write the page."""
    small = load(results, "small")
    charts.differences(small, docs / "studies-rows.svg")
    charts.gaps(small, docs / "studies-gap.svg")
    parts = [said("intro"), machine(small), verdict(small), said("defaults"), said("regime"), "## The table\n", table(small)]
    parts += ["![Every row's difference to InfoNCE](studies-rows.svg)\n", said("table")]
    parts += [ungated(small), "## By kind of task\n", kinds(small), said("kinds"), tasks(small)]
    parts += ["## Gap between positives and near misses\n", said("gap"), "![Gap and P@1](studies-gap.svg)\n"]
    if (results / "confirm.json").is_file():
        found = load(results, "confirm")
        parts += ["## On other held-out concepts\n", said("confirm"), table(found), ungated(found)]
    if (results / "sensitivity.json").is_file():
        found = load(results, "sensitivity")
        families = [f for f in dict.fromkeys(e.family for e in found.suite.rows) if f != "baseline"]
        charts.sensitivities(found, docs / "studies-sensitivity.svg", families)
        parts += [
            "## Sensitivities\n",
            "![One thing at a time](studies-sensitivity.svg)\n",
            sensitivity(found),
            said("sensitivity"),
        ]
    if (results / "large.json").is_file():
        found = load(results, "large")
        charts.differences(found, docs / "studies-large.svg")
        picture = "![Every row's difference to InfoNCE, larger suite](studies-large.svg)\n"
        parts += ["## The larger suite\n", said("large"), picture, table(found), kinds(found)]
    if (results / "gpu.json").is_file():
        found = load(results, "gpu")
        parts += ["## On a language model\n", table(found), kinds(found)]
    parts += [said("tried"), said("again")]
    (docs / "studies.md").write_text("\n".join(parts), encoding="utf-8")


def said(name: str) -> str:
    """A passage."""
    return (WORDS / f"{name}.md").read_text(encoding="utf-8")


def machine(small: Results) -> str:
    """How long it took by both clocks, since a loaded machine stretches one of them."""
    spent, seeds = total(small), len({seed for _, seed in small.cells})
    told = f"{len(small.cells)} cells of {seeds} seeds took {spent['cpu']:.0f} processor seconds"
    return f"*{told}, or {spent['seconds'] / 120:.0f} minutes of two processes, beside the data and their features.*\n"


def table(results: Results) -> str:
    """The rows in Markdown."""
    head = (
        "| row | seeds | validation | P@1 | in | out of distribution | over InfoNCE | over its own control | gap | cost |\n"
        "|---|--:|--:|--:|--:|--:|---|---|--:|--:|\n"
    )
    made, family = "", ""
    for line in lines(results):
        if line.entry.family != family:
            family = line.entry.family
            made += f"| *{family}* | | | | | | | | | |\n"
        made += row(results, line)
    return head + made


def row(results: Results, line: Line) -> str:
    """One of them; an interval that leaves zero out is bold."""
    numbers = (line.validation, *(line.means[name] for name in ("all", "ind", "ood")))
    cells = [line.entry.title, str(len(line.seeds)), *(f"{100 * value:.1f}" for value in numbers), bold(line.gained)]
    control = line.entry.control or TEACHER
    name = results.suite.entry(control).title if line.fair is not None else ""  # type: ignore[union-attr]
    cells += [f"{bold(line.fair)} ({name})" if name else "", f"{line.gap:.3f}"]
    before = f" + {line.before / 1000:.0f}k" if line.before else ""
    return "| " + " | ".join([*cells, f"{line.training / 1000:.0f}k{before}"]) + " |\n"


def bold(value) -> str:
    """A difference; what leaves zero out stands out."""
    if value is None:
        return ""
    return f"**{points(value)}**" if value.clear else points(value)


def kinds(results: Results) -> str:
    """P@1 by meta-task."""
    names = ("classification", "vqa", "retrieval", "grounding")
    made = "| row | " + " | ".join(names) + " |\n|---|" + "--:|" * len(names) + "\n"
    for line in lines(results):
        if line.entry.family != "controls":
            made += (
                f"| {line.entry.title} | " + " | ".join(f"{100 * line.means.get(n, float('nan')):.1f}" for n in names) + " |\n"
            )
    return made


def tasks(results: Results) -> str:
    """P@1 of every data set, of the rows that say most."""
    found = [line for line in lines(results) if line.entry.name in SHOWN]
    made = "| data set | " + " | ".join(line.entry.title for line in found) + " |\n|---|" + "--:|" * len(found) + "\n"
    hits = [results.hits(line.entry.name, line.seeds) for line in found]
    for task in sorted(hits[0], key=lambda name: (group_of(name)[::-1], name)):
        made += f"| {task} | " + " | ".join(f"{100 * one[task].mean():.1f}" for one in hits) + " |\n"
    return made


def ungated(results: Results) -> str:
    """What the rerankers do to their embedders' order where no gate keeps them from it."""
    rows = []
    for line in lines(results):
        if isinstance(line.entry, Reranking):
            ways = [versus(results, line.entry.name, line.entry.base, which) for which in ("hits", "everywhere", "alone")]
            if all(ways):
                rows.append(f"| {line.entry.title} | " + " | ".join(map(bold, ways)) + " |\n")
    if not rows:
        return ""
    head = "| over its embedder | gated on validation | all queries, the library's weight | all queries, its order alone |\n"
    return head + "|---|---|---|---|\n" + "".join(rows)


def sensitivity(results: Results) -> str:
    """One table for each thing that was changed."""
    made = "| what | value | validation | P@1 | over InfoNCE |\n|---|---|--:|--:|---|\n"
    for line in lines(results):
        values = f"{100 * line.validation:.1f} | {100 * line.means['all']:.1f} | {bold(line.gained)}"
        made += f"| {line.entry.family} | {line.entry.title} | {values} |\n"
    return made
