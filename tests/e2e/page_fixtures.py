"""The browser and what it looks at, as fixtures.

A module of tests has them by `pytest_plugins = ["tests.e2e.page_fixtures"]`.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.databases import KEY
from tests.e2e.pages import ARGUMENTS, Everything, Stored, Visitor, furnished
from tests.served import LONG, Api, Served, served
from tutelage.jobs.access import Access
from tutelage.jobs.database import Database
from tutelage.jobs.records import Scope

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """Debian's browser, started once."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        pytest.fail("the tests of the page drive a real browser, and there is none; apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: "Browser") -> Iterator[Visitor]:
    """`visit(url)` opens a page in a browser of its own. What a console complains of fails the test."""
    visitor = Visitor(chromium)
    yield visitor
    visitor.close()
    assert not visitor.complaints


@pytest.fixture(params=["sqlite", "postgresql"])
def stored(request: pytest.FixtureRequest, tmp_path: Path, migrated_sqlite: Path) -> Iterator[Stored]:
    """A server of this test alone, on SQLite as on a laptop and on PostgreSQL as a team has it."""
    if request.param == "sqlite":
        with served(tmp_path / "own", migrated=migrated_sqlite, lease_seconds=LONG) as running:
            yield Stored(running, None)
        return
    url: str = request.getfixturevalue("postgresql_url")
    with contextlib.closing(Database(url)) as database:
        access = Access(database, KEY)
        token = access.create_token(access.organization(), "first", [Scope.ADMIN]).secret
    with served(tmp_path / "team", database=url, lease_seconds=LONG) as running:
        yield Stored(running, token)


@pytest.fixture
def admin(own_server: Served) -> Api:
    """A client of this test's own server, which needs no token."""
    return own_server.api()


@pytest.fixture(scope="module")
def everything(open_server: Served) -> Everything:
    """To be looked at only."""
    return furnished(open_server)
