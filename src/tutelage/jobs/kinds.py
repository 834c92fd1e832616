"""The kinds of jobs: what each is called, how its params are checked, which files it reads.

A new kind is a row here, a class of options in `params.py` and a program in `tutelage.worker.programs`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue, ValidationError

from tutelage.config import OBJECTIVES, TrainingConfig
from tutelage.config.faults import sentence_of
from tutelage.errors import ConfigError, JobError, nearest
from tutelage.jobs.identity import FILE_ID, file_ids_in
from tutelage.jobs.mounts import checked_mounts
from tutelage.jobs.openweights_options import renamed
from tutelage.jobs.params import (
    ApiParams,
    CustomParams,
    InferenceParams,
    InspectAiParams,
    JobParams,
    LogProbParams,
    MultipleChoiceParams,
)
from tutelage.jobs.plain_json import cleaned, cleaned_text, require_finite
from tutelage.jobs.records import Submission
from tutelage.jobs.requirements import CloudType, Requirement, cloud_type_of, hardware_of

NAME = re.compile(r"^[a-z][a-z0-9_]{0,63}$")
SUFFIX = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
MAX_ENTRYPOINT = 100_000
PURPOSES = {"multiple_choice": "multiple_choice"}
"""Of the files of a kind, where it is not conversations."""
TRAINING_FILES = ("training_file", "test_file", "monitoring_prompts")


@dataclass(frozen=True)
class Kind:
    """prefix: of the ids of its jobs. params: checks options and fills in defaults. files: names of options that
    hold ids of files."""

    prefix: str
    params: Callable[[Mapping[str, Any]], dict[str, Any]]
    requires_vram_gb: float = 24
    files: tuple[str, ...] = ()


def _checked_by(cls: type[JobParams]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def check(options: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return cls.model_validate(dict(options)).model_dump(mode="json")
        except ValidationError as error:
            missing = "add it to the params of the job"
            raise ConfigError(sentence_of(error, known=cls.model_fields, if_missing=missing)) from error

    return check


def training_params(options: Mapping[str, Any]) -> dict[str, Any]:
    """The flat options of a training run, checked, defaults filled in. Files are ids of uploaded ones.

    Raises ConfigError.
    """
    own = renamed(options)
    missing = next((name for name in ("model", "training_file") if name not in own), None)
    if missing is not None:
        raise ConfigError(f"{missing}: is missing; add it to the params of the job")
    flat = TrainingConfig(**own).flat()
    for name in ("output_dir", "report_to"):
        del flat[name]
    for name, value in _training_files(flat):
        if not FILE_ID.fullmatch(str(value)):
            raise ConfigError(
                f"{name}: '{str(value)[:80]}' is not the id of an uploaded file; upload it first: "
                "client.files.upload(path, purpose='conversations')"
            )
    purpose = OBJECTIVES[flat["loss"]].purpose.value
    given = str(flat["training_file"]).partition(":")[0]
    if given in ("conversations", "preference") and given != purpose:
        raise ConfigError(
            f"training_file: '{flat['training_file']}' is a file of {given}, but {flat['loss']} learns from {purpose}; "
            "upload the other file, or set another loss"
        )
    return flat


def _training_files(flat: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Every option that names a file, and what it names."""
    found = [(name, flat[name]) for name in TRAINING_FILES if flat[name] is not None]
    found += [(f"logp_callback_datasets.{name}", path) for name, path in flat["logp_callback_datasets"].items()]
    found += [(f"sampling_callbacks[{at}].file", one["file"]) for at, one in enumerate(flat["sampling_callbacks"])]
    for name, direction in flat["monitoring_directions"].items():
        found += [(f"monitoring_directions.{name}.{side}", direction[side]) for side in ("a", "b")]
    return found


KINDS: Mapping[str, Kind] = {
    "fine_tuning": Kind("ftjob", training_params),
    "weighted_sft": Kind("sftjob", lambda options: training_params({"eval_every_n_steps": "log", **options})),
    "inference": Kind("infjob", _checked_by(InferenceParams), files=("input_file_id",)),
    "logprob": Kind("lpjob", _checked_by(LogProbParams), files=("dataset",)),
    "multiple_choice": Kind("mcjob", _checked_by(MultipleChoiceParams), files=("dataset",)),
    "inspect_ai": Kind("inspectai", _checked_by(InspectAiParams)),
    "api": Kind("apijob", _checked_by(ApiParams)),
    # Their prefix is the name they were registered under; `exec` and `script` are two of them.
    "custom": Kind("custom", _checked_by(CustomParams), requires_vram_gb=0),
}


