"""The steps of each process between which it is killed: data only.

A step is a function that the process calls; `place` says under which name it looks it up, so that a launcher can put itself
in between. Killed is before the call, after it has returned, or (during) while it is under way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Moment(StrEnum):
    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


_AROUND = (Moment.BEFORE, Moment.AFTER)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one process.

    place    module:attribute, as the process looks it up
    most     the kill comes at the n-th call, n from 1 to this
    where    (attribute, value): only calls one of whose arguments has it
    found    only calls that return something: looks that find nothing are no step
    into     seconds into a call that is caught under way; a vendor that is to be caught at work is told to be slow
    needs    what brings the step about (an errand of `tests.faults.load`); "" for what any load does
    """

    process: str
    name: str
    place: str
    moments: tuple[Moment, ...] = _AROUND
    most: int = 2
    where: tuple[str, str] | None = None
    found: bool = False
    needs: str = ""
    into: float = 0.002


@dataclass(frozen=True, slots=True)
class Point:
    """A place to be killed at."""

    step: Step
    moment: Moment

    @property
    def name(self) -> str:
        return f"{self.step.process}.{self.step.name}.{self.moment}"


_BEFORE = (Moment.BEFORE,)
_AFTER = (Moment.AFTER,)
_ALL = (Moment.BEFORE, Moment.DURING, Moment.AFTER)
_SEND = "adapters.transport:HttpTransport.send"
_HTTP = 0.03

INGRESS = (
    Step("ingress", "submit", "ingress.webhooks:Webhooks._submit", _BEFORE, 8),
    Step("ingress", "insert", "ingress.webhooks:record", _ALL, 4),
    Step("ingress", "answer", "ingress.webhooks:Webhooks.receive", _AFTER, 8),
    Step("ingress", "answered", "ingress.app:Ingress._webhook", _AFTER, 8),
    Step("ingress", "announce", "ingress.webhooks:announce", _BEFORE, 4),
    Step("ingress", "publish", "topology.publisher:send", _AROUND, 4),
    Step("ingress", "confirm", "topology.publisher:Publisher.publish_all", _ALL, 4),
    Step("ingress", "mark", "store.marks:Marks.flush", _AROUND, 1),
)

INBOUND = (
    Step("inbound", "deliver", "workers.intake:Intake.take", _AROUND, 8),
    Step("inbound", "keep", "workers.malformed:bury", _AROUND, 1, needs="junk"),
    Step("inbound", "process", "workers.inbound:InboundStage.process", _BEFORE, 3),
    Step("inbound", "alone", "workers.inbound:store.start_alone", _AROUND, 1, needs="returned"),
    Step("inbound", "load", "workers.inbound:store.load", _AROUND, 3),
    Step("inbound", "handle", "workers.inbound:InboundStage._interpret", _AROUND, 8),
    Step("inbound", "lease", "workers.hints:store.lease", _AROUND, 2, needs="hints"),
    Step("inbound", "fetch", _SEND, _ALL, 2, where=("operation", "bookings.read"), needs="hints", into=_HTTP),
    Step("inbound", "renewal", "workers.sessions:connections.begin_renewal", _AFTER, 1, found=True, needs="token"),
    Step("inbound", "grant", _SEND, _AROUND, 1, where=("operation", "authentication.token"), needs="token"),
    Step("inbound", "token", "workers.sessions:connections.put_secret", _AROUND, 1, needs="token"),
    Step("inbound", "apply", "workers.inbound:store.apply_states", _ALL, 3),
    Step("inbound", "applied", "workers.inbound:InboundStage._apply", _AFTER, 3),
    Step("inbound", "finish", "workers.inbound:finish", _AROUND, 2, needs="hints"),
    Step("inbound", "commit", "workers.inbound:InboundStage._write", _AFTER, 2, needs="hints"),
    Step(
        "inbound", "committed", "workers.inbound:InboundStage._commit", (Moment.DURING, Moment.AFTER), 2, needs="hints"
    ),
    Step("inbound", "tell", "workers.tell:Teller.tell", _AROUND, 4),
    Step("inbound", "publish", "topology.publisher:send", _AROUND, 4),
    Step("inbound", "confirm", "topology.publisher:Publisher.publish_all", _AFTER, 4),
    Step("inbound", "mark", "store.marks:Marks.flush", _AROUND, 1),
    Step("inbound", "ack", "topology.consumer:Consumer.settle", _AROUND, 8),
    Step("inbound", "acked", "topology.consumer:_Session._send", _AROUND, 3),
)

