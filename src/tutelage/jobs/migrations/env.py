"""How Alembic runs migrations: on the connection that `Database.migrate` opened, in one transaction."""

from alembic import context

from tutelage.jobs.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite changes a column by making the table anew.
    render_as_batch=True,
)
context.run_migrations()
