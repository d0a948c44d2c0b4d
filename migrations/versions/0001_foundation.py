"""Companies, connections, events, dead letters and the integration buffer.

Runs before the code that needs it.
"""

from migrations.plain import run

revision = "0001"
down_revision = None


def upgrade() -> None:
    run("0001_foundation.up.sql")


def downgrade() -> None:
    run("0001_foundation.down.sql")