OUTBOUND = (
    Step("outbound", "deliver", "workers.intake:Intake.take", _AROUND, 6),
    Step("outbound", "adopt", "workers.router:RouterStage._adopt", _AROUND, 3),
    Step("outbound", "load", "workers.router:store.load_commands", _AROUND, 3),
    Step("outbound", "target", "workers.router:store.mapped_connections", _AROUND, 3),
    Step("outbound", "insert", "workers.router:store.insert_commands", _ALL, 4),
    Step("outbound", "route-finish", "workers.router:finish", _AROUND, 3),
    Step("outbound", "route-commit", "workers.router:RouterStage._write", _AFTER, 3),
    Step("outbound", "routed", "workers.router:RouterStage._commit", (Moment.DURING, Moment.AFTER), 3),
    Step("outbound", "route-announce", "workers.router:announce", _AROUND, 3),
    Step("outbound", "claim", "workers.delivery:store.claim", _ALL, 4),
    Step("outbound", "admit", "workers.governor:limits.take_at_once", _AROUND, 3),
    Step("outbound", "circuits", "workers.governor:limits.circuits", _AFTER, 1, needs="due"),
    Step("outbound", "take", "workers.governor:limits.take", _AROUND, 1, needs="due"),
    Step("outbound", "older", "workers.lane:store.older_in_lane", _AROUND, 2, needs="superseded"),
    Step("outbound", "note", "workers.delivery:store.note_own_writes", _AROUND, 3),
    Step("outbound", "noted", "workers.delivery:DeliveryStage._resolve_and_note", _AFTER, 3),
    Step("outbound", "perform", "workers.delivery:DeliveryStage._perform", _AROUND, 4),
    Step("outbound", "create", _SEND, _ALL, 3, where=("operation", "bookings.create"), into=_HTTP),
    Step("outbound", "update", _SEND, _ALL, 3, where=("operation", "bookings.update"), into=_HTTP),
    Step("outbound", "cancel", _SEND, _ALL, 1, where=("operation", "bookings.cancel"), into=_HTTP),
    Step("outbound", "push", _SEND, _ALL, 1, where=("operation", "calendar.update"), needs="availability", into=_HTTP),
    Step("outbound", "look-up", _SEND, _ALL, 1, where=("operation", "bookings.find"), needs="doubt", into=_HTTP),
    Step("outbound", "succeed", "workers.delivery:store.succeed", _ALL, 4),
    Step("outbound", "fence", "workers.delivery:store.lock_leased", _AROUND, 2, needs="due"),
    Step("outbound", "finish", "workers.lane:finish", _AROUND, 2, needs="due"),
    Step("outbound", "supersede", "workers.delivery:store.supersede", _AROUND, 2, needs="superseded"),
    Step("outbound", "part", "workers.lane:Lane.said", _ALL, 1, needs="parts"),
    Step("outbound", "commit", "workers.delivery:DeliveryStage._write", _AFTER, 2, needs="due"),
    Step("outbound", "committed", "workers.delivery:DeliveryStage._commit", (Moment.DURING, Moment.AFTER), 4),
    Step("outbound", "note-calls", "workers.governor:limits.spent", _AROUND, 3),
    Step("outbound", "silent", "workers.governor:limits.silent", _AROUND, 1, needs="due"),
    Step("outbound", "heard", "workers.governor:limits.heard", _AFTER, 2, needs="due"),
    Step("outbound", "next-in-lane", "workers.delivery:store.lane_heads", _AROUND, 3),
    Step("outbound", "tell", "workers.tell:Teller.tell", _AROUND, 3),
    Step("outbound", "wake-next", "workers.delivery:announce", _AROUND, 2),
    Step("outbound", "publish", "topology.publisher:send", _AROUND, 5),
    Step("outbound", "confirm", "topology.publisher:Publisher.publish_all", _AFTER, 5),
    Step("outbound", "mark", "store.marks:Marks.flush", _AROUND, 1),
    Step("outbound", "ack", "topology.consumer:Consumer.settle", _AROUND, 6),
    Step("outbound", "acked", "topology.consumer:_Session._send", _AROUND, 5),
)

