"""The first released schema."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _only(condition: str) -> dict[str, object]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


_WHERE_PENDING = _only("status = 'pending'")
_WHERE_RUNNING = _only("status = 'in_progress'")


def _json() -> sa.types.TypeEngine[object]:
    return sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "organizations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organizations")),
        sa.UniqueConstraint("name", name=op.f("uq_organizations_name")),
    )
    op.create_table(
        "requirements",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("conditions", _json(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_requirements")),
    )
    op.create_table(
        "files",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_files_organization_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_index(op.f("ix_files_content_hash"), "files", ["content_hash"])
    op.create_index("ix_files_organization_id_created_at", "files", ["organization_id", "created_at"])
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("params", _json(), nullable=False),
        sa.Column("mounted_files", _json(), nullable=False),
        sa.Column("image", sa.String(), nullable=True),
        sa.Column("entrypoint", sa.Text(), nullable=True),
        sa.Column("requirement_id", sa.String(), nullable=False),
        sa.Column("queue_number", sa.BigInteger(), nullable=False),
        sa.Column("skipped", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("worker_id", sa.String(), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("outputs", _json(), nullable=True),
        sa.Column("timeout_at", sa.Double(), nullable=True),
        sa.Column("submitted_by", sa.String(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("queued_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_jobs_organization_id")),
        sa.ForeignKeyConstraint(["requirement_id"], ["requirements.id"], name=op.f("fk_jobs_requirement_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_organization_id_created_at", "jobs", ["organization_id", "created_at", "id"])
    op.create_index("ix_jobs_organization_id_queue_number", "jobs", ["organization_id", "queue_number"])
    op.create_index(
        "ix_jobs_organization_id_status_created_at", "jobs", ["organization_id", "status", "created_at", "id"]
    )
    op.create_index("ix_jobs_organization_id_updated_at", "jobs", ["organization_id", "updated_at"])
    op.create_index(
        "ix_jobs_pending", "jobs", ["organization_id", "queue_number", "id", "requirement_id"], **_WHERE_PENDING
    )
    op.create_index("ix_jobs_pending_requirement", "jobs", ["organization_id", "requirement_id"], **_WHERE_PENDING)
    op.create_table(
        "secrets",
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_secrets_organization_id")),
        sa.PrimaryKeyConstraint("organization_id", "name", name=op.f("pk_secrets")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("scopes", _json(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("last_used_at", sa.Double(), nullable=True),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_tokens_organization_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("hash", name=op.f("uq_tokens_hash")),
    )
    op.create_index("ix_tokens_organization_id_created_at", "tokens", ["organization_id", "created_at"])
    op.create_index(op.f("ix_tokens_run_id"), "tokens", ["run_id"])
    op.create_table(
        "workers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("offer", _json(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("disk_free_gb", sa.Double(), nullable=True),
        sa.Column("cost_per_hour", sa.Double(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("registered_at", sa.Double(), nullable=False),
        sa.Column("last_seen_at", sa.Double(), nullable=False),
        sa.Column("stopped_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_workers_organization_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_index("ix_workers_organization_id_last_seen_at", "workers", ["organization_id", "last_seen_at"])
    op.create_table(
        "runs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("log_bytes", sa.BigInteger(), nullable=False),
        sa.Column("log_start", sa.BigInteger(), nullable=False),
        sa.Column("latest", _json(), nullable=False),
        sa.Column("serving", _json(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_runs_job_id")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_runs_organization_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index("ix_runs_job_id_created_at", "runs", ["job_id", "created_at"])
    op.create_index("ix_runs_lease", "runs", ["lease_until"], **_WHERE_RUNNING)
    op.create_index("ix_runs_organization_id_created_at", "runs", ["organization_id", "created_at"])
    op.create_index("ix_runs_worker_id_created_at", "runs", ["worker_id", "created_at"])
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("data", _json(), nullable=False),
        sa.Column("file_id", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_events_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("run_id", "client_id", name=op.f("uq_events_run_id_client_id")),
    )
    op.create_index("ix_events_run_id_tag_id", "events", ["run_id", "tag", "id"])
    op.create_table(
        "log_chunks",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_log_chunks_run_id")),
        sa.PrimaryKeyConstraint("run_id", "start", name=op.f("pk_log_chunks")),
    )


def downgrade() -> None:
    op.drop_table("log_chunks")
    op.drop_index("ix_events_run_id_tag_id", table_name="events")
    op.drop_table("events")
    op.drop_index("ix_runs_worker_id_created_at", table_name="runs")
    op.drop_index("ix_runs_organization_id_created_at", table_name="runs")
    op.drop_index("ix_runs_lease", table_name="runs", **_WHERE_RUNNING)
    op.drop_index("ix_runs_job_id_created_at", table_name="runs")
    op.drop_table("runs")
    op.drop_index("ix_workers_organization_id_last_seen_at", table_name="workers")
    op.drop_table("workers")
    op.drop_index(op.f("ix_tokens_run_id"), table_name="tokens")
    op.drop_index("ix_tokens_organization_id_created_at", table_name="tokens")
    op.drop_table("tokens")
    op.drop_table("secrets")
    op.drop_index("ix_jobs_pending_requirement", table_name="jobs", **_WHERE_PENDING)
    op.drop_index("ix_jobs_pending", table_name="jobs", **_WHERE_PENDING)
    op.drop_index("ix_jobs_organization_id_updated_at", table_name="jobs")
    op.drop_index("ix_jobs_organization_id_status_created_at", table_name="jobs")
    op.drop_index("ix_jobs_organization_id_queue_number", table_name="jobs")
    op.drop_index("ix_jobs_organization_id_created_at", table_name="jobs")
    op.drop_table("jobs")
    op.drop_index("ix_files_organization_id_created_at", table_name="files")
    op.drop_index(op.f("ix_files_content_hash"), table_name="files")
    op.drop_table("files")
    op.drop_table("requirements")
    op.drop_table("organizations")
