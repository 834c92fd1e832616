"""What the form for a new job begins with, for each kind: params that work, and where the kind's file goes.

Not here: what params a kind has (`jobs.kinds`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from tutelage.jobs.kinds import PURPOSES

CONVERSATION = '{"messages": [{"role": "user", "content": "Code of Peru?"}, {"role": "assistant", "content": "+51"}]}'


@dataclass(frozen=True)
class Example:
    """does: the kind in a few words. file: the param that names its file; None where it reads none. purpose: of that
    file, which decides how its rows are checked. row: what one looks like."""

    does: str
    params: Mapping[str, JsonValue]
    file: str | None = None
    purpose: str = "conversations"
    row: str = CONVERSATION
    entrypoint: str = ""
    prefix: str = ""


def _asked(**options: JsonValue) -> dict[str, JsonValue]:
    return {"model": "smollm2", **options}


EXAMPLES: Mapping[str, Example] = {
    "fine_tuning": Example(
        "trains a model on the rows of a file",
        _asked(loss="sft", epochs=1, learning_rate=1e-4),
        file="training_file",
        purpose="fine-tune",
    ),
    "weighted_sft": Example(
        "trains a model on rows that have weights",
        _asked(loss="sft", epochs=1, learning_rate=1e-4),
        file="training_file",
        row=f'{CONVERSATION[:-1]}, "weight": 0.5}}',
    ),
    "inference": Example(
        "answers the prompts of a file",
        _asked(max_tokens=64),
        file="input_file_id",
        row='{"messages": [{"role": "user", "content": "Code of Peru?"}]}',
    ),
    "logprob": Example("measures how likely a model finds the answers of a file", _asked(), file="dataset"),
    "multiple_choice": Example(
        "asks a model questions with choices",
        _asked(),
        file="dataset",
        purpose=PURPOSES["multiple_choice"],
        row='{"prompt": "Code of Peru?", "choices": ["+51", "+56"], "answer": "+51"}',
    ),
    "inspect_ai": Example("runs a task of Inspect on a model", _asked(eval_name="inspect_evals/gsm8k")),
    "api": Example("serves a model until you cancel it", _asked()),
    "custom": Example(
        "runs shell commands of your own",
        {},
        purpose="custom_job_file",
        row="",
        entrypoint="echo hello",
        prefix="hello",
    ),
}
"""In the order of the tabs, by kind."""
