"""${message}

Says whether it runs before or after the code that needs it.
"""

from migrations.plain import run

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    run("${up_revision}_name.up.sql")


def downgrade() -> None:
    run("${up_revision}_name.down.sql")