_TAKE = "workers.relay:store.take"

SCHEDULER = (
    Step("scheduler", "unpublished", "workers.relay:store.take_in_turn", _AFTER, 1, found=True, needs="unpublished"),
    Step("scheduler", "stale", "workers.relay:store.take_lost", _AFTER, 1, found=True, needs="stale"),
    Step("scheduler", "due", _TAKE, _AFTER, 1, where=("name", "due"), found=True, needs="due"),
    Step("scheduler", "expired", _TAKE, _AFTER, 1, where=("name", "expired"), found=True, needs="expired"),
    Step("scheduler", "announce", "workers.relay:announce", _AROUND, 2, needs="unpublished"),
    Step("scheduler", "publish", "topology.publisher:send", _AROUND, 2, needs="unpublished"),
    Step("scheduler", "confirm", "topology.publisher:Publisher.publish_all", _AFTER, 2, needs="unpublished"),
    Step("scheduler", "untold", "workers.relay:results.untold", _AFTER, 1, found=True, needs="untold"),
    Step("scheduler", "tell", "workers.relay:publish", _AROUND, 1, needs="untold"),
    Step("scheduler", "told", "workers.relay:Relay.tell", _AFTER, 1, found=True, needs="untold"),
    Step("scheduler", "outbox", "workers.relay:store.outbox", _AFTER, 2, found=True, needs="outbox"),
    Step("scheduler", "outbox-insert", "workers.relay:insert_commands", _AFTER, 2, found=True, needs="outbox"),
    Step("scheduler", "outbox-taken", "workers.relay:store.outbox_taken", _AROUND, 2, needs="outbox"),
    Step("scheduler", "outbox-done", "workers.relay:Relay.take_outbox", _AFTER, 2, found=True, needs="outbox"),
    Step("scheduler", "absent", "workers.takeover:presence.absent", _AFTER, 1, found=True, needs="death"),
    Step("scheduler", "end-leases", "workers.takeover:presence.end_leases", _AROUND, 1, needs="death"),
    Step("scheduler", "takeover", "workers.takeover:Takeover.look", _AFTER, 1, found=True, needs="death"),
    Step("scheduler", "letter", "workers.recorder:Recorder._record", _AROUND, 1, needs="letters"),
    Step("scheduler", "behind", "workers.recorder:store.behind_letters", _AROUND, 1, needs="letters"),
    Step("scheduler", "letter-announce", "workers.recorder:announce", _AROUND, 1, needs="letters"),
    Step("scheduler", "bury", "workers.recorder:bury", _AROUND, 1, needs="letters"),
    Step("scheduler", "letter-ack", "topology.consumer:Consumer.settle", _AROUND, 1, needs="letters"),
    Step("scheduler", "letter-acked", "topology.consumer:_Session._send", _AROUND, 1, needs="letters"),
    Step("scheduler", "pull-claim", "workers.pull:store.claim", _AFTER, 1, found=True, needs="pull"),
    Step("scheduler", "pull-hold", "workers.pull:store.hold", _AFTER, 1, needs="pull"),
    Step("scheduler", "pull-record", "workers.pull:record_facts", _AROUND, 1, needs="pull"),
    Step("scheduler", "pull-finish", "workers.pull:store.finish", _AROUND, 1, needs="pull"),
    Step("scheduler", "job-due", "workers.jobs:store.due", _AFTER, 2, found=True, needs="job"),
    Step("scheduler", "job-take", "workers.jobs:store.take", _AFTER, 2, found=True, needs="job"),
    Step("scheduler", "job-batch", "workers.bulk:events.replay", _AROUND, 2, needs="job"),
    Step("scheduler", "job-audit", "workers.bulk:jobs.audit", _AFTER, 2, needs="job"),
    Step("scheduler", "job-advance", "workers.jobs:store.advance", _AROUND, 2, needs="job"),
    Step("scheduler", "job-committed", "workers.jobs:Jobs.step", _AFTER, 2, found=True, needs="job"),
    Step("scheduler", "gauge", "workers.upkeep:relay.backlog", _AROUND, 1),
)

STEPS: tuple[Step, ...] = (*INGRESS, *INBOUND, *OUTBOUND, *SCHEDULER)
POINTS: tuple[Point, ...] = tuple(Point(step, moment) for step in STEPS for moment in step.moments)
