"""`tutelage jobs ls|show|logs|cancel|restart|fetch|explain|submit`, and `tutelage exec`: thin over the client."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.output import Json, print_json, print_table, shown
from tutelage.errors import ConfigError

if TYPE_CHECKING:
    from tutelage.client import Client, Job

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job.")]
Hardware = Annotated[
    list[str] | None, typer.Option(metavar="GPUS", help="Such as '1x A100'; may be repeated. Unset, any.")
]
CloudType = Annotated[str, typer.Option(help="SECURE, COMMUNITY or ALL: whose machines may run it.")]
Vram = Annotated[float | None, typer.Option(help="Gigabytes of GPU memory; unset, what its kind asks for.")]
Image = Annotated[str | None, typer.Option(help="Container image; unset, any worker's own environment.")]
Wait = Annotated[bool, typer.Option("--wait", help="Show its log until it ends; exit code 1 if it failed.")]

app = typer.Typer(help="Jobs on a server: submit, look, cancel.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app, name="jobs")
    root.command("exec", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(execute)


def connect() -> "Client":
    """The client of the server that TUTELAGE_URL names, or the one on this machine."""
    from tutelage.client import Client

    return Client()


@app.command("ls")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="pending, in_progress, completed, failed, canceled.")] = None,
    kind: Annotated[str | None, typer.Option(help="Such as fine_tuning, inference, custom.")] = None,
    search: Annotated[str | None, typer.Option(help="A part of id, model or options.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 20,
    as_json: Json = False,
) -> None:
    """Jobs, newest first."""
    found = connect().jobs.list(limit, status=status, kind=kind, search=search)
    if as_json:
        print_json([job.record for job in found])
        return
    rows = [(job.id, job.status, job.kind, job.model, job.created_at, job.reason) for job in found]
    print_table(
        ("job", "status", "kind", "model", "created", "reason"),
        rows,
        empty="no jobs; submit one with: tutelage jobs submit config.yaml",
    )


@app.command()
def show(job: JobId, as_json: Json = False) -> None:
    """A job: options, runs, outputs."""
    found = connect().jobs.retrieve(job)
    if as_json:
        print_json({"job": found.record, "runs": [run.record for run in found.runs]})
        return
    facts = [
        ("status", found.status + (f": {found.reason}" if found.reason else "")),
        ("kind", found.kind),
        ("model", found.model),
        ("created", found.created_at),
        ("attempts", f"{found.attempts} of {found.max_attempts}"),
        ("needs", _needs(found)),
    ]
    print_table((found.id, ""), [fact for fact in facts if fact[1] is not None], empty="")
    runs = [(run.id, run.status, run.worker_id, run.created_at, run.reason) for run in found.runs]
    print()
    print_table(("run", "status", "worker", "began", "reason"), runs, empty="no run has begun")
    for title, values in (("options", found.params["validated_params"]), ("outputs", found.outputs or {})):
        print(f"\n{title}")
        for name, value in values.items():
            if value not in (None, {}, []):
                print(f"  {name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


@app.command()
def logs(
    job: JobId, follow: Annotated[bool, typer.Option("--follow", "-f", help="As it is printed, until it ends.")] = False
) -> None:
    """What the newest run of a job printed."""
    found = connect().jobs.retrieve(job)
    if follow:
        for part in found.logs(follow=True):
            _print_part(part)
    else:
        _print_part(found.logs())


@app.command()
def cancel(jobs: Annotated[list[str], typer.Argument(metavar="JOB…")], as_json: Json = False) -> None:
    """Cancel jobs; processes are stopped within seconds."""
    client = connect()
    _print_changed([client.jobs.cancel(job) for job in jobs], as_json)


@app.command()
def restart(jobs: Annotated[list[str], typer.Argument(metavar="JOB…")], as_json: Json = False) -> None:
    """Let jobs that have ended wait again."""
    client = connect()
    _print_changed([client.jobs.restart(job) for job in jobs], as_json)


@app.command()
def fetch(
    job: JobId,
    output: Annotated[Path | None, typer.Option(help="Folder; unset, one of the job's name here.")] = None,
    all_runs: Annotated[bool, typer.Option("--all-runs", help="Of every attempt, not of the last.")] = False,
    as_json: Json = False,
) -> None:
    """Download the log and the files of a job."""
    folder = output or Path(job)
    paths = connect().jobs.retrieve(job).download(folder, only_last_run=not all_runs)
    if as_json:
        print_json([str(path) for path in paths])
    else:
        print(f"{folder}: {len(paths)} files")


@app.command()
def explain(job: JobId, as_json: Json = False) -> None:
    """Why a job waits, and on which condition each worker fails."""
    found = connect().jobs.explain(job)
    if as_json:
        print_json(found)
        return
    print(f"{found.job_id}: {shown(found.status)}: {found.summary}")
    rows = [(fit.name, "yes" if fit.fits else "no", fit.reasons or fit.busy_with or "") for fit in found.workers]
    if rows:
        print_table(("worker", "fits", "why not"), rows, empty="")


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="A YAML file of options, as `tutelage train` takes it.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override an option; may be repeated.")
    ] = None,
    requires_vram_gb: Vram = None,
    allowed_hardware: Hardware = None,
    cloud_type: CloudType = "SECURE",
    image: Image = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Upload the files of a training config and submit it as a fine-tuning job."""
    from tutelage.config import load_config

    options: dict[str, Any] = load_config(config, overrides or []).flat()
    vram: dict[str, Any] = {} if requires_vram_gb is None else {"requires_vram_gb": requires_vram_gb}
    job = connect().fine_tuning.create(
        **options, **vram, allowed_hardware=allowed_hardware, cloud_type=cloud_type, docker_image=image
    )
    _submitted(job, wait, as_json)


def execute(
    context: typer.Context,
    mount: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE[:TARGET]", help="A file or folder for it; may be repeated.")
    ] = None,
    requires_vram_gb: Vram = 0,
    allowed_hardware: Hardware = None,
    cloud_type: CloudType = "SECURE",
    image: Image = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Run a command as a job: tutelage exec --mount train.py --wait -- python train.py"""
    if not context.args:
        raise ConfigError("exec: no command; write it behind --, such as: tutelage exec -- python train.py")
    mounts = {}
    for one in mount or []:
        source, _, target = one.partition(":")
        mounts[source] = target or Path(source).name
    job = connect().exec(
        context.args,
        mount=mounts,
        requires_vram_gb=requires_vram_gb or 0,
        allowed_hardware=allowed_hardware,
        cloud_type=cloud_type,
        docker_image=image,
    )
    _submitted(job, wait, as_json)


def _submitted(job: "Job", wait: bool, as_json: bool) -> None:
    if as_json and not wait:
        print_json(job.record)
    elif not as_json:
        print(f"{job.id}: {job.status}", flush=True)
    if not wait:
        return
    for part in job.logs(follow=True):
        _print_part(part)
    job.wait()
    if as_json:
        print_json(job.record)
    job.raise_for_status()
    if not as_json:
        print(f"{job.id}: {job.status}")


def _print_changed(jobs: "list[Job]", as_json: bool) -> None:
    if as_json:
        print_json([job.record for job in jobs])
        return
    for job in jobs:
        print(f"{job.id}: {job.status}")


def _print_part(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _needs(job: "Job") -> str:
    parts = [f"{job.requires_vram_gb:g} GB of GPU memory", f"a {job.cloud_type} machine"]
    parts += [" or ".join(job.allowed_hardware)] if job.allowed_hardware else []
    return ", ".join(parts + ([f"the image {job.docker_image}"] if job.docker_image else []))
