"""Circuits, shared budgets, operators' jobs and overlays, what keeps a large table quick.

Runs before the code that needs it.
"""

from migrations.plain import run

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run("0002_reliability.up.sql")


def downgrade() -> None:
    run("0002_reliability.down.sql")
