"""`tutelage jobs`: looking at jobs and changing them, thin over the client. Not here: submitting (`submit.py`)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.choices import require_known
from tutelage.cli.connection import connect
from tutelage.cli.output import Json, print_json, print_part, print_table, saying, shown
from tutelage.errors import Interrupted

if TYPE_CHECKING:
    from tutelage.client import Job

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job, as `tutelage jobs ls` shows it.")]
JobIds = Annotated[list[str], typer.Argument(metavar="JOB", help="The ids of jobs.")]

app = typer.Typer(help="Submit jobs, look at them, cancel them.", no_args_is_help=True)


@app.command("ls")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="pending, in_progress, completed, failed or canceled.")] = None,
    kind: Annotated[str | None, typer.Option(help="Such as fine_tuning, inference, custom.")] = None,
    search: Annotated[str | None, typer.Option(help="A part of its id, model or options.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    from tutelage.jobs.kinds import KINDS
    from tutelage.jobs.status import JobStatus

    if status is not None:
        require_known("--status", status, (one.value for one in JobStatus))
    if kind is not None:
        kind = kind.replace("-", "_")
        require_known("--kind", kind, KINDS)
    found = connect().jobs.list(limit, status=status, kind=kind, search=search)
    if as_json:
        print_json([job.record for job in found])
        return
    rows = [(job.id, job.status, job.kind, job.model, job.created_at, job.reason) for job in found]
    asked = status or kind or search
    print_table(
        ("job", "status", "kind", "model", "created", "reason"),
        rows,
        empty="no such jobs" if asked else "no jobs; submit one with: tutelage jobs submit config.yaml",
    )


@app.command()
def show(job: JobId, as_json: Json = False) -> None:
    """Show a job: what it needs, its runs, its options, its outputs."""
    found = connect().jobs.retrieve(job)
    if as_json:
        print_json({"job": found.record, "runs": [run.record for run in found.runs]})
        return
    facts = [
        ("status", found.status + (f": {found.reason}" if found.reason else "")),
        ("kind", found.kind),
        ("model", found.model),
        ("command", found.script),
        ("created", found.created_at),
        ("attempts", f"{found.attempts} of {found.max_attempts}"),
        ("needs", _needs(found)),
    ]
    print_table((found.id, ""), [fact for fact in facts if fact[1] is not None], empty="")
    runs = [(run.id, run.status, run.worker_id, run.created_at, run.reason) for run in found.runs]
    print()
    print_table(("run", "status", "worker", "began", "reason"), runs, empty="no run has begun")
    titled = (
        ("options", found.params["validated_params"]),
        ("files", found.mounted_files),
        ("outputs", found.outputs or {}),
    )
    for title, values in titled:
        if values:
            print(f"\n{title}")
        for name, value in values.items():
            if value not in (None, {}, []):
                print(f"  {name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


@app.command()
def logs(
    job: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="As it is printed, until the job ends; with --json a line a part.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print what the newest run of a job printed."""
    client = connect()
    if follow:
        show_part = saying(as_json=True) if as_json else print_part
        follow_log(client.jobs.retrieve(job), show_part)
        return
    client.jobs.retrieve(job)  # of a job that is not there the sentence is better
    runs = client.runs.list(job_id=job, limit=1)
    text = runs[-1].logs() if runs else ""
    if as_json:
        print_json({"run_id": runs[-1].id if runs else None, "log": text})
    else:
        print_part(text)


@app.command()
def cancel(jobs: JobIds, as_json: Json = False) -> None:
    """Cancel jobs: those that wait never begin, processes that run are stopped within seconds."""
    client = connect()
    _print_changed([client.jobs.cancel(job) for job in jobs], as_json)


@app.command()
def restart(jobs: JobIds, as_json: Json = False) -> None:
    """Let jobs that have ended wait for a worker again."""
    client = connect()
    _print_changed([client.jobs.restart(job) for job in jobs], as_json)


@app.command()
def fetch(
    job: JobId,
    output: Annotated[Path | None, typer.Option(help="Folder; unset, one of the job's name here.")] = None,
    all_runs: Annotated[
        bool, typer.Option("--all-runs", help="Of every attempt, each in a folder of its own; unset, of the last.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Download the log and the files of a job."""
    folder = output or Path(job)
    paths = connect().jobs.retrieve(job).download(folder, only_last_run=not all_runs)
    if as_json:
        print_json([str(path) for path in paths])
    else:
        print(f"{folder}: {len(paths)} file{'s' * (len(paths) != 1)}")


@app.command()
def explain(job: JobId, as_json: Json = False) -> None:
    """Say why a job waits, and on which condition each worker fails."""
    found = connect().jobs.explain(job)
    if as_json:
        print_json(found)
        return
    print(f"{found.job_id}: {shown(found.status)}: {found.summary}")
    rows = [(fit.name, "yes" if fit.fits else "no", fit.reasons or fit.busy_with or "") for fit in found.workers]
    if rows:
        print_table(("worker", "fits", "why not"), rows, empty="")


def follow_log(job: "Job", show_part: Callable[[str], None]) -> None:
    """Show what a job prints until it ends. Raises Interrupted for ctrl-C: the job goes on."""
    try:
        for part in job.logs(follow=True):
            show_part(part)
    except KeyboardInterrupt:
        raise Interrupted(
            f"{job.id}: goes on; see: tutelage jobs logs -f {job.id}; end it with: tutelage jobs cancel {job.id}"
        ) from None


def _print_changed(jobs: "list[Job]", as_json: bool) -> None:
    if as_json:
        print_json([job.record for job in jobs])
        return
    for job in jobs:
        print(f"{job.id}: {job.status}")


def _needs(job: "Job") -> str:
    parts = [f"{job.requires_vram_gb:g} GB of GPU memory"] if job.requires_vram_gb else []
    parts += [f"a {job.cloud_type} machine"]
    parts += [" or ".join(job.allowed_hardware)] if job.allowed_hardware else []
    return ", ".join(parts + ([f"the image {job.docker_image}"] if job.docker_image else []))
