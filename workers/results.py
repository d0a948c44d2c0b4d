"""The events that follow from what was applied, for whoever listens. They name guests by id, never by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from schemas.entities import Reservation
from schemas.vocabulary import Result
from store.results import CoreEventRow

if TYPE_CHECKING:
    from uuid import UUID

# Wire name by name: what others may know of a reservation.
_SHOWN = {
    name: field.alias or name for name, field in Reservation.model_fields.items() if name not in {"guest", "marker"}
}


def reservation_upserted(reservation: Reservation, connection_id: str, vendor: str) -> str:
    """Result.RESERVATION_UPSERTED, as store.inbound.StateRow wants it."""
    said = reservation.__dict__
    data = {
        "connectionId": connection_id,
        "vendor": vendor,
        "reservation": {shown: said[name] for name, shown in _SHOWN.items() if said[name] is not None},
    }
    return orjson.dumps(data, option=orjson.OPT_UTC_Z).decode()


def command_ended(
    event_type: Result,
    *,
    company_id: str,
    connection_id: str | None,
    subject: str,
    command_type: str,
    cause_id: UUID,
    trace: str | None,
    **more: Any,
) -> CoreEventRow:
    """Result.COMMAND_SUCCEEDED or COMMAND_FAILED about one delivery (or about a command that could not be routed)."""
    data = {"command": command_type, "connectionId": connection_id, "deliveryId": str(cause_id), **more}
    return CoreEventRow(
        company_id, connection_id, event_type.value, subject, orjson.dumps(data).decode(), cause_id, trace
    )
