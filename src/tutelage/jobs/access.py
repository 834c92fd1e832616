"""Who may do what: organisations, tokens with scopes, secrets for jobs. Not here: HTTP."""

import contextlib
import hashlib
import secrets as random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.fernet import Fernet, InvalidToken
from sqlalchemy import Connection, delete, insert, or_, select, update

from tutelage.errors import ConfigError, JobError, NotFoundError, StorageError, nearest
from tutelage.jobs.database import Database
from tutelage.jobs.plain_json import cleaned_text
from tutelage.jobs.records import Scope, Token, moment
from tutelage.jobs.rows import AnyRow, insert_new, require_live_run
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import organizations, runs, secrets, tokens

DEFAULT_ORGANIZATION = "default"
OF_SERVER = "worker of serve"
"""How names of tokens begin that servers make for the workers beside them."""
PREFIX = "tut-"
LAST_USED_EVERY_SECONDS = 60
LAST_MOMENT = 253402300800.0
"""The year 10000: what comes after cannot be shown."""
MAX_NAME = 200


def scopes_of(names: Sequence[str]) -> list[Scope]:
    """By their names. Raises ConfigError."""
    known = [scope.value for scope in Scope]
    for name in names:
        if name not in known:
            raise ConfigError(f"scope: '{name[:80]}' is none{nearest(name, known)}; one of {', '.join(known)}")
    return [scope for scope in Scope if scope.value in names]


