"""`python -m simulators.beds24 --port 8024`: the simulator alone, until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys

import orjson

from simulators.beds24.app import Beds24, create_app
from simulators.beds24.state import DEFAULT_SEED, Account, PropertySeed, RoomSeed
from simulators.server import SimServer


def seed_of(options: argparse.Namespace) -> tuple[PropertySeed, ...]:
    """`--room 713992:Studio:4` replaces the default rooms."""
    if not options.room:
        rooms = DEFAULT_SEED[0].rooms
    else:
        parts = [room.split(":") for room in options.room]
        rooms = tuple(RoomSeed(int(number), name, int(quantity)) for number, name, quantity in parts)
    return (PropertySeed(options.property_id, options.property_name, rooms, currency=options.currency),)


def arguments() -> argparse.Namespace:
    default = DEFAULT_SEED[0]
    parser = argparse.ArgumentParser(prog="python -m simulators.beds24", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--property-id", type=int, default=default.id)
    parser.add_argument("--property-name", default=default.name)
    parser.add_argument("--currency", default=default.currency)
    parser.add_argument("--room", action="append", metavar="ID:NAME:QTY")
    parser.add_argument("--credits", type=float, default=100, help="credits per five minutes")
    parser.add_argument("--random-seed", type=int, default=24)
    return parser.parse_args()


async def run(options: argparse.Namespace) -> None:
    seed = seed_of(options)
    rng = random.Random(options.random_seed)  # noqa: S311 - reproducible test data
    sim = Beds24(Account(seed, credit_limit=options.credits, rng=rng))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stop.set)
    async with SimServer(create_app(sim), host=options.host, port=options.port) as server:
        summary = {
            "url": server.url,
            "api": f"{server.url}/api/v2",
            "inviteCode": sim.account.access.invite(),
            "properties": [
                {
                    "id": p.id,
                    "name": p.name,
                    "currency": p.currency,
                    "rooms": {r.id: f"{r.name} x{r.qty}" for r in p.rooms},
                }
                for p in seed
            ],
        }
        sys.stdout.buffer.write(orjson.dumps(summary, option=orjson.OPT_NON_STR_KEYS) + b"\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(run(arguments()))
