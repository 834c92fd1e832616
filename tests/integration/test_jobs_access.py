"""Tokens and secrets: who gets in, until when, and that neither stands in the database as it is."""

import secrets
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import select

from tests.databases import KEY, Scene, in_threads, new_organization
from tutelage.errors import ConfigError, FencedError, JobError, NotFoundError, StorageError
from tutelage.jobs.access import OF_SERVER, Access, Principal
from tutelage.jobs.database import Database
from tutelage.jobs.records import Scope
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import tokens


@pytest.fixture
def access(database: Database) -> Access:
    return Access(database, KEY)


def test_a_token_lets_in_until_it_is_revoked_or_expires(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    organization = access.organization("a")
    assert not access.has_tokens()
    made = access.create_token(organization, "laptop", [Scope.SUBMIT, Scope.READ], expires_at=time.time() + 100)
    assert access.has_tokens()
    expected = Principal(organization, frozenset({Scope.READ, Scope.SUBMIT}), made.token.id)
    assert access.principal(made.secret) == expected
    assert access.principal(made.secret + "x") is access.principal("") is access.principal(made.secret[:-1]) is None
    assert access.principal(made.token.id) is None
    (listed,) = access.tokens(organization)
    assert listed.last_used_at is not None
    assert (listed.id, listed.scopes) == (made.token.id, [Scope.READ, Scope.SUBMIT])
    other = access.organization("b")
    assert access.tokens(other) == []
    with pytest.raises(NotFoundError):
        access.revoke_token(other, made.token.id)
    now = time.time()
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now + 101)
        assert access.principal(made.secret) is None
    assert access.principal(made.secret) == expected
    revoked = access.revoke_token(organization, made.token.id)
    assert revoked.revoked_at is not None
    assert access.principal(made.secret) is None
    assert not access.has_tokens()
    assert access.revoke_token(organization, made.token.id) == revoked  # twice: when it was first


def test_scopes_are_what_they_are_and_admin_is_all() -> None:
    for granted in Scope:
        principal = Principal("org", frozenset({granted}))
        assert {asked for asked in Scope if principal.may(asked)} == (
            set(Scope) if granted is Scope.ADMIN else {granted}
        )


def test_tokens_that_cannot_be_made(access: Access) -> None:
    organization = access.organization("a")
    with pytest.raises(JobError, match="token 't': give it a scope, one of read, submit, worker, admin"):
        access.create_token(organization, "t", [])
    with pytest.raises(JobError, match="its expiry is not in the future"):
        access.create_token(organization, "t", [Scope.READ], expires_at=time.time() - 1)
    for number in ("nan", "inf"):
        with pytest.raises(JobError):
            access.create_token(organization, "t", [Scope.READ], expires_at=float(number))


@pytest.mark.parametrize("ending", ["finish", "lose"])
def test_the_token_of_a_run_dies_with_it(database: Database, access: Access, ending: str) -> None:
    """It may write for its run alone, which is known by it, and is not shown among those of people."""
    scene = Scene(database)
    run = scene.running().run_id
    secret = access.create_token(scene.organization, run, [Scope.READ, Scope.SUBMIT], run_id=run).secret
    principal = access.principal(secret)
    assert principal is not None
    assert (principal.run_id, principal.organization) == (run, scene.organization)
    assert access.tokens(scene.organization) == []
    assert not access.has_tokens()
    if ending == "finish":
        scene.queue.finish(scene.organization, run, JobStatus.FAILED)
    else:
        scene.lose_leases()
    assert access.principal(secret) is None
    with database.reading() as connection:
        assert connection.execute(select(tokens.c.id)).all() == []  # and its record with it
    with pytest.raises(FencedError, match=f"{run}: the run is failed"):  # the answer to a claim, too late
        access.create_token(scene.organization, run, [Scope.READ], run_id=run)


def test_tokens_of_servers_are_not_those_of_people(access: Access) -> None:
    """Servers take them away; nobody else gets one that is called so."""
    organization = access.organization("a")
    for name in (OF_SERVER, f"{OF_SERVER} room"):
        with pytest.raises(JobError, match="names that begin so are of servers; choose another"):
            access.create_token(organization, name, [Scope.ADMIN])
        access.create_token(organization, name, [Scope.ADMIN], of_server=True)
    assert not access.has_tokens()
    access.create_token(organization, f"a {OF_SERVER}", [Scope.READ])
    assert access.has_tokens()


