"""What a Beds24 booking is made of: its members, their limits, and how a written value is judged.

The vendor fills what it does not know with empty strings and nulls, and shows every member always. The limits are
those of `newBooking` in the vendor's `apiV2.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

Json = dict[str, Any]
Check = Callable[[Any], Any]

STATUSES = ("confirmed", "request", "new", "cancelled", "black", "inquiry")
LISTED_BY_DEFAULT = frozenset(STATUSES) - {"cancelled"}
LISTED_BY_FILTER = frozenset({"confirmed", "new", "request"})
OCCUPYING = frozenset({"confirmed", "new", "request", "black"})
"""Statuses that take a unit out of the calendar: an inquiry holds nothing."""

SUB_STATUSES = (
    "actionRequired",
    "allotment",
    "cancelledByGuest",
    "cancelledByHost",
    "noShow",
    "waitlist",
    "walkin",
    "none",
    "nonPayment",
)
OVERRIDES = ("none", "blackout", "exception", "noCheckIn", "noCheckOut", "noCheckInOrCheckOut")
WEBHOOK_VERSIONS = ("one", "twoNoPersonalData", "twoWithPersonalData")
ADDITIONAL_DATA = ("none", "CVC", "token", "CVCAndToken")

AFFECTS_AVAILABILITY = frozenset({"status", "arrival", "departure", "roomId", "unitId", "roomQty"})
"""Members whose change lets `actions.allowWebhooks` fire (wording of the specification)."""

PERSONAL = (
    "title",
    "firstName",
    "lastName",
    "email",
    "phone",
    "mobile",
    "fax",
    "company",
    "address",
    "city",
    "state",
    "postcode",
    "country",
    "comments",
    "message",
)
FINANCIAL = ("price", "deposit", "tax", "commission", "rateDescription", "invoiceItems")

CUSTOM = tuple(f"custom{n}" for n in range(1, 11))
PRICES = tuple(f"price{n}" for n in range(1, 17))

TEXT_LIMITS: Mapping[str, int] = {
    **dict.fromkeys(("title", "firstName", "lastName", "email", "phone", "mobile", "fax", "company", "city"), 100),
    **dict.fromkeys(("state", "postcode", "country", "arrivalTime", "voucher", "reference", "apiReference"), 100),
    **dict.fromkeys(CUSTOM, 1000),
    "address": 250,
    "comments": 1000,
    "message": 1000,
    "rateDescription": 1000,
    "notes": 2000,
    "groupNote": 5000,
    "flagColor": 6,
    "flagText": 32,
    "refererEditable": 1000,
    "apiMessage": 1000,
    "invoiceDescription": 250,
    "invoiceStatus": 50,
}


def blank_booking() -> Json:
    """All members in the vendor's order, with what the vendor shows for a direct booking that nobody filled in."""
    return {
        "id": 0,
        "masterId": None,
        "propertyId": 0,
        "roomId": 0,
        "unitId": 0,
        "roomQty": 1,
        "offerId": 0,
        "status": "confirmed",
        "subStatus": "none",
        "arrival": "",
        "departure": "",
        "numAdult": 1,
        "numChild": 0,
        **dict.fromkeys(PERSONAL[:13], ""),
        "country2": None,
        **dict.fromkeys(("arrivalTime", "voucher", "comments", "notes", "message", "groupNote"), ""),
        **dict.fromkeys(CUSTOM, ""),
        "flagColor": "",
        "flagText": "",
        "statusCode": 0,
        "lang": "",
        "referer": "API",
        "refererEditable": "",
        "reference": "",
        "channel": "direct",
        "apiSourceId": 0,
        "apiSource": "Direct",
        "apiReference": "",
        "allowChannelUpdate": "all",
        "allowAutoAction": "enable",
        "allowReview": "default",
        "allowCancellation": {"type": "propertyDefault"},
        "invoiceeId": None,
        "bookingTime": "",
        "modifiedTime": "",
        "cancelTime": None,
        "price": 0,
        "deposit": 0,
        "tax": 0,
        "commission": 0,
        "rateDescription": "",
        "stripeToken": None,
        "pcibookingToken": None,
        "apiMessage": "",
    }


