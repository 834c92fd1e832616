"""Backups: made while a server runs, restored into the same kind of database or the other, and broken ones refused."""

import hashlib
import io
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.databases import KEY, PostgreSQL
from tests.object_stores import DENIED, ObjectStore
from tests.served import Process, Served, served, until
from tutelage.errors import ConfigError, DataError, OutputError, StorageError
from tutelage.jobs.access import Access
from tutelage.jobs.database import Database
from tutelage.jobs.records import Scope
from tutelage.jobs.tables import metadata
from tutelage.server import backup
from tutelage.server.backup import back_up, restore
from tutelage.server.settings import ServerSettings


def filled(server: Served) -> dict[str, str]:
    """Something of everything; what the test asks for afterwards."""
    api = server.api()
    file = api.upload(b"content of a file \xff", "result", "a.bin")["id"]
    api.ok("PUT", "/api/secrets/HF_TOKEN", {"value": "hf_secret_value"})
    running = api.running()
    api.report(running.run_id, {"loss": 0.25, "step": 1}, {"loss": 0.125, "step": 2}, file=file)
    api.print(running.run_id, 0, b"first line\nsecond \xc3\xa9\n")
    api.finish(running.run_id)
    waiting = api.submit("waits")["id"]
    return {"file": file, "run": running.run_id, "job": running.job_id, "waiting": waiting}


def new_token(url: str) -> None:
    database = Database(url)
    access = Access(database, KEY)
    access.create_token(access.organization(), "test", [Scope.ADMIN])
    database.close()


def rows_of(url: str) -> dict[str, list[tuple[object, ...]]]:
    database = Database(url)
    with database.reading() as connection:
        found = {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
            for table in metadata.sorted_tables
        }
    database.close()
    return found


def test_a_backup_of_a_running_server_comes_back(own_server: Served, tmp_path: Path, migrated_sqlite: Path) -> None:
    there, archive, home = filled(own_server), tmp_path / "monday.tar", tmp_path / "again"
    done = back_up(own_server.services.settings, archive)
    assert done.contents == 1
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600  # the key of the secrets is in it
    restore(ServerSettings(home), archive)
    assert rows_of(ServerSettings(home).database_url) == rows_of(own_server.services.settings.database_url)
    with served(home) as again:
        api = again.api()
        assert api("GET", f"/v1/files/{there['file']}/content").content == b"content of a file \xff"
        assert api.ok("GET", f"/api/jobs/{there['job']}")["outputs"]["loss"] == 0.125
        assert api("GET", f"/api/logs/{there['run']}").content == b"first line\nsecond \xc3\xa9\n"
        assert api.running(api.ok("GET", f"/api/jobs/{there['waiting']}")).answer["environment"] == {
            "HF_TOKEN": "hf_secret_value"
        }


def test_from_sqlite_to_postgresql_and_back(own_server: Served, postgresql: PostgreSQL, tmp_path: Path) -> None:
    there = filled(own_server)
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    back_up(own_server.services.settings, first)
    url = postgresql.new(migrated=False)
    team = ServerSettings(tmp_path / "team", database=url)
    restore(team, first)
    assert rows_of(url) == rows_of(own_server.services.settings.database_url)
    new_token(url)  # without one nobody could get in, and it would not start
    with served(tmp_path / "team", database=url) as running:
        # Ids that the database counts go on behind those that were restored.
        api = running.api(running.token())
        run = api.running(api.ok("GET", f"/api/jobs/{there['waiting']}")).run_id
        assert api.report(run, {"loss": 1.0}) == 1
        back_up(team, second)
    home = ServerSettings(tmp_path / "home")
    restore(home, second)
    assert rows_of(home.database_url) == rows_of(url)
    postgresql.drop(url)


