"""From a request for a job, whichever endpoint it came to, to the job in the queue."""

from tutelage.jobs.access import Principal
from tutelage.jobs.kinds import JobRequest, checked, files_of
from tutelage.jobs.records import Job
from tutelage.server.services import Services


def submit(parts: Services, who: Principal, request: JobRequest) -> Job:
    """Check a request and its files, and put the job into the queue.

    Raises ConfigError and JobError for what is wrong with it, NotFoundError for a file that is not there.
    """
    submission = checked(request)
    job = parts.queue.submit(who.organization, submission, who.token_id, files_of(submission))
    parts.notices.tell("pending")
    return job
