"""Tasks of EleutherAI's lm-evaluation-harness, its own and local YAML files, on a model that is in memory.

Not here: how the harness's requests are answered (`lm_eval_model.py`), where a local task's data is
(`lm_eval_files.py`).
"""

import contextlib
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import ConfigError, DataError, TutelageError, nearest
from tutelage.evaluation.third_party import first_line, quiet, require_package
from tutelage.monitoring.isolation import leaving_no_trace

STDERR_RESAMPLES = 1000
"""For metrics without a formula for their standard error; the harness's 100,000 take minutes."""


@dataclass(frozen=True)
class LmEvalMetric:
    """A metric over `n` items as the harness aggregates it. stderr: None where it has none."""

    name: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool | None


@dataclass(frozen=True)
class LmEvalItem:
    """One document of a task.

    answer: the text that was generated, or the choice that is most probable. log_probs: one a choice, in nats.
    score: the task's first metric on this item alone; None where that metric exists only over all items.
    """

    prompt: str
    answer: str
    target: str
    score: float | None
    log_probs: tuple[float, ...]
    place: str

    def row(self) -> dict[str, Any]:
        """For a result file."""
        return asdict(self)


@dataclass(frozen=True)
class LmEvalTask:
    """A task, or a group with its own mean, which has no items. The first metric is the main one."""

    name: str
    metrics: tuple[LmEvalMetric, ...]
    items: tuple[LmEvalItem, ...]


@dataclass(frozen=True)
class LmEvalResult:
    """In the order of the harness: tasks as they were asked for, groups behind them."""

    tasks: tuple[LmEvalTask, ...]

    @property
    def items(self) -> tuple[LmEvalItem, ...]:
        """Of all tasks; `place` says which one."""
        return tuple(item for task in self.tasks for item in task.items)


def evaluate_lm_eval(
    model: nn.Module,
    template: ChatTemplate,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    batch_size: int = 32,
    seed: int = 0,
) -> LmEvalResult:
    """Run tasks of the installed `lm_eval` on the model.

    tasks: names the harness knows or that are in a YAML file under `include_path`, or paths of such files; data
    files in them are relative to the YAML file. limit: the first documents of each task. num_fewshot: None for the
    task's own number, and a task that sets 0 keeps it, as in the harness. The model's mode and all random states
    are as before afterwards, and nothing is printed.

    Raises ConfigError for a missing package, an unknown task and a YAML file that is no task; DataError for data
    that is not there, and for a row longer than the model's positions: nothing is cut.
    """
    require_package("lm_eval", "lm-eval", "lm-eval")
    if not tasks:
        raise ConfigError("lm_eval: no task is given; name at least one, such as 'hellaswag' or 'tasks/mine.yaml'")
    with leaving_no_trace(model), tempfile.TemporaryDirectory() as scratch, quiet("lm_eval"), _one_process():
        from lm_eval.evaluator import evaluate

        from tutelage.evaluation.lm_eval_model import InMemoryLm

        random.seed(seed)  # a task's own code may draw from these; `leaving_no_trace` puts them back
        np.random.seed(seed % 2**32)
        loaded = _load(tasks, include_path, Path(scratch))
        for task in loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            task.set_config(key="num_fewshot", value=own or 0 if num_fewshot is None or own == 0 else num_fewshot)
            task.set_fewshot_seed(seed=seed)
        try:
            results: Any = evaluate(
                lm=InMemoryLm(model, template, apply_chat_template, batch_size, seed),
                task_dict=loaded,
                limit=limit,
                bootstrap_iters=STDERR_RESAMPLES,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=apply_chat_template,
            )
        except TutelageError:
            raise
        except Exception as error:  # a task's templates, filters and metrics are code and may raise anything
            raise ConfigError(
                f"lm_eval: {', '.join(loaded['tasks'])} failed while it ran ({first_line(error)}); mend the task, or "
                "leave it out"
            ) from error
    return LmEvalResult(tuple(_task(name, results) for name in results["results"]))


