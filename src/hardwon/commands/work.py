"""`hardwon work`: help with work that was spread, from any machine that sees the same files."""

from pathlib import Path
from typing import Annotated

import typer

from hardwon.commands.recipes import hide_loading

WORK = (
    "Help with work that `--workers` has spread, until there is none left.\n\n"
    "FOLDER is WORKSPACE/work, or the folder of one job in it. Any number of processes may do so, on all machines that see the "
    "same files under the same path, such as the tasks of a Slurm array: a shard is claimed by one of them, and by another if "
    "that one dies.\n\n"
    "Example: [bold]hardwon work runs/own/work --wait 600[/]"
)


def work(
    folder: Annotated[Path, typer.Argument(help="Where the work lies.", show_default=False)],
    parent: Annotated[int, typer.Option(help="End when this process is gone.", hidden=True)] = 0,
    wait: Annotated[float, typer.Option(help="Seconds to wait for work, while there is none.", min=0.0)] = 0.0,
    threads: Annotated[int, typer.Option(help="Threads; 0: what the environment says.", min=0)] = 0,
) -> None:
    """Work: see `hardwon.spread.tasks`."""
    import os

    if threads:
        os.environ["HARDWON_THREADS"] = str(threads)
    from hardwon.spread.tasks import help_with

    hide_loading()
    typer.echo(f"{help_with(folder, parent=parent, wait_s=wait)} shards done")
