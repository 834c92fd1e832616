"""Tasks of Inspect (UK AI Security Institute), registered or in a local file, on a model that is in memory.

Not here: how Inspect's requests are answered (`inspect_model.py`).
"""

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import ConfigError, DataError, TutelageError, nearest
from tutelage.evaluation.third_party import first_line, quiet, require_package
from tutelage.files import make_folder
from tutelage.monitoring.isolation import leaving_no_trace


@dataclass(frozen=True)
class InspectMetric:
    """A scorer's metric as Inspect aggregates it, such as `match/accuracy`. n: samples that were scored."""

    name: str
    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class InspectItem:
    """One sample. score: the first scorer's, None where it gave none or no number. truncated: the answer hit
    `max_new_tokens`."""

    prompt: list[dict[str, str]]
    answer: str
    target: str
    score: float | None
    truncated: bool
    place: str

    def row(self) -> dict[str, Any]:
        """For a result file."""
        return asdict(self)


@dataclass(frozen=True)
class InspectResult:
    """items: in the order of the data set, epoch after epoch. log: the file that `inspect view` shows."""

    task: str
    metrics: tuple[InspectMetric, ...]
    items: tuple[InspectItem, ...]
    log: Path


def evaluate_inspect(
    model: nn.Module,
    template: ChatTemplate,
    task: str,
    *,
    log_folder: Path,
    limit: int | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    batch_size: int = 32,
    seed: int = 0,
) -> InspectResult:
    """Run a task of the installed `inspect_ai` on the model.

    task: `path/to/file.py@task`, the file alone where it has one task, or a registered name. max_new_tokens and
    temperature (0 is greedy) stand above the task's own. Inspect's log goes into `log_folder` and nothing anywhere
    else; the model's mode and all random states are as before afterwards, and nothing is printed.

    Raises ConfigError for a missing package, an unknown task and one that cannot be made or fails, DataError for
    data that is not there and for a prompt that leaves no room in the model, OutputError for the folder.
    """
    require_package("inspect_ai", "inspect-ai", "inspect")
    make_folder(log_folder, "log_folder")
    with leaving_no_trace(model), tempfile.TemporaryDirectory() as scratch, _contained(Path(scratch)):
        from inspect_ai import eval as run_task  # pyright: ignore[reportMissingImports]
        from inspect_ai.model import GenerateConfig, Model  # pyright: ignore[reportMissingImports]

        from tutelage.evaluation.inspect_model import in_memory_model

        provider = in_memory_model(model, template, batch_size, seed)
        try:
            logs: list[Any] = run_task(
                _specification(task),
                model=Model(provider, GenerateConfig()),
                display="none",
                log_dir=str(log_folder.resolve()),
                log_format="json",  # a text file that needs no package to be read
                log_level="critical",
                log_realtime=False,
                ctl_server=False,
                limit=limit,
                max_samples=batch_size,
                max_connections=batch_size,
                fail_on_error=True,
                score_display=False,
                max_tokens=max_new_tokens,
                temperature=temperature,
            )
        except TutelageError:
            raise
        except FileNotFoundError as error:
            raise DataError(
                f"inspect: task '{task}': its data cannot be read ({first_line(error)}); mend the path in the task, "
                "which is relative to its file"
            ) from error
        except Exception as error:  # a task is code, and may raise anything
            raise _task_error(task, error) from error
        return _result(task, logs, provider.own_failure())


def check_inspect(task: str) -> None:
    """Whether there is such a task; it is not made. Raises ConfigError for a missing package and an unknown task."""
    require_package("inspect_ai", "inspect-ai", "inspect")
    with tempfile.TemporaryDirectory() as scratch, _contained(Path(scratch)):
        _specification(task)


