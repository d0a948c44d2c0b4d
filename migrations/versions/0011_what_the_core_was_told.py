"""When the core was told of a reservation last.

Runs before the code that needs it; the code before it does not mind, and leaves the column as it is.
"""

from migrations.plain import run

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    run("0011_what_the_core_was_told.up.sql")


def downgrade() -> None:
    run("0011_what_the_core_was_told.down.sql")
