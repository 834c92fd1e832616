"""An inspect_ai job: a task of Inspect on a model in memory; its log goes to `uploads/`. Not here: running the task."""

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import ConfigError
from tutelage.evaluation.inspect_tasks import check_inspect, evaluate_inspect
from tutelage.evaluation.results import write_items
from tutelage.jobs.params import InspectAiParams
from tutelage.models import load_frozen
from tutelage.monitoring.prompts import positions_of
from tutelage.worker.programs.outbox import PATIENCE, Outbox, Report
from tutelage.worker.programs.program import JobFolder, run_program
from tutelage.worker.programs.report import ClientReport

LONGEST_ANSWER = 1024
"""Tokens of an answer, unless --max-tokens says otherwise; never more than half of what fits."""


@dataclass(frozen=True)
class TaskOptions:
    """The options of `inspect eval` that the bridge has."""

    limit: int | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    max_connections: int = 32


def run_task(job: JobFolder, report: Report | None = None) -> None:
    """Report every metric under its name, such as `match/accuracy`, and leave log and samples in `uploads/`.

    Raises TutelageError.
    """
    params = InspectAiParams.model_validate(dict(job.params))
    options = parsed_options(params.options)
    check_inspect(params.eval_name)
    outbox = Outbox(report or ClientReport(job.run_id))
    loaded = load_frozen(params.model)
    template = ChatTemplate(loaded.tokenizer, params.chat_template)
    fits = min(params.max_model_len, positions_of(loaded.model) or params.max_model_len)
    print(f"running {params.eval_name}", flush=True)
    result = evaluate_inspect(
        loaded.model,
        template,
        params.eval_name,
        log_folder=job.uploads / "inspect",
        limit=options.limit,
        max_new_tokens=options.max_tokens or max(min(LONGEST_ANSWER, fits // 2), 1),
        temperature=options.temperature,
        batch_size=options.max_connections,
        seed=options.seed,
    )
    write_items(job.uploads / "samples.jsonl", result.items)
    values = {metric.name: metric.value for metric in result.metrics}
    print(json.dumps(values), flush=True)
    outbox.add("metrics", {"task": result.task, **values}, required=True)
    outbox.drain(PATIENCE)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"options: {message}; of `inspect eval`'s, a job takes {', '.join(_names())}")


def parsed_options(text: str) -> TaskOptions:
    """The text of `options` as `inspect eval` would read it. Raises ConfigError for an option that is not here."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"options: {error}; write them as on a command line") from error
    parser = _Parser(add_help=False, allow_abbrev=False, prog="options")
    for name in ("--limit", "--max-tokens", "--seed", "--max-connections"):
        parser.add_argument(name, type=int, default=argparse.SUPPRESS)
    parser.add_argument("--temperature", type=float, default=argparse.SUPPRESS)
    return TaskOptions(**vars(parser.parse_args(words)))


def _names() -> Sequence[str]:
    return [f"--{name.replace('_', '-')}" for name in TaskOptions.__dataclass_fields__]


if __name__ == "__main__":
    run_program(run_task)