@contextlib.contextmanager
def _contained(scratch: Path) -> Iterator[None]:
    """What Inspect does to the process is undone: environment, log handlers; its caches and traces are elsewhere."""
    root = logging.getLogger()
    environment, handlers, level = dict(os.environ), list(root.handlers), root.level
    os.environ |= {"XDG_DATA_HOME": str(scratch), "XDG_CACHE_HOME": str(scratch)}
    try:
        with quiet("inspect_ai"), warnings.catch_warnings():
            # Of releases of Inspect's own dependencies: nothing a user could mend.
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        os.environ.clear()
        os.environ |= environment
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
        root.setLevel(level)


def _specification(task: str) -> str:
    """What Inspect takes for the task. Raises ConfigError for one that does not exist."""
    file, _, name = task.partition("@")
    if file.endswith(".py"):
        from inspect_ai import list_tasks  # pyright: ignore[reportMissingImports]

        path = Path(file).resolve()
        if not path.is_file():
            raise ConfigError(f"inspect: task '{task}': there is no file {file}; check the path")
        names = [found.name for found in list_tasks(path.name, root_dir=path.parent)]
        if not names:
            raise ConfigError(f"inspect: {file} has no task; put @task before a function that returns one")
        if not name and len(names) > 1:
            raise ConfigError(f"inspect: {file} has the tasks {', '.join(names)}; name one, as in '{file}@{names[0]}'")
        if name and name not in names:
            raise ConfigError(f"inspect: {file} has no task '{name}'{nearest(name, names)}; it has {', '.join(names)}")
        return f"{path}@{name or names[0]}"
    # Inspect has no public list of registered tasks.
    from inspect_ai._util.registry import registry_find, registry_info  # pyright: ignore[reportMissingImports]

    known = [registry_info(found).name for found in registry_find(lambda info: info.type == "task")]
    if task not in known:
        raise ConfigError(
            f"inspect: task '{task}' is not registered{nearest(task, known)}; install the package that has it, or "
            "give 'path/to/file.py@task'"
        )
    return task


def _task_error(task: str, error: Exception) -> ConfigError:
    return ConfigError(f"inspect: task '{task}' cannot be run ({first_line(error)}); mend the task")


def _result(task: str, logs: list[Any], failure: TutelageError | None) -> InspectResult:
    log = logs[0]
    if log.status != "success":
        if failure is not None:
            raise failure
        message = log.error.message if log.error else log.status
        raise ConfigError(
            f"inspect: task '{task}' failed while it ran ({message.splitlines()[0][:200]}); mend the task"
        )
    metrics: list[InspectMetric] = []
    for score in log.results.scores:
        stderr = score.metrics.get("stderr")
        metrics += [
            InspectMetric(
                f"{score.name}/{name}",
                float(metric.value),
                None if stderr is None else float(stderr.value),
                score.scored_samples or 0,
            )
            for name, metric in score.metrics.items()
            if name != "stderr"
        ]
    samples = sorted(log.samples or [], key=lambda sample: sample.epoch)
    return InspectResult(log.eval.task, tuple(metrics), tuple(_item(log.eval.task, one) for one in samples), _path(log))


def _item(task: str, sample: Any) -> InspectItem:
    from inspect_ai.scorer import value_to_float  # pyright: ignore[reportMissingImports]

    asked = sample.input
    turns = [("user", asked)] if isinstance(asked, str) else [(str(turn.role), str(turn.text)) for turn in asked]
    value = next(iter(sample.scores.values())).value if sample.scores else None
    return InspectItem(
        prompt=[{"role": role, "content": text} for role, text in turns],
        answer=sample.output.completion,
        target=sample.target if isinstance(sample.target, str) else ", ".join(sample.target),
        score=value_to_float()(value) if isinstance(value, (str, int, float)) else None,
        truncated=sample.output.stop_reason == "max_tokens",
        place=f"{task}:{sample.id}" if sample.epoch == 1 else f"{task}:{sample.id}, epoch {sample.epoch}",
    )


def _path(log: Any) -> Path:
    from urllib.parse import unquote, urlparse

    return Path(unquote(urlparse(log.location).path))
