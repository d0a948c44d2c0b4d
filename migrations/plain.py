"""Runs one SQL file as it stands, inside Alembic's transaction."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.util import await_only

_FOLDER = Path(__file__).parent / "sql"


def run(name: str) -> None:
    bind = op.get_bind()
    bind.execute(sa.text("SELECT 1"))  # the driver opens its transaction with the first statement that it is given
    driver = bind.connection.driver_connection
    await_only(driver.execute((_FOLDER / name).read_text()))
