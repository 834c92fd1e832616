"""`tutelage demo`: its options and what it prints. What it does is in `tutelage.experiments`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tutelage.cli.output import Json
from tutelage.cli.summary import print_summary, quiet_libraries


def demo(
    runs: Annotated[str, typer.Option(help="What to train, separated by commas.")] = "sft,dft,sdft",
    max_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps of every run; unset, as many as the settings are tuned for.")
    ] = None,
    output: Annotated[Path, typer.Option(help="A new or empty folder, or one that a demo began in.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of training; the questions are always the same.")] = 1,
    as_json: Json = False,
) -> None:
    """Teach a small real model facts with several objectives, and show what each taught and what it cost."""
    from tutelage.experiments import run_demo

    quiet_libraries()
    names = [name.strip() for name in runs.split(",") if name.strip()]
    console = Console(stderr=True)
    results = run_demo(names, output, seed=seed, max_steps=max_steps, console=console)
    print_summary(results, output, as_json)
    if results.failed:
        raise typer.Exit(1)
