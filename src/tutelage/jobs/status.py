"""Where a job stands, and where it may go from there: one table for queue, API, worker and page."""

from collections.abc import Mapping
from enum import Enum

from tutelage.errors import JobError


class JobStatus(str, Enum):
    """As it is stored, and as the SDK and our own endpoints say it."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"

    def __str__(self) -> str:
        return self.value

    @property
    def is_final(self) -> bool:
        """Nothing happens to the job any more unless it is submitted or restarted."""
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED)


TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    # Claimed; canceled before it began.
    JobStatus.PENDING: frozenset({JobStatus.IN_PROGRESS, JobStatus.CANCELED}),
    # Its worker was lost and an attempt is left; ended, one way or another.
    JobStatus.IN_PROGRESS: frozenset(
        {JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED},
    ),
    # Restarted; of the last two also submitted again.
    JobStatus.COMPLETED: frozenset({JobStatus.PENDING}),
    JobStatus.FAILED: frozenset({JobStatus.PENDING}),
    JobStatus.CANCELED: frozenset({JobStatus.PENDING}),
}
"""From each status, those it may be followed by. Everything else is an error."""

OPENAI_STATUS: Mapping[JobStatus, str] = {
    JobStatus.PENDING: "queued",
    JobStatus.IN_PROGRESS: "running",
    JobStatus.COMPLETED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELED: "cancelled",
}
"""What OpenAI's endpoints call them."""


def require_transition(job_id: str, before: JobStatus, after: JobStatus) -> None:
    """Raises JobError for a step that the table does not have."""
    if after not in TRANSITIONS[before]:
        allowed = " or ".join(status.value for status in JobStatus if status in TRANSITIONS[before])
        raise JobError(f"{job_id}: a job that is {before.value} cannot become {after.value}; it may become {allowed}")
