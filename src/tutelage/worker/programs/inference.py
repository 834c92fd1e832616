"""An inference job: answers to the prompts of a file, as JSON lines in its order. Not here: how they are sampled."""

import importlib.util
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import ConfigError, DataError, OutputError
from tutelage.jobs.params import InferenceParams
from tutelage.models import LoadedModel, load_frozen, load_tokenizer, resolve_model
from tutelage.monitoring.prompts import positions_of
from tutelage.worker.programs.adapters import adapter_on
from tutelage.worker.programs.answering import Answer, Answerer
from tutelage.worker.programs.outbox import PATIENCE, Outbox, Report
from tutelage.worker.programs.program import JobFolder, run_program
from tutelage.worker.programs.prompts import AskedRow, CheckedRows, PromptFile
from tutelage.worker.programs.report import ClientReport

ANSWERS = "answers.jsonl"
PROGRESS_EVERY = 5.0
"""Seconds between two lines of progress."""
BITSANDBYTES = "bitsandbytes"


def infer(job: JobFolder, report: Report | None = None) -> None:
    """Answer every row and report the file. Raises TutelageError."""
    params = InferenceParams.model_validate(dict(job.params))
    require_possible(params)
    outbox = Outbox(report or ClientReport(job.run_id))
    name = params.model
    if params.lora_adapter is not None:
        name = str(adapter_on(params.model, params.lora_adapter, job.path / "lora_adapter"))
    # The rows before the model: a bad one is found in seconds, where reading weights takes minutes.
    template = ChatTemplate(load_tokenizer(resolve_model(name)), params.chat_template)
    prompts = PromptFile(Path(params.input_file_id), template, params.prefill)
    progress = Progress("rows read")
    checked = prompts.check(progress.at)
    print(f"{checked.count} rows, the longest prompt has {checked.longest} tokens", flush=True)
    loaded = load_frozen(name, load_in_4bit=BITSANDBYTES in (params.quantization, params.load_format))
    answerer = Answerer(loaded, prompts, params, _limit(params, loaded, checked))
    write_answers(answerer, job.path / ANSWERS, checked.count)
    outbox.add("answers", {}, file=job.path / ANSWERS, purpose="result", required=True)
    outbox.drain(PATIENCE)


def require_possible(params: InferenceParams) -> None:
    """Raises ConfigError for options that this machine, or this program, cannot honour."""
    for option in ("quantization", "load_format"):
        value = getattr(params, option)
        if value is None:
            continue
        if value != BITSANDBYTES:
            raise ConfigError(f"{option}: '{value}' is not one this worker has; set {BITSANDBYTES}, or leave it out")
        if not torch.cuda.is_available() or importlib.util.find_spec(BITSANDBYTES) is None:
            raise ConfigError(f"{option}: {BITSANDBYTES} needs a GPU and the package; leave it out on this worker")
    if params.min_tokens > params.max_tokens:
        raise ConfigError(f"min_tokens: {params.min_tokens} are more than max_tokens {params.max_tokens}; lower one")


def write_answers(answerer: Answerer, path: Path, count: int) -> None:
    """The input rows with `completion`, and `logprobs` if asked for, in order, row by row. Raises OutputError."""
    progress = Progress(f"of {count} rows answered")
    with _new_file(path) as file:
        for done, (row, answers) in enumerate(answerer.answered(), start=1):
            file.write(json.dumps(_output_row(row, answers), ensure_ascii=False) + "\n")
            progress.at(done)
    progress.last()


class Progress:
    """Lines such as `120 of 4000 rows answered, 3.1 a second`, not more often than one reads."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._begun = self._printed = time.monotonic()
        self._done = 0

    def at(self, done: int) -> None:
        """Say that so many are done."""
        self._done = done
        if time.monotonic() - self._printed >= PROGRESS_EVERY:
            self.last()

    def last(self) -> None:
        """Print where it stands."""
        self._printed = time.monotonic()
        rate = self._done / max(self._printed - self._begun, 1e-6)
        print(f"{self._done} {self._what}, {rate:.3g} a second", flush=True)


def _limit(params: InferenceParams, loaded: LoadedModel, checked: CheckedRows) -> int:
    positions = positions_of(loaded.model)
    limit = min(params.max_model_len, positions or params.max_model_len)
    if checked.longest + params.min_tokens > limit:
        why = "max_model_len" if limit == params.max_model_len else "the model's positions"
        raise DataError(
            f"{checked.place}: the prompt has {checked.longest} tokens and leaves no room for an answer within {why}, "
            f"{limit}; shorten it"
        )
    return limit


def _output_row(row: AskedRow, answers: list[Answer]) -> dict[str, Any]:
    several = len(answers) > 1
    output: dict[str, Any] = {**row.row, "completion": [one.text for one in answers] if several else answers[0].text}
    if answers[0].log_probs is not None:
        output["logprobs"] = [one.log_probs for one in answers] if several else answers[0].log_probs
    return output


@contextmanager
def _new_file(path: Path) -> Iterator[IO[str]]:
    try:
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free space on the worker") from error


if __name__ == "__main__":
    run_program(infer)