def check_lm_eval(tasks: Sequence[str], include_path: Path | None = None) -> None:
    """The tasks with their data, loaded without a model. Raises as `evaluate_lm_eval` does."""
    require_package("lm_eval", "lm-eval", "lm-eval")
    with tempfile.TemporaryDirectory() as scratch, quiet("lm_eval"), _one_process():
        _load(tasks, include_path, Path(scratch))


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """Standard errors without a pool of processes, each of which would hold the model."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


def _load(tasks: Sequence[str], include_path: Path | None, scratch: Path) -> Any:
    from lm_eval.tasks import TaskManager

    from tutelage.evaluation.lm_eval_files import anchored_folder, anchored_task, is_path

    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"lm_eval: include_path '{include_path}' is no folder; give the folder of the task files")
    specifications: list[str] = []
    folders = [] if include_path is None else [include_path]
    for task in tasks:
        if is_path(task):
            specifications.append(anchored_task(Path(task), scratch / f"task{len(specifications)}"))
            folders.append(Path(task).parent)
        else:
            specifications.append(task)
    # What is relative in the files becomes absolute in copies, which stand in for them: the later folder wins.
    searched = [folder for number, folder in enumerate(folders) if folder not in folders[:number]]
    copies = [anchored_folder(folder, scratch / f"folder{number}") for number, folder in enumerate(searched)]
    manager = TaskManager(include_path=[*searched, *copies], include_defaults=False)
    if not all(is_path(task) or task in manager.all_subtasks for task in specifications):
        # Reading the index of all 14,000 takes seconds: only for a name that is not local, or may have such parts.
        manager = TaskManager(include_path=[*searched, *copies])
    for task in specifications:
        if not is_path(task) and task not in manager.task_index:
            raise ConfigError(
                f"lm_eval: task '{task}' is not one of lm-eval {version('lm-eval')}"
                f"{nearest(task, manager.all_tasks)}; give a name of `lm_eval ls tasks`, or the path of a YAML file"
            )
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for task, specification in zip(tasks, specifications, strict=True):
        try:
            part: Mapping[str, Any] = manager.load([specification])
        except Exception as error:  # the task's file names functions and templates, which may raise anything
            raise _loading_error(task, error) from error
        for kind, entries in part.items():
            loaded[kind].update(entries)
    return loaded


def _loading_error(task: str, error: Exception) -> TutelageError:
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    # The library tells all of these by classes of its own, most of them OSErrors.
    # A StopIteration is what an empty file of rows gives.
    if isinstance(error, (OSError, StopIteration, DatasetsError, DatasetGenerationError)):
        return DataError(
            f"lm_eval: task '{task}': its data set cannot be read ({first_line(error)}); give files that are there, "
            "or load it once where there is a network, without HF_HUB_OFFLINE"
        )
    return ConfigError(f"lm_eval: task '{task}' cannot be made ({first_line(error)}); mend its YAML file")


def _task(name: str, results: Mapping[str, Any]) -> LmEvalTask:
    values: Mapping[str, Any] = results["results"][name]
    better: Mapping[str, Any] = results["higher_is_better"].get(name, {})
    keys = [key for key in values if "," in key and "_stderr," not in key]
    metrics: list[LmEvalMetric] = []
    samples: list[dict[str, Any]] = results.get("samples", {}).get(name, [])
    for key in keys:
        metric, _, filter_name = key.partition(",")
        stderr = values.get(f"{metric}_stderr,{filter_name}")
        metrics.append(
            LmEvalMetric(
                name=metric if filter_name == "none" else key,
                value=float(values[key]),
                stderr=stderr if isinstance(stderr, float) else None,
                n=int(values["sample_len"]),
                higher_is_better=better.get(metric),
            )
        )
    if not keys or not samples:
        return LmEvalTask(name, tuple(metrics), ())
    metric, _, filter_name = keys[0].partition(",")
    chosen = [sample for sample in samples if sample["filter"] == filter_name]
    return LmEvalTask(name, tuple(metrics), tuple(_item(name, sample, metric) for sample in chosen))


def _item(task: str, sample: Mapping[str, Any], metric: str) -> LmEvalItem:
    arguments, responses, target = sample["arguments"], sample["filtered_resps"], sample["target"]
    answer, log_probs = str(responses[0]), ()
    if isinstance(responses[0], tuple):  # (log-probability, greedy) of each continuation
        # With mutual information the choices come a second time, without their context.
        choices = len(responses) // (2 if "acc_mutual_info" in sample["metrics"] else 1)
        log_probs = tuple(float(response[0]) for response in responses[:choices])
        answer = str(arguments[max(range(choices), key=log_probs.__getitem__)][-1]).strip()
        if isinstance(target, int) and 0 <= target < choices:
            target = str(arguments[target][-1]).strip()
    score = sample.get(metric)
    return LmEvalItem(
        prompt=str(arguments[0][0]),
        answer=answer,
        target=str(target),
        score=float(score) if isinstance(score, (int, float)) else None,
        log_probs=log_probs,
        place=f"{task}:{sample['doc_id']}",
    )
