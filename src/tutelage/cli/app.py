"""The commands. Heavy imports are inside them, so that `tutelage --help` stays fast."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import tutelage
from tutelage.cli import compare, demo, evaluate, jobs, serve, stored, work
from tutelage.errors import ConfigError, TutelageError

app = typer.Typer(
    name="tutelage",
    help="Fine-tuning that teaches a model something new and shows what it forgot.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tutelage {tutelage.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before any command."""


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="A YAML file of options.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override an option; may be repeated.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue this run folder.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate everything and show the first example; train nothing.")
    ] = False,
) -> None:
    """Fine-tune a model on demonstrations with sft, dft, sdft or grpo, or on preferences with dpo or orpo."""
    from tutelage.config import load_config

    if resume is not None and (config is not None or overrides or dry_run):
        raise ConfigError("--resume continues a run with its own config; leave out the config, --set and --dry-run")
    if resume is None and config is None:
        raise ConfigError("no config given; write: tutelage train config.yaml, or: tutelage train --resume RUN")
    loaded = load_config(config, overrides or []) if config is not None else None
    from tutelage.training.preview import preview
    from tutelage.training.processes import process_group_left
    from tutelage.training.run import Run
    from tutelage.training.run import train as train_run

    if dry_run and loaded is not None:
        preview(loaded, Console(soft_wrap=True))
        return
    with process_group_left():
        run = train_run(loaded or Run.open(resume or Path()).config, resume=resume)
    if os.environ.get("RANK", "0") == "0":  # torchrun starts this once a process
        print(f"model: {run.model_path}")


compare.register(app)
demo.register(app)
evaluate.register(app)
serve.register(app)
work.register(app)
jobs.register(app)
stored.register(app)


def main() -> None:
    """Run the command line; errors a user can mend are one sentence and an exit code, not a traceback."""
    try:
        app(standalone_mode=True)
    except TutelageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
