"""Neutral commands to deliveries: one child row for each connection that has the entity.

A command that comes with data (from a service) becomes a row at first sight; its key makes it a duplicate at the second.
Routing commits the children and the command's end together, so that a crash between means only that it is routed again,
to the same children (their ids are derived).
"""

from __future__ import annotations

import logging
import uuid
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import orjson

from adapters.port import actions
from schemas.commands import BookingCreate, CommandData, InvalidCommandError, parse_command
from schemas.event import SOURCE
from schemas.ids import derived
from schemas.vocabulary import EntityType, Fault, LanePolicy, Owner, Result
from store import outbound as store
from store.inbound import lock_open
from store.outbound import CommandRow, LoadedCommand, lane_prefix
from store.overlay import document
from store.results import Batch, CoreEventRow, keep
from store.seal import SealError, split
from store.settle import DeadLetterRow, FinishRow, bury, finish, resolve
from telemetry import metrics
from telemetry.logs import about
from topology.announce import WakeUp, announce
from topology.declared import delivery_key

from . import results
from .commands import PERSONAL, command_row, company_of, problem_of
from .letters import stranger
from .outcome import Done, Park, ending
from .persist import commit, outlast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from adapters.port import Adapter
    from schemas.event import Event
    from store.directory import Directory
    from store.marks import Marks
    from store.pool import Connection, Pool
    from store.seal import Cipher
    from topology.publisher import Publisher
    from topology.retry import RetryPolicy

    from .tell import Teller

    Made = tuple[CommandRow, Event, Cipher]

_log = logging.getLogger(__name__)
MOST = 500  # commands that are routed at once, however many stand before those that were woken


@dataclass(slots=True)
class Routed:
    """A command on its way: either `park` says why not, or `targets` say where to."""

    row: LoadedCommand
    started_at: datetime
    data: CommandData | None = None
    park: Park | None = None
    targets: list[tuple[str, str]] = field(default_factory=list)  # (connection id, vendor)

    @property
    def entity(self) -> tuple[EntityType, str]:
        if self.data is None:
            raise AssertionError("an invalid command has no entity")
        return self.data.lane_entity()


class KeyTakenError(Exception):
    """A delivery cannot be recorded, because its key is another event's; the text names the key."""