@dataclass(frozen=True)
class JobRequest:
    """A job as it comes in, from whichever side. prefix: of custom jobs, the name of their class in lower case."""

    kind: str
    params: Mapping[str, JsonValue]
    prefix: str | None = None
    mounted_files: Mapping[str, str] | None = None
    image: str | None = None
    entrypoint: str | None = None
    requires_vram_gb: float | None = None
    allowed_hardware: list[str] | None = None
    cloud_type: str | None = None
    timeout_at: float | None = None


def checked(request: JobRequest) -> Submission:
    """The submission of a request, everything in it checked. Raises ConfigError and JobError."""
    kind = KINDS.get(request.kind)
    if kind is None:
        raise JobError(f"kind: '{request.kind[:80]}' is none{nearest(request.kind, KINDS)}; one of {', '.join(KINDS)}")
    params = cleaned(request.params, "params")
    require_finite(request.params, "params")
    params = kind.params(params)
    for name in kind.files:
        if not FILE_ID.fullmatch(str(params[name])):
            raise ConfigError(
                f"{name}: '{str(params[name])[:80]}' is not the id of an uploaded file; upload it first: "
                f"client.files.upload(path, purpose='{PURPOSES.get(request.kind, 'conversations')}')"
            )
    suffix = params.get("job_id_suffix")
    if suffix is not None and not SUFFIX.fullmatch(suffix):
        raise JobError(f"job_id_suffix: '{suffix[:80]}' is none; use up to 64 letters, digits, '.', '_' and '-'")
    model = params.get("model")
    return Submission(
        kind=request.kind,
        prefix=_prefix(request, kind),
        params=params,
        requirement=_requirement(request, kind),
        model=model if isinstance(model, str) else None,
        mounted_files=checked_mounts(request.mounted_files or {}),
        entrypoint=_entrypoint(request),
        suffix=suffix,
        timeout_at=request.timeout_at,
    )


def files_of(submission: Submission) -> set[str]:
    """Ids of all files that a job reads."""
    return file_ids_in(submission.params) | set(submission.mounted_files.values())


def _prefix(request: JobRequest, kind: Kind) -> str:
    if request.kind != "custom":
        return kind.prefix
    prefix = request.prefix or kind.prefix
    if not NAME.fullmatch(prefix):
        raise JobError(
            f"prefix: '{prefix[:80]}' is none; use up to 64 lower-case letters, digits and _, a letter first"
        )
    taken = next((name for name, other in KINDS.items() if other.prefix == prefix and name != "custom"), None)
    if taken is not None:
        raise JobError(f"prefix: '{prefix}' is that of {taken} jobs; call the class of the custom job otherwise")
    return prefix


def _entrypoint(request: JobRequest) -> str | None:
    if request.kind != "custom":
        if request.entrypoint is not None:
            raise JobError(f"entrypoint: {request.kind} jobs have their own; leave it out, or submit a custom job")
        return None
    if not request.entrypoint or not request.entrypoint.strip():
        raise JobError("entrypoint: a custom job has none; give the shell command that it runs")
    if "\0" in request.entrypoint or len(request.entrypoint) > MAX_ENTRYPOINT:
        raise JobError(
            f"entrypoint: longer than {MAX_ENTRYPOINT} characters, or with a NUL in it; mount a script instead"
        )
    return cleaned_text(request.entrypoint)


def _requirement(request: JobRequest, kind: Kind) -> Requirement:
    vram = kind.requires_vram_gb if request.requires_vram_gb is None else request.requires_vram_gb
    if not 0 <= vram < 1e6:
        raise JobError(f"requires_vram_gb: {vram:g} is none; give gigabytes of GPU memory, 0 for none")
    hardware = request.allowed_hardware
    return Requirement(
        image=cleaned_text(request.image) if request.image else None,
        allowed_hardware=tuple(sorted({hardware_of(one) for one in hardware})) if hardware is not None else None,
        requires_vram_gb=float(vram),
        cloud_type=cloud_type_of(request.cloud_type) if request.cloud_type else CloudType.SECURE,
    )
