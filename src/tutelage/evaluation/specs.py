"""The kinds of evaluation as options in a suite, one class each, and the table that names them.

Not here: reading a suite (`suite.py`), what an evaluation does (`kinds.py`, `freeform.py`, `harnesses.py`).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tutelage.data.jsonl import data_hash, report_rows
from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.freeform import FreeformEvaluation
from tutelage.evaluation.freeform_questions import read_freeform_questions
from tutelage.evaluation.harnesses import InspectEvaluation, LmEvalEvaluation
from tutelage.evaluation.kinds import ChoiceEvaluation, GenerateEvaluation, LogProbEvaluation
from tutelage.evaluation.lm_eval_files import local_files
from tutelage.evaluation.measures import Evaluation, Role, Unit
from tutelage.evaluation.questions import Question, read_choice_questions, read_questions
from tutelage.scoring import Judge, Scorer, function_files, load_scorer

Positive = Annotated[int, Field(ge=1)]

NAME = re.compile(r"\w[\w.-]*", re.ASCII)
RIGHT_OR_WRONG = ("exact_match", "regex", "json_equal", "tool_call_match")
"""Scorers that know no half-right answers."""
NO_PART_OF_RESULTS = {"batch_size", "judge_parallelism"}
"""Options by which the same is asked, only faster or slower."""
JSON_TARGETS = ("json_equal", "tool_call_match")
"""Scorers that not every target will do for."""


@dataclass(frozen=True)
class Entry:
    """Where a spec stands. folder: what its paths count from. place: for messages, such as `suite.yaml: task[0]`."""

    role: Role
    folder: Path
    place: str


class Spec(BaseModel):
    """What every kind has. A kind is a subclass and a row in KINDS."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    measures_after: ClassVar[str | None] = None
    """What follows the evaluation's name in the names of its further measures."""

    kind: str
    name: str | None = None
    """Of the result files and measures; unset, the file's name without its ending, or the kind."""
    title: str | None = None
    """For tables; unset, the name."""
    meaning: str = ""
    """A sentence for the reader of a report."""
    batch_size: Positive = 32
    """Of the model; no result depends on it."""

    @field_validator("name")
    @classmethod
    def _fits(cls, name: str | None) -> str | None:
        if name is not None and not NAME.fullmatch(name):
            raise ValueError("use letters, digits, '_', '.' and '-', the first a letter, digit or '_'")
        return name

    def resolved_name(self) -> str:
        """`name`, or what stands in for it."""
        return self.name or self.kind

    def build(self, entry: Entry) -> Evaluation:
        """The evaluation, with all its files read and checked. Raises ConfigError and DataError."""
        raise TypeError(f"{type(self).__name__} cannot be built for {entry.place}")

    def named(self, entry: Entry, files: dict[str, Path]) -> dict[str, Any]:
        """What every evaluation is made of. files: what it depends on, by the name the user gave."""
        name = self.resolved_name()
        described = {
            "name": name,
            "title": self.title or name.replace("_", " "),
            "role": entry.role,
            "meaning": self.meaning,
        }
        options = self.model_dump(mode="json", exclude=NO_PART_OF_RESULTS)
        hashes = {written: data_hash(path) for written, path in files.items()}
        return described | {"identity": options | described | {"role": entry.role.value, "sha256": hashes}}


class FileSpec(Spec):
    """A kind that reads one file."""

    file: Path
    """Relative to the suite's folder."""

    def resolved_name(self) -> str:
        stem = Path(self.file.name.removesuffix(".gz")).stem
        return self.name or re.sub(r"[^\w.-]", "_", stem, flags=re.ASCII).lstrip(".-") or self.kind

    def path(self, entry: Entry) -> Path:
        return entry.folder / self.file.expanduser()

    def named(self, entry: Entry, files: dict[str, Path]) -> dict[str, Any]:
        return super().named(entry, {str(self.file): self.path(entry)} | files)


class GenerateSpec(FileSpec):
    """Answers that are generated and scored against a target."""

    scorer: str
    """A built-in scorer, `path/to/file.py:function` or `package.module:function`."""
    pattern: str | None = None
    """The regular expression of the scorer `regex`."""
    max_new_tokens: Positive = 64
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    """0 is greedy."""
    seed: int = 0
    """Of sampled answers."""

    def build(self, entry: Entry) -> GenerateEvaluation:
        scorer = load_scorer(self.scorer, f"{entry.place}: scorer", self.pattern, entry.folder)
        questions = read_questions(self.path(entry))
        if self.scorer in JSON_TARGETS:
            _require_targets(scorer, questions, self.path(entry))
        files = function_files(self.scorer, entry.folder)
        names = [self.scorer, *(os.path.relpath(path, entry.folder) for path in files[1:])]
        return GenerateEvaluation(
            **self.named(entry, dict(zip(names, files, strict=False))),
            questions=questions,
            scorer=scorer,
            unit=Unit.SHARE if self.scorer in RIGHT_OR_WRONG else Unit.SCORE,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            batch_size=self.batch_size,
        )


class MultipleChoiceSpec(FileSpec):
    """A choice among given answers by their log-probability."""

    measures_after: ClassVar[str | None] = "_log_prob"

    length: Literal["sum", "mean"] = "sum"
    """`sum` compares whole answers; `mean` divides by their tokens, which does not favour short ones."""
    log_prob_title: str | None = None
    """Title of the right answer's log-probability."""
    log_prob_meaning: str | None = None
    """Its meaning."""

    def build(self, entry: Entry) -> ChoiceEvaluation:
        texts: dict[str, Any] = {"log_prob_title": self.log_prob_title, "log_prob_meaning": self.log_prob_meaning}
        return ChoiceEvaluation(
            **self.named(entry, {}),
            **{option: text for option, text in texts.items() if text is not None},
            questions=read_choice_questions(self.path(entry)),
            length=self.length,
            batch_size=self.batch_size,
        )


