"""What was given up, or could not be routed, is found by what it is about: retention keeps what was sent after it.

Runs before the code that needs it; the code before it does not mind.
"""

from migrations.plain import run

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    run("0013_what_was_given_up.up.sql")


def downgrade() -> None:
    run("0013_what_was_given_up.down.sql")
