"""Leases have tokens.

Runs before the code that needs it; the code before it does not mind, nor do the leases that it holds.
"""

from migrations.plain import run

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    run("0010_lease_tokens.up.sql")


def downgrade() -> None:
    run("0010_lease_tokens.down.sql")