def test_from_an_object_store_and_back(own_server: Served, object_store: ObjectStore, tmp_path: Path) -> None:
    """A backup holds the contents wherever they are; one that is damaged never gets into the store."""
    filled(own_server)
    there, bucket = own_server.services.settings, object_store.bucket()
    back_up(there, tmp_path / "first.tar")
    in_bucket = ServerSettings(tmp_path / "team", files=f"s3://{bucket}/x")
    assert restore(in_bucket, tmp_path / "first.tar").contents == 1
    content = b"content of a file \xff"
    digest = hashlib.sha256(content).hexdigest()
    assert object_store.keys(bucket) == [f"x/{digest[:2]}/{digest}"]
    assert back_up(in_bucket, tmp_path / "second.tar").contents == 1
    again = ServerSettings(tmp_path / "again")
    assert restore(again, tmp_path / "second.tar").contents == 1
    assert (again.home / "files" / digest[:2] / digest).read_bytes() == content
    assert list(again.uploads.iterdir()) == list(in_bucket.uploads.iterdir()) == []
    damaged, empty = tmp_path / "damaged.tar", object_store.bucket()
    damaged.write_bytes((tmp_path / "second.tar").read_bytes().replace(content, content[::-1]))
    with pytest.raises(DataError, match="was damaged"):
        restore(ServerSettings(tmp_path / "other", files=f"s3://{empty}"), damaged)
    assert object_store.keys(empty) == []
    object_store.always = {"GET": DENIED, "HEAD": DENIED}
    with pytest.raises(StorageError, match="look whether the store is up"):
        back_up(in_bucket, tmp_path / "third.tar")
    assert not (tmp_path / "third.tar").exists()


def test_what_is_written_meanwhile_is_whole_or_not_there(own_server: Served, tmp_path: Path) -> None:
    """Events come in pairs in one request each; a backup of one moment never holds half of a pair."""
    api = own_server.api()
    run = api.running().run_id
    stop = threading.Event()

    def report() -> None:
        while not stop.is_set():
            api.report(run, {"first": True}, {"second": True})

    writer = threading.Thread(target=report)
    writer.start()
    try:
        until(lambda: len(api.ok("GET", "/api/events", params={"run_id": run})["data"]) > 10)
        for number in range(3):
            back_up(own_server.services.settings, tmp_path / f"{number}.tar")
    finally:
        stop.set()
        writer.join()
    for number in range(3):
        home = ServerSettings(tmp_path / f"home{number}")
        restore(home, tmp_path / f"{number}.tar")
        events = rows_of(home.database_url)["events"]
        assert len(events) > 10
        assert len(events) % 2 == 0


def test_where_nothing_may_be_written_over(own_server: Served, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    back_up(own_server.services.settings, archive)
    with pytest.raises(OutputError, match=r"a\.tar: is there already; choose another name"):
        back_up(own_server.services.settings, archive)
    with pytest.raises(OutputError, match="cannot be written"):
        back_up(own_server.services.settings, tmp_path / "no" / "folder.tar")
    with pytest.raises(ConfigError, match=r"there is no tutelage\.db in it"):
        back_up(ServerSettings(tmp_path / "nowhere"), tmp_path / "b.tar")
    restore(ServerSettings(tmp_path / "home"), archive)
    with pytest.raises(ConfigError, match="there are records in it already"):
        restore(ServerSettings(tmp_path / "home"), archive)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".tar") == ["a.tar"]


def test_another_home_than_the_servers_makes_no_backup(own_server: Served, tmp_path: Path) -> None:
    """Records elsewhere say nothing about whose folder this is: a new key and no file would be found at the restore."""
    filled(own_server)
    settings = own_server.services.settings
    elsewhere = ServerSettings(tmp_path / "elsewhere", database=settings.database_url)
    archive = tmp_path / "a.tar"
    with pytest.raises(ConfigError, match=r"elsewhere: there is no secret\.key in it; give the --home of the server"):
        back_up(elsewhere, archive)
    assert not elsewhere.home.exists()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.key").write_bytes((settings.home / "secret.key").read_bytes())
    with pytest.raises(ConfigError, match=r"elsewhere/files: holds none of the 1 files; give the --files"):
        back_up(elsewhere, archive)
    assert not archive.exists()
    assert back_up(replace(elsewhere, files=settings.files_url), archive).contents == 1


def test_files_that_are_gone_or_short(own_server: Served, tmp_path: Path) -> None:
    """Some may have been deleted since the records were read; one that is cut off is said, with its place."""
    filled(own_server)
    gone = own_server.api().upload(b"will be gone", "result")["bytes"]
    settings = own_server.services.settings
    path = settings.home / "files" / hashlib.sha256(b"will be gone").hexdigest()[:2]
    path = path / hashlib.sha256(b"will be gone").hexdigest()
    path.write_bytes(b"will")
    with pytest.raises(StorageError, match=f"{path}: is shorter than was recorded; bring it back, or delete it"):
        back_up(settings, tmp_path / "short.tar")
    path.unlink()
    done = back_up(settings, tmp_path / "gone.tar")
    assert (done.contents, done.missing, done.bytes, gone) == (1, 1, len(b"content of a file \xff"), 12)
    assert [path.name for path in tmp_path.glob("*.tar")] == ["gone.tar"]


