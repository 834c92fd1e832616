"""Files by content: one file for the same bytes, never a record without content, nothing left of what failed."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from tests.databases import WAITING_SECONDS, Scene, in_threads, new_organization, submission
from tutelage.errors import ConfigError, DataError, JobError, NotFoundError, StorageError
from tutelage.jobs.contents import UNFINISHED
from tutelage.jobs.database import Database
from tutelage.jobs.file_systems import cannot_open, open_store
from tutelage.jobs.identity import FileHash
from tutelage.jobs.listing import Listing
from tutelage.jobs.queue import Queue
from tutelage.jobs.records import StoredFile
from tutelage.jobs.status import JobStatus
from tutelage.jobs.stored_files import FileStore
from tutelage.jobs.tables import files

MAX_BYTES = 100_000


class Shelf:
    """A store with the files of one organisation in a folder."""

    def __init__(self, database: Database, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.store = FileStore(database, url or str(folder / "store"), folder / "uploads", max_bytes=MAX_BYTES)
        self.organization = new_organization(database)

    def keep(
        self, content: bytes, purpose: str = "result", organization: str | None = None, name: str = "a.bin"
    ) -> StoredFile:
        owner = organization or self.organization
        with self.store.upload(owner) as upload:
            upload.write(content)
            return self.store.keep(owner, upload, purpose=purpose, filename=name)

    def read(self, file_id: str, organization: str | None = None) -> bytes:
        with self.store.open(organization or self.organization, file_id) as (_, parts):
            return b"".join(parts)

    def contents(self) -> list[str]:
        """Names of all that is in the store or was coming in."""
        return sorted(
            path.name for name in ("store", "uploads") for path in (self.folder / name).rglob("*") if path.is_file()
        )


@pytest.fixture
def shelf(database: Database, tmp_path: Path) -> Shelf:
    return Shelf(database, tmp_path)


def test_the_same_bytes_are_one_file(database: Database, shelf: Shelf) -> None:
    """Per purpose and organisation; stored once under their SHA-256, whatever they are called."""
    content = bytes(range(256)) * 10
    first = shelf.keep(content, name="../../etc/passwd\0")
    again = shelf.keep(content, name="other")
    assert again == first
    hashed = FileHash(shelf.organization)
    hashed.update(content)
    assert first.id == hashed.id("result")
    assert (first.bytes, first.filename) == (2560, "../../etc/passwd\ufffd")  # a name is shown, never a path
    other = new_organization(database)
    same = [first, shelf.keep(content, purpose="samples"), shelf.keep(content, organization=other)]
    assert len({file.id for file in same}) == 3
    assert shelf.contents() == [hashed.content_hash]
    assert [file.id for file in shelf.store.list(shelf.organization)] == [same[1].id, first.id]
    assert [file.id for file in shelf.store.list(shelf.organization, ascending=True, after=first.id)] == [same[1].id]
    for file, owner in ((first, other), (same[2], shelf.organization)):
        for look in (lambda f=file, o=owner: shelf.store.get(o, f.id), lambda f=file, o=owner: shelf.read(f.id, o)):
            with pytest.raises(NotFoundError):
                look()
        with pytest.raises(NotFoundError):
            shelf.store.delete(owner, file.id)
    for file, owner in zip(same, (shelf.organization, shelf.organization, other), strict=True):
        assert shelf.read(file.id, owner) == content  # until the last of them is gone
        shelf.store.delete(owner, file.id)
    assert shelf.contents() == []
    assert shelf.read(shelf.keep(b"").id) == b""


@pytest.mark.parametrize("purpose", ["", "Result", "a/b", "a:b", "result\n", "a" * 65, "1a", "ä"])
def test_purposes_that_are_none(shelf: Shelf, purpose: str) -> None:
    with pytest.raises(JobError, match="use lower-case letters, digits, - and _"):
        shelf.keep(b"x", purpose=purpose)
    assert shelf.contents() == []


def test_a_file_that_a_job_needs_stays(database: Database, shelf: Shelf) -> None:
    """While the job waits or runs; in its params at any depth, or mounted."""
    scene = Scene(database)
    shelf.organization = scene.organization
    deep, mounted, free = (shelf.keep(content) for content in (b"deep", b"mounted", b"free"))
    scene.submit(1, params={"a": [{"b": deep.id}]}, mounted_files={"x": mounted.id})
    shelf.store.delete(shelf.organization, free.id)
    claim = scene.claim()
    for file in (deep, mounted):
        with pytest.raises(JobError, match=f"job {claim.job.id} needs it; cancel that job"):
            shelf.store.delete(shelf.organization, file.id)
        assert shelf.read(file.id)
    scene.queue.cancel(scene.organization, claim.job.id)
    for file in (deep, mounted):
        shelf.store.delete(shelf.organization, file.id)
    assert shelf.contents() == []


def test_a_file_whose_content_is_gone_comes_back_by_uploading_it_again(shelf: Shelf) -> None:
    """What the sentence of the error says has to work."""
    file = shelf.keep(b"content")
    next(path for path in (shelf.folder / "store").rglob("*") if path.is_file()).unlink()
    with pytest.raises(StorageError, match="its content is gone from the store; upload the file again"):
        shelf.read(file.id)
    assert shelf.keep(b"content") == file
    assert shelf.read(file.id) == b"content"


def test_uploads_and_deletes_of_one_content_at_once(database: Database, shelf: Shelf) -> None:
    """Whatever wins, a record has its content and content has a record."""
    other = new_organization(database)
    content = b"contended" * 1000

    def change(owner: str, purpose: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(8):
                with contextlib.suppress(NotFoundError):  # two of them are the same file
                    shelf.store.delete(owner, shelf.keep(content, purpose, owner).id)
                assert shelf.keep(content, purpose, owner).bytes == len(content)

        return run

    owners = [(shelf.organization, "result"), (shelf.organization, "samples"), (other, "result"), (other, "result")]
    assert in_threads([change(*one) for one in owners]) == [None] * 4
    assert len(shelf.contents()) == 1
    for owner, purpose in owners:
        assert shelf.read(shelf.keep(content, purpose, owner).id, owner) == content
    with database.reading() as connection:
        rows = connection.execute(select(files.c.id, files.c.organization_id)).all()
    assert len(rows) == 3
    for row in rows:
        assert shelf.read(row.id, row.organization_id) == content
        shelf.store.delete(row.organization_id, row.id)
    assert shelf.contents() == []


def test_a_content_that_is_deleted_while_it_is_looked_for_is_stored_again(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes between any two looks of the store: each look of the first upload finds it, and deletes it then."""
    store: Any = shelf.store.contents._store  # pyright: ignore[reportPrivateUsage] - what happens is below the class under test
    first = shelf.keep(b"content")
    info, deleted = store.info, list[str]()

    def deleting(path: str, **named: Any) -> Any:
        found = info(path, **named)
        if not deleted:
            deleted.append(path)
            shelf.store.delete(shelf.organization, first.id)
        return found

    monkeypatch.setattr(store, "info", deleting)
    again = shelf.keep(b"content")
    assert [Path(path).name for path in deleted] == shelf.contents()
    assert shelf.read(again.id) == b"content"


