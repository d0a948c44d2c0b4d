"""Outbox rows are heard of when they are committed.

Locks `outbox` against writing for a moment.
"""

from migrations.plain import run

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run("0007_outbox_bell.up.sql")


def downgrade() -> None:
    run("0007_outbox_bell.down.sql")