def moment(at: datetime) -> str:
    """The vendor's time: UTC, whole seconds, Z. Two changes within a second look the same, as they do there."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def amount(value: Decimal) -> int | float:
    """A JSON number as the vendor writes it: 713, not 713.0."""
    return int(value) if value == value.to_integral_value() else float(value)


# --- checks: each returns the value to store, or raises ValueError with the vendor's kind of message ---


def text(limit: int) -> Check:
    def check(value: Any) -> str:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)  # the vendor's own example sends `mobile` as a number
        if not isinstance(value, str):
            raise ValueError("invalid")  # noqa: TRY004 - one exception type for all checks
        if len(value) > limit:
            raise ValueError("too long")
        return value

    return check


def whole(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError("invalid")
        return value

    return check


def number(low: float, high: float) -> Check:
    def check(value: Any) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError("invalid")
        return amount(Decimal(str(value)))

    return check


def choice(values: tuple[str, ...]) -> Check:
    def check(value: Any) -> str:
        if value not in values:
            raise ValueError("invalid")
        return str(value)

    return check


def or_null(inner: Check) -> Check:
    return lambda value: None if value is None else inner(value)


def day(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 10:
        raise ValueError("invalid")
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError("invalid") from None


def language(value: Any) -> str:
    if not isinstance(value, str) or len(value) not in {0, 2}:
        raise ValueError("invalid")
    return value


def thing(value: Any) -> Json:
    if not isinstance(value, dict):
        raise ValueError("invalid")  # noqa: TRY004 - one exception type for all checks
    return value


ID = whole(1, 2**53)
MONEY = number(0, 99_999_999.99)
SIGNED = number(-99_999_999.99, 99_999_999.99)

WRITABLE: Mapping[str, Check] = {
    **{name: text(limit) for name, limit in TEXT_LIMITS.items() if not name.startswith("invoice")},
    "roomId": ID,
    "masterId": or_null(ID),
    "unitId": whole(0, 99),
    "roomQty": whole(1, 99),
    "offerId": whole(0, 99),
    "status": choice(STATUSES),
    "subStatus": choice(SUB_STATUSES),
    "arrival": day,
    "departure": day,
    "numAdult": whole(0, 99),
    "numChild": whole(0, 99),
    "country2": or_null(text(300)),
    "statusCode": whole(0, 2**31),
    "lang": language,
    "allowChannelUpdate": choice(("none", "all", "allExceptRoomChange")),
    "allowAutoAction": choice(("disable", "enable")),
    "allowReview": choice(("default", "disable", "enable")),
    "allowCancellation": thing,
    "invoiceeId": or_null(ID),
    "price": MONEY,
    "deposit": MONEY,
    "tax": MONEY,
    "commission": MONEY,
    "stripeToken": or_null(text(1000)),
    "pcibookingToken": or_null(text(1000)),
}

INVOICE_ITEM: Mapping[str, Check] = {
    "type": choice(("charge", "payment")),
    "subType": whole(0, 1000),
    "description": text(TEXT_LIMITS["invoiceDescription"]),
    "status": text(TEXT_LIMITS["invoiceStatus"]),
    "qty": whole(-(2**31), 2**31),
    "amount": SIGNED,
    "vatRate": number(0, 99.9),
    "invoiceeId": or_null(ID),
}
INFO_ITEM: Mapping[str, Check] = {"code": text(100), "text": text(65_535)}

CALENDAR_DAY: Mapping[str, Check] = {
    "numAvail": or_null(whole(-99, 99)),
    "minStay": or_null(whole(1, 365)),
    "maxStay": or_null(whole(1, 364)),
    "multiplier": or_null(number(0.1, 100)),
    "override": or_null(choice(OVERRIDES)),
    **dict.fromkeys(PRICES, or_null(SIGNED)),
    "channels": or_null(thing),
}
WEBHOOK_SETTINGS: Mapping[str, Check] = {
    "version": choice(WEBHOOK_VERSIONS),
    "url": text(2000),
    "additionalData": choice(ADDITIONAL_DATA),
    "customHeader": text(2000),
}
