"""`tutelage demo`: its options and what it prints. What it does is in `tutelage.experiments`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from tutelage.experiments import ExperimentResults

WIDEST_VALUE = len("108 of 120")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    runs: Annotated[str, typer.Option(help="What to train, separated by commas.")] = "sft,dft,sdft",
    max_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps of every run; unset, as many as the settings are tuned for.")
    ] = None,
    output: Annotated[Path, typer.Option(help="A new or empty folder.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of training; the questions are always the same.")] = 1,
) -> None:
    """Teach a small real model facts with several objectives, and show what each taught and what it cost."""
    import logging

    from transformers.utils import logging as transformers_logging

    from tutelage.experiments import run_demo

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    names = [name.strip() for name in runs.split(",") if name.strip()]
    console = Console(stderr=True)
    results = run_demo(names, output, seed=seed, max_steps=max_steps, console=console)
    _print_summary(results, output)
    if results.failed:
        raise typer.Exit(1)


def _print_summary(results: "ExperimentResults", output: Path) -> None:
    """A line a model with the shares and the KL that fit a terminal, and where the report is."""
    from rich.table import Table

    from tutelage.experiments.report import REPORT_FILE
    from tutelage.experiments.sentences import value_text
    from tutelage.experiments.specification import KL_VS_BASE, Unit

    shown = [measure for measure in results.measures if measure.unit is Unit.SHARE or measure == KL_VS_BASE]
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for measure in shown:
        table.add_column(measure.title, justify="right", min_width=WIDEST_VALUE)
    for model in [results.base, *results.runs]:
        cells = [value_text(model.scores[measure.name], measure) for measure in shown]
        table.add_row(model.name, *cells)
    for model in results.failed:
        table.add_row(model.name, "failed")
    Console(soft_wrap=True).print(table)
    print(f"report: {output / REPORT_FILE}")
