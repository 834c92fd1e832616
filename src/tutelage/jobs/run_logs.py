"""What the processes of runs print, by byte offset: sending a part twice, or after a gap, loses and repeats nothing."""

from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update

from tutelage.errors import JobError
from tutelage.jobs.database import Database
from tutelage.jobs.rows import require_live_run, require_run
from tutelage.jobs.tables import log_chunks, runs

MAX_LOG_BYTES = 64 * 1024 * 1024
"""Of one run. Beyond that the oldest parts go."""


@dataclass(frozen=True)
class LogPart:
    """Bytes of a log. start: offset of the first. end: where the next part begins. dropped: bytes between what was
    asked for and `start` that are not kept any more."""

    start: int
    content: bytes
    dropped: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.content)


class RunLogs:
    """The logs of all runs. max_bytes: kept of one."""

    def __init__(self, database: Database, *, max_bytes: int = MAX_LOG_BYTES) -> None:
        self.database = database
        self.max_bytes = max_bytes

    def append(self, organization: str, run_id: str, start: int, content: bytes) -> int:
        """Take a part in; how many bytes of the log are there, which is where the next part has to begin.

        start: offset of the first byte. What is there already is left out; behind a gap nothing is taken, and the
        answer says where to begin again. Raises NotFoundError, FencedError.
        """
        if start < 0:
            raise JobError(f"log of {run_id}: offset {start} is none; begin at 0")
        with self.database.writing() as connection:
            run = require_live_run(connection, organization, run_id)
            there: int = run.log_bytes
            fresh = content[max(0, there - start) :] if start <= there else b""
            if not fresh:
                return there
            connection.execute(insert(log_chunks).values(run_id=run_id, start=there, content=fresh))
            there += len(fresh)
            values = {"log_bytes": there}
            if there - run.log_start > self.max_bytes:
                # Whole parts only; half of them at once, so that this is rare.
                keep_from = there - self.max_bytes // 2
                kept = connection.execute(
                    select(log_chunks.c.start)
                    .where(log_chunks.c.run_id == run_id, log_chunks.c.start >= keep_from)
                    .order_by(log_chunks.c.start)
                    .limit(1)
                ).scalar()
                values["log_start"] = there - len(fresh) if kept is None else kept
                connection.execute(
                    delete(log_chunks).where(log_chunks.c.run_id == run_id, log_chunks.c.start < values["log_start"])
                )
            connection.execute(update(runs).where(runs.c.id == run_id).values(values))
            return there

    def read(self, organization: str, run_id: str, start: int = 0, limit: int = 1024 * 1024) -> LogPart:
        """Up to about `limit` bytes from an offset on; a negative one counts from the end. Raises NotFoundError."""
        with self.database.reading() as connection:
            run = require_run(connection, organization, run_id)
            wanted = start if start >= 0 else max(0, run.log_bytes + start)
            begin = min(max(wanted, run.log_start), run.log_bytes)
            first = connection.execute(
                select(log_chunks.c.start)
                .where(log_chunks.c.run_id == run_id, log_chunks.c.start <= begin)
                .order_by(log_chunks.c.start.desc())
                .limit(1)
            ).scalar()
            if first is None or begin == run.log_bytes:
                return LogPart(begin, b"", max(0, begin - wanted))
            content = bytearray()
            chunks = connection.execute(
                select(log_chunks.c.start, log_chunks.c.content)
                .where(log_chunks.c.run_id == run_id, log_chunks.c.start >= first)
                .order_by(log_chunks.c.start)
                .execution_options(yield_per=50)
            )
            with chunks:  # PostgreSQL keeps the rest for us until it is closed
                for chunk in chunks:
                    content += chunk.content[max(0, begin - chunk.start) :]
                    if len(content) >= limit:
                        break
            return LogPart(begin, bytes(content[:limit]), begin - wanted)
