"""`tutelage compare`: its options. What it does is in `tutelage.experiments`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tutelage.cli.output import Json
from tutelage.cli.summary import print_plan, print_summary, quiet_libraries


def compare(
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT", help="A YAML file: base, runs, seeds, evaluate, monitor.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder of runs, outcomes and report; unset, experiments/<name>.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check the experiment, show what would be done; do nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train every run of an experiment with every seed, ask all models the same, and write one report."""
    from tutelage.experiments import check_experiment, load_experiment, run_experiment

    quiet_libraries()
    loaded = load_experiment(experiment)
    folder = output or Path("experiments") / loaded.name
    if dry_run:
        print_plan(loaded, check_experiment(loaded, folder), folder, as_json)
        return
    results = run_experiment(loaded, folder, Console(stderr=True))
    print_summary(results, folder, as_json)
    if results.failed:
        raise typer.Exit(1)
