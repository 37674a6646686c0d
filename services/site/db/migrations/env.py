"""Alembic's environment: works on the connection that `services.site.db.migrate` hands over."""

from alembic import context

from services.site.db.models import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    compare_type=True,
)
context.run_migrations()
