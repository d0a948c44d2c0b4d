"""A message that no event could be read from has one open dead letter, however often it comes.

Runs before the code that needs it; the code before it does not mind.
"""

from migrations.plain import run

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    run("0016_strangers_once.up.sql")


def downgrade() -> None:
    run("0016_strangers_once.down.sql")
