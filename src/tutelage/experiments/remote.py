"""Runs of an experiment as jobs of a server: submitted, waited for, and brought here as run folders.

What comes back is what training here would have left, so everything behind it is the same. Not here: what is compared.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.config import TrainingConfig
from tutelage.errors import Interrupted, TrainingError
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


class RemoteRuns:
    """The server that TUTELAGE_URL names, or the one on this machine. say: tells the user what goes on."""

    def __init__(self, say: Callable[[str], None]) -> None:
        from tutelage.client import Client

        self._client: Client = Client()
        self._say = say

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

        Raises TrainingError with the job's reason where it failed or was canceled, Interrupted on ctrl-C: the job goes
        on, and the same command finds it again.
        """
        job = self._submit(config)
        self._say(f"waiting for {label}: job {job.id}")
        try:
            self._wait(job, label)
        except KeyboardInterrupt as stop:
            raise Interrupted(f"{job.id}: goes on on the server") from stop
        if job.status != JobStatus.COMPLETED.value:
            raise TrainingError(f"job {job.id} is {job.status}: {job.reason or 'no reason was given'}")
        return self._fetch(job, config, path)

    def _submit(self, config: TrainingConfig) -> "Job":
        options: dict[str, Any] = config.flat()
        for name in ("output_dir", "report_to"):
            options.pop(name)
        options["model"] = _known_to_the_server(config.model)
        return self._client.fine_tuning.create(**options)

    def _wait(self, job: "Job", label: str) -> None:
        shown = job.status
        while not job.is_final:
            time.sleep(POLL_SECONDS)
            job.refresh()
            if job.status != shown:
                self._say(f"{label}: {job.status}")
                shown = job.status

    def _fetch(self, job: "Job", config: TrainingConfig, path: Path) -> Run:
        """Download to a folder beside, make it a run of this machine, and put it in place as a whole."""
        unfinished = path.with_name(f".{path.name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        job.download(unfinished)
        _name_base(unfinished, config.model)
        record = read_record(unfinished)
        record["config"] = config.flat()
        write_json(unfinished / "run.json", record)
        write_json(unfinished / JOB_FILE, {"job_id": job.id, "run_id": job.runs[-1].id})
        unfinished.rename(path)
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
