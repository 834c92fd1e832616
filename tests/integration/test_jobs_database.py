"""Connections to the records, on SQLite and on PostgreSQL. Not here: the schema (`test_jobs_migrations.py`)."""

import sqlite3
from typing import Any

import pytest
from sqlalchemy import select

from tutelage.jobs.database import Database


def is_closed(connection: Any) -> bool:
    """Of a driver's connection."""
    if not isinstance(connection, sqlite3.Connection):
        return connection.closed
    try:
        connection.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return True
    return False


@pytest.mark.parametrize("way", ["reading", "writing"])
def test_closing_leaves_no_connection(database: Database, way: str) -> None:
    """Not one that is idle, and not one that somebody, as a thread of a server that ends, is still using."""
    with database.reading() as first, database.reading() as second:
        idle = [one.connection.driver_connection for one in (first, second)]
    with getattr(database, way)() as connection:
        used = connection.connection.driver_connection
        assert used in idle
        database.close()
        assert [is_closed(one) for one in idle if one is not used] == [True]
        assert connection.execute(select(1)).scalar() == 1
    assert is_closed(used)