def test_a_full_disk_keeps_nobody_out(database: Database, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a token was used is a note for people; who wants to see what can be deleted has to get in."""
    organization = access.organization("a")
    made = access.create_token(organization, "laptop", [Scope.READ])

    def full() -> Any:
        raise StorageError("database or disk is full")

    monkeypatch.setattr(database, "writing", full)
    assert access.principal(made.secret) == Principal(organization, frozenset({Scope.READ}), made.token.id)
    assert access.tokens(organization)[0].last_used_at is None
    monkeypatch.undo()
    access.principal(made.secret)
    assert access.tokens(organization)[0].last_used_at is not None


def test_neither_tokens_nor_secrets_are_in_the_database(sqlite_url: str) -> None:
    """Every byte of the file and of its log is looked at; what may be there is a SHA-256 and a ciphertext."""
    database = Database(sqlite_url)
    access = Access(database, KEY)
    organization = access.organization()
    secret = access.create_token(organization, "laptop", list(Scope)).secret
    access.set_secret(organization, "HF_TOKEN", "hf_the-very-secret-value")
    stored = b"".join(path.read_bytes() for path in Path(database.url.database or "").parent.glob("jobs.db*"))
    assert b"laptop" in stored
    assert b"HF_TOKEN" in stored
    for hidden in (secret, secret.removeprefix("tut-"), "hf_the-very-secret-value"):
        assert hidden.encode() not in stored
    assert access.environment(organization) == {"HF_TOKEN": "hf_the-very-secret-value"}
    database.close()


def test_secrets(access: Access) -> None:
    organization, other = access.organization("a"), access.organization("b")
    for name, value in (("HF_TOKEN", "one"), ("HF_TOKEN", "two\nlines \u00e9"), ("_x1", "")):
        access.set_secret(organization, name, value)
    assert access.secret_names(organization) == ["HF_TOKEN", "_x1"]
    assert access.environment(organization) == {"HF_TOKEN": "two\nlines \u00e9", "_x1": ""}
    assert access.environment(other) == {}
    with pytest.raises(NotFoundError):
        access.delete_secret(other, "HF_TOKEN")
    access.delete_secret(organization, "_x1")
    assert access.secret_names(organization) == ["HF_TOKEN"]
    for name in ("", "1A", "A-B", "A=B", "A\n", "A B", "\u00c4", "a\0", "A" * 5000):
        with pytest.raises(JobError, match="no name of an environment variable"):
            access.set_secret(organization, name, "x")
    for value in ("a\0b", "a\ud800b"):
        with pytest.raises(JobError):
            access.set_secret(organization, "A", value)


def test_secrets_under_another_key(database: Database, access: Access) -> None:
    organization = access.organization()
    access.set_secret(organization, "A", "x")
    with pytest.raises(StorageError, match="encrypted with another key; bring that key back, or set the secrets again"):
        Access(database, Fernet.generate_key()).environment(organization)
    assert Access(database, secrets.token_urlsafe(32).encode()).environment(access.organization("other")) == {}
    for key in (b"", b"short", b"x" * 44):
        with pytest.raises(ConfigError, match=r"not 32 url-safe base64 bytes; python3 -c .* makes one"):
            Access(database, key)


def test_the_same_at_once_from_four_threads(database: Database, access: Access) -> None:
    """One organisation of a name; one value of a secret, whichever was last."""
    ids = in_threads([lambda: access.organization("same")] * 4)
    assert len(set(ids)) == 1
    assert access.organization_name(ids[0]) == "same"
    assert in_threads([lambda: access.set_secret(ids[0], "A", "x")] * 4) == [None] * 4
    assert access.environment(ids[0]) == {"A": "x"}
    secret = access.create_token(ids[0], "t", [Scope.READ]).secret
    principals = in_threads([lambda: access.principal(secret)] * 4)
    assert {principal.organization for principal in principals} == {ids[0]}
    with pytest.raises(NotFoundError):
        access.organization_name("org-0")
    assert new_organization(database) != ids[0]


def test_being_asked_often_writes_seldom(database: Database, access: Access) -> None:
    """When a token was last used is written once a minute: reading must not need the one writer each time."""
    secret = access.create_token(access.organization(), "t", [Scope.READ]).secret
    access.principal(secret)
    with database.reading() as connection:
        before = connection.execute(select(tokens.c.last_used_at)).scalar()
    access.principal(secret)
    with database.reading() as connection:
        assert connection.execute(select(tokens.c.last_used_at)).scalar() == before
