"""Who renews an access token is known, so that it is taken over from the dead.

Runs before the code that needs it; the code before it does not mind.
"""

from migrations.plain import run

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run("0005_renewals_are_taken_over.up.sql")


def downgrade() -> None:
    run("0005_renewals_are_taken_over.down.sql")
