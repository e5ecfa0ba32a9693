"""What the doctor found, for people: a table in the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hardwon.models.examination import APART, FINITE, READ, Check, Examination
from hardwon.models.facts import Facts

GB, MB = 10**9, 10**6


def show(found: Examination, to: Console | None = None) -> None:
    """Print facts, checks, notes, and what to do about every check that has not passed."""
    console = to or Console()
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title=escape(found.path), title_justify="left")
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, value in _told(found.facts).items():
        facts.add_row(name, escape(value))
    console.print(facts, "")
    table = Table(
        "check", "probes", "largest", "allowed", "", "by the probe", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in table.columns[:-1]:
        column.no_wrap = True  # what gives way in a narrow window is the name of the probe
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in found.rows:
        verdict = "[dim]-[/]" if row.limit is None else "[green]ok[/]" if row.passed else "[bold red]FAILED[/]"
        allowed = "-" if row.limit is None else f"{row.limit:g}"
        table.add_row(row.name, str(row.probes), _largest(row), allowed, verdict, escape(row.worst))
    console.print(table)
    console.print("[dim]Differences of cosine from the same probe encoded alone by hardwon, but for the first four rows.[/]")
    for note in found.notes:
        console.print(f"[yellow]note[/]  {escape(note)}", highlight=False)
    failed = [row for row in found.rows if not row.passed]
    for advice in dict.fromkeys(row.advice for row in failed):
        names = [row.name + (f" ({row.remark})" if row.remark else "") for row in failed if row.advice == advice]
        console.print(f"[bold red]{escape('; '.join(names))}[/]: {escape(advice)}", highlight=False)
    checked = sum(row.limit is not None for row in found.rows)
    if not failed:
        console.print(f"[bold green]all {checked} checks passed[/]")
        return
    console.print(f"[bold red]{len(failed)} of {checked} checks failed[/]")
    if len(failed) > 1:
        console.print("Mend what failed first before the rest, which may follow from it.")


def _largest(row: Check) -> str:
    if row.remark and row.name != READ:
        return "error"
    if not row.largest or row.name in (READ, FINITE):
        return f"{row.largest:.0f}"
    return f"{row.largest:.6f}" if row.name == APART else f"{row.largest:.1e}"


def _told(facts: Facts) -> dict[str, str]:
    """Facts in words, by name."""
    together = " (also together)" if facts.fused and len(facts.modalities) > 1 else ""
    prompts = ", ".join(f"{name} {text!r}" for name, text in facts.prompts.items() if text) or "none"
    default = f"; {facts.default_prompt} unless told otherwise" if facts.default_prompt else ""
    frozen = facts.parameters - facts.trainable
    memory = [f"{facts.resident_bytes / GB:,.2f} GB resident"] if facts.resident_bytes else []
    memory += [f"{facts.cuda_bytes / GB:,.2f} GB of the GPU"] if facts.cuda_bytes else []
    rates = {"texts": facts.texts_per_s, "pictures": facts.pictures_per_s}
    return {
        "architecture": f"{facts.architecture}, attention {facts.attention or 'its own'}, pooling {facts.pooling}",
        "reads": f"{', '.join(facts.modalities)}{together}; up to {facts.max_length:,} tokens, padding {facts.padding_side}",
        "vectors": f"{facts.dimension} wide, compared by {facts.similarity}",
        "prompts": prompts + default,
        "parameters": f"{facts.parameters:,}{f', {frozen:,} of them frozen' if frozen else ''}; "
        f"{facts.parameter_bytes / MB:,.1f} MB in {', '.join(facts.dtypes)}",
        "memory": f"{', '.join(memory) or 'unknown'} at most, on {facts.device}",
        "speed": ", ".join(f"{rate:,.1f} {what}/s" for what, rate in rates.items() if rate),
        "versions": ", ".join(f"{name} {number}" for name, number in facts.versions.items()),
    }
