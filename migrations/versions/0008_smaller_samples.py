"""ANALYZE takes smaller samples of the tables that grow with events.

Locks none of them against reading or writing.
"""

from migrations.plain import run

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run("0008_smaller_samples.up.sql")


def downgrade() -> None:
    run("0008_smaller_samples.down.sql")
