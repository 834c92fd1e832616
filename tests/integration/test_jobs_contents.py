"""Files in an object store: whole or not at all, sent in parts, and one sentence where the store refuses."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.databases import in_threads
from tests.integration.test_jobs_files import Shelf
from tests.object_stores import BROKEN, BUSY, DENIED, ObjectStore
from tutelage.errors import ConfigError, ContentGoneError, NotFoundError, StorageError
from tutelage.jobs import file_systems
from tutelage.jobs.contents import Contents
from tutelage.jobs.database import Database

PART = 5 * 1024 * 1024
"""The smallest that S3 takes but for the last one."""


@pytest.fixture
def bucket(object_store: ObjectStore) -> str:
    return object_store.bucket()


@pytest.fixture
def shelf(sqlite_url: str, tmp_path: Path, bucket: str) -> Iterator[Shelf]:
    database = Database(sqlite_url)
    yield Shelf(database, tmp_path, f"s3://{bucket}/some/where/")
    database.close()


@pytest.fixture
def either_shelf(database: Database, tmp_path: Path, bucket: str) -> Shelf:
    """With records in SQLite, and in PostgreSQL."""
    return Shelf(database, tmp_path, f"s3://{bucket}/some/where/")


def test_files_come_and_go(either_shelf: Shelf, object_store: ObjectStore, bucket: str) -> None:
    """The same bytes are one object, until the last file of them is deleted; nothing else is left, here or there."""
    shelf = either_shelf
    content = bytes(range(256)) * 5000
    first = shelf.keep(content[:90_000])
    assert shelf.keep(content[:90_000], purpose="samples").bytes == 90_000
    assert object_store.requests("PUT", bucket) == 2  # one of them tried the store out
    assert shelf.read(first.id) == content[:90_000]
    empty = shelf.keep(b"")
    assert shelf.read(empty.id) == b""
    assert len(object_store.keys(bucket)) == 2
    assert all(key.startswith("some/where/") for key in object_store.keys(bucket))
    for file in shelf.store.list(shelf.organization):
        assert shelf.contents() == []  # nothing waits on this machine
        shelf.store.delete(shelf.organization, file.id)
    assert object_store.keys(bucket) == []
    with pytest.raises(NotFoundError):
        shelf.read(first.id)


def test_a_large_file_goes_in_parts_and_is_never_whole_in_memory(
    tmp_path: Path, object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """41 MiB, of which no more than a few parts are in memory when they are sent, and when they are read back. The
    store, which is in this process too, keeps what it has in memory: it is counted before."""
    monkeypatch.setattr(file_systems, "S3_PART_BYTES", PART)
    source, size = tmp_path / "source", 8 * PART + 1024 * 1024
    with source.open("wb") as file:
        file.truncate(size)
    contents = Contents(f"s3://{bucket}")
    code = (
        "import sys, pathlib, resource\n"
        "from tutelage.jobs import file_systems\n"
        "from tutelage.jobs.contents import Contents\n"
        f"file_systems.S3_PART_BYTES = {PART}\n"
        "contents = Contents(sys.argv[1])\n"
        "contents.begin(pathlib.Path(sys.argv[2]).parent / 'incoming')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "contents.put(pathlib.Path(sys.argv[2]), 'ab' * 32, int(sys.argv[3]))\n"
        "with contents.open('ab' * 32) as parts:\n"
        "    print(sum(len(part) for part in parts))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, f"s3://{bucket}", str(source), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    read, kilobytes = map(int, done.stdout.split())
    assert read == size
    print(f"{kilobytes} KB more than before, for a file of {size // 1024} KB")
    assert kilobytes * 1024 < 6 * PART
    assert object_store.requests("PUT", bucket) == 1 + 9  # the try, eight parts and the rest
    contents.remove("ab" * 32)
    assert object_store.keys(bucket) == []


@pytest.mark.parametrize("refusal", [BUSY, BROKEN])
def test_a_store_that_refuses_for_a_moment_is_asked_again(
    shelf: Shelf, object_store: ObjectStore, refusal: tuple[str, str, str]
) -> None:
    object_store.refusals = {"PUT": [refusal], "HEAD": [refusal], "GET": [refusal]}
    file = shelf.keep(b"content")
    assert shelf.read(file.id) == b"content"
    assert not any(object_store.refusals.values())


def test_a_store_that_refuses_leaves_no_record_and_nothing_here(
    shelf: Shelf, object_store: ObjectStore, bucket: str
) -> None:
    """What was there before can be read again afterwards, and what was refused comes in when it is sent again."""
    before = shelf.keep(b"before")
    object_store.always = {"PUT": BROKEN}
    with pytest.raises(StorageError, match=rf"s3://{bucket}/some/where/: cannot be written \(Something is broken\)"):
        shelf.keep(b"content")
    object_store.always = {"GET": DENIED, "HEAD": DENIED}
    with pytest.raises(
        StorageError, match=r"cannot be read \(.*\); look whether the store is up and lets this"
    ) as told:
        shelf.read(before.id)
    assert not isinstance(told.value, ContentGoneError)
    with pytest.raises(StorageError, match="look whether the store is up"):
        shelf.store.delete(shelf.organization, before.id)
    object_store.well()
    assert [file.id for file in shelf.store.list(shelf.organization)] == [before.id]
    assert (shelf.contents(), len(object_store.keys(bucket))) == ([], 1)
    assert shelf.read(before.id) == b"before"
    assert shelf.read(shelf.keep(b"content").id) == b"content"


def test_a_part_that_is_refused_leaves_no_half_file(
    shelf: Shelf, object_store: ObjectStore, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_systems, "S3_PART_BYTES", PART)
    source = tmp_path / "source"
    source.write_bytes(b"x" * (3 * PART))
    object_store.always = {"PUT": BROKEN}
    with pytest.raises(StorageError, match="Something is broken"):
        shelf.store.contents.put(source, "ab" * 32, 3 * PART)
    assert object_store.requests("DELETE", bucket) == 2  # of what was tried, and of the parts that were there
    assert object_store.keys(bucket) == []


def test_a_bucket_that_goes_away_is_no_file_that_is_gone(shelf: Shelf, object_store: ObjectStore, bucket: str) -> None:
    """Nobody is told to upload again what comes back with the bucket."""
    file = shelf.keep(b"content")
    (key,) = object_store.keys(bucket)
    shelf.store.contents.remove(key.rpartition("/")[2])
    with pytest.raises(ContentGoneError, match="upload the file again"):
        shelf.read(file.id)
    store: Any = shelf.store.contents
    store._store.rmdir(bucket)
    with pytest.raises(StorageError, match="its bucket is not there") as told:
        shelf.read(file.id)
    assert not isinstance(told.value, ContentGoneError)
    with pytest.raises(StorageError, match=r"cannot be written \(The specified bucket does not exist\)"):
        shelf.keep(b"content")


def test_uploads_and_deletes_of_one_content_at_once(
    either_shelf: Shelf, object_store: ObjectStore, bucket: str
) -> None:
    """Whatever wins, a record has its content and content has a record."""
    shelf = either_shelf

    def change(purpose: str) -> None:
        for _ in range(4):
            shelf.store.delete(shelf.organization, shelf.keep(b"contended", purpose).id)
            shelf.keep(b"contended", purpose)

    assert in_threads([lambda purpose=purpose: change(purpose) for purpose in ("a", "b", "c")]) == [None] * 3
    assert len(object_store.keys(bucket)) == 1
    for file in shelf.store.list(shelf.organization):
        assert shelf.read(file.id) == b"contended"
        shelf.store.delete(shelf.organization, file.id)
    assert object_store.keys(bucket) == []


def test_a_slow_store_keeps_no_writer_waiting(
    database: Database, either_shelf: Shelf, object_store: ObjectStore
) -> None:
    """While a file is being sent, records are written: heartbeats, for example."""
    object_store.held.clear()

    def write() -> str:
        assert object_store.waiting.wait(30)
        with database.writing(), database.alone_with(1):
            pass
        object_store.held.set()
        return "written"

    kept, written = in_threads([lambda: either_shelf.keep(b"slow"), write])
    assert written == "written"
    assert either_shelf.read(kept.id) == b"slow"


@pytest.mark.parametrize(
    ("address", "refusal", "said"),
    [
        ("s3://no-such-bucket", {}, r"cannot be written \(The specified bucket does not exist\); look whether"),
        ("s3://{bucket}/x", {"PUT": DENIED}, r"cannot be written \(The key is not known here\); look whether"),
        ("s3://{bucket}/x", {"GET": DENIED}, r"cannot be written \(The key is not known here\); look whether"),
        ("s3://{bucket}/x", {"DELETE": DENIED}, r"cannot be written \(The key is not known here\); look whether"),
    ],
)
def test_stores_that_cannot_be_used_are_said_at_the_start(
    object_store: ObjectStore,
    bucket: str,
    tmp_path: Path,
    address: str,
    refusal: dict[str, tuple[str, str, str]],
    said: str,
) -> None:
    """No bucket is made: its name may be mistyped."""
    object_store.always = refusal
    address = address.format(bucket=bucket)
    with pytest.raises(ConfigError, match=f"^files: {address}: {said}"):
        Contents(address).begin(tmp_path)


def test_without_credentials_or_without_its_package(tmp_path: Path, object_store: ObjectStore, bucket: str) -> None:
    """A sentence, and how to go on."""
    code = (
        "import sys, pathlib\n"
        "from tutelage.errors import ConfigError\n"
        "from tutelage.jobs.contents import Contents\n"
        "sys.modules |= dict.fromkeys(sys.argv[2:])\n"
        "try:\n"
        f"    Contents(sys.argv[1]).begin(pathlib.Path({str(tmp_path)!r}))\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )

    def told(*without: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment |= {"AWS_ENDPOINT_URL": object_store.url, "AWS_EC2_METADATA_DISABLED": "true"}
        command = [sys.executable, "-W", "error", "-c", code, f"s3://{bucket}", *without]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert "cannot be written (Unable to locate credentials); look whether the store is up" in told()
    assert told("s3fs").endswith("pip install 'tutelage[s3]'\n")


def test_nothing_of_s3_is_loaded_without_it(tmp_path: Path) -> None:
    """By the commands, and by a server whose files are in its home."""
    code = (
        "import sys, pathlib, tutelage.cli, tutelage.server.serve\n"
        "from tutelage.server.services import open_services\n"
        "from tutelage.server.settings import ServerSettings\n"
        "open_services(ServerSettings(home=pathlib.Path(sys.argv[1]))).close()\n"
        "print([name for name in ('s3fs', 'aiobotocore', 'botocore', 'boto3', 'moto') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