@pytest.mark.parametrize("call", ["put_file", "mv", "makedirs"])
def test_a_full_disk_of_the_store_leaves_nothing(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Half of the file is there when the disk is full."""
    store: Any = shelf.store.contents._store  # pyright: ignore[reportPrivateUsage] - what fails is below the class under test

    def full(source: str, target: str = "", **_: Any) -> None:
        if call == "put_file":
            Path(target).write_bytes(Path(source).read_bytes()[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, call, full)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\); free space there"):
        shelf.keep(b"content")
    monkeypatch.undo()
    assert shelf.contents() == []
    assert shelf.store.list(shelf.organization) == []
    assert shelf.read(shelf.keep(b"content").id) == b"content"


def test_a_full_disk_while_a_file_comes_in_leaves_nothing(shelf: Shelf) -> None:
    """/dev/full takes nothing: writing there fails as on a full disk."""
    with shelf.store.upload(shelf.organization) as upload, Path("/dev/full").open("wb", buffering=0) as full:
        own: Any = upload
        own._file.write = full.write
        with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\); free space there"):
            upload.write(b"content")
    assert shelf.contents() == []


def test_an_upload_beyond_the_limit(shelf: Shelf) -> None:
    """The limit itself is allowed; an endless one ends one part behind it."""
    assert shelf.keep(b"x" * MAX_BYTES).bytes == MAX_BYTES
    with shelf.store.upload(shelf.organization) as upload:
        upload.write(b"x" * MAX_BYTES)
        with pytest.raises(DataError, match=f"larger than {MAX_BYTES} bytes"):
            upload.write(b"x")
        assert upload.path.stat().st_size <= MAX_BYTES
    assert len(shelf.contents()) == 1  # the first one


def test_heartbeats_go_on_while_a_large_file_is_stored(
    database: Database, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying takes longer than a lease; nobody else's lease may run out for it."""
    scene = Scene(database)
    claim = scene.running()
    store: Any = shelf.store.contents._store  # pyright: ignore[reportPrivateUsage]
    copying, renewed, put = threading.Event(), threading.Event(), store.put_file

    def slow(*arguments: Any, **named: Any) -> None:
        copying.set()
        if not renewed.wait(5.0):
            raise OSError(errno.ETIMEDOUT, "no heartbeat was taken in meanwhile")
        put(*arguments, **named)

    monkeypatch.setattr(store, "put_file", slow)

    def heartbeat() -> Any:
        assert copying.wait(WAITING_SECONDS)
        answer = scene.queue.renew(scene.organization, claim.run_id)
        renewed.set()
        return answer

    kept, answer = in_threads([lambda: shelf.keep(b"large"), heartbeat])
    assert not answer.cancel
    assert isinstance(kept, StoredFile), kept
    assert shelf.read(kept.id) == b"large"


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_other_stores(database: Database, tmp_path: Path, kind: str) -> None:
    """An address that fsspec knows is as good as a folder."""
    url = f"memory://bucket-{tmp_path.name}/files" if kind == "memory" else f"file://{tmp_path}/there"
    shelf = Shelf(database, tmp_path, url)
    content = bytes(range(256)) * 300
    file = shelf.keep(content)
    assert shelf.keep(content, purpose="samples").bytes == len(content)
    assert shelf.read(file.id) == content
    for one in shelf.store.list(shelf.organization):
        shelf.store.delete(shelf.organization, one.id)
    with pytest.raises(NotFoundError):
        shelf.read(file.id)
    store: Any = shelf.store
    assert store.contents._store.find(store.contents._root) == []


def test_stores_that_cannot_be_opened(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url in ("nosuchscheme://bucket", str(tmp_path / "file" / "below")):
        with pytest.raises(ConfigError, match="cannot be opened"):
            FileStore(database, url, tmp_path / "uploads", max_bytes=1)


def test_what_others_are_uploading_is_not_taken_for_left_behind(shelf: Shelf) -> None:
    """A server begins while another one works in the same folder; what nobody has open goes."""
    (shelf.folder / "uploads" / "upload-of-a-killed-server.jsonl").write_bytes(b"half")
    with shelf.store.upload(shelf.organization) as upload:
        upload.write(b"content")
        shelf.store.remove_left_behind()
        assert shelf.contents() == [upload.path.name]
        file = shelf.store.keep(shelf.organization, upload, purpose="result", filename="a")
    assert shelf.read(file.id) == b"content"


def test_what_a_killed_process_left_half_written_in_the_store_is_removed(shelf: Shelf) -> None:
    """Not what somebody is writing now, who may be another process."""
    file = shelf.keep(b"content")
    unfinished = shelf.folder / "store" / UNFINISHED
    (unfinished / "now").write_bytes(b"half")
    (unfinished / "before").write_bytes(b"half")
    os.utime(unfinished / "before", (time.time() - 4000, time.time() - 4000))
    shelf.store.remove_left_behind()
    assert [path.name for path in unfinished.iterdir()] == ["now"]
    assert shelf.read(file.id) == b"content"


def test_a_delete_that_the_store_refuses_is_done_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nobody would know of the content any more, and it would stay for ever."""
    file = shelf.keep(b"to be forgotten")
    store: Any = shelf.store.contents

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "too busy")

    with monkeypatch.context() as patch:
        patch.setattr(store._store, "rm_file", refuse)
        with pytest.raises(StorageError):
            shelf.store.delete(shelf.organization, file.id)
    assert shelf.store.get(shelf.organization, file.id) == file
    shelf.store.delete(shelf.organization, file.id)
    assert shelf.contents() == []


def test_a_file_is_on_the_disk_before_its_record(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes before it gets its name, and after that the folders that have the name."""
    seen: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(source: str, target: str, **options: Any) -> None:
        seen.append("rename")
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    shelf.keep(b"content")
    (content,) = shelf.contents()
    at = seen.index("rename")
    assert len(seen[at - 1]) == 32  # its name until then
    assert seen[at + 1 :][:2] == [content[:2], "store"]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(st.binary(max_size=30), min_size=1, max_size=8), limit=st.integers(1, 4))
def test_pages_of_files_hold_each_once(database: Database, tmp_path: Path, contents: list[bytes], limit: int) -> None:
    shelf = Shelf(database, tmp_path)
    ids = {shelf.keep(content, purpose).id for content in contents for purpose in ("a", "b")}
    for ascending in (False, True):
        got: list[str] = []
        while True:
            page = shelf.store.list(
                shelf.organization, limit=limit, after=got[-1] if got else None, ascending=ascending
            )
            got += [file.id for file in page]
            if len(page) < limit:
                break
        assert len(got) == len(ids)
        assert set(got) == ids


def test_an_address_is_shown_without_its_password(database: Database, tmp_path: Path) -> None:
    """In what is raised, whatever the package below puts into its own sentence."""
    with pytest.raises(ConfigError) as raised:
        FileStore(database, "nosuch://tut:hunter2@host/x", tmp_path / "uploads", max_bytes=1)
    assert str(raised.value).startswith("files: 'nosuch://***@host/x' cannot be opened (")
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"files: 'nosuch://\*\*\*@host/x' cannot be opened \(Protocol not known"):
        open_store("nosuch://tut:hunter2@host/x")
    url = "sftp://tut:hunter2@host/x"
    said = str(cannot_open(url, ValueError(f"no answer of {url}")))
    assert said == (
        "files: 'sftp://***@host/x' cannot be opened (no answer of sftp://***@host/x); give a folder or a store fsspec "
        "knows"
    )


