"""`tutelage cluster`: its options. What it does is in `tutelage.cluster`."""

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.output import JsonLines, saying


def cluster(
    settings: Annotated[Path, typer.Argument(metavar="CLUSTER", help="A YAML file: launcher, hardware, limits.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be started and stopped; do nothing.")] = (
        False
    ),
    stop_all: Annotated[bool, typer.Option("--stop-all", help="Stop all machines of this cluster, and end.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="For what is spent and what failed; unset, ~/.cache/tutelage/cluster.")
    ] = None,
    as_json: JsonLines = False,
) -> None:
    """Keep machines matched to the jobs that wait on the server. ctrl-C ends it; machines go on with their jobs."""
    from tutelage.client.openweights import OpenWeights
    from tutelage.cluster.manager import Manager, describe
    from tutelage.cluster.opening import open_launcher
    from tutelage.cluster.settings import load_cluster
    from tutelage.files import only_process_in

    loaded = load_cluster(settings)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = (folder or cache / "tutelage" / "cluster") / loaded.name
    say = saying(as_json)
    launcher = open_launcher(loaded, kept)
    with only_process_in(kept, "--folder"), OpenWeights() as client, _until_signaled() as signaled:
        manager = Manager(loaded, launcher, client, kept, say=say)
        try:
            if stop_all:
                manager.stop_all()
            elif dry_run:
                seen = manager.round(act=False)
                say(f"{seen.pending} jobs wait; {len(seen.machines.known)} machines are there")
                for action in seen.actions:
                    say(describe(action))
            else:
                say(f"cluster '{loaded.name}' for {client.http.address} with the launcher {loaded.launcher}")
                manager.run(signaled.wait)
                say("the manager ends; machines go on with their jobs")
        finally:
            launcher.close()


@contextmanager
def _until_signaled() -> Generator[threading.Event, None, None]:
    signaled = threading.Event()
    before = {number: signal.signal(number, lambda *_: signaled.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signaled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
