"""The Beds24 simulator as a child of `up`: words are its port and the id of its first booking."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from simulators.beds24.app import Beds24, create_app
from simulators.beds24.state import Account
from simulators.server import SimServer

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(words: Sequence[str]) -> None:
    port, first_booking = map(int, words)
    asyncio.run(_serve(port, first_booking))


async def _serve(port: int, first_booking: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with SimServer(create_app(Beds24(Account(first_booking_id=first_booking))), port=port):
        await stop.wait()
