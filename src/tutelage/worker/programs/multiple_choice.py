"""A multiple_choice job: which of the given answers a model finds most probable. Not here: asking (`evaluation`)."""

import json
from pathlib import Path

from tutelage.data.chat_template import ChatTemplate
from tutelage.evaluation.multiple_choice import evaluate_multiple_choice
from tutelage.evaluation.questions import read_choice_questions
from tutelage.evaluation.results import write_items
from tutelage.jobs.params import MultipleChoiceParams
from tutelage.models import load_frozen
from tutelage.worker.programs.outbox import PATIENCE, Outbox, Report
from tutelage.worker.programs.program import JobFolder, run_program
from tutelage.worker.programs.report import ClientReport

CHOICES = "choices.jsonl"


def choose(job: JobFolder, report: Report | None = None) -> None:
    """Report `accuracy`, `logp` (nats, mean log-probability of the right answer) and the file of all choices.

    Raises TutelageError.
    """
    params = MultipleChoiceParams.model_validate(dict(job.params))
    outbox = Outbox(report or ClientReport(job.run_id))
    questions = read_choice_questions(Path(params.dataset))
    loaded = load_frozen(params.model)
    template = ChatTemplate(loaded.tokenizer, params.chat_template)
    print(f"asking {len(questions)} questions", flush=True)
    result = evaluate_multiple_choice(loaded.model, template, questions, batch_size=params.batch_size)
    write_items(job.path / CHOICES, result.items)
    values = {"accuracy": result.accuracy, "logp": result.mean_log_prob}
    print(json.dumps(values), flush=True)
    outbox.add("choices", values, file=job.path / CHOICES, purpose="result", required=True)
    outbox.drain(PATIENCE)


if __name__ == "__main__":
    run_program(choose)
