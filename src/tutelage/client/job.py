"""One job: what is known of it, waiting for it, what it printed and left.

Not here: finding and making jobs (`jobs.py`).
"""

import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from tutelage.client.errors import JobFailed
from tutelage.client.openweights_form import params_of, type_of
from tutelage.client.results import Event, Explanation
from tutelage.errors import JobError
from tutelage.jobs import records
from tutelage.jobs.status import JobStatus

if TYPE_CHECKING:
    from tutelage.client.openweights import OpenWeights
    from tutelage.client.runs import Run

FIRST_POLL_SECONDS = 0.2
POLL_SECONDS = 5.0
"""Between two looks at a job that is waited for; the first ones come sooner."""
WAIT_PATIENCE_SECONDS = 1800.0
"""How long the server may be away while somebody waits for a job."""


Self = TypeVar("Self", bound="JobFields")


class WaitTimeout(JobError, TimeoutError):
    """A job was waited for, and has not ended yet."""


class JobFields:
    """What is known of a job. `job["status"]` is `job.status`.

    params: `{"validated_params": …, "mounted_files": …, "cloud_type": …}`. reason: why it failed, was canceled or waits
    again. outputs: the newest value of every field its last run reported. Times are datetimes in UTC.
    """

    id: str
    type: str
    kind: str
    status: str
    model: str | None
    params: dict[str, Any]
    mounted_files: dict[str, str]
    docker_image: str | None
    script: str | None
    requires_vram_gb: float
    allowed_hardware: list[str] | None
    cloud_type: str
    organization_id: str
    run_id: str | None
    worker_id: str | None
    attempts: int
    max_attempts: int
    reason: str | None
    outputs: dict[str, Any] | None
    submitted_by: str | None
    timeout: datetime | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    def __init__(self, record: records.Job) -> None:
        self._take(record)

    def _take(self, record: records.Job) -> None:
        self.record = record
        self.__dict__.update(vars(record))
        # Texts, so that they print as what they are compared with.
        self.status, self.cloud_type = record.status.value, record.cloud_type.value
        self.type, self.docker_image, self.script = type_of(record), record.image, record.entrypoint
        self.params = params_of(record)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, status={self.status!r})"

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None

    @property
    def is_final(self) -> bool:
        """It has ended: completed, failed or canceled."""
        return self.record.status.is_final

    def timed_out(self, timeout: float) -> WaitTimeout:
        """The error of a wait that was too short."""
        return WaitTimeout(
            f"{self.id}: still {self.status} after {timeout:g} s; wait longer, or see: tutelage jobs explain {self.id}"
        )

    def raise_for_status(self: Self) -> Self:
        """This job if it is completed, or on its way. Raises JobFailed with the reason."""
        if self.record.status in (JobStatus.FAILED, JobStatus.CANCELED):
            raise JobFailed(
                f"{self.id}: {self.status}: {self.reason or 'no reason was given'}; see: tutelage jobs logs {self.id}"
            )
        return self


class Job(JobFields):
    """A job as it was when it was last asked for; `refresh` asks again."""

    def __init__(self, client: "OpenWeights", record: records.Job) -> None:
        super().__init__(record)
        self._client = client

    @property
    def runs(self) -> "list[Run]":
        """All runs, newest last."""
        return self._client.runs.list(job_id=self.id, limit=1000)

    @property
    def events(self) -> list[Event]:
        """What its runs reported, oldest first."""
        return self._client.events.list(job_id=self.id)

    def refresh(self, *, patience: float | None = None) -> "Job":
        """This job as it is now. patience: see `Transport`. Raises NotFoundError."""
        self._take(self._client.jobs.record(self.id, patience=patience))
        return self

    def cancel(self) -> "Job":
        """Stop it; its process gets SIGTERM within seconds. Raises JobError where it completed or failed already."""
        self._take(self._client.jobs.cancel(self.id).record)
        return self

    def restart(self) -> "Job":
        """Let it wait for a worker again, if it has ended."""
        self._take(self._client.jobs.restart(self.id).record)
        return self

    def explain(self) -> Explanation:
        """Why it waits: for each worker, the conditions that fail."""
        return self._client.jobs.explain(self.id)

    def wait(self, timeout: float | None = None, poll: float = POLL_SECONDS) -> "Job":
        """This job once it has ended, however: look at `status`, or call `raise_for_status`.

        timeout: seconds after which WaitTimeout is raised; None waits as long as it takes. poll: seconds between two
        looks. A server that is away meanwhile is waited for half an hour.
        """
        begun, pause = time.monotonic(), min(FIRST_POLL_SECONDS, poll)
        while True:
            self._take(self._client.jobs.record(self.id, patience=WAIT_PATIENCE_SECONDS))
            if self.is_final:
                return self
            if timeout is not None and time.monotonic() - begun + pause > timeout:
                raise self.timed_out(timeout)
            time.sleep(pause)
            pause = min(1.5 * pause, poll)

    @overload
    def logs(self, follow: Literal[False] = False) -> str: ...
    @overload
    def logs(self, follow: Literal[True]) -> Iterator[str]: ...
    def logs(self, follow: bool = False) -> str | Iterator[str]:
        """What the newest run printed; with `follow` parts as they come, until the job has ended, over new attempts."""
        if follow:
            return self._followed()
        runs = self._client.runs.list(job_id=self.id, limit=1)
        return runs[-1].logs() if runs else ""

    def download(self, target_dir: str | os.PathLike[str], only_last_run: bool = True) -> list[Path]:
        """Logs and files of the last run, or of all in folders of their names. Raises JobError where none began."""
        runs = self.runs
        if not runs:
            raise JobError(f"{self.id}: no run has begun, so there is nothing to download; wait for the job")
        if only_last_run:
            return runs[-1].download(target_dir)
        return [path for run in runs for path in run.download(Path(target_dir, run.id))]

    def _followed(self) -> Iterator[str]:
        seen: set[str] = set()
        pause = FIRST_POLL_SECONDS
        while True:
            ended = self.refresh().is_final
            fresh = [run for run in self.runs if run.id not in seen]
            # Of attempts before the first look only the newest one is of interest.
            for run in fresh if seen else fresh[-1:]:
                yield from run.logs(follow=True)
            seen.update(run.id for run in fresh)
            if ended:
                return
            if fresh:
                pause = FIRST_POLL_SECONDS
            else:
                time.sleep(pause)
                pause = min(1.5 * pause, POLL_SECONDS)
