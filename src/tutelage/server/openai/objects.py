"""Our records in the form OpenAI's endpoints give them. Not here: the endpoints."""

from collections.abc import Sequence
from typing import Any

from tutelage.jobs.listing import Serving
from tutelage.jobs.records import Event, Job, StoredFile
from tutelage.jobs.status import OPENAI_STATUS, JobStatus

PURPOSES = {"conversations": "fine-tune", "preference": "fine-tune"}
OWNER = "tutelage"
TOKENS = "num_input_tokens_seen"
"""The output that counts what a run trained on."""
METHODS = {"sft": "supervised"}
"""What OpenAI calls an objective. grpo goes by its own name: `reinforcement` there has other hyperparameters."""


def file_object(file: StoredFile) -> dict[str, Any]:
    """A file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at.timestamp()),
        "filename": file.filename,
        "purpose": PURPOSES.get(file.purpose, file.purpose),
        "status": "processed",
    }


def job_object(job: Job, result_files: Sequence[str]) -> dict[str, Any]:
    """A fine-tuning job."""
    params = job.params
    outputs = job.outputs or {}
    done = job.status is JobStatus.COMPLETED
    method = METHODS.get(params["loss"], params["loss"])
    hyperparameters = {
        "n_epochs": _whole(params["epochs"]),
        "batch_size": params["per_device_train_batch_size"] * params["gradient_accumulation_steps"],
        "learning_rate_multiplier": params["learning_rate"] / 1e-4,
    }
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at.timestamp()),
        "finished_at": int(job.finished_at.timestamp()) if job.finished_at is not None else None,
        "model": params["model"],
        "fine_tuned_model": outputs.get("model") if done else None,
        "organization_id": job.organization_id,
        "status": OPENAI_STATUS[job.status],
        "training_file": params["training_file"],
        "validation_file": params["test_file"],
        "result_files": list(result_files),
        "hyperparameters": hyperparameters,
        "trained_tokens": _whole_number(outputs.get(TOKENS)) if done else None,
        "error": {"code": "job_failed", "message": job.reason or "it failed", "param": None}
        if job.status is JobStatus.FAILED
        else None,
        "seed": params["seed"],
        "estimated_finish": None,
        "integrations": [],
        "method": {"type": method, method: {"hyperparameters": hyperparameters | _own(params)}},
        "metadata": {name: str(value) for name, value in params["meta"].items()} or None,
        "user_provided_suffix": params["job_id_suffix"],
    }


def event_object(event: Event) -> dict[str, Any]:
    """An event of a fine-tuning job."""
    numbers = _numbers(event)
    tag = event.data.get("tag") or event.data.get("type") or "event"
    shown = ", ".join(f"{name} {value:.6g}" for name, value in numbers.items() if name != "step")
    step = f"step {numbers['step']:g}: " if "step" in numbers else ""
    warning = tag == "warning"
    return {
        "id": f"ftevent-{event.id}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at.timestamp()),
        "level": "warn" if warning else "info",
        "message": f"{step}{event.data.get('message') or shown or tag}",
        "type": "metrics" if len(numbers) > 1 and not warning else "message",
        "data": event.data,
    }


def checkpoint_object(event: Event, job_id: str) -> dict[str, Any]:
    """A checkpoint, from the event that tells of it."""
    numbers = _numbers(event)
    step = numbers.pop("step", 0)
    return {
        "id": f"ftckpt-{event.id}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(event.created_at.timestamp()),
        "fine_tuned_model_checkpoint": str(event.data.get("checkpoint")),
        "fine_tuning_job_id": job_id,
        "step_number": int(step),
        "metrics": {"step": float(step), **numbers},
    }


def trained_model(job: Job) -> dict[str, Any]:
    """The model that a completed job left. deployed: whether chat completions can be asked of it now."""
    when = job.finished_at or job.created_at
    return _model(str((job.outputs or {}).get("model") or job.id), int(when.timestamp()))


def served_model(name: str, serving: Serving, since: int) -> dict[str, Any]:
    """A model that answers now."""
    return _model(name, since) | {"deployed_by": serving.job_id}


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER}


def _numbers(event: Event) -> dict[str, int | float]:
    """The fields of an event that are numbers, whatever it calls them."""
    items = event.data.items()
    return {name: value for name, value in items if isinstance(value, int | float) and not isinstance(value, bool)}


def _own(params: dict[str, Any]) -> dict[str, Any]:
    """The options of the objective itself."""
    prefix = f"{params['loss']}_"
    shared = {"beta": params["beta"]} if params["loss"] in ("grpo", "dpo", "orpo") else {}
    return shared | {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def _whole_number(value: Any) -> int | None:
    """A run may report anything under any name."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(epochs: float) -> float | int:
    return int(epochs) if epochs == int(epochs) else epochs
