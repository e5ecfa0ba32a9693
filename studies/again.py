"""Two runs of one study side by side: does the table come out again?"""

from rich.table import Table

from hardwon.errors import ArtifactError
from studies.plan import TEACHER
from studies.table import Results, lines, points


def again(old: Results, new: Results) -> tuple[Table, str]:
    """Each row of both runs, and how many of the new differences to InfoNCE lie within the intervals of the old ones."""
    before, now = ({line.entry.name: line for line in lines(results)} for results in (old, new))
    if TEACHER not in before or TEACHER not in now:
        raise ArtifactError("both runs need results of InfoNCE, with which all rows are compared")
    table = Table(title=f"P@1 over InfoNCE in points, 95 % intervals ({old.suite.name})")
    for heading in ("row", "before", "now", "within"):
        table.add_column(heading, justify="left" if heading == "row" else "right", no_wrap=heading != "row", overflow="fold")
    inside, rows = 0, [name for name in now if name in before and name != TEACHER]
    for name in rows:
        then, gained = before[name].gained, now[name].gained
        if then is None or gained is None:
            raise ArtifactError(f"there is no seed for which both InfoNCE and {name!r} were trained")
        within = then.low <= gained.mean <= then.high
        inside += within
        table.add_row(now[name].entry.title, points(then), points(gained), "yes" if within else "no")
    levels = " then ".join(f"{100 * found[TEACHER].means['all']:.1f}" for found in (before, now))
    return table, f"{inside} of {len(rows)} rows lie within the intervals of the run before; InfoNCE itself: {levels} %"
