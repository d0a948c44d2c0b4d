"""Alembic migrations in plain SQL, up and down. A released file is never edited."""
