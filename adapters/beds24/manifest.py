"""What Beds24 is: data only."""

from __future__ import annotations

from datetime import date, timedelta

from adapters.port import CommandSupport, Field, Manifest, RateLimit, Repeat, Scheme, WebhookAuth
from schemas.vocabulary import EntityType, LanePolicy

CREATE = "pms.booking.create"
UPDATE = "pms.booking.update"
CANCEL = "pms.booking.cancel"
AVAILABILITY = "pms.availability.update"

DEFAULT_BASE_URL = "https://beds24.com/api/v2"

_GUEST = (
    *("title", "firstName", "lastName", "email", "phone", "mobile", "fax", "company"),
    *("address", "city", "state", "postcode"),
    *("comments", "notes", "message", "groupNote", "apiMessage", "flagText"),  # free text, often about the guest
    *(f"custom{number}" for number in range(1, 11)),
)
_ID = r"[1-9][0-9]{0,19}"

MANIFEST = Manifest(
    name="beds24",
    title="Beds24",
    docs_url="https://wiki.beds24.com/index.php/API_V2.0",
    docs_read=date(2026, 11, 21),
    api_version="v2",
    capabilities=frozenset(
        {
            "webhook.booking",
            "webhook.inventory",
            "fetch.booking",
            "fetch.availability",
            "pull.booking",
            "booking.create",
            "booking.update",
            "booking.cancel",
            "availability.update",
        }
    ),
    fields=(
        Field("base_url", "Address of the API; some accounts are served elsewhere.", default=DEFAULT_BASE_URL),
        Field(
            "invite_code",
            "Code from Settings > Marketplace > API; single use, valid 24 hours.",
            secret=True,
            grants=("refresh_token",),
        ),
        Field("refresh_token", "Instead of an invite code: a refresh token that you have already.", secret=True),
        Field("webhook_secret", "What webhooks prove their origin with.", secret=True),
        Field(
            "webhook_header",
            "Header that carries it: the name in Beds24's `customHeader`.",
        ),
        Field("currency", "ISO 4217 code for properties whose own currency is not known yet.", form="[A-Z]{3}"),
        Field(
            "fetch",
            "`hint`: read a booking from the API only when its webhook does not tell enough; `always`: every time.",
            default="hint",
            form="hint|always",
        ),
        Field(
            "pull",
            "Seconds between two pulls of what webhooks did not bring; 0: none. Default: the installation's.",
            form="[0-9]{1,8}",
        ),
    ),
    webhook_auth=(
        WebhookAuth(Scheme.HMAC, "X-Beds24-Signature"),
        WebhookAuth(Scheme.STATIC_HEADER, "X-Staybus-Key"),
    ),
    inbound=("beds24.#",),
    commands={
        CREATE: CommandSupport(Repeat.LOOK_UP, LanePolicy.HOLD),
        UPDATE: CommandSupport(Repeat.SAFE, LanePolicy.HOLD),
        CANCEL: CommandSupport(Repeat.SAFE, LanePolicy.HOLD),
        AVAILABILITY: CommandSupport(Repeat.SAFE, LanePolicy.SUPERSEDE),
    },
    commands_with_marker=frozenset({CREATE}),
    personal_paths=(
        *(f"booking.{member}" for member in _GUEST),
        *("booking.guests", "booking.infoItems", "guests", "infoItems", "messages"),
    ),
    retry_policy="channel_event",
    rate_limit=RateLimit(units=100, per=timedelta(seconds=300), scope="account", reserve=20),
    idempotency="None: X-Idempotency-Key is sent and ignored; a create is found again by its apiReference.",
    external_ids={
        EntityType.PROPERTY: _ID,
        EntityType.ROOM_TYPE: _ID,
        EntityType.RESERVATION: _ID,
        EntityType.AVAILABILITY: _ID,
    },
    webhook_methods=("GET", "POST"),
    webhook_answer=202,
    pulls=frozenset({EntityType.RESERVATION}),
)
