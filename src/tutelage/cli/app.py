"""The commands. Heavy imports are inside them, so that `tutelage --help` stays fast."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import tutelage
from tutelage.cli import jobs, stored, submit
from tutelage.cli.chat import chat
from tutelage.cli.compare import compare
from tutelage.cli.demo import demo
from tutelage.cli.evaluate import evaluate
from tutelage.cli.machines import cluster
from tutelage.cli.output import Json, print_json
from tutelage.cli.serve import backup, restore, serve
from tutelage.cli.work import worker
from tutelage.errors import ConfigError, TutelageError

HERE, JOBS, SERVER = "On this machine", "Jobs on a server", "Running a server"
"""What the help puts together."""

app = typer.Typer(
    name="tutelage",
    help="Fine-tuning that teaches a model something new and shows what it forgot.",
    epilog=(
        "Commands about jobs talk to the server that TUTELAGE_URL names, else to http://127.0.0.1:8000, with the token "
        "in TUTELAGE_API_KEY. Exit codes: 0 done, 1 a job or run failed, 2 bad input, 3 no server."
    ),
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


@app.command(rich_help_panel=HERE)
def train(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A YAML file of options.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override an option; may be repeated.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue this run folder.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate everything and show the first example; train nothing.")
    ] = False,
    as_json: Json = False,
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
        preview(loaded, Console(soft_wrap=True, stderr=as_json))
        if as_json:
            print_json({"config": loaded.flat()})
        return
    with process_group_left():
        run = train_run(loaded or Run.open(resume or Path()).config, resume=resume)
    if os.environ.get("RANK", "0") != "0":  # torchrun starts this once a process
        return
    if as_json:
        print_json({"model": run.model_path, "run": run.path})
    else:
        print(f"model: {run.model_path}")


for command in (compare, demo):
    app.command(rich_help_panel=HERE)(command)
app.command("eval", rich_help_panel=HERE)(evaluate)
app.add_typer(jobs.app, name="jobs", rich_help_panel=JOBS)
submit.register(app, JOBS)
app.command(rich_help_panel=JOBS)(chat)
app.add_typer(stored.files_app, name="files", rich_help_panel=JOBS)
for command in (serve, worker, cluster, backup, restore):
    app.command(rich_help_panel=SERVER)(command)
app.add_typer(stored.token_app, name="token", rich_help_panel=SERVER)
app.add_typer(stored.env_app, name="env", rich_help_panel=SERVER)


def main() -> None:
    """Run the command line; errors a user can mend are one sentence and an exit code, not a traceback."""
    try:
        app(standalone_mode=True)
    except TutelageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
