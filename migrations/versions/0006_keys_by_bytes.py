"""Lanes and keys are compared by their bytes, whatever locale the database has.

Builds three indexes of `channel_events` anew, without writing the table again; meanwhile nothing is recorded.
"""

from migrations.plain import run

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run("0006_keys_by_bytes.up.sql")


def downgrade() -> None:
    run("0006_keys_by_bytes.down.sql")