class RouterStage:
    def __init__(
        self,
        pool: Pool,
        directory: Directory,
        adapters: Mapping[str, Adapter],
        publisher: Publisher,
        marks: Marks,
        teller: Teller,
        policies: Mapping[str, RetryPolicy],
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._adapters = adapters
        self._actions = actions(adapters)
        self._publisher = publisher
        self._marks = marks
        self._teller = teller
        self._policies = policies
        self._now = now

    async def process(self, events: Sequence[Event]) -> None:
        # Our own wake-ups name rows that are there; whatever else comes is a command to record.
        await self._adopt([event for event in events if event.data is not None or event.source != SOURCE])
        ids = list(dict.fromkeys(event.row_id for event in events))
        while await self._route(ids) == MOST:
            pass

    async def _route(self, ids: Sequence[uuid.UUID]) -> int:
        """These, behind what stands before them, or the first of it; returns how many."""

        async def load() -> list[Routed]:
            async with self._pool.acquire() as connection:
                rows = await store.load_commands(connection, ids, MOST)
            started_at = self._now()
            return [Routed(row, started_at) for row in rows]

        routed = await outlast(load)
        for command in routed:
            await commit([command], self._read, _park_unrouted)
        ahead: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        readable = [command for command in routed if command.park is None]
        await commit(readable, partial(self._target, ahead=ahead), _park_unrouted)
        if routed:
            done = await commit(routed, self._commit, self._park_alone)
            await self._teller.tell(told for _, told in done)
            wakes = [wake for batch, _ in done for wake in batch]
            self._marks.add(await announce(self._publisher, wakes))
        return len(routed)

    async def process_alone(self, event: Event) -> None:
        """Routing calls nobody; a command that came back is routed like any other, one at a time."""
        await self.process([event])

    async def drain(self, grace: float) -> None:
        """Nothing goes on after process."""

    # ------------------------------------------------------------------ begin

    async def _adopt(self, events: Sequence[Event]) -> None:
        """Rows for the commands that services published; what cannot have a row becomes a dead letter."""
        made = [one for event in events for one in await commit([event], self._made, self._unmade)]
        rows = [one for one in made if not isinstance(one, DeadLetterRow)]
        lost = [one for one in made if isinstance(one, DeadLetterRow)]

        async def insert(batch: Sequence[tuple[CommandRow, Event, Cipher]]) -> None:
            async with self._pool.acquire() as connection, connection.transaction():
                await store.insert_commands(connection, [row for row, *_ in batch])

        async def refuse(one: tuple[CommandRow, Event, Cipher], error: Exception) -> None:
            _, event, cipher = one
            lost.append(stranger(event, f"the database refuses it: {type(error).__name__}", cipher, event.companyid))

        if rows:
            await commit(rows, insert, refuse)
        if lost:

            async def keep() -> None:
                async with self._pool.acquire() as connection:
                    await bury(connection, lost)

            await outlast(keep)

    async def _made(self, events: Sequence[Event]) -> Made | DeadLetterRow:
        """Of one event."""
        (event,) = events
        cipher = await self._directory.cipher(company_of(event))
        problem = problem_of(event, self._actions, known=cipher is not None)
        if cipher is None:
            return stranger(event, str(problem), self._directory.installation)
        if problem is not None:
            return stranger(event, problem, cipher, event.companyid)
        try:
            row = command_row(event.row_id, str(event.companyid), event, cipher.seal)
        except TypeError:  # orjson's for what it has no way to write
            problem = "data: a number beyond 64 bits, or nested too deeply; send it as text"
            return stranger(event, problem, cipher, event.companyid)
        return row, event, cipher

    async def _unmade(self, event: Event, error: Exception) -> Made | DeadLetterRow:
        problem = f"cannot be recorded: {type(error).__name__}; the log of the outbound worker has more"
        return stranger(event, problem, self._directory.installation)

    # ------------------------------------------------------------------ perform

    async def _read(self, commands: Sequence[Routed]) -> None:
        """Of one command."""
        (command,) = commands
        row = command.row
        try:
            cipher = await self._directory.cipher(row.company_id)
            if cipher is None:
                problem = f"companyid: {row.company_id} is gone"
                command.park = Park(Fault.MISCONFIGURED, problem, Owner.TENANT, "no_company")
                return
            said = document(row.payload, row.sealed, row.overlay, cipher)
            # Its deliveries are made of what the edit says. Sealed as a whole, it did not fit when it was recorded.
            if row.overlay is not None or row.payload == "{}":
                readable, personal = split(said, PERSONAL)
                command.row = replace(row, payload=orjson.dumps(readable).decode(), sealed=cipher.seal(personal))
            command.data = parse_command(row.event_type, said)
        except InvalidCommandError as error:
            command.park = Park(Fault.INVALID, str(error), Owner.TENANT, "invalid_command")
        except SealError as error:
            command.park = Park(Fault.MISCONFIGURED, f"key file: {error}", Owner.PIPELINE, "sealed")

    async def _target(self, commands: Sequence[Routed], ahead: dict[tuple[str, str], dict[str, str]]) -> None:
        """Which connections have the entity: by mapping, or because commands about it are under way there.

        ahead: (company, lane prefix) → where the commands before these go, id → vendor; it grows by these
        """
        if not commands:
            return
        wanted = list({(c.row.company_id, *_home(c)) for c in commands})
        prefixes = list({(c.row.company_id, lane_prefix(*c.entity)) for c in commands})
        async with self._pool.acquire() as connection:
            # Lanes first: a create that is settled between the two looks has left its lane, and is mapped by then.
            laned = await store.laned_connections(connection, prefixes)
            mapped = await store.mapped_connections(connection, wanted)
        for command in commands:
            row = command.row
            lane = (row.company_id, lane_prefix(*command.entity))
            found = dict(mapped.get((row.company_id, *_home(command)), []))
            if not isinstance(command.data, BookingCreate):
                found.update(laned.get(lane, []))
                found.update(ahead[lane])
            if row.connection_id is not None:
                found = {id_: vendor for id_, vendor in found.items() if id_ == row.connection_id}
            command.targets = [
                (id_, vendor)
                for id_, vendor in sorted(found.items())
                if vendor in self._adapters and row.event_type in self._adapters[vendor].manifest.commands
            ]
            # An update in the same batch as its create follows it to where it goes.
            ahead[lane].update(command.targets)
            if not command.targets:
                kind, internal = _home(command)
                where = f"any active connection that takes {row.event_type}"
                if row.connection_id:
                    where = f"{row.connection_id}, or that is not active, or takes no {row.event_type}"
                command.park = Park(
                    Fault.UNMAPPED,
                    f"{kind}: {internal} is not mapped at {where}; add it with `staybus mapping add`, then requeue",
                    Owner.TENANT,
                    "unmapped",
                    f"{kind} {internal}",
                )

    # ------------------------------------------------------------------ settle

    async def _commit(self, commands: Sequence[Routed]) -> tuple[list[WakeUp], Batch | None]:
        async with self._pool.acquire() as connection, connection.transaction():
            return await self._write(connection, commands)

    async def _park_alone(self, command: Routed, error: Exception) -> tuple[list[WakeUp], Batch | None]:
        kind = type(error).__name__
        problem = str(error) if isinstance(error, KeyTakenError) else f"the database refuses it: {kind}"
        command.park = Park(Fault.INVALID, problem, Owner.PIPELINE, kind)
        return await self._commit([command])

    async def _write(self, connection: Connection, commands: Sequence[Routed]) -> tuple[list[WakeUp], Batch | None]:
        open_ids = await lock_open(connection, [command.row.id for command in commands])
        commands = [command for command in commands if command.row.id in open_ids]
        if not commands:
            return [], None
        children = [
            (vendor, self._delivery(command, connection_id, vendor))
            for command in commands
            if command.park is None
            for connection_id, vendor in command.targets
        ]
        new = await store.insert_commands(connection, [row for _, row in children])
        await _check_there(connection, [row for _, row in children if row.id not in new])
        await finish(connection, [_finish_row(command, self._now()) for command in commands])
        told = await keep(connection, [_failed(command) for command in commands if command.park is not None])
        await bury(
            connection, [_dead_letter(command, command.park) for command in commands if command.park is not None]
        )
        await resolve(connection, [c.row.id for c in commands if c.park is None and c.row.error_class is not None])
        for command in commands:
            word = "done" if command.park is None else "park"
            metrics.EVENTS.labels("pms", "outbound", word).inc()
            _log.info(
                "command routed" if command.park is None else "command parked",
                extra=about(
                    event_id=str(command.row.id),
                    company_id=command.row.company_id,
                    type=command.row.event_type,
                    connections=[id_ for id_, _ in command.targets],
                    error=command.park.message if command.park else None,
                    trace=command.row.trace,
                ),
            )
        wakes = [
            WakeUp(
                row.id,
                row.company_id,
                row.event_type,
                delivery_key(vendor, row.event_type),
                row.trace,
                row.connection_id,
            )
            for vendor, row in children
            if row.id in new
        ]
        return wakes, told

    def _delivery(self, command: Routed, connection_id: str, vendor: str) -> CommandRow:
        row, manifest = command.row, self._adapters[vendor].manifest
        kind, internal = command.entity
        support = manifest.commands[row.event_type]
        lane = f"{lane_prefix(kind, internal)}{connection_id}"
        return CommandRow(
            id=derived(row.id, connection_id),
            company_id=row.company_id,
            connection_id=connection_id,
            parent_id=row.id,
            event_type=row.event_type,
            entity_type=kind.value,
            entity_internal_id=internal,
            idempotency_key=f"{row.id}@{connection_id}",  # of the command's own key a service may have one that is the same
            payload=row.payload,
            sealed=row.sealed,
            lane=None if support.lane is LanePolicy.INDEPENDENT else lane,
            lane_policy=support.lane.value,
            max_attempts=self._policies[manifest.retry_policy].attempts,
            trace=row.trace,
        )


async def _check_there(connection: Connection, known: Sequence[CommandRow]) -> None:
    """That these were routed before, whatever their key was then: a new row that is swallowed would never be sent.

    raises  KeyTakenError
    """
    there = await store.deliveries_there(connection, known)
    for row in known:
        if row.id not in there:
            raise KeyTakenError(
                f"idempotencykey: another event has {row.idempotency_key}, the key of a delivery; "
                "send the command again with a new id and key"
            )


async def _park_unrouted(command: Routed, error: Exception) -> None:
    kind = type(error).__name__
    problem = f"cannot be routed: {kind}; the log of the outbound worker has more"
    command.park = Park(Fault.BUG, problem, Owner.PIPELINE, kind)


def _home(command: Routed) -> tuple[str, str]:
    """The reference whose mapping says where the entity lives: the property of a new booking, else the thing itself."""
    if command.data is None:
        raise AssertionError("an invalid command has no home")
    kind, internal = command.data.references()[0]
    return kind.value, internal


def _finish_row(command: Routed, now: datetime) -> FinishRow:
    end = ending(command.park or Done(None), now)
    return FinishRow(
        id=command.row.id,
        status=end.status.value,
        attempts=command.row.attempts + 1,
        starts=0,
        next_attempt_at=None,
        error_class=end.fault,
        last_error=end.message,
        error_code=end.code,
        keep_attempt=command.park is not None or command.row.attempts > 0,
        outcome=end.word,
        started_at=command.started_at,
    )


def _failed(command: Routed) -> CoreEventRow:
    row, park = command.row, command.park
    if park is None:
        raise AssertionError("only a parked command failed")
    return results.command_ended(
        Result.COMMAND_FAILED,
        company_id=row.company_id,
        connection_id=row.connection_id,
        subject=command.data.lane_entity()[1] if command.data else str(row.id),
        command_type=row.event_type,
        cause_id=row.id,
        trace=row.trace,
        fault=park.fault.value,
        error=park.message,
    )


def _dead_letter(command: Routed, park: Park) -> DeadLetterRow:
    row = command.row
    kind, internal = command.entity if command.data is not None else (None, None)
    return DeadLetterRow(
        event_id=row.id,
        company_id=row.company_id,
        connection_id=row.connection_id,
        vendor=None,
        queue=None,
        operation=row.event_type,
        entity_type=kind.value if kind else None,
        entity_external_id=None,
        entity_internal_id=internal,
        error_class=park.fault.value,
        error_code=park.code,
        error_message=park.message,
        attempts=row.attempts + 1,
        first_attempt_at=command.started_at,
        owner=park.owner.value,
        place=park.place,
    )
