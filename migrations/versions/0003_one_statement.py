"""A batch of states is applied, settled and told in one statement.

Runs before the code that needs it; the code before it does not mind.
"""

from migrations.plain import run

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run("0003_one_statement.up.sql")


def downgrade() -> None:
    run("0003_one_statement.down.sql")
