"""Runs of an experiment as jobs of a server: submitted, waited for, and brought here as run folders.

What comes back is what training here would have left, so everything behind it is the same. Not here: what is compared.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.client.errors import ServerError
from tutelage.config import TrainingConfig
from tutelage.errors import Interrupted, OutputError
from tutelage.experiments.specification import Scheduling
from tutelage.files import write_json
from tutelage.jobs.status import JobStatus
from tutelage.training import Run
from tutelage.training.record import read_record

if TYPE_CHECKING:
    from tutelage.client import Job

JOB_FILE = "job.json"
"""In a run's folder that came from a server: which job it was."""
ADAPTER_CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"
"""What PEFT calls the base model of an adapter."""
POLL_SECONDS = 2.0
EXPLAIN_SECONDS = 20.0
"""Between two questions why a job waits; the answer is shown where it is another one."""
SILENT_SECONDS = 10.0
"""For so long a server is away before that is said."""


class RemoteRuns:
    """The server that TUTELAGE_URL names, or the one on this machine. say: tells the user what goes on.

    A server that is away is waited for as `Job.wait` does; one that stays away is a ServerError, no failure of a run.
    """

    def __init__(self, say: Callable[[str], None], scheduling: Scheduling | None = None) -> None:
        from tutelage.client import Client

        self._client: Client = Client()
        self._say = say
        self._options = (scheduling or Scheduling()).given()
        self._said_why = ""
        self._submitted: dict[str, Job] = {}

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def submit_all(self, configs: Iterable[TrainingConfig]) -> None:
        """Let runs that can begin now wait together, so that several workers have something to do."""
        jobs = [self._submit(config) for config in configs]
        if jobs:
            self._say(f"{len(jobs)} jobs are on the server: {', '.join(job.id for job in jobs)}")

    def train(self, config: TrainingConfig, path: Path, label: str) -> Run:
        """Submit a run, unless that was done, wait for it and bring it to `path`.

        Raises JobFailed with the job's reason where it failed or was canceled, Interrupted on ctrl-C: the job goes on,
        and the same command finds it again. ServerError for a server that is gone, OutputError.
        """
        job = self._submit(config)
        self._say(f"waiting for {label}: job {job.id}")
        try:
            self._wait(job, label)
        except KeyboardInterrupt as stop:
            raise Interrupted(f"{job.id}: goes on on the server") from stop
        return self._fetch(job.raise_for_status(), config, path)

    def _submit(self, config: TrainingConfig) -> "Job":
        self._find_server()
        options: dict[str, Any] = config.flat()
        for name in ("output_dir", "report_to"):
            options.pop(name)
        options["model"] = _known_to_the_server(config.model)
        # Once a sitting: a job that failed meanwhile is not to be tried again by being submitted again.
        key = json.dumps(options, sort_keys=True, default=str)
        if key not in self._submitted:
            self._submitted[key] = self._client.fine_tuning.create(**options, **self._options)
        return self._submitted[key]

    def _find_server(self) -> None:
        """None that is there is said soon; from the first answer on all calls are patient."""
        from tutelage.client.job import WAIT_PATIENCE_SECONDS

        _ = self._client.me
        self._client.http.patience = WAIT_PATIENCE_SECONDS

    def _wait(self, job: "Job", label: str) -> None:
        shown, asked_why = job.status, time.monotonic()
        while True:
            self._refresh(job, label)
            if job.status != shown:
                self._say(f"{label}: {job.status}")
                shown = job.status
            if job.is_final:
                return
            if job.status == JobStatus.PENDING.value and time.monotonic() - asked_why > EXPLAIN_SECONDS:
                asked_why = time.monotonic()
                self._say_why(job, label)
            time.sleep(POLL_SECONDS)

    def _say_why(self, job: "Job", label: str) -> None:
        explanation = job.explain()
        why = f"{label}: {job.id} waits: {explanation.summary}"
        if explanation.status is JobStatus.PENDING and why != self._said_why:  # it may have begun meanwhile
            self._say(why)
            self._said_why = why

    def _refresh(self, job: "Job", label: str) -> None:
        try:
            job.refresh(patience=SILENT_SECONDS)
        except ServerError as error:
            self._say(f"{label}: {error}; waiting for the server")
            job.refresh()
            self._say(f"{label}: the server is back")

    def _fetch(self, job: "Job", config: TrainingConfig, path: Path) -> Run:
        """Download to a folder beside, make it a run of this machine, and put it in place as a whole."""
        unfinished = path.with_name(f".{path.name}.partial")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            job.download(unfinished)
            _name_base(unfinished, config.model)
            record = read_record(unfinished)
            record["config"] = config.flat()
            write_json(unfinished / "run.json", record)
            write_json(unfinished / JOB_FILE, {"job_id": job.id, "run_id": job.runs[-1].id})
            unfinished.rename(path)
        except OSError as error:
            raise OutputError(
                f"{path}: the run of {job.id} cannot be put there ({error.strerror}); free the place and try again"
            ) from error
        return Run.open(path)


def _name_base(folder: Path, model: str) -> None:
    """Adapters say which model they are for: by its name on the server, where it has another one here."""
    there, own = _known_to_the_server(model), Path(model) / ADAPTER_CONFIG
    # An adapter that was trained on has the base of the first one.
    here = json.loads(own.read_text(encoding="utf-8"))[BASE] if own.is_file() else model
    for path in folder.rglob(ADAPTER_CONFIG):
        options = json.loads(path.read_text(encoding="utf-8"))
        if there != model and options.get(BASE) == there:
            write_json(path, options | {BASE: here})


def _known_to_the_server(model: str) -> str:
    """A model that a job of the server left is named by that job."""
    record = Path(model).parent / JOB_FILE
    return str(json.loads(record.read_text(encoding="utf-8"))["job_id"]) if record.is_file() else model
