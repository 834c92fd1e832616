"""A fine-tuning job: trains as its options say, reports while it does, leaves model, checkpoints and samples.

Not here: training (`tutelage.training`), following the run's files (`follower.py`).
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from tutelage.config import TrainingConfig
from tutelage.errors import Interrupted, TutelageError
from tutelage.training.processes import process_group_left
from tutelage.training.run import train
from tutelage.worker.programs.follower import RunFollower
from tutelage.worker.programs.outbox import PATIENCE, Outbox, Report
from tutelage.worker.programs.program import JobFolder, run_program
from tutelage.worker.programs.report import ClientReport
from tutelage.worker.programs.trained import put_checkpoints, put_file, put_model

STEP_GRACE = 8.0
"""Seconds that a signal leaves the present step and its checkpoint; then training stops at once."""
SHORT_PATIENCE = 3.0
"""How long a job that is being stopped waits for the server."""
RECORDS = ("samples.jsonl", "events.jsonl", "run.json", "log.txt")
MODULE = "tutelage.worker.programs.fine_tuning"


def fine_tune(job: JobFolder, report: Report | None = None) -> None:
    """Train in `run/` of the job's folder. Raises TutelageError; what was reported and put into `uploads/` stays."""
    gpus = int(os.environ.get("N_GPUS") or 0)
    if gpus > 1 and "RANK" not in os.environ:
        _become_launcher(gpus)
    run = job.path / "run"
    # The tokens' log-probabilities go with the events of each measurement.
    extra = {"output_dir": run, "logp_per_token": bool(job.params.get("logp_callback_datasets"))}
    config = TrainingConfig(**{**job.params, **extra})
    if os.environ.get("RANK", "0") != "0":
        with process_group_left():
            train(config)
        return
    outbox = Outbox(report or ClientReport(job.run_id))
    tags = {callback.tag for callback in config.sampling_callbacks}
    follower = RunFollower(run, outbox, tags=tags, scratch=job.path / "reported")
    follower.start()
    try:
        with stopping_within(STEP_GRACE), process_group_left():
            train(config)
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        # The error in flight says more than a second one.
        with contextlib.suppress(TutelageError):
            _hand_over(job, config, follower, outbox, SHORT_PATIENCE if stopped else PATIENCE)
        raise
    _hand_over(job, config, follower, outbox, PATIENCE, finished=True)


def _hand_over(
    job: JobFolder,
    config: TrainingConfig,
    follower: RunFollower,
    outbox: Outbox,
    patience: float,
    finished: bool = False,
) -> None:
    """Put what the run left into `uploads/` and report the rest."""
    run, base = job.path / "run", str(job.asked["model"])
    steps = put_checkpoints(run, job.uploads, config, base)
    has_model = finished and put_model(run, job.uploads, base)
    try:
        follower.finish(patience)
    finally:
        # With these and the model, what is downloaded is a run folder like one that was trained where it is looked at.
        for name in RECORDS:
            put_file(run / name, job.uploads)
    for step in steps:
        data = {"tag": "checkpoint", "step": step, "checkpoint": f"{job.job_id}:step-{step}"}
        outbox.add(f"checkpoint-{step}", data)
    if has_model:
        outbox.add("model", {"model": job.job_id}, required=True)
    outbox.drain(patience)


@contextlib.contextmanager
def stopping_within(seconds: float) -> Iterator[None]:
    """A first SIGTERM lets the step end and writes a checkpoint, as training has it; one that takes longer than
    `seconds` gets a second, which stops it at once."""
    ended = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while received := reader.recv(1):
            if received[0] == signal.SIGTERM:
                if not ended.wait(seconds):
                    os.kill(os.getpid(), signal.SIGTERM)
                return

    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False) if in_main_thread else -1
    watcher = threading.Thread(target=watch, name="stop-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        if in_main_thread:
            signal.set_wakeup_fd(previous)
        writer.close()
        watcher.join()
        reader.close()


def _become_launcher(gpus: int) -> None:
    """Go on as `torchrun`, which starts this program once a GPU; the worker's signals reach all of them."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m", MODULE]
    print(f"training on {gpus} GPUs", flush=True)
    os.execv(sys.executable, [sys.executable, *torchrun])


if __name__ == "__main__":
    run_program(fine_tune)
