"""A connection has one circuit for reads and one for writes.

Runs before the code that needs it; the code before it does not mind.
"""

from migrations.plain import run

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    run("0009_circuits_by_kind.up.sql")


def downgrade() -> None:
    run("0009_circuits_by_kind.down.sql")
