"""Autovacuum takes smaller samples of the tables that grow with events, sees after them less often, and sleeps in between.

Locks none of them against reading or writing.
"""

from migrations.plain import run

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    run("0015_a_gentler_autovacuum.up.sql")


def downgrade() -> None:
    run("0015_a_gentler_autovacuum.down.sql")
