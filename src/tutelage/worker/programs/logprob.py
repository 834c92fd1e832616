"""A logprob job: how probable a model finds the answers of a file, token by token. Not here: the scores (`models`)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.data.chat_template import ChatTemplate
from tutelage.data.jsonl import JsonLine, read_json_lines
from tutelage.files import write_json_lines
from tutelage.jobs.params import LogProbParams
from tutelage.models import load_frozen
from tutelage.monitoring.log_probs import AnswerScores, AnswerSet
from tutelage.worker.programs.outbox import PATIENCE, Outbox, Report
from tutelage.worker.programs.program import JobFolder, run_program
from tutelage.worker.programs.report import ClientReport

SCORED = "logprobs.jsonl"


def score_answers(job: JobFolder, report: Report | None = None) -> None:
    """Score the last answer of every row; report `loss` (nats per token), `logp` (nats per answer) and the file.

    Raises TutelageError.
    """
    params = LogProbParams.model_validate(dict(job.params))
    outbox = Outbox(report or ClientReport(job.run_id))
    loaded = load_frozen(params.model)
    template = ChatTemplate(loaded.tokenizer, params.chat_template)
    answers = AnswerSet.read("answers", Path(params.dataset), template, loaded.model)
    print(f"scoring {len(answers.pairs)} answers", flush=True)
    scores = answers.score(loaded.model, params.batch_size)
    write_json_lines(job.path / SCORED, _scored_rows(Path(params.dataset), scores))
    values = {"loss": -scores.per_token, "logp": scores.per_answer}
    print(json.dumps(values), flush=True)
    outbox.add("logprobs", values, file=job.path / SCORED, purpose="result", required=True)
    outbox.drain(PATIENCE)


def _scored_rows(path: Path, scores: AnswerScores) -> Iterator[dict[str, Any]]:
    """The rows of the file with `tokens`, each with its log-probability, and their sum as `logp`."""
    decode = scores.answers.template.tokenizer.decode
    lines = (line for line in read_json_lines(path) if isinstance(line, JsonLine))
    for line, (_, answer), log_probs in zip(lines, scores.answers.pairs, scores.log_probs, strict=True):
        tokens = [
            {"token": str(decode([token])), "token_id": token, "logp": round(value, 6)}
            for token, value in zip(answer, log_probs.tolist(), strict=True)
        ]
        yield {**line.row, "tokens": tokens, "logp": float(log_probs.double().sum())}


if __name__ == "__main__":
    run_program(score_answers)
