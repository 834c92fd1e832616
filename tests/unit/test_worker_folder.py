"""The folder of a run: what goes into it, what never gets out of it, what is left of it."""

import errno
import fcntl
import json
import os
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import pytest

from tutelage.client.results import ClaimedJob
from tutelage.client.worker_api import WorkerApi
from tutelage.errors import JobError, NotFoundError, OutputError
from tutelage.jobs.records import Job
from tutelage.jobs.requirements import CloudType
from tutelage.jobs.status import JobStatus
from tutelage.worker import job_folder
from tutelage.worker.job_folder import (
    DOWNLOADS_AT_ONCE,
    RunFolder,
    command_of,
    ending_of,
    environment_of,
    fill,
    remove_left_behind,
)
from tutelage.worker.signals import Abandoned, RunSignals

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
A, B = "conversations:file-00000000000a", "custom_job_file:file-00000000000b"


@dataclass
class Stored:
    filename: str
    content: bytes = b""


@dataclass
class Store:
    """Files in the place of a server's. on_download: called with the path before each."""

    stored: dict[str, Stored] = field(default_factory=dict)
    on_download: Any = None

    @property
    def files(self) -> "Store":
        return self

    def get_by_id(self, file_id: str) -> Stored:
        if file_id not in self.stored:
            raise NotFoundError(f"{file_id}: there is no such file")
        return self.stored[file_id]

    def download(self, file_id: str, path: Path) -> None:
        """As `Files.download` does."""
        content = self.get_by_id(file_id).content
        try:
            if self.on_download is not None:
                self.on_download(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from error

    @property
    def api(self) -> WorkerApi:
        return cast("WorkerApi", self)


def claim(**changes: Any) -> ClaimedJob:
    """Of a custom job."""
    values: dict[str, Any] = {
        "id": "custom-1",
        "kind": "custom",
        "status": JobStatus.IN_PROGRESS,
        "model": None,
        "params": {},
        "mounted_files": {},
        "image": None,
        "entrypoint": "true",
        "requires_vram_gb": 0.0,
        "allowed_hardware": None,
        "cloud_type": CloudType.SECURE,
        "organization_id": "org",
        "run_id": "run-1",
        "worker_id": "worker-1",
        "attempts": 1,
        "max_attempts": 3,
        "reason": None,
        "outputs": None,
        "submitted_by": None,
        "timeout": None,
        "created_at": NOW,
        "updated_at": NOW,
        "started_at": NOW,
        "finished_at": None,
    }
    environment = changes.pop("environment", {})
    return ClaimedJob(
        job=Job(**{**values, **changes}),
        run_id="run-1",
        attempt=1,
        lease_seconds=30.0,
        heartbeat_seconds=3.0,
        token="token-of-the-job",
        environment=environment,
    )


def filled(folder: Path, store: Store, **changes: Any) -> Path:
    (folder / "job").mkdir(parents=True, exist_ok=True)
    fill(folder / "job", claim(**changes), store.api, folder / "cache", lambda: None)
    return folder / "job"


def test_files_of_the_options_are_fetched_and_named(tmp_path: Path) -> None:
    """Wherever in the options an id is, and with the ending that readers go by."""
    store = Store({A: Stored("my rows.v2.jsonl.gz", b"rows"), B: Stored("reward.py", b"def f(): ...")})
    job = filled(tmp_path, store, params={"training_file": A, "deep": [{"f": B}, A], "text": f"see {A}"})
    rows, code = (
        job / "files/conversations-file-00000000000a.jsonl.gz",
        job / "files/custom_job_file-file-00000000000b.py",
    )
    assert json.loads((job / "params.json").read_text()) == {
        "training_file": str(rows),
        "deep": [{"f": str(code)}, str(rows)],
        "text": f"see {A}",
    }
    assert (rows.read_bytes(), code.read_bytes()) == (b"rows", b"def f(): ...")


def test_the_job_as_it_was_submitted_is_beside(tmp_path: Path) -> None:
    job = filled(tmp_path, Store({A: Stored("a.jsonl")}), params={"training_file": A})
    assert json.loads((job / "job.json").read_text()) | {} == {
        **json.loads((job / "job.json").read_text()),
        "id": "custom-1",
        "status": "in_progress",
        "params": {"training_file": A},
        "created_at": "2026-01-02T00:00:00+00:00",
    }


@pytest.mark.parametrize(
    ("filename", "ending"),
    [
        ("rows.jsonl", ".jsonl"),
        ("rows.JSONL.GZ", ".JSONL.GZ"),
        ("v1.2.jsonl", ".jsonl"),
        ("reward.py", ".py"),
        ("rows", ""),
        (".jsonl", ""),
        ("x.a/../../b", ""),
        ("rows.jsonl ", ""),
        ("x.\u202ejson", ""),
    ],
)
def test_endings(filename: str, ending: str) -> None:
    assert ending_of(filename) == ending


@pytest.mark.parametrize("target", ["../out.txt", "a/../../out.txt", "/tmp/out.txt", "~/out.txt", "a\\..\\out", ""])
def test_mounts_that_lead_out_are_refused(tmp_path: Path, target: str) -> None:
    """Also where a server let them through."""
    with pytest.raises(JobError, match="mount target"):
        filled(tmp_path, Store({B: Stored("b", b"x")}), mounted_files={target: B})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_link_in_the_folder_leads_nothing_out(tmp_path: Path) -> None:
    """The folder `data` is a link to outside when the file for `data/b` comes."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "job").mkdir()
    (tmp_path / "job/data").symlink_to(outside)
    with pytest.raises(JobError, match="a link leads out"):
        filled(tmp_path, Store({B: Stored("b", b"x")}), mounted_files={"data/b": B})
    assert list(outside.iterdir()) == []


def test_mounted_files_are_where_they_should_be(tmp_path: Path) -> None:
    store = Store({A: Stored("a", b"A"), B: Stored("b", b"B")})
    mounts = {f"data/{number}": A if number % 2 else B for number in range(50)}
    job = filled(tmp_path, store, mounted_files={"train.py": A, **mounts})
    assert (job / "train.py").read_bytes() == b"A"
    assert [(job / f"data/{number}").read_bytes() for number in range(50)] == [b"B", b"A"] * 25


@pytest.mark.parametrize("target", ["params.json", "job.json"])
def test_what_the_worker_writes_is_not_mounted_over(tmp_path: Path, target: str) -> None:
    with pytest.raises(JobError, match="mount target"):
        filled(tmp_path, Store({B: Stored("b", b"mine")}), mounted_files={target: B})


@pytest.mark.parametrize("changes", [{"params": {"f": B}}, {"mounted_files": {"b.txt": B}}])
def test_a_file_that_is_gone_is_the_jobs_trouble(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(JobError, match=f"{B}.*is gone; upload it again"):
        filled(tmp_path, Store(), **changes)


@pytest.mark.parametrize("target", ["uploads", "x" * 300, "files/../uploads/./"])
def test_a_name_that_no_file_can_have_is_the_jobs_trouble(tmp_path: Path, target: str) -> None:
    """A folder is there already; longer than the 255 bytes of a name on disk."""
    (tmp_path / "job/uploads").mkdir(parents=True)
    with pytest.raises(JobError, match="mount target"):
        filled(tmp_path, Store({B: Stored("b", b"x")}), mounted_files={target: B})


def test_a_full_disk_is_the_workers_trouble(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        filled(tmp_path, Store({B: Stored("b")}, on_download=full), mounted_files={"b": B})


def test_a_task_that_nobody_waits_for_fetches_no_more(tmp_path: Path) -> None:
    """The check ends it before its second file."""
    fetched: list[Path] = []
    store = Store({A: Stored("a", b"A")}, on_download=fetched.append)

    def check() -> None:
        if fetched:
            raise KeyboardInterrupt

    (tmp_path / "job").mkdir()
    mounts = {str(number): A for number in range(1000)}
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "job", claim(mounted_files=mounts), store.api, tmp_path, check)
    assert len(fetched) < 20


def test_commands() -> None:
    assert command_of(claim(entrypoint="echo 'a b'")) == ["bash", "-c", "echo 'a b'"]
    assert command_of(claim(kind="fine_tuning", entrypoint=None))[1:] == ["-m", "tutelage.worker.programs.fine_tuning"]
    for unknown in ("telepathy", "program", "../x"):
        with pytest.raises(JobError, match="cannot run"):
            command_of(claim(kind=unknown, entrypoint=None))


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's own token stands wherever the worker's did; what is private to the server is not there."""
    monkeypatch.setenv("TUTELAGE_API_KEY", "token-of-the-worker")
    monkeypatch.setenv("OPENWEIGHTS_API_KEY", "token-of-the-worker")
    monkeypatch.setenv("TUTELAGE_SECRET_KEY", "key-of-the-server")
    monkeypatch.setenv("TUTELAGE_DATABASE", "postgresql://user:password@host/db")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    secrets = {"HF_TOKEN": "hf_secret", "TUTELAGE_RUN_ID": "run-2"}
    found = environment_of(claim(environment=secrets), "http://server", 2)
    expected = {
        "TUTELAGE_URL": "http://server",
        "TUTELAGE_API_KEY": "token-of-the-job",
        "OPENWEIGHTS_API_KEY": "token-of-the-job",
        "TUTELAGE_RUN_ID": "run-1",
        "OPENWEIGHTS_RUN_ID": "run-1",
        "TUTELAGE_JOB_ID": "custom-1",
        "N_GPUS": "2",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "hf_secret",
    }
    assert {name: found[name] for name in expected} == expected
    assert not {"token-of-the-worker", "key-of-the-server"} & set(found.values())
    assert "TUTELAGE_DATABASE" not in found


def test_folders_of_killed_workers_are_removed_and_those_in_use_are_not(tmp_path: Path) -> None:
    """A killed worker's lock is free: closing the descriptor is what the kernel does then."""
    in_use, left = RunFolder(tmp_path, "run-1"), RunFolder(tmp_path, "run-2")
    os.close(left._lock)
    remove_left_behind(tmp_path)
    assert (in_use.path.exists(), left.path.exists()) == (True, False)
    in_use.close(keep=False)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_is_being_made_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker that shares the folder clears up right before the lock is taken."""
    flock = fcntl.flock

    def clear_up_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        remove_left_behind(tmp_path)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", clear_up_first)
    folder = RunFolder(tmp_path, "run-1")
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "job"]
    remove_left_behind(tmp_path)
    assert folder.job.is_dir()
    folder.close(keep=False)


def test_a_kept_run_stays_for_good(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "run-1")
    (folder.job / "result.txt").write_text("42", encoding="utf-8")
    folder.close(keep=True)
    remove_left_behind(tmp_path)
    assert (tmp_path / "kept/run-1/job/result.txt").read_text() == "42"


def test_a_folder_that_cannot_be_made_is_the_workers_trouble(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be made"):
        RunFolder(tmp_path, "run-1")


def test_a_folder_without_a_lock_goes_when_it_is_old(tmp_path: Path) -> None:
    """Whoever made or removed it was killed, or a download came late. A new one may be about to be locked."""
    now = time.time()
    for name, age in (("run-old", 601.0), ("run-new", 599.0)):
        (tmp_path / "runs" / name / "job").mkdir(parents=True)
        os.utime(tmp_path / "runs" / name, (now - age + 0.5, now - age))
    remove_left_behind(tmp_path)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run-new"]


def test_a_folder_whose_lock_cannot_be_looked_at_stays(tmp_path: Path) -> None:
    """Of another user, or there are no descriptors left: somebody's all the same."""
    folder = tmp_path / "runs" / "run-other"
    (folder / "job").mkdir(parents=True)
    (folder / ".lock").symlink_to(".lock")  # opening it fails, whoever one is
    os.utime(folder, (1.0, 1.0))
    remove_left_behind(tmp_path)
    assert (folder / "job").is_dir()


def test_a_canceled_run_fetches_no_more(tmp_path: Path) -> None:
    """Its folder is about to be removed: a download that begins now would make it again."""
    signals = RunSignals()
    fetched: list[Path] = []

    def cancel(path: Path) -> None:
        fetched.append(path)
        signals.cancel()

    (tmp_path / "job").mkdir()
    mounts = {str(number): A for number in range(1000)}
    store = Store({A: Stored("a", b"A")}, on_download=cancel)
    with pytest.raises(Abandoned):
        fill(tmp_path / "job", claim(mounted_files=mounts), store.api, tmp_path, signals.check_wanted)
    assert len(fetched) <= DOWNLOADS_AT_ONCE
    assert not (tmp_path / "job/params.json").exists()


def test_a_folder_that_nobody_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of another user, that a container left: closing the run says nothing and gives the lock back."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    folder = RunFolder(tmp_path, "run-1")
    (folder.job / "of root").mkdir()
    monkeypatch.setattr(job_folder.shutil, "rmtree", lambda path, ignore_errors: None)
    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr(Path, "is_dir", refuse)
    folder.close(keep=False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(folder._lock)