def test_a_job_whose_file_was_deleted_does_not_begin_again(database: Database, shelf: Shelf) -> None:
    """It would fail on its worker; whoever restarts it is the one who can upload the file again."""
    scene = Scene(database)
    shelf.organization = scene.organization
    file = shelf.keep(b"rows").id
    claim = scene.running(mounted_files={"a": file})
    scene.queue.finish(scene.organization, claim.run_id, JobStatus.FAILED)
    shelf.store.delete(scene.organization, file)
    with pytest.raises(NotFoundError, match=f"{file}: there is no such file"):
        scene.queue.restart(scene.organization, claim.job.id)
    assert Listing(database).job(scene.organization, claim.job.id).status is JobStatus.FAILED
    assert shelf.keep(b"rows").id == file
    assert scene.queue.restart(scene.organization, claim.job.id).status is JobStatus.PENDING


def test_a_job_needs_files_that_are_there(database: Database, shelf: Shelf) -> None:
    """All of them, of its own organisation; else there is no job."""
    file, queue = shelf.keep(b"x").id, Queue(database)
    needing = submission(mounted_files={"a": file})
    missing = "result:file-000000000000"
    with pytest.raises(NotFoundError, match=missing):
        queue.submit(shelf.organization, needing, files={file, missing})
    other = new_organization(database)
    with pytest.raises(NotFoundError, match=file):
        queue.submit(other, needing, files={file})
    listing = Listing(database)
    assert listing.jobs(shelf.organization) == listing.jobs(other) == []
    assert queue.submit(shelf.organization, needing, files={file}).mounted_files == {"a": file}