class LogProbSpec(FileSpec):
    """The log-probability of given answers."""

    def build(self, entry: Entry) -> LogProbEvaluation:
        return LogProbEvaluation(
            **self.named(entry, {}), questions=read_questions(self.path(entry)), batch_size=self.batch_size
        )


class FreeformSpec(FileSpec):
    """Sampled answers to open questions, judged by a model over HTTP."""

    measures_after: ClassVar[str | None] = "."

    kind: str = "freeform"
    judge_model: str
    """The name its server knows it by."""
    judge_base_url: str | None = None
    """An OpenAI-compatible endpoint; unset, `OPENAI_BASE_URL`, or OpenAI's own."""
    judge_timeout: float = 30.0
    """Seconds for one call."""
    judge_parallelism: int = 8
    """Calls at the same time."""
    judge_temperature: float | None = 0.0
    """`null` sends none, for models that refuse it."""
    judge_max_tokens: Positive | None = 256
    """Of a judge's answer; `null` sends no limit."""
    seed: int = 0
    """Of the sampled answers."""

    def build(self, entry: Entry) -> FreeformEvaluation:
        try:
            judge = Judge(
                model=self.judge_model,
                base_url=self.judge_base_url,
                timeout=self.judge_timeout,
                parallelism=self.judge_parallelism,
                temperature=self.judge_temperature,
                max_tokens=self.judge_max_tokens,
            )
        except ConfigError as error:
            raise ConfigError(f"{entry.place}: {error}") from error
        return FreeformEvaluation(
            **self.named(entry, {}),
            questions=read_freeform_questions(self.path(entry)),
            judge=judge,
            seed=self.seed,
            batch_size=self.batch_size,
        )


class LmEvalSpec(Spec):
    """Tasks of lm-evaluation-harness."""

    measures_after: ClassVar[str | None] = "."

    tasks: Annotated[list[str], Field(min_length=1)]
    """Names the harness knows, or YAML files of tasks, relative to the suite's folder."""
    include_path: Path | None = None
    """A folder of task files that `tasks` may name."""
    limit: Positive | None = None
    """The first documents of each task; unset, all."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Worked examples in front of each document; unset, the task's own number."""
    apply_chat_template: bool = False
    """Put each document into the model's chat template."""
    seed: int = 0
    """Of what the harness draws, and of sampled answers."""

    def build(self, entry: Entry) -> LmEvalEvaluation:
        local = {task: path for task in self.tasks if (path := entry.folder / task).suffix in (".yaml", ".yml")}
        for task, path in local.items():
            if not path.is_file():
                raise ConfigError(f"{entry.place}: tasks: {path}: no such file; check the path of '{task}'")
        include = entry.folder / self.include_path.expanduser() if self.include_path else None
        if include is not None and not include.is_dir():
            raise ConfigError(f"{entry.place}: include_path: {include}: no such folder; check the path")
        tasks = [*local.values(), *(sorted(include.rglob("*.yaml")) if include else [])]
        files = {str(path): path for task in tasks for path in local_files(task)}
        return LmEvalEvaluation(
            **self.named(entry, files),
            tasks=[str(local.get(task, task)) for task in self.tasks],
            include_path=include,
            limit=self.limit,
            num_fewshot=self.num_fewshot,
            apply_chat_template=self.apply_chat_template,
            seed=self.seed,
            batch_size=self.batch_size,
        )


class InspectSpec(Spec):
    """A task of Inspect."""

    task: str
    """`path/to/file.py@task`, relative to the suite's folder, or the name of a registered task."""
    log_folder: Path | None = None
    """Where Inspect's log goes, relative to the suite's folder; unset, none is kept."""
    limit: Positive | None = None
    """The first samples; unset, all."""
    max_new_tokens: Positive = 256
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    seed: int = 0
    """Of sampled answers."""

    def build(self, entry: Entry) -> InspectEvaluation:
        file, at, name = self.task.partition("@")
        path = entry.folder / file
        is_file = path.suffix == ".py"
        if is_file and not path.is_file():
            raise ConfigError(f"{entry.place}: task: {path}: no such file; check the path of '{self.task}'")
        files = {str(one): one for one in sorted(path.parent.iterdir()) if one.is_file()} if is_file else {}
        return InspectEvaluation(
            **self.named(entry, files),
            task=f"{path}{at}{name}" if is_file else self.task,
            log_folder=entry.folder / self.log_folder.expanduser() if self.log_folder else None,
            limit=self.limit,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            batch_size=self.batch_size,
        )


KINDS: dict[str, type[Spec]] = {
    "generate": GenerateSpec,
    "multiple_choice": MultipleChoiceSpec,
    "logprob": LogProbSpec,
    "freeform": FreeformSpec,
    "lm_eval": LmEvalSpec,
    "inspect": InspectSpec,
}
"""Every value of `kind`. A new kind is one class above, one row here and one section in docs/evaluation.md."""


def _require_targets(scorer: Scorer, questions: list[Question], path: Path) -> None:
    """Refuse targets that the scorer cannot read before any answer is generated."""
    problems: list[str] = []
    for question in questions:
        try:
            scorer("", question.target)
        except DataError as error:
            problems.append(f"{question.place}: {error}")
    if problems:
        headline = f"{path}: {len(problems)} of {len(questions)} targets cannot be used"
        raise DataError(report_rows(headline, problems))