def test_an_archive_that_is_there_is_seen_before_anything_is_copied(
    own_server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_write", lambda *arguments: pytest.fail("it was copied first"))
    (tmp_path / "a.tar").touch()
    with pytest.raises(OutputError, match="is there already"):
        back_up(own_server.services.settings, tmp_path / "a.tar")


def test_the_command_makes_one_while_the_server_process_runs(processes: Callable[..., Process], tmp_path: Path) -> None:
    """Records of the last moment are in SQLite's journal, which the other process has open."""
    server = processes(tmp_path / "home")
    api = server.api()
    file = api.upload(b"kept", "result")["id"]
    running = api.running()
    assert api.report(running.run_id, *({"step": step} for step in range(500))) == 500
    archive = tmp_path / "a.tar"
    command = [sys.executable, "-m", "tutelage", "backup", str(archive), "--home", str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert api.report(running.run_id, {"step": 500}) == 1  # it goes on
    restore(ServerSettings(tmp_path / "again"), archive)
    with served(tmp_path / "again") as again:
        found = again.api()
        events = found.ok("GET", "/api/events", params={"run_id": running.run_id})["data"]
        assert [event["data"]["step"] for event in events] == list(range(500))
        assert found("GET", f"/v1/files/{file}/content").content == b"kept"


def remade(archive: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> None:
    """Write the archive again with other members."""
    with tarfile.open(archive) as tar:
        members = [(member.name, tar.extractfile(member)) for member in tar]
        content = [(name, file.read()) for name, file in members if file is not None]
    with tarfile.open(archive, "w") as tar:
        for name, data in content:
            changed = change(name, data)
            if changed is not None:
                member = tarfile.TarInfo(changed[0])
                member.size = len(changed[1])
                tar.addfile(member, io.BytesIO(changed[1]))


HASH = hashlib.sha256(b"content of a file \xff").hexdigest()
BROKEN: dict[str, tuple[Callable[[str, bytes], tuple[str, bytes] | None], str]] = {
    "no manifest": (lambda name, data: None if name == "manifest.json" else (name, data), "is no backup"),
    "other bytes": (
        lambda name, data: (name, b"x" * len(data) if name.startswith("files/") else data),
        f"the file {HASH} in it was damaged",
    ),
    "a way out": (
        lambda name, data: ("files/../../../evil" if name.startswith("files/") else name, data),
        "'files/../../../evil' in it is not known",
    ),
    "an absolute path": (
        lambda name, data: ("/tmp/evil" if name.startswith("files/") else name, data),
        "'/tmp/evil' in it is not known",
    ),
    "a row that is none": (
        lambda name, data: (name, data + b"{}\n" if name == "records/jobs.jsonl" else data),
        "a row of jobs has other columns",
    ),
    "an end that is none": (
        lambda name, data: (name, b"no JSON" if name == "end.json" else data),
        "is no whole backup: its end is missing",
    ),
    "a newer schema": (
        lambda name, data: (name, data.replace(b'"0001"', b'"9999"') if name == "manifest.json" else data),
        "was made by a newer tutelage",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_backup_leaves_nothing(fault: str, own_server: Served, tmp_path: Path) -> None:
    """And a whole one can be restored into the same home afterwards."""
    filled(own_server)
    good, bad, home = tmp_path / "good.tar", tmp_path / "bad.tar", ServerSettings(tmp_path / "home")
    back_up(own_server.services.settings, good)
    bad.write_bytes(good.read_bytes())
    change, sentence = BROKEN[fault]
    remade(bad, change)
    with pytest.raises(DataError, match=sentence.replace("/", "/").replace(".", r"\.")):
        restore(home, bad)
    assert not (tmp_path / "evil").exists()
    restore(home, good)
    assert rows_of(home.database_url) == rows_of(own_server.services.settings.database_url)


def test_a_torn_archive(own_server: Served, tmp_path: Path) -> None:
    archive = tmp_path / "torn.tar"
    back_up(own_server.services.settings, archive)
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(DataError, match="is no"):
        restore(ServerSettings(tmp_path / "home"), archive)
    archive.write_bytes(b"no archive at all")
    with pytest.raises(DataError, match=r"torn\.tar: is no whole backup"):
        restore(ServerSettings(tmp_path / "home"), archive)
