"""References to models in the options of a job, made folders of this worker: what another job trained is fetched once.

Not here: loading a model (`tutelage.models`), files that are options (the worker replaces their ids itself).
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, cast

from filelock import FileLock

from tutelage.errors import FencedError, JobError, ModelError, NotFoundError, OutputError, nearest
from tutelage.files import write_json
from tutelage.jobs.mounts import place_in
from tutelage.jobs.records import Event, Run
from tutelage.jobs.status import JobStatus

MAX_NAME = 200
"""Nobody can choose a longer name for a model: the server takes none."""
MODEL_FIELDS: Mapping[str, tuple[str, ...]] = {
    "fine_tuning": ("model",),
    "weighted_sft": ("model",),
    "inference": ("model", "lora_adapter"),
    "logprob": ("model",),
    "multiple_choice": ("model",),
    "inspect_ai": ("model",),
    "api": ("model", "lora_adapters"),
}
"""By kind of job, the options that name a model or a list of them."""
REFERENCE = re.compile(
    r"^(?P<job>[a-z][a-z0-9_]*-[0-9a-f]{12}(?:-[A-Za-z0-9._-]{1,64})?)(?::step-(?P<step>[0-9]{1,12}))?$"
)
"""`JOB_ID` or `JOB_ID:step-N`."""
MODEL_FOLDERS = ("model", "adapter")
CONTENTS = ".contents"
"""In a cached folder: which files of the server it was made of. Its name has none of a model's suffixes."""
ADAPTER_CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"


class ModelFiles(Protocol):
    """What is asked of the server; `tutelage.client.worker_api.WorkerApi` has it."""

    def runs(self, job_id: str) -> Sequence[Run]:
        """Newest last. Raises NotFoundError."""
        ...

    def events(self, *, run_id: str) -> Sequence[Event]:
        """All of a run, oldest first."""
        ...

    def download(self, file_id: str, path: Path) -> object:
        """The file, checked by its id, whole or not at all."""
        ...

    def trained_as(self, name: str) -> str | None:
        """The reference of the model that was to be called so; None where none was."""
        ...


@dataclass(frozen=True)
class ModelReference:
    """A model that a job trained. step: of a checkpoint; None for the finished model."""

    job_id: str
    step: int | None = None

    @classmethod
    def parsed(cls, text: str) -> "ModelReference | None":
        """None for what is another kind of name: of the Hub, of a folder."""
        match = REFERENCE.match(text)
        if match is None:
            return None
        return cls(match["job"], None if match["step"] is None else int(match["step"]))

    @property
    def folder_name(self) -> str:
        return self.job_id if self.step is None else f"{self.job_id}-step-{self.step}"

    def __str__(self) -> str:
        return self.job_id if self.step is None else f"{self.job_id}:step-{self.step}"


