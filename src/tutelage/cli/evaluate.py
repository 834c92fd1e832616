"""`tutelage eval`: its options and what it prints. What it does is in `tutelage.evaluation`."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tutelage.cli.output import Json, print_json
from tutelage.errors import ConfigError

if TYPE_CHECKING:
    from tutelage.evaluation.intervals import Interval
    from tutelage.evaluation.measures import Measure, Outcome
    from tutelage.evaluation.run_suite import SuiteOutcome
    from tutelage.models import LoadedModel


@dataclass(frozen=True)
class _Model:
    """What is asked. template: as in a config. record: of a run, its config and the hashes of its data."""

    name: str
    source: str
    template: str
    load: "Callable[[], LoadedModel]"
    record: dict[str, Any]


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL_OR_RUN", help="A run's folder, a model's or adapter's, a GGUF file, a Hub id."),
    ],
    suite: Annotated[Path, typer.Option(help="A YAML file of evaluations.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results; unset, evaluations/<name of the model>.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="A .jinja file; unset, the run's, or the tokenizer's own.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Ask anew what the folder has results of.")] = False,
    as_json: Json = False,
) -> None:
    """Ask a model or a run every question of a suite, and score the answers."""
    from tutelage.data.chat_template import ChatTemplate
    from tutelage.evaluation.results import OutcomeFolder
    from tutelage.evaluation.run_suite import evaluate_suite
    from tutelage.evaluation.suite import load_suite
    from tutelage.files import make_folder
    from tutelage.models import load_tokenizer, model_identity

    _quieten()
    evaluations = load_suite(suite)
    asked = _model_of(model)
    template = ChatTemplate(load_tokenizer(asked.source), chat_template or asked.template)
    parts = {"weights": model_identity(asked.source), "chat_template": template.source, "run": asked.record}
    identity = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    path = output or Path("evaluations") / asked.name
    make_folder(path, "--output")
    notes = Console(stderr=True, soft_wrap=True)
    done = evaluate_suite(
        lambda: (asked.load(), template),
        evaluations,
        OutcomeFolder(path, identity),
        lambda line: notes.print(line, highlight=False, markup=False),
        again=again,
    )
    if as_json:
        print_json({"model": asked.source, "results": path, **_summary(done)})
        return
    _print_table(done)
    print(f"results: {path}")


def _quieten() -> None:
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _model_of(name: str) -> _Model:
    from tutelage.models import resolve_model
    from tutelage.models.loading import load_frozen

    path = Path(name).expanduser()
    if (path / "run.json").is_file():
        return _run_of(path)
    source = resolve_model(name)
    shown = path.stem if path.suffix.lower() == ".gguf" else path.resolve().name if path.is_dir() else path.name
    if path.is_dir() and (path.resolve().parent / "run.json").is_file():
        shown = f"{path.resolve().parent.name}-{shown}"  # every run has a `model`
    return _Model(shown, source, "default", lambda: load_frozen(source), {})


def _run_of(path: Path) -> _Model:
    from tutelage.models.loading import load_frozen
    from tutelage.training.record import read_record
    from tutelage.training.run import Run, resume_command

    run = Run.open(path)
    if not run.model_path.is_dir():
        raise ConfigError(f"{path}: the run has no model yet; finish it with: {resume_command(path)}")
    config, source = run.config, str(run.model_path)
    record = {"config": config.flat(), "data": read_record(path).get("data")}
    load = partial(load_frozen, source, load_in_4bit=config.load_in_4bit)
    return _Model(path.resolve().name, source, config.chat_template, load, record)


def _print_table(done: "SuiteOutcome") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("measure", overflow="fold")
    for title in ("value", "95 % interval", "items", "failed"):
        table.add_column(title, justify="right", no_wrap=True)
    for outcome in done.outcomes.values():
        failed = str(sum(outcome.failed.values()) or "")
        for measure in outcome.measures:
            table.add_row(measure.name, *_cells(outcome, measure), failed)
            failed = ""  # of the evaluation, not of each of its measures
    console = Console(soft_wrap=True)
    console.print(table)
    for name, outcome in done.outcomes.items():
        if outcome.failed:
            reasons = ", ".join(f"{reason} {count}" for reason, count in outcome.failed.items())
            print(f"left out of {name}: {reasons}")
    if done.kept:
        print(f"used again from before: {', '.join(done.kept)} (--again asks anew)")


def _summary(done: "SuiteOutcome") -> dict[str, Any]:
    """The table as plain values; of a measure without a value they are null."""
    found: list[dict[str, Any]] = []
    for name, outcome in done.outcomes.items():
        for measure in outcome.measures:
            interval, items = _interval(outcome, measure)
            numbers = [None] * 3 if interval is None else [interval.mean, interval.low, interval.high]
            values = dict(zip(("value", "low", "high"), numbers, strict=True))
            found.append({"evaluation": name, "measure": measure.name, **values, "items": items})
    failed = {name: dict(outcome.failed) for name, outcome in done.outcomes.items() if outcome.failed}
    return {"measures": found, "failed": failed, "used_again": done.kept}


def _interval(outcome: "Outcome", measure: "Measure") -> "tuple[Interval | None, int]":
    """The mean with its 95 % interval, and of how many items; None where none has a value."""
    from tutelage.evaluation.intervals import bootstrap_interval

    values = [value for value in outcome.scores[measure.name] if math.isfinite(value)]
    return bootstrap_interval([values]) if values else None, len(values)


def _cells(outcome: "Outcome", measure: "Measure") -> tuple[str, str, str]:
    """Value, interval and number of items with a value."""
    from tutelage.evaluation.measures import Unit

    interval, items = _interval(outcome, measure)
    if interval is None:
        return "–", "", "0"
    digits = 1 if measure.unit is Unit.POINTS else 3
    spread = f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"
    return f"{interval.mean:.{digits}f}", spread, str(items)