@dataclass(frozen=True)
class Principal:
    """Who asks. run_id: of a token that a job was given, which may write for this run only."""

    organization: str
    scopes: frozenset[Scope]
    token_id: str | None = None
    run_id: str | None = None

    def may(self, scope: Scope) -> bool:
        """Whether the scope is among theirs."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True)
class NewToken:
    """A token just made. secret: shown this once."""

    token: Token
    secret: str


class Access:
    """Organisations, their tokens and secrets. key: 32 url-safe base64 bytes that secrets are encrypted with."""

    def __init__(self, database: Database, key: bytes) -> None:
        self.database = database
        try:
            self._cipher = Fernet(key.strip().rstrip(b"=") + b"=")  # 43 letters and a filler, which Python leaves out
        except ValueError as error:
            raise ConfigError(
                "the key for secrets (TUTELAGE_SECRET_KEY, or secret.key in --home) is not 32 url-safe base64 bytes; "
                "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
            ) from error

    def organization(self, name: str = DEFAULT_ORGANIZATION) -> str:
        """The id of an organisation, which is made if there is none of that name."""
        name = cleaned_text(name)
        with self.database.writing() as connection:
            identity = f"org-{random.token_hex(8)}"
            connection.execute(
                insert_new(connection, organizations).values(id=identity, name=name, created_at=time.time())
            )
            return connection.execute(select(organizations.c.id).where(organizations.c.name == name)).scalar_one()

    def organization_name(self, organization: str) -> str:
        """What an organisation is called. Raises NotFoundError."""
        with self.database.reading() as connection:
            name = connection.execute(
                select(organizations.c.name).where(organizations.c.id == organization)
            ).scalar_one_or_none()
        if name is None:
            raise NotFoundError(f"{organization}: there is no such organisation")
        return name

    def has_tokens(self) -> bool:
        """Whether somebody can get in by a token that is none of a server's own."""
        lives = or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > time.time())
        others = ~tokens.c.name.startswith(OF_SERVER, autoescape=True)
        query = select(tokens.c.id).where(tokens.c.run_id.is_(None), tokens.c.revoked_at.is_(None), lives, others)
        with self.database.reading() as connection:
            return connection.execute(query.limit(1)).scalar() is not None

    def create_token(
        self,
        organization: str,
        name: str,
        scopes: Iterable[Scope],
        *,
        expires_at: float | None = None,
        run_id: str | None = None,
        of_server: bool = False,
    ) -> NewToken:
        """A new token. Raises JobError where it has no scope or has expired already.

        of_server: a server gives it to the worker beside it, and takes it away; no other is called so. run_id: the
        token goes with this run; raises NotFoundError and FencedError where there is none in progress.
        """
        if name.startswith(OF_SERVER) and not of_server:
            raise JobError(f"token '{name[:80]}': names that begin so are of servers; choose another")
        granted = [scope for scope in Scope if scope in set(scopes)]
        if not granted:
            raise JobError(f"token '{name}': give it a scope, one of {', '.join(scope.value for scope in Scope)}")
        if expires_at is not None and not time.time() < expires_at < LAST_MOMENT:
            raise JobError(f"token '{name}': its expiry is not in the future")
        secret = PREFIX + random.token_urlsafe(32)
        identity = f"token-{random.token_hex(8)}"
        with self.database.writing() as connection:
            if run_id is not None:
                require_live_run(connection, organization, run_id)
            connection.execute(
                insert(tokens).values(
                    id=identity,
                    organization_id=organization,
                    name=cleaned_text(name),
                    hash=_hashed(secret),
                    scopes=[scope.value for scope in granted],
                    created_at=time.time(),
                    expires_at=expires_at,
                    run_id=run_id,
                )
            )
            row = connection.execute(select(tokens).where(tokens.c.id == identity)).one()
        return NewToken(_token_of(row), secret)

    def tokens(self, organization: str) -> list[Token]:
        """Those that people and workers use, newest first."""
        with self.database.reading() as connection:
            rows = connection.execute(
                select(tokens)
                .where(tokens.c.organization_id == organization, tokens.c.run_id.is_(None))
                .order_by(tokens.c.created_at.desc())
            )
            return [_token_of(row) for row in rows]

    def revoke_token(self, organization: str, token_id: str) -> Token:
        """From now on nobody gets in with it. Raises NotFoundError."""
        with self.database.writing() as connection:
            connection.execute(
                update(tokens)
                .where(tokens.c.id == token_id, tokens.c.organization_id == organization, tokens.c.revoked_at.is_(None))
                .values(revoked_at=time.time())
            )
            row = connection.execute(
                select(tokens).where(tokens.c.id == token_id, tokens.c.organization_id == organization)
            ).one_or_none()
            if row is None:
                raise NotFoundError(f"{token_id}: there is no such token; list them with: tutelage token ls")
            return _token_of(row)

    def principal(self, secret: str) -> Principal | None:
        """Who has this secret; None for one that is unknown, expired, revoked, or of a run that has ended."""
        now = time.time()
        with self.database.reading() as connection:
            row = connection.execute(select(tokens).where(tokens.c.hash == _hashed(secret))).one_or_none()
            if row is None or row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
                return None
            if row.run_id is not None and not _is_live(connection, row.run_id):
                return None
        if row.last_used_at is None or now - row.last_used_at > LAST_USED_EVERY_SECONDS:
            # Only for people to see: a full disk keeps nobody out who wants to look what to delete.
            with contextlib.suppress(StorageError), self.database.writing() as connection:
                connection.execute(update(tokens).where(tokens.c.id == row.id).values(last_used_at=now))
        scopes = frozenset(Scope(scope) for scope in row.scopes)
        return Principal(row.organization_id, scopes, row.id, row.run_id)

    def set_secret(self, organization: str, name: str, value: str) -> None:
        """A secret that jobs get as an environment variable. Raises JobError for a name that is none."""
        if not name.isidentifier() or not name.isascii() or len(name) > MAX_NAME:
            raise JobError(f"'{name[:80]}' is no name of an environment variable; use letters, digits and _")
        if cleaned_text(value) != value:
            raise JobError(f"{name}: a NUL or half a surrogate pair cannot be in an environment variable; take it out")
        row = {"ciphertext": self._cipher.encrypt(value.encode()), "updated_at": time.time()}
        with self.database.writing() as connection:
            connection.execute(insert_new(connection, secrets).values(organization_id=organization, name=name, **row))
            connection.execute(
                update(secrets).where(secrets.c.organization_id == organization, secrets.c.name == name).values(row)
            )

    def secret_names(self, organization: str) -> list[str]:
        """Names only: nobody can read a value again."""
        with self.database.reading() as connection:
            query = select(secrets.c.name).where(secrets.c.organization_id == organization).order_by(secrets.c.name)
            return list(connection.execute(query).scalars())

    def delete_secret(self, organization: str, name: str) -> None:
        """Raises NotFoundError."""
        with self.database.writing() as connection:
            gone = connection.execute(
                delete(secrets).where(secrets.c.organization_id == organization, secrets.c.name == name)
            )
            if gone.rowcount == 0:
                raise NotFoundError(f"{name[:80]}: there is no such secret; list them with: tutelage env ls")

    def environment(self, organization: str) -> dict[str, str]:
        """All secrets by name, for a worker that starts a job. Raises StorageError where the key is another one."""
        with self.database.reading() as connection:
            rows = connection.execute(select(secrets).where(secrets.c.organization_id == organization)).all()
        try:
            return {row.name: self._cipher.decrypt(row.ciphertext).decode() for row in rows}
        except InvalidToken as error:
            raise StorageError(
                "secrets were encrypted with another key; bring that key back, or set the secrets again"
            ) from error


def _hashed(secret: str) -> str:
    # 256 random bits need no slow hash.
    return hashlib.sha256(secret.encode("utf-8", errors="surrogateescape")).hexdigest()


def _is_live(connection: Connection, run_id: str) -> bool:
    status = connection.execute(select(runs.c.status).where(runs.c.id == run_id)).scalar()
    return status == JobStatus.IN_PROGRESS.value


def _token_of(row: AnyRow) -> Token:
    created: Any = moment(row.created_at)
    return Token(
        id=row.id,
        name=row.name,
        scopes=[Scope(scope) for scope in row.scopes],
        created_at=created,
        expires_at=moment(row.expires_at),
        revoked_at=moment(row.revoked_at),
        last_used_at=moment(row.last_used_at),
    )