def resolve_models(
    api: ModelFiles,
    params: Mapping[str, Any],
    cache_folder: Path,
    model_fields: Sequence[str],
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The options with every reference to a job's model as a folder under `cache_folder/models`, fetched if needed.

    model_fields: of `MODEL_FIELDS`. check: called before each download; what it raises ends this. Names of the Hub stay
    as they are, folders of this machine become absolute.
    Raises ModelError for a job that is not there or left no such model, OutputError for the cache.
    """
    cache = ModelCache(api, cache_folder / "models", check)
    resolved = dict(params)
    for name in model_fields:
        value = resolved.get(name)
        if isinstance(value, str):
            resolved[name] = cache.resolve(value)
        elif isinstance(value, list):
            resolved[name] = [cache.resolve(one) for one in cast("list[str]", value)]
    return resolved


class ModelCache:
    """Models of jobs in a folder that several workers may share. Each is there whole or not at all.

    check: called before each download; what it raises ends it.
    """

    def __init__(self, api: ModelFiles, folder: Path, check: Callable[[], None] = lambda: None) -> None:
        self._api = api
        self._folder = folder
        self._check = check
        self._fetching: set[ModelReference] = set()

    def resolve(self, name: str) -> str:
        """The folder of a job's model, named by the job or as was chosen for it; a folder's own path, absolute; any
        other name as it is. Raises as `resolve_models`."""
        reference = ModelReference.parsed(name)
        if reference is not None:
            return str(self.fetch(reference))
        with contextlib.suppress(OSError, RuntimeError):  # too long for a path, in the home of nobody: a name, no path
            path = Path(name).expanduser()
            if path.exists():
                return str(path.absolute())
        chosen = self._api.trained_as(name) if len(name) <= MAX_NAME else None
        reference = None if chosen is None else ModelReference.parsed(chosen)
        return name if reference is None else str(self.fetch(reference))

    def fetch(self, reference: ModelReference) -> Path:
        """The folder of the model, downloaded unless it is there and of the same files."""
        files = self._files_of(reference)
        target = self._folder / reference.folder_name
        if reference in self._fetching:
            raise ModelError(f"model '{reference}': its adapter names itself as its base; train it again")
        self._fetching.add(reference)
        try:
            with self._only_one(reference):
                if _contents(target) != files:
                    self._download(reference, files, target)
        finally:
            self._fetching.discard(reference)
        return target

    def cached(self) -> list[str]:
        """References of the models that are here, for those who choose a worker."""
        folders = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        found = [folder.name for folder in folders if (folder / CONTENTS).is_file()]
        return [re.sub(r"-step-(\d+)$", r":step-\1", name) for name in found]

    def _files_of(self, reference: ModelReference) -> dict[str, str]:
        """Path in the model's folder to file id, as the newest run that left it reported. Raises ModelError."""
        try:
            runs = self._api.runs(reference.job_id)
        except NotFoundError:
            runs = ()
        if not runs:
            raise ModelError(f"model '{reference}': there is no job {reference.job_id} that ran; check the id")
        candidates = [run for run in reversed(runs) if reference.step is not None or run.status is JobStatus.COMPLETED]
        if not candidates:
            raise ModelError(
                f"model '{reference}': the job is {runs[-1].status.value}, and its model is there when it is "
                f"completed; wait for it, or name a checkpoint, as in '{reference.job_id}:step-100'"
            )
        steps: set[int] = set()
        for run in candidates if reference.step is not None else candidates[:1]:
            left = _left_by(self._api.events(run_id=run.id))
            steps |= {int(name.partition("-")[2]) for name in left if name.startswith("checkpoint-")}
            names = MODEL_FOLDERS if reference.step is None else (f"checkpoint-{reference.step}",)
            found = next((left[name] for name in names if name in left), None)
            if found is not None:
                return found
        raise _not_left(reference, steps)

    def _download(self, reference: ModelReference, files: Mapping[str, str], target: Path) -> None:
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            for path, file_id in files.items():
                self._check()
                place = place_in(unfinished, path)
                place.parent.mkdir(parents=True, exist_ok=True)
                self._api.download(file_id, place)
            self._find_base(unfinished / ADAPTER_CONFIG)
            write_json(unfinished / CONTENTS, files)
            if target.exists():  # of an earlier run; a process that has it open keeps its files
                old = target.with_name(f".{target.name}.{os.getpid()}.old")
                target.rename(old)
                shutil.rmtree(old, ignore_errors=True)
            unfinished.rename(target)
        except FencedError:
            raise
        except JobError as error:  # a path that leads out of the folder, a file that is gone
            raise ModelError(f"model '{reference}': {error}") from error
        except OSError as error:
            raise OutputError(
                f"{target}: cannot be written ({error.strerror}); free space there, or remove cached models"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _find_base(self, adapter_config: Path) -> None:
        """An adapter that names the job its base comes from gets that base's folder here."""
        if not adapter_config.is_file():
            return
        try:
            config: dict[str, Any] = json.loads(adapter_config.read_text(encoding="utf-8"))
            base = str(config[BASE])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{ADAPTER_CONFIG} of the job: names no base model ({error}); train it again") from error
        folder = self.resolve(base)
        above = Path(folder) / ADAPTER_CONFIG
        if above.is_file():  # the adapter went on from that one, on the same base
            folder = str(json.loads(above.read_text(encoding="utf-8"))[BASE])
        if folder != base:
            write_json(adapter_config, config | {BASE: folder})

    @contextlib.contextmanager
    def _only_one(self, reference: ModelReference) -> Iterator[None]:
        """Other processes that want the same model wait until it is there."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._folder / f".{reference.folder_name}.lock")
            lock.acquire()
        except OSError as error:
            raise OutputError(f"{self._folder}: cannot be written ({error.strerror}); choose another cache") from error
        try:
            yield
        finally:
            lock.release()


def _left_by(events: Sequence[Event]) -> dict[str, dict[str, str]]:
    """Top folder to the files in it, path to file id: what a run left in `uploads/`."""
    left: dict[str, dict[str, str]] = {}
    for event in events:
        file_id, path = event.data.get("file"), event.data.get("path")
        if not isinstance(file_id, str) or not isinstance(path, str):
            continue
        top, *rest = PurePosixPath(path).parts or ("",)
        if rest and (top in MODEL_FOLDERS or re.fullmatch(r"checkpoint-\d+", top)):
            left.setdefault(top, {})[str(PurePosixPath(*rest))] = file_id
    return left


def _contents(folder: Path) -> dict[str, str] | None:
    """Of which files the cached folder was made; None where there is none."""
    try:
        return json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _not_left(reference: ModelReference, steps: set[int]) -> ModelError:
    if reference.step is None:
        return ModelError(
            f"model '{reference}': the job is completed and left no model; name a job of fine-tuning, or one that "
            "leaves uploads/model"
        )
    names = [f"step-{step}" for step in sorted(steps)]
    has = f"it has {', '.join(names[-20:])}" if names else "it has none; train it with a smaller save_steps"
    hint = nearest(f"step-{reference.step}", names)
    return ModelError(f"model '{reference}': the job has no checkpoint of that step{hint}; {has}")
