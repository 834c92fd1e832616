"""Workers: who they are, what they have, when they were last heard from. Not here: what they run (`queue.py`)."""

import secrets
import time
from dataclasses import dataclass

from sqlalchemy import insert, select, update

from tutelage.errors import NotFoundError
from tutelage.jobs.database import Database
from tutelage.jobs.plain_json import cleaned, cleaned_text
from tutelage.jobs.records import Worker
from tutelage.jobs.requirements import Offer
from tutelage.jobs.rows import worker_of
from tutelage.jobs.tables import workers

SILENT_AFTER_SECONDS = 90.0
"""A worker that was not heard from for this long counts as gone when somebody asks why a job waits."""


@dataclass(frozen=True)
class Registration:
    """What a worker says of itself. address: the host it was heard from, which reaches what it serves."""

    name: str
    offer: Offer
    version: str
    address: str | None = None
    cost_per_hour: float = 0.0


class Registry:
    """The workers of all organisations."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def register(self, organization: str, registration: Registration) -> Worker:
        """A new worker; one that begins again is another one."""
        identity = f"worker-{secrets.token_hex(8)}"
        now = time.time()
        with self.database.writing() as connection:
            connection.execute(
                insert(workers).values(
                    id=identity,
                    organization_id=organization,
                    name=cleaned_text(registration.name),
                    status="active",
                    offer=cleaned(registration.offer.as_json(), "worker"),
                    version=cleaned_text(registration.version),
                    address=registration.address,
                    cost_per_hour=registration.cost_per_hour,
                    registered_at=now,
                    last_seen_at=now,
                )
            )
            return worker_of(connection.execute(select(workers).where(workers.c.id == identity)).one())

    def report(
        self, organization: str, worker_id: str, *, cached_models: list[str], disk_free_gb: float | None
    ) -> Worker:
        """What changes while a worker works. Raises NotFoundError."""
        with self.database.writing() as connection:
            row = connection.execute(
                select(workers)
                .where(workers.c.id == worker_id, workers.c.organization_id == organization)
                .with_for_update()
            ).one_or_none()
            if row is None:
                raise NotFoundError(f"{worker_id}: there is no such worker; register again")
            offer = {**row.offer, "cached_models": cleaned(cached_models, "cached_models")}
            connection.execute(
                update(workers)
                .where(workers.c.id == worker_id)
                .values(offer=offer, disk_free_gb=disk_free_gb, last_seen_at=time.time())
            )
            return worker_of(connection.execute(select(workers).where(workers.c.id == worker_id)).one())

    def stop(self, organization: str, worker_id: str, reason: str) -> Worker:
        """A worker has ended, or is to claim nothing more. Raises NotFoundError."""
        with self.database.writing() as connection:
            connection.execute(
                update(workers)
                .where(
                    workers.c.id == worker_id,
                    workers.c.organization_id == organization,
                    workers.c.stopped_at.is_(None),
                )
                .values(status="stopped", reason=cleaned_text(reason), stopped_at=time.time())
            )
            row = connection.execute(
                select(workers).where(workers.c.id == worker_id, workers.c.organization_id == organization)
            ).one_or_none()
            if row is None:
                raise NotFoundError(f"{worker_id}: there is no such worker")
            return worker_of(row)

    def list(self, organization: str, *, limit: int = 100, only_active: bool = False) -> list[Worker]:
        """Workers, those last heard from first."""
        query = select(workers).where(workers.c.organization_id == organization)
        if only_active:
            query = query.where(
                workers.c.stopped_at.is_(None), workers.c.last_seen_at > time.time() - SILENT_AFTER_SECONDS
            )
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(workers.c.last_seen_at.desc()).limit(limit))
            return [worker_of(row) for row in rows]
