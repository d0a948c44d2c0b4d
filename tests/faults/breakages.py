"""Wrong versions of single steps. Each breaks one promise, and the oracle must say so: else it would prove nothing."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

from schemas.ids import uuid7


def forgets_a_status() -> None:
    """What was applied last of a batch keeps its old status."""
    from store import inbound

    _rewrite(
        inbound,
        "apply_states",
        "ARRAY(SELECT source_event FROM applied)",
        "(ARRAY(SELECT source_event FROM applied))[2:]",
    )
    _rewrite(inbound, "apply_states", "OR settled_elsewhere()", "OR true")


def tells_twice() -> None:
    """Each result of an inbound batch is stored under two ids."""
    from store import inbound

    _rewrite(
        inbound,
        "apply_states",
        "source_event, trace\n    FROM result WHERE id IS NOT NULL",
        "source_event, trace\n    FROM result WHERE id IS NOT NULL\n    UNION ALL"
        " SELECT gen_random_uuid(), company_id, connection_id, $4, internal_id, data::json, source_event, trace"
        " FROM result WHERE id IS NOT NULL",
    )


def tells_before_the_commit() -> None:
    """Results leave before their transaction is committed, and under ids that never are."""
    from workers import inbound, tell

    original = inbound.store.apply_states
    publish = tell.Teller.tell
    tellers = []

    async def tell_it(teller: Any, batches: Any) -> None:
        tellers.append(teller)
        await publish(teller, batches)

    async def apply_states(connection: Any, rows: Any, **settled: Any) -> Any:
        async with connection.transaction():
            stored = await original(connection, rows, **settled)
            if stored.told is not None and tellers:
                told = [copy.copy(row) for row in stored.told.rows]
                for row in told:
                    row.id = uuid7()
                await publish(tellers[0], [type(stored.told)(uuid7(), told)])
        return stored

    inbound.store.apply_states = apply_states
    tell.Teller.tell = tell_it  # type: ignore[method-assign]


def acks_first() -> None:
    """Messages are acknowledged when they are taken, not when their events are settled."""
    from workers import intake

    original = intake.Intake._run

    async def run(taker: Any, batch: Any) -> None:
        for message in batch:
            taker._verdicts.settle(message.incoming)
        await asyncio.sleep(0.2)  # the acks leave
        await original(taker, batch)

    intake.Intake._run = run  # type: ignore[method-assign]


def answers_first() -> None:
    """A webhook is answered while its row is still on the way to the database."""
    from ingress import webhooks
    from store.ingest import FactOutcome

    original = webhooks.Webhooks._submit
    late = set()

    async def submit(receiver: Any, row: Any, *patience: float) -> Any:
        async def record() -> None:
            await asyncio.sleep(0.2)
            await original(receiver, row, *patience)

        task = asyncio.create_task(record())
        late.add(task)
        return [FactOutcome(fact.id, recorded=True) for fact in row.facts]

    webhooks.Webhooks._submit = submit  # type: ignore[method-assign]


def settles_without_the_lease() -> None:
    """A worker that lost its lease settles nevertheless; and nobody holds a lock that says that it lives."""
    from workers import delivery, lane

    async def lock_leased(connection: Any, rows: Sequence[tuple[Any, Any]]) -> set[Any]:
        return {id_ for id_, _ in rows}

    delivery.store.lock_leased = lock_leased

    async def finish(connection: Any, rows: Sequence[Any]) -> int:
        await original(connection, rows)
        return len(rows)

    original = lane.finish
    lane.finish = finish
    _rewrite(
        delivery.store, "succeed", "AND e.lease_token = g.lease_token\n    WHERE (e.status = 'processing') IS TRUE", ""
    )
    seems_dead()


def seems_dead() -> None:
    """No breakage of a promise: the worker holds no lock, so that its deliveries are taken over while it works."""
    from store.presence import Presence

    async def nothing(self: Any) -> None:
        return None

    Presence.start = nothing  # type: ignore[method-assign]


def does_not_ask() -> None:
    """A call that may have been done is repeated without a look-up."""
    from workers import delivery, say

    async def execute(session: Any, work: Any, command: Any, repeat: Any) -> Any:
        return await session.adapter.execute(session, command)

    delivery.ask_or_execute = say.ask_or_execute = execute


def lets_echoes_through() -> None:
    """What a vendor tells of our own writes is told to the core."""
    from workers import inbound

    inbound.is_echo = lambda *_: False


def tells_another_state() -> None:
    """Results say something else than what is stored."""
    from workers import inbound_rows

    original = inbound_rows.reservation_upserted

    def upserted(reservation: Any, *more: Any) -> str:
        return original(reservation.model_copy(update={"adults": reservation.adults + 1}), *more)

    inbound_rows.reservation_upserted = upserted


def forgets_names() -> None:
    """What the vendor calls a booking that we made is not kept."""
    from store import outbound

    names = "FROM held WHERE external_id IS NOT NULL AND entity_type = 'reservation'"
    _rewrite(outbound, "succeed", names, f"{names} AND false")


def has_no_fence() -> None:
    """Every state of a reservation replaces the stored one, older ones too."""
    from store import inbound

    fence = "WHERE (stored.source_version, stored.tie >= 100, stored.observed_at)\n        < (EXCLUDED.source_version, EXCLUDED.tie >= 100, EXCLUDED.observed_at)"
    _rewrite(inbound, "apply_states", fence, "")


def has_no_lanes() -> None:
    """Every delivery may run at once, whatever waits before it."""
    from store import outbound

    _rewrite(outbound, "claim", "take_lane(w.id, w.lane, w.lane_policy, w.seq)", "true")


def leaves_one_out() -> None:
    """Of each batch of an operator's job."""
    from store import events

    original = events.replay

    async def replay(connection: Any, originals: Any, run: Any) -> Any:
        return await original(connection, originals[1:], run)

    events.replay = replay


def _rewrite(module: Any, statement: str, old: str, new: str) -> None:
    known = dict(module._SQL)
    if old not in known[statement]:
        raise AssertionError(f"the statement {statement} has changed: this breakage breaks nothing")
    known[statement] = known[statement].replace(old, new)
    module._SQL = MappingProxyType(known)


BREAKAGES: dict[str, Callable[[], None]] = {
    breakage.__name__: breakage
    for breakage in (
        forgets_a_status,
        tells_twice,
        tells_before_the_commit,
        acks_first,
        answers_first,
        settles_without_the_lease,
        seems_dead,
        does_not_ask,
        lets_echoes_through,
        tells_another_state,
        forgets_names,
        has_no_fence,
        has_no_lanes,
        leaves_one_out,
    )
}
