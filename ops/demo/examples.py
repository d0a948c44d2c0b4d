"""Commands to paste while `up` runs, from the folder in which it was started. Secrets stay in their files."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from .seed import PROPERTY, STUDIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .seed import Tenant


@dataclass(frozen=True, slots=True)
class Place:
    """What the commands name. body, webhook_secret, admin_key: files, relative to where `up` was started"""

    ingress: str
    simulator: str
    tenant: Tenant
    body: Path
    webhook_secret: Path
    admin_key: Path


def sample_webhook(booking: int) -> bytes:
    """What Beds24 would send about a fresh booking, of a guest who does not exist."""
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    arrival = date.today() + timedelta(days=45)  # noqa: DTZ011 - weeks ahead, any zone's date will do
    return orjson.dumps(
        {
            "timeStamp": now,
            "booking": {
                "id": booking,
                "propertyId": int(PROPERTY),
                "roomId": int(STUDIO),
                "status": "confirmed",
                "arrival": arrival.isoformat(),
                "departure": (arrival + timedelta(days=3)).isoformat(),
                "numAdult": 2,
                "numChild": 0,
                "firstName": "Quill",
                "lastName": "Madeupname",
                "email": "quill.madeupname@example.invalid",
                "price": 240,
                "channel": "direct",
                "bookingTime": now,
                "modifiedTime": now,
            },
            "retries": 0,
        },
        option=orjson.OPT_INDENT_2,
    )


def commands(place: Place) -> Iterator[tuple[str, str]]:
    """(what it shows, the command); no line has more than 100 columns"""
    tenant, staybus = place.tenant, _staybus()
    body, secret, key = (shlex.quote(str(path)) for path in (place.body, place.webhook_secret, place.admin_key))
    yield (
        "a webhook of Beds24 about a fresh booking, signed (202; again: 200, a duplicate)",
        f"curl -sS {place.ingress}/webhooks/beds24/{tenant.connection} \\\n"
        f"  -H 'Content-Type: application/json' --data-binary @{body} \\\n"
        f'  -H "X-Beds24-Signature: sha256=$(openssl dgst -sha256 -r \\\n'
        f'  -hmac "$(cat {secret})" {body} | cut -d\' \' -f1)"',
    )
    yield (
        "a guest books at the simulator, which sends its webhook",
        f"curl -sS -X POST {place.simulator}/_sim/bookings",
    )
    first, last = (date.today() + timedelta(days=days) for days in (60, 63))  # noqa: DTZ011 - as above
    yield (
        "the core creates a booking at Beds24 (see it at the simulator's page)",
        f"{staybus} publish pms.booking.create --company {tenant.company} --data '{{\n"
        f'  "reservationId": "R-\'$RANDOM\'", "propertyId": "P-HARBOUR", "roomTypeId": "RT-STUDIO",\n'
        f'  "checkIn": "{first}", "checkOut": "{last}", "adults": 2}}\'',
    )
    yield (
        "Beds24 refuses to write from now on; what is commanded then ends as a dead letter",
        f"curl -sS {place.simulator}/_sim/faults \\\n"
        """  -d '{"kind": "server_error", "operation": "POST /bookings", "count": null}'""",
    )
    yield "Beds24 is repaired", f"curl -sS -X DELETE {place.simulator}/_sim/faults"
    yield "what happened", f"{staybus} events list --limit 20"
    yield "what failed, and why", f"{staybus} dlq list"
    yield (
        "the same over HTTP",
        f'curl -sS -H "Authorization: Bearer $(cat {key})" \\\n'
        f"  '{place.ingress}/admin/events?status=failed&limit=50'",
    )


def _staybus() -> str:
    """As it can be called from this folder."""
    beside = Path(sys.executable).with_name("staybus")
    found = shutil.which("staybus")
    if not beside.exists() or (found and beside.samefile(found)):
        return "staybus"
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))
