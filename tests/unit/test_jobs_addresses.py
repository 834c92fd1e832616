"""Addresses as errors show them: no password, however the address is mistyped."""

import pytest

from tutelage.errors import ConfigError
from tutelage.jobs.addresses import shown
from tutelage.jobs.database import Database


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("postgresql://tut:hunter2@db:5432/x", "postgresql://***@db:5432/x"),
        ("postgresql//tut:hunter2@db/x", "postgresql//***@db/x"),
        ("postgresql:/tut:hunter2@db/x", "***@db/x"),
        ("tut:hunter2@db/x", "***@db/x"),
        ("sftp://tut:p@hunter2/?@host/x", "sftp://***@host/x"),
        ("postgresql://tut:hunter2", "postgresql://tut:***"),
        ("postgresql://tut:hunter2/x", "postgresql://tut:***/x"),
        ("postgresql://db/x?sslmode=require&password=hunter2", "postgresql://db/x?sslmode=***"),
        ("host=db password=hunter2 user=x", "host=db password=***"),
        ("postgresql://db:5432/x", "postgresql://db:5432/x"),
        ("s3://bucket/run=1", "s3://bucket/run=1"),
        ("/home/a@b/files", "/home/a@b/files"),
        ("jobs.db", "jobs.db"),
    ],
)
def test_no_password_is_shown_and_the_rest_is(address: str, expected: str) -> None:
    assert shown(address) == expected


@pytest.mark.parametrize("url", ["postgresql//tut:hunter2@db/x", "postgresql://tut:hunter2", "host=d password=hunter2"])
def test_a_database_that_cannot_be_meant_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Database(url)
    assert str(raised.value) == f"database: '{shown(url)}' is not an address; write sqlite:///path or postgresql://…"
    assert raised.value.__cause__ is None  # which would hold it in a traceback


def test_a_password_among_the_options_of_a_database_is_not_shown() -> None:
    database = Database("postgresql://tut:hunter2@db/x?password=hunter2")  # nobody connects yet
    assert str(database) == "postgresql+psycopg://tut:***@db/x"
    database.close()
