"""What may have been done, and waits for its next attempt, is in the way of what is older, too.

Runs before the code that needs it; the code before it does not mind.
"""

from migrations.plain import run

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    run("0014_overtaken_in_doubt.up.sql")


def downgrade() -> None:
    run("0014_overtaken_in_doubt.down.sql")
