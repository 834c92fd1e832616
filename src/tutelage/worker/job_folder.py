"""The folder a job's process starts in: mounted files, files of its options, models, its options as JSON, environment.

Not here: starting it (`job_run.py`), models of other jobs (`models.py`).
"""

import errno
import fcntl
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, cast

from tutelage.client.http import TOKEN_VARIABLES
from tutelage.client.results import ClaimedJob
from tutelage.client.worker_api import WorkerApi
from tutelage.errors import JobError, NotFoundError, OutputError
from tutelage.files import write_json
from tutelage.jobs.identity import file_ids_in
from tutelage.jobs.kinds import KINDS
from tutelage.jobs.mounts import checked_mounts, place_in
from tutelage.worker.signals import Task

DOWNLOADS_AT_ONCE = 8
FAULTS_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
"""Everything else that keeps a file from being written comes of the name that a job chose for it."""
PRIVATE_VARIABLES = ("TUTELAGE_SECRET_KEY", "TUTELAGE_DATABASE", "TUTELAGE_FILES")
"""Of a server that started this worker: no job has business with them."""
WITHOUT_LOCK_SECONDS = 600.0
"""A run's folder that has been without its lock for so long is nobody's: both ways it takes moments."""
_ENDING = re.compile(r"(?:\.[A-Za-z0-9]{1,10})?\.[A-Za-z0-9]{1,10}$")
_LOCK = ".lock"


