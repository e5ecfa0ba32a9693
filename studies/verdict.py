"""What the numbers say, in sentences: made from the results, so that they cannot disagree with them."""

from collections.abc import Mapping, Sequence

from studies.plan import TEACHER, Reranking, Training
from studies.statistics import Spread
from studies.table import Line, Results, lines, points, versus

GOAL, RERANKED_GOAL = 0.03, 0.02  # points that the best recipe and the reranker were asked for
EQUAL = 1.15  # of the baseline's processor time: as much as two trainings of the same row differ by
ASIDE = ("baseline", "controls")


def verdict(results: Results) -> str:
    """The recommendation, the goal, and what is shown of each idea."""
    found = lines(results)
    trained = [line for line in found if isinstance(line.entry, Training)]
    if not any(line.entry.name == TEACHER for line in trained):
        return "There is no result of the baseline yet.\n"
    best = max(trained, key=lambda line: line.chosen)
    parts = ["## Start here\n", recommended(best, trained), goal(trained)]
    parts += [reranked(results, found), "## What is shown of each idea\n", ideas(found), few(results, found)]
    return "\n".join(part for part in parts if part)


def recommended(best: Line, trained: Sequence[Line]) -> str:
    """The row that validation chooses."""
    if best.entry.name == TEACHER:
        return "Plain InfoNCE: on validation no other row is ahead of it.\n"
    base = next(line for line in trained if line.entry.name == TEACHER)
    row = best.entry
    assert isinstance(row, Training)
    grouped = f", `{row.groups!r}`" if row.groups else ""
    told = f"**{row.title}** (`{row.loss!r}`{grouped}):\n"
    told += f"{100 * best.chosen:+.1f} points over plain InfoNCE on validation, where it was\n"
    told += f"chosen, and {points(best.gained)} on test. It took {best.seconds / base.seconds:.2f} x the processor time of\n"
    return told + f"plain InfoNCE{also(best)}.\n"


def also(line: Line) -> str:
    """What a row needs beforehand."""
    return f", and {line.before / 1000:.0f} thousand encodings before it" if line.before else ""


def goal(trained: Sequence[Line]) -> str:
    """Whether three points were reached in the time of plain InfoNCE, with an interval that leaves zero out."""
    base = next(line for line in trained if line.entry.name == TEACHER)
    quick = [line for line in trained if not line.entry.needs and line.seconds <= EQUAL * base.seconds]
    best = max(quick, key=lambda line: line.chosen)
    head = "The goal of 3 points over plain InfoNCE on held-out concepts in the same time"
    if best.gained is None:
        return f"{head} is not reached: of the rows that take no longer, none is ahead of it on validation.\n"
    reached = best.gained.mean >= GOAL and best.gained.low > 0
    verb = "is reached" if reached else "is not reached"
    return (
        f"{head} {verb}: of the rows that need no other model and at most {EQUAL:g} x its processor time, validation\n"
        f"chooses **{best.entry.title}**, {points(best.gained)} on test.\n"
    )


def reranked(results: Results, found: Sequence[Line]) -> str:
    """What the rerankers add to their embedders, and whether the one that validation chooses adds what was asked for."""
    told, tried = [], []
    known = {line.entry.name: line for line in found}
    for line in found:
        if isinstance(line.entry, Reranking) and (value := versus(results, line.entry.name, line.entry.base)) is not None:
            base = known[line.entry.base]
            told.append(f"- {line.entry.title}: {points(value)} points over {base.entry.title}{spent(line, known)}")
            tried.append((line.validation - base.validation, line.entry.title, value))
    if not tried:
        return ""
    _, title, value = max(tried, key=lambda one: one[0])
    verb = "is reached" if value.mean >= RERANKED_GOAL and value.low > 0 else "is not reached"
    head = f"The goal of 2 points by a reranker {verb}: validation, on which their gates were learned, chooses **{title}**,\n"
    return "\n".join([f"{head}{points(value)} on test. What each adds to its embedder:\n", *told, ""])


def spent(line: Line, known: Mapping[str, Line]) -> str:
    """The reranker against an embedder that was trained for as many encodings."""
    if line.fair is None or line.entry.control == getattr(line.entry, "base", ""):
        return ""
    return f"; {points(line.fair)} over {known[line.entry.control].entry.title}"


def ideas(found: Sequence[Line]) -> str:
    """Each row against its own control, sorted by what the interval says."""
    verdicts: dict[str, list[str]] = {
        "ahead of its control": [],
        "behind its control": [],
        "not told apart from its control": [],
    }
    for line in found:
        value = line.fair or line.gained
        if value is not None and line.entry.family not in ASIDE:
            verdicts[side(value)].append(f"{line.entry.title} ({points(value)})")
    made = [f"- **{name}**: {', '.join(those) if those else 'none'}" for name, those in verdicts.items()]
    return "\n".join([*made, ""])


def side(value: Spread) -> str:
    """Where an interval lies."""
    if not value.clear:
        return "not told apart from its control"
    return "ahead of its control" if value.low > 0 else "behind its control"


def few(results: Results, found: Sequence[Line]) -> str:
    """What is missing: rows without results, and rows of which there are fewer than three seeds."""
    told = []
    there = {line.entry.name for line in found}
    missing = [row.title for row in results.suite.rows if row.name not in there]
    if missing:
        told.append(f"There is no result yet of: {', '.join(missing)}.")
    short = [f"{line.entry.title} ({len(line.seeds)})" for line in found if len(line.seeds) < 3]
    if short:
        told.append(
            f"{len(short)} of {len(found)} rows have fewer than three seeds, so that their P@1 and the difference, which is "
            f"of the seeds that both rows have, need not agree: {', '.join(short)}."
        )
    if not told:
        return ""
    return f"*{' '.join(told)} `python -m studies run --suite small --keep` goes on where it stopped.*\n"
