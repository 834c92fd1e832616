"""`tutelage worker`: its options. What it does is in `tutelage.worker`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.output import JsonLines, saying


def worker(
    name: Annotated[str | None, typer.Option(help="How people see it; unset, the name of this machine.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="For runs and models of other jobs; unset, ~/.cache/tutelage/worker.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End after one job.")] = False,
    max_idle: Annotated[
        float | None, typer.Option(min=0, help="End after so many seconds without a job; unset, never.")
    ] = None,
    cloud_type: Annotated[str, typer.Option(help="SECURE or COMMUNITY: whose machine this is.")] = "SECURE",
    cost_per_hour: Annotated[float, typer.Option(min=0, help="US dollars, for the table of costs.")] = 0.0,
    image: Annotated[
        list[str] | None, typer.Option(help="Container image it stands for; may be repeated. Unset, any.")
    ] = None,
    ignore_vram: Annotated[
        bool, typer.Option("--ignore-vram", help="Take jobs whatever GPU memory they ask for.")
    ] = False,
    while_input_open: Annotated[
        bool, typer.Option("--while-input-open", help="Claim jobs only while standard input is open.")
    ] = False,
    job: Annotated[str | None, typer.Option(help="Take this job and no other; for machines started for it.")] = None,
    run: Annotated[str | None, typer.Option(help="Id of the first run: run- and 32 hexadecimal digits.")] = None,
    keep_runs: Annotated[bool, typer.Option("--keep-runs", help="Leave the folders of runs in kept/.")] = False,
    as_json: JsonLines = False,
) -> None:
    """Run the jobs of the server that TUTELAGE_URL names, one after the other. ctrl-C gives the job back."""
    from tutelage.cli.logs import log_to_stderr
    from tutelage.jobs.requirements import cloud_type_of
    from tutelage.worker.settings import WorkerSettings
    from tutelage.worker.worker import Worker

    given = {"name": name, "folder": folder}
    settings = WorkerSettings(
        **{key: value for key, value in given.items() if value is not None},
        once=once,
        max_idle=max_idle,
        cloud_type=cloud_type_of(cloud_type, of_worker=True),
        cost_per_hour=cost_per_hour,
        images=tuple(image) if image else None,
        ignore_vram=ignore_vram,
        while_input_open=while_input_open,
        job_id=job,
        run_id=run,
        keep_runs=keep_runs,
    )
    log_to_stderr()
    sys.exit(Worker(settings, say=saying(as_json)).run())
