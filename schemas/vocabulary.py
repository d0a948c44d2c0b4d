"""The closed sets of words that code, database and documents share. The database stores the values as they are here."""

from __future__ import annotations

from enum import StrEnum


class EventStatus(StrEnum):
    """Where a row of `channel_events` stands."""

    RECEIVED = "received"  # recorded, nobody has finished it yet
    PROCESSING = "processing"  # leased by a worker that may be calling a vendor
    RETRYING = "retrying"  # waits for next_attempt_at
    DONE = "done"
    FAILED = "failed"  # budget used up or refused: a dead letter tells why
    SKIPPED = "skipped"  # nothing to do: duplicate, stale, echo of our own write
    SUPERSEDED = "superseded"  # went out merged into a newer command of its lane
    ABANDONED = "abandoned"  # an operator gave it up, with a reason


OPEN_STATUSES = (EventStatus.RECEIVED, EventStatus.PROCESSING, EventStatus.RETRYING)

# An event that began this often and never ended is what kills its workers. A row with one more has begun its last start; where
# what is leased begins later, alone, a row with so many has not yet.
MAX_STARTS = 3


class Result(StrEnum):
    """What the core and whoever listens are told: types of events."""

    RESERVATION_UPSERTED = "core.reservation.upserted"
    COMMAND_SUCCEEDED = "core.command.succeeded"
    COMMAND_FAILED = "core.command.failed"


class DeadLetterStatus(StrEnum):
    PENDING = "pending"
    RETRYING = "retrying"
    RESOLVED = "resolved"
    ABANDONED = "abandoned"


class JobKind(StrEnum):
    """What an operators' job does to what it names."""

    REQUEUE = "requeue"
    ABANDON = "abandon"
    REPLAY = "replay"


class JobStatus(StrEnum):
    """Where an operators' job stands."""

    WAITING = "waiting"  # no scheduler has begun it
    CANARY = "canary"  # its first ones run, and decide about the rest
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"  # by an operator; what it let run before goes on
    FAILED = "failed"  # its canary did not come through, or it could not be done


OPEN_JOBS = (JobStatus.WAITING, JobStatus.CANARY, JobStatus.RUNNING)


class Owner(StrEnum):
    """Who can mend a dead letter."""

    PIPELINE = "pipeline"  # us: a fault of staybus or of its surroundings
    TENANT = "tenant"  # the company or its vendor: a mapping, a credential, a refused value


class Fault(StrEnum):
    """What went wrong, as the retry decision sees it; also `channel_events.error_class`."""

    TRANSIENT = "transient"  # the vendor or the way to it failed; nothing was done
    RATE_LIMITED = "rate_limited"
    UNKNOWN = "unknown"  # sent, no answer: ask before repeating
    REJECTED = "rejected"  # the vendor said no
    UNSUPPORTED = "unsupported"  # cannot be said to this vendor
    MISCONFIGURED = "misconfigured"  # credentials or connection settings
    UNMAPPED = "unmapped"  # no external id for one of ours, or the other way round
    INVALID = "invalid"  # the data itself: which field is in the text
    POISON = "poison"  # killed its worker again and again
    BUG = "bug"  # ours


class CallKind(StrEnum):
    """What is asked of a vendor: vendors answer the one kind and not the other."""

    READ = "read"  # what hints and pulls want to know, and whether a command was done
    WRITE = "write"  # commands


class LanePolicy(StrEnum):
    """What the commands behind a lane's head do while it is not finished."""

    HOLD = "hold"  # wait, also behind a failed head: bookings, charges
    SUPERSEDE = "supersede"  # the newest pending command replaces the older ones: availability, rates
    INDEPENDENT = "independent"  # never wait: notes, notifications


class ReservationStatus(StrEnum):
    """Standard schema. A vendor's word that we do not know becomes UNKNOWN, never CONFIRMED."""

    CONFIRMED = "confirmed"
    PENDING = "pending"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"  # an owner's or maintenance block, not a guest
    UNKNOWN = "unknown"


class EntityType(StrEnum):
    """The kinds of thing that mappings, events and the sync log name."""

    PROPERTY = "property"
    ROOM_TYPE = "room_type"
    RESERVATION = "reservation"
    AVAILABILITY = "availability"
    GUEST = "guest"
