"""The schema: what migrations make is what the tables say, up and down, also when two start at once."""

from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, inspect, text

from tests.databases import Scene, ending_of, in_process
from tutelage.errors import ConfigError, StorageError
from tutelage.jobs.database import Database
from tutelage.jobs.event_log import EventLog, NewEvent
from tutelage.jobs.listing import Listing
from tutelage.jobs.run_logs import RunLogs
from tutelage.jobs.tables import metadata


def differences(database: Database) -> list[Any]:
    with database.reading() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))


def names(database: Database) -> set[str]:
    with database.reading() as connection:
        return set(inspect(connection).get_table_names())


def test_up_down_and_up_again(empty_url: str) -> None:
    """Alembic finds no difference to the tables; at the bottom there is nothing, and going there twice is fine."""
    database = Database(empty_url)
    assert database.revision() is None
    for _ in range(2):
        database.migrate()
        database.migrate()
        assert differences(database) == []
        assert database.revision() is not None
        database.migrate("base")
        database.migrate("base")
        assert names(database) == {"alembic_version"}
        assert database.revision() is None
    database.close()


def test_what_is_stored_survives_migrating_again(empty_url: str) -> None:
    database = Database(empty_url)
    database.migrate()
    scene = Scene(database)
    run = scene.running().run_id
    EventLog(database).append(scene.organization, run, [NewEvent("1", {"loss": 1.5})])
    RunLogs(database).append(scene.organization, run, 0, b"line")
    before = Listing(database).jobs(scene.organization)
    database.close()
    again = Database(empty_url)
    again.migrate()
    assert Listing(again).jobs(scene.organization) == before
    assert EventLog(again).latest(scene.organization, run_id=run) == {"loss": 1.5}
    assert RunLogs(again).read(scene.organization, run).content == b"line"
    again.close()


def test_a_schema_of_a_newer_version_is_refused_in_one_sentence(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(StorageError) as caught:
        database.migrate()
    assert str(caught.value) == (
        f"{database}: its schema 9999 was made by a newer tutelage; install that, or restore an older backup"
    )
    assert database.revision() == "9999"


def test_several_processes_that_migrate_at_once(empty_url: str) -> None:
    """API processes of a team start together; each finds the schema afterwards, whoever made it."""

    def migrate() -> None:
        own = Database(empty_url)
        own.migrate()
        own.close()

    assert [ending_of(pid) for pid in [in_process(migrate) for _ in range(4)]] == [0] * 4
    database = Database(empty_url)
    assert differences(database) == []
    database.close()


def test_a_migration_that_is_stopped_leaves_nothing(empty_url: str) -> None:
    """All of it in one transaction: the disk is full at the tenth statement."""
    database, seen = Database(empty_url), 0

    def fail(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 10:
            raise OSError("no space")

    event.listen(database.engine, "before_cursor_execute", fail)
    with pytest.raises(OSError, match="no space"):
        database.migrate()
    event.remove(database.engine, "before_cursor_execute", fail)
    assert names(database) == set()
    database.migrate()
    assert differences(database) == []
    database.close()


@pytest.mark.parametrize(
    "url", ["", "jobs.db", "mysql://host/name", "nonsense://x", "sqlite", "postgresql://host:port/name"]
)
def test_addresses_that_cannot_be_meant(url: str) -> None:
    with pytest.raises(ConfigError, match=r"(write|use) sqlite:///path or postgresql://…"):
        Database(url)


def test_databases_that_are_none(tmp_path: Path) -> None:
    """A text file, a folder that is not there, a server that does not answer: one sentence, and no password in it."""
    other = tmp_path / "notes.txt"
    other.write_text("not a database, but a text of more than a hundred bytes " * 10)
    for url in (
        f"sqlite:///{other}",
        f"sqlite:///{tmp_path}/missing/jobs.db",
        f"postgresql://me:hidden@/name?host={tmp_path}",
    ):
        database = Database(url)
        with pytest.raises(StorageError) as caught:
            database.revision()
        assert "\n" not in str(caught.value)
        assert "hidden" not in str(caught.value)
        assert "hidden" not in str(database)
        database.close()


def test_a_file_in_a_folder_with_a_percent_sign(tmp_path: Path) -> None:
    folder = tmp_path / "100% home"
    folder.mkdir()
    database = Database(f"sqlite:///{folder}/jobs.db")
    database.migrate()
    assert differences(database) == []
    database.close()
