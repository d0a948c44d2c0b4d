"""Alembic's entry. The connection comes from the caller (store/migrate.py): there is no second place for a URL."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
with context.begin_transaction():
    context.run_migrations()
