"""Jobs in the form OpenWeights 0.14 has them: names of types, and the dict that `get_or_create_or_reset` takes."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tutelage.errors import JobError
from tutelage.jobs.kinds import KINDS, NAME, JobRequest
from tutelage.jobs.records import Job

TYPES = {"fine_tuning": "fine-tuning", "weighted_sft": "fine-tuning", "api": "api", "script": "script"}
RESULT = "finetuned_model_id"
OWN_ID = re.compile(r"-[0-9a-f]{12}(-|$)")
TRAINED = re.compile(r"^(?:ftjob|sftjob)-[0-9a-f]{12}[^:]*")
"""A model that is the result of a job, without the checkpoint behind it."""


def type_of(job: Job) -> str:
    """`fine-tuning`, `api`, `script` or `custom`: all that OpenWeights distinguishes."""
    return TYPES.get(job.kind, "custom")


def params_of(job: Job) -> dict[str, Any]:
    """What OpenWeights keeps in `job.params`.

    Its scripts go on with `validated_params["finetuned_model_id"]`, which was a name on the Hub; unless the model goes
    there, the job's own id stands in the place of the default, since that is what other jobs take as a model.
    """
    validated = dict(job.params)
    if "{job_id}" in str(validated.get(RESULT)) and not validated.get("push_to_hub"):
        validated[RESULT] = job.id
    own = {"validated_params": validated, "mounted_files": job.mounted_files, "cloud_type": job.cloud_type.value}
    # There the options of two kinds stand elsewhere; here in both places.
    if job.kind == "api":
        return {**validated, **own}
    return {"params": validated, **own} if job.kind == "logprob" else own


def without_result(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a job as they were given, where they come from `params_of`."""
    return {name: value for name, value in options.items() if name != RESULT or not TRAINED.match(str(value))}


def request_of(data: Mapping[str, Any], kind: str, prefix: str | None, image: str | None) -> JobRequest:
    """The request that a dict stands for.

    data: type, script, params (validated_params, mounted_files, cloud_type) and scheduling fields, or the params alone.
    kind: empty goes by the type. prefix, image: where the dict has none. Raises JobError for a type that is none.
    """
    given = dict(data)
    params: dict[str, Any] = dict(given.get("params", given))
    kind = kind or _kind_of(str(given.get("type") or "custom"))
    validated = params.get("validated_params") or params.get("params")
    own = ("mounted_files", "cloud_type", "validated_params", "params", "type")
    if validated is None:
        validated = {name: value for name, value in params.items() if name not in own}
    timeout = given.get("timeout")
    return JobRequest(
        kind=kind,
        params=without_result(validated),
        prefix=_prefix_of(given, prefix) if kind == "custom" else None,
        mounted_files=dict(params.get("mounted_files") or {}),
        image=given.get("docker_image") or image,
        entrypoint=_script_of(given) if kind == "custom" else None,
        requires_vram_gb=given.get("requires_vram_gb"),
        allowed_hardware=given.get("allowed_hardware"),
        cloud_type=params.get("cloud_type") or given.get("cloud_type"),
        timeout_at=datetime.fromisoformat(timeout).timestamp() if isinstance(timeout, str) else None,
    )


def _kind_of(kind: str) -> str:
    name = kind.replace("-", "_")
    if name in ("script", "custom"):
        return "custom"
    if name not in KINDS:
        raise JobError(f"type: '{kind[:80]}' is none; one of fine-tuning, api, custom")
    return name


def _script_of(data: Mapping[str, Any]) -> str | None:
    """Scripts that were told an id of `compute_id` ask for that job; the job's own id is known when it runs."""
    script, given = data.get("script"), str(data.get("id") or "")
    return script.replace(given, "$TUTELAGE_JOB_ID") if isinstance(script, str) and OWN_ID.search(given) else script


def _prefix_of(data: Mapping[str, Any], otherwise: str | None) -> str | None:
    """Of an id that OpenWeights let its users make themselves, what stands before the hash."""
    prefix = str(data.get("id") or "").rpartition("-")[0].lower()
    return prefix if NAME.match(prefix) else otherwise
