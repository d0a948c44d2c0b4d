"""Deliveries that their vendors have done are settled and told in one statement.

Runs before the code that needs it; the code before it does not mind.
"""

from migrations.plain import run

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run("0004_deliveries_at_one_stroke.up.sql")


def downgrade() -> None:
    run("0004_deliveries_at_one_stroke.down.sql")
