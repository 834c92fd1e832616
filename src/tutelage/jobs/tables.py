"""The tables. Times are seconds since the epoch, UTC; `migrations` makes them, and a test compares the two."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

# Names of constraints are given by rule, so that a migration can change each on every database.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
# SQLite counts rows by itself for INTEGER keys only.
Serial = BigInteger().with_variant(Integer, "sqlite")
PENDING = text("status = 'pending'")
RUNNING = text("status = 'in_progress'")

organizations = Table(
    "organizations",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String, primary_key=True),
    Column("organization_id", String, ForeignKey("organizations.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("hash", String, nullable=False, unique=True),
    Column("scopes", Json, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("last_used_at", Double),
    # Of a token that a job was given: it is good for as long as this run goes on.
    Column("run_id", String, index=True),
    Index("ix_tokens_organization_id_created_at", "organization_id", "created_at"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("organization_id", String, ForeignKey("organizations.id"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("updated_at", Double, nullable=False),
)

files = Table(
    "files",
    metadata,
    Column("id", String, primary_key=True),
    Column("organization_id", String, ForeignKey("organizations.id"), nullable=False),
    Column("purpose", String, nullable=False),
    Column("filename", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("content_hash", String, nullable=False, index=True),
    Column("created_at", Double, nullable=False),
    Index("ix_files_organization_id_created_at", "organization_id", "created_at"),
)

requirements = Table(
    "requirements",
    metadata,
    Column("id", String, primary_key=True),
    Column("conditions", Json, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String, primary_key=True),
    Column("organization_id", String, ForeignKey("organizations.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("status", String, nullable=False),
    Column("offer", Json, nullable=False),
    Column("version", String, nullable=False),
    Column("address", String),
    Column("disk_free_gb", Double),
    Column("cost_per_hour", Double, nullable=False),
    Column("run_id", String),
    Column("reason", Text),
    Column("registered_at", Double, nullable=False),
    Column("last_seen_at", Double, nullable=False),
    Column("stopped_at", Double),
    Index("ix_workers_organization_id_last_seen_at", "organization_id", "last_seen_at"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("organization_id", String, ForeignKey("organizations.id"), nullable=False),
    Column("kind", String, nullable=False),
    Column("status", String, nullable=False),
    Column("model", String),
    Column("params", Json, nullable=False),
    Column("mounted_files", Json, nullable=False),
    Column("image", String),
    Column("entrypoint", Text),
    Column("requirement_id", String, ForeignKey("requirements.id"), nullable=False),
    # The order of the queue; a job that is submitted again goes to its end, one whose worker was lost does not.
    Column("queue_number", BigInteger, nullable=False),
    Column("skipped", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    # Who has it now. A canceled job keeps it until its process is gone, so that nothing runs twice at a time.
    Column("run_id", String),
    Column("worker_id", String),
    Column("cancel_requested", Boolean, nullable=False),
    Column("reason", Text),
    Column("outputs", Json),
    Column("timeout_at", Double),
    Column("submitted_by", String),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("queued_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Index("ix_jobs_organization_id_created_at", "organization_id", "created_at", "id"),
    Index("ix_jobs_organization_id_updated_at", "organization_id", "updated_at"),
    Index("ix_jobs_organization_id_queue_number", "organization_id", "queue_number"),
    Index("ix_jobs_organization_id_status_created_at", "organization_id", "status", "created_at", "id"),
    Index(
        "ix_jobs_pending",
        "organization_id",
        # In the order of claims to the last column: no statistics are needed to see that nothing has to be sorted.
        "queue_number",
        "id",
        "requirement_id",
        sqlite_where=PENDING,
        postgresql_where=PENDING,
    ),
    Index(
        "ix_jobs_pending_requirement",
        "organization_id",
        "requirement_id",
        sqlite_where=PENDING,
        postgresql_where=PENDING,
    ),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String, primary_key=True),
    Column("organization_id", String, ForeignKey("organizations.id"), nullable=False),
    Column("job_id", String, ForeignKey("jobs.id"), nullable=False),
    Column("worker_id", String),
    Column("attempt", Integer, nullable=False),
    Column("status", String, nullable=False),
    Column("reason", Text),
    Column("exit_code", Integer),
    # Without one, nobody has to renew it: a script that reports about itself.
    Column("lease_until", Double),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    # Bytes of the log there are and were; those before log_start made room for newer ones.
    Column("log_bytes", BigInteger, nullable=False),
    Column("log_start", BigInteger, nullable=False),
    Column("latest", Json, nullable=False),
    # Port and names of models of a run that answers chat completions.
    Column("serving", Json),
    Index("ix_runs_job_id_created_at", "job_id", "created_at"),
    Index("ix_runs_worker_id_created_at", "worker_id", "created_at"),
    Index("ix_runs_organization_id_created_at", "organization_id", "created_at"),
    Index("ix_runs_lease", "lease_until", sqlite_where=RUNNING, postgresql_where=RUNNING),
)

events = Table(
    "events",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("run_id", String, ForeignKey("runs.id"), nullable=False),
    Column("client_id", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("tag", String, nullable=False),
    Column("step", BigInteger),
    Column("data", Json, nullable=False),
    Column("file_id", String),
    UniqueConstraint("run_id", "client_id"),
    Index("ix_events_run_id_tag_id", "run_id", "tag", "id"),
)

log_chunks = Table(
    "log_chunks",
    metadata,
    Column("run_id", String, ForeignKey("runs.id"), primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("content", LargeBinary, nullable=False),
)