class RunFolder:
    """Everything on disk of one run. job: what the process starts in. Nobody else removes it while this is open.

    Raises OutputError where it cannot be made.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.path = folder / "runs" / run_id
        self.job = self.path / "job"
        self.log = self.path / "output.log"
        self._kept = folder / "kept" / run_id
        self._lock = -1
        try:
            shutil.rmtree(self.path, ignore_errors=True)
            self.job.mkdir(parents=True)
            (self.job / "uploads").mkdir()
            unnamed = self.path / f"{_LOCK}.new"
            self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(self.path / _LOCK)  # under its name nobody ever sees it open to others
        except OSError as error:
            if self._lock >= 0:
                os.close(self._lock)
            raise OutputError(
                f"{self.path}: cannot be made ({error.strerror}); free space there or give the worker another --folder"
            ) from error

    def close(self, *, keep: bool) -> None:
        """Remove it, or put it aside for people to look at."""
        if keep:
            with suppress(OSError):
                self._kept.parent.mkdir(parents=True, exist_ok=True)
                self.path.rename(self._kept)
        remove(self.path)
        os.close(self._lock)


def remove_left_behind(folder: Path) -> None:
    """Remove folders of runs whose workers were killed; those of workers that work are locked."""
    for path in (folder / "runs").glob("run-*"):
        try:
            lock = os.open(path / _LOCK, os.O_RDWR)
        except FileNotFoundError:  # it is being made or removed, unless whoever did that was killed
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > WITHOUT_LOCK_SECONDS:
                    remove(path)
            continue
        except OSError:  # there is a lock that cannot be looked at: somebody's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
        except OSError:  # at work
            pass
        finally:
            os.close(lock)


def remove(path: Path) -> None:
    """All of a folder, also where a job took away the right to look into a part of it."""
    shutil.rmtree(path, ignore_errors=True)
    for folder, _, _ in os.walk(path):  # from the top down: what was closed is open when its turn comes
        with suppress(OSError):  # it belongs to another user, as containers leave them
            for below in Path(folder).iterdir():
                if below.is_dir() and not below.is_symlink():
                    with suppress(OSError):
                        below.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def command_of(claim: ClaimedJob) -> Sequence[str]:
    """What to run. Raises JobError for a kind that this version does not know."""
    job = claim.job
    if job.entrypoint is not None:
        return ["bash", "-c", job.entrypoint]
    module = f"tutelage.worker.programs.{job.kind}"
    if job.kind not in KINDS or importlib.util.find_spec(module) is None:
        raise JobError(f"kind: this worker's version of tutelage cannot run '{job.kind}' jobs; update it")
    return [sys.executable, "-m", module]


def environment_of(claim: ClaimedJob, url: str, gpus: int) -> dict[str, str]:
    """Of the process: the worker's own without what is private to it, the secrets, and who and where the job is."""
    # Ray hands the environment it was given on once more, in a variable of its own.
    tokens = [os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)]
    mine = {
        name: value
        for name, value in os.environ.items()
        if name not in PRIVATE_VARIABLES and not any(token in value for token in tokens)
    }
    # `python` in a job is the Python that has tutelage.
    mine["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), mine.get("PATH") or os.defpath])
    return {
        **mine,
        **claim.environment,
        "TUTELAGE_URL": url,
        "TUTELAGE_API_KEY": claim.token,
        "OPENWEIGHTS_API_KEY": claim.token,
        "TUTELAGE_RUN_ID": claim.run_id,
        "OPENWEIGHTS_RUN_ID": claim.run_id,
        "TUTELAGE_JOB_ID": claim.job.id,
        "N_GPUS": str(gpus),
        "PYTHONUNBUFFERED": "1",
    }


def fill(folder: Path, claim: ClaimedJob, api: WorkerApi, cache: Path, check: Callable[[], None]) -> None:
    """Fetch what the job needs and write `params.json` and `job.json`.

    cache: folder of models of other jobs. check: called between downloads; what it raises ends this. Raises JobError
    and ModelError for what the job asks for and cannot have, OutputError for the disk.
    """
    from tutelage.worker.models import MODEL_FIELDS, resolve_models

    job = claim.job
    places = {_place(folder, target): file_id for target, file_id in checked_mounts(job.mounted_files).items()}
    paths: dict[str, str] = {}
    for file_id in sorted(file_ids_in(job.params)):
        check()
        path = folder / "files" / f"{file_id.replace(':', '-')}{_ending_of(file_id, api)}"
        paths[file_id] = str(path)
        places.setdefault(path, file_id)

    def fetch(path: Path, file_id: str) -> None:
        check()
        name = path.relative_to(folder).as_posix()
        try:
            api.download(file_id, _place(folder, name))
        except NotFoundError as error:
            raise JobError(f"{name}: its file {file_id} is gone; upload it again") from error
        except OutputError as error:
            if getattr(error.__cause__, "errno", None) in FAULTS_OF_DISKS:
                raise
            raise JobError(f"mount target {name[:80]!a}: no file can be there ({error}); name another") from error

    _for_each(places.items(), fetch)
    check()
    params = cast("dict[str, Any]", replaced(job.params, paths))
    params = resolve_models(api, params, cache, MODEL_FIELDS.get(job.kind, ()), check)
    check()
    for name, content in (("params.json", params), ("job.json", json.loads(json.dumps(asdict(job), default=_plain)))):
        write_json(folder / name, content)


def _place(folder: Path, target: str) -> Path:
    """Where a mounted file goes. Raises JobError, also for what no disk takes as a name."""
    try:
        return place_in(folder, target)
    except (OSError, ValueError) as error:
        raise JobError(f"mount target {target[:80]!a}: no file can be there ({error}); name another") from error


def _for_each(items: Iterable[tuple[Path, str]], function: Callable[[Path, str], None]) -> None:
    """Call the function with each, some at once. Raises what the first one raised; those under way go on alone.

    Not in a pool of the standard library: a process that is to end waits for the threads of those.
    """
    waiting = deque(items)

    def work() -> None:
        while waiting:
            try:
                path, file_id = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                function(path, file_id)
            except BaseException:
                waiting.clear()
                raise

    for task in [Task(work, name="download") for _ in range(min(DOWNLOADS_AT_ONCE, len(waiting)))]:
        task.result()


def replaced(value: Any, paths: Mapping[str, str]) -> Any:
    """The JSON value with paths in the place of ids of files."""
    if isinstance(value, str):
        return paths.get(value, value)
    if isinstance(value, Mapping):
        return {name: replaced(item, paths) for name, item in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [replaced(item, paths) for item in cast("Sequence[Any]", value)]
    return value


def ending_of(filename: str) -> str:
    """`.jsonl.gz` for `rows.jsonl.gz`: what readers go by. Nothing for a name without one, or with an odd one."""
    match = _ENDING.search(filename)
    if match is None or match.start() == 0:
        return ""
    # `v1.2.jsonl` ends in `.jsonl`; two endings are one only where the last one says how the file is packed.
    first, _, last = match[0].rpartition(".")
    return match[0] if last.lower() in ("gz", "bz2", "xz", "zst") or not first else f".{last}"


def _ending_of(file_id: str, api: WorkerApi) -> str:
    try:
        return ending_of(api.files.get_by_id(file_id).filename)
    except NotFoundError as error:
        raise JobError(f"{file_id}: the job's options name this file, which is gone; upload it again") from error


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value.value if isinstance(value, Enum) else value)
