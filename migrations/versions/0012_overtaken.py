"""What has been overtaken is told by one function, and what went out merged counts.

Runs before the code that needs it; the code before it does not mind.
"""

from migrations.plain import run

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run("0012_overtaken.up.sql")


def downgrade() -> None:
    run("0012_overtaken.down.sql")
