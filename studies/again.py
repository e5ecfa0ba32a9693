"""Two runs of one study side by side: does the table come out again?"""

from rich.table import Table

from studies.plan import TEACHER
from studies.table import Results, lines, points


def again(old: Results, new: Results) -> tuple[Table, str]:
    """Each row of both runs, and how many of the new differences to InfoNCE lie within the intervals of the old ones."""
    before = {line.entry.name: line for line in lines(old)}
    table = Table(title=f"P@1 over InfoNCE in points, 95 % intervals ({old.suite.name})")
    for heading in ("row", "before", "now", "within"):
        table.add_column(heading, justify="left" if heading == "row" else "right", no_wrap=heading != "row", overflow="fold")
    inside, rows = 0, 0
    for line in lines(new):
        then = before.get(line.entry.name)
        if line.entry.name == TEACHER or then is None or then.gained is None or line.gained is None:
            continue
        within = then.gained.low <= line.gained.mean <= then.gained.high
        rows, inside = rows + 1, inside + within
        table.add_row(line.entry.title, points(then.gained), points(line.gained), "yes" if within else "no")
    levels = [
        f"{100 * found[TEACHER].means['all']:.1f}"
        for found in (before, {o.entry.name: o for o in lines(new)})
        if TEACHER in found
    ]
    said = f"{inside} of {rows} rows lie within the intervals of the run before; InfoNCE itself: {' then '.join(levels)} %"
    return table, said
