"""What a job leaves in `uploads/`: what is taken, what is left and named, what cannot be looked into."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tutelage.client.results import NewEvent
from tutelage.client.worker_api import WorkerApi
from tutelage.errors import DataError
from tutelage.worker.left_files import left_in, upload_left


def test_what_is_uploaded(tmp_path: Path) -> None:
    """Regular files, by name; links are named and left, wherever they lead."""
    uploads = tmp_path / "uploads"
    (uploads / "model").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "model/weights", ".hidden"):
        (uploads / name).write_text(name, encoding="utf-8")
    (uploads / "passwd").symlink_to("/etc/passwd")
    (uploads / "etc").symlink_to("/etc")
    (uploads / "same").symlink_to("a.txt")
    os.mkfifo(uploads / "pipe")
    said: list[str] = []
    found = [path.relative_to(uploads).as_posix() for path in left_in(uploads, said.append)]
    assert found == [".hidden", "a.txt", "b.txt", "model/weights"]
    assert sorted(line.partition(":")[0] for line in said) == [
        "uploads/etc is a link",
        "uploads/passwd is a link",
        "uploads/pipe is no regular file",
        "uploads/same is a link",
    ]


def test_uploads_as_a_link_to_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "uploads").symlink_to("/etc")
    said: list[str] = []
    assert list(left_in(tmp_path / "uploads", said.append)) == []
    assert said == ["uploads is a link: nothing in it is uploaded; make it a folder"]


def test_no_uploads_at_all(tmp_path: Path) -> None:
    """A job may remove the folder."""
    assert list(left_in(tmp_path / "uploads", print)) == []


class Taking:
    """A server that takes every file. reported: the paths of all."""

    def __init__(self) -> None:
        self.reported: list[str] = []

    def upload(self, path: Path, purpose: str) -> Any:
        return SimpleNamespace(id=f"{purpose}:file-{path.name}")

    def append_events(self, run_id: str, events: list[NewEvent]) -> None:
        self.reported += [event.data["path"] for event in events]


def refusing(original: Callable[..., Any], closed: Path) -> Callable[..., Any]:
    """The function, for which a place is closed: whoever runs the tests may look everywhere."""

    def function(path: Any = ".", **options: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return original(path, **options)

    return function


@pytest.mark.parametrize(
    ("name", "closed"),
    [
        ("scandir", "uploads/closed"),  # as a folder of mode 000
        ("scandir", "uploads"),
        ("lstat", "uploads/closed/b.txt"),  # as in a folder of mode 444: names, and nothing behind them
    ],
)
def test_what_cannot_be_looked_into_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, closed: str
) -> None:
    """All else is uploaded first. Unsaid it would be gone with the run's folder, and the job completed."""
    (tmp_path / "uploads/closed").mkdir(parents=True)
    for path in ("uploads/a.txt", "uploads/closed/b.txt", "uploads/z.txt"):
        (tmp_path / path).write_text("x", encoding="utf-8")
    server = Taking()
    monkeypatch.setattr(os, name, refusing(getattr(os, name), tmp_path / closed))
    if name == "lstat":
        monkeypatch.setattr(Path, "lstat", lambda self: os.lstat(self))
    with pytest.raises(DataError, match=f"^{closed}: cannot be read .Permission denied.; leave"):
        upload_left(cast("WorkerApi", server), "run-1", tmp_path / "uploads", print, lambda: None)
    assert server.reported == ([] if closed == "uploads" else ["a.txt", "z.txt"])
