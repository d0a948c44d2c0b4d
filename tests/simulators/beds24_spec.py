"""Holds requests and answers to Beds24's own `apiV2.yaml`, stricter than the document and corrected where it is wrong.

Stricter: members and query parameters that the document does not know are errors, so that a typing error in a client
does not pass as "ignored by the vendor". Corrected: each entry of `CORRECTIONS` changes the document in one place and
says on which evidence. Use: `validate_request("POST", "/bookings", body)`, `validate_response("GET", "/bookings", 200,
body)`; paths may be whole URLs, with their query. Both raise `SpecError`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from jsonschema import Draft7Validator, FormatChecker, validators

VENDORS = Path(__file__).resolve().parents[2].parent / "shared/vendors"
SPEC = VENDORS / "specs/beds24/apiV2.yaml"
SAMPLES = VENDORS / "samples/beds24"

needs_spec = pytest.mark.skipif(
    not SPEC.exists(), reason=f"the vendor's specification is not beside the checkout: {SPEC}"
)
needs_samples = pytest.mark.skipif(
    not SAMPLES.exists(), reason=f"the vendor's samples are not beside the checkout: {SAMPLES}"
)

Json = dict[str, Any]


class SpecError(AssertionError):
    """The request or answer is not what the vendor documents."""


@dataclass(frozen=True)
class Correction:
    where: str
    why: str
    apply: Callable[[Json], None]


def _schema(document: Json, name: str) -> Json:
    return document["components"]["schemas"][name]


def _new_booking(document: Json) -> Json:
    return _schema(document, "newBooking")["properties"]


def _booking(document: Json, part: int) -> Json:
    return _schema(document, "booking")["allOf"][part]["properties"]


def _updates_need_only_an_id(document: Json) -> None:
    del _schema(document, "newBooking")["required"]
    items = document["paths"]["/bookings"]["post"]["requestBody"]["content"]["application/json"]["schema"]["items"]
    items["if"] = {"not": {"required": ["id"]}}
    items["then"] = {"required": ["roomId", "arrival", "departure"]}


def _post_takes_shown_members(document: Json) -> None:
    _new_booking(document).update(
        reference={"type": "string", "maxLength": 100},
        apiReference={"type": "string", "maxLength": 100},
        subStatus=copy.deepcopy(_booking(document, 2)["subStatus"]),
    )


def _calendar_takes_null(document: Json) -> None:
    for name, member in _schema(document, "calendar")["properties"]["calendar"]["items"]["properties"].items():
        if name not in {"from", "to"}:
            member["nullable"] = True


def _post_answers_are_open(document: Json) -> None:
    answer = _schema(document, "multiplePostResponse")["properties"]
    for name in ("new", "modified"):
        answer[name] = {"type": "object"}
    answer["info"]["items"]["properties"]["id"] = {"type": "integer"}


def _shown_invoice_items(document: Json) -> None:
    _booking(document, 2)["invoiceItems"]["items"]["properties"].update(
        lineTotal={"type": "number"}, createTime={"type": "string", "format": "date-time"}
    )


CORRECTIONS = (
    Correction(
        "UnsuccessfulApiResponse.required",
        "error schemas are incomplete (beds24.md §11); `type` may be missing (§4)",
        lambda d: _schema(d, "UnsuccessfulApiResponse")["required"].remove("type"),
    ),
    Correction(
        "newBooking.mobile",
        "the vendor's example sends a number (§11)",
        lambda d: _new_booking(d)["mobile"].update(type=["string", "integer"]),
    ),
    Correction("newBooking.required", "the example updateBooking has only an id", _updates_need_only_an_id),
    Correction(
        "newBooking.reference, apiReference, subStatus",
        "described only in answers; written by API (§5, §7)",
        _post_takes_shown_members,
    ),
    Correction(
        "newBooking.infoItems.id",
        "the examples modifyInfoItem and deleteInfoItem send it",
        lambda d: _new_booking(d)["infoItems"]["items"]["properties"].update(id={"type": "integer"}),
    ),
    Correction(
        "newBooking.masterId",
        "null in every captured booking that is in no group",
        lambda d: _new_booking(d)["masterId"].update(nullable=True),
    ),
    Correction(
        "newBooking.lang",
        "an empty string in captured bookings",
        lambda d: _new_booking(d)["lang"].update(minLength=0),
    ),
    Correction(
        "newBooking.email",
        "an empty string where unknown (§5)",
        lambda d: _new_booking(d)["email"].pop("format"),
    ),
    Correction(
        "booking.channel",
        "captured bookings have `direct`; the query parameter of the same name lists it",
        lambda d: _booking(d, 0)["channel"]["enum"].append("direct"),
    ),
    Correction(
        "booking.invoiceItems",
        "captured items have lineTotal and createTime, as the schema invoiceItem says",
        _shown_invoice_items,
    ),
    Correction(
        "pages.nextPageLink",
        "null on the last page in captured answers",
        lambda d: _schema(d, "pages")["properties"]["nextPageLink"].update(nullable=True),
    ),
    Correction("calendar.*", "null removes a value (its own description, example deletePrice)", _calendar_takes_null),
    Correction("multiplePostResponse", "measured answers name ids in `new` and `info`", _post_answers_are_open),
)

EXAMPLE_FAULTS = {
    ("/bookings", "multipleNewBookings"): "its member `comment` does not exist: it is `comments` (§11)",
    ("/properties", "newProperty"): "its member `country` is a name where the schema wants two letters",
}
"""Requests that the document shows as examples and that are wrong."""


def validate_request(method: str, path: str, body: object = None) -> None:
    """Path known, query parameters known and well-formed, body as described."""
    operation, query = _operation(method, path)
    _check_query(f"{method} {path}", operation, query)
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        if body is not None:
            raise SpecError(f"{method} {path} takes no body")
        return
    _check(f"{method} {path} request", _closed(content["schema"]), body)


def validate_response(method: str, path: str, status: int, body: object) -> None:
    """Status known and body as described. Errors: the document knows only 400; 401, 403, 429 and 5xx look alike (§4)."""
    operation, _ = _operation(method, path)
    where = f"{method} {path} answer {status}"
    if status >= 400:
        _check(where, _closed({"$ref": "#/components/schemas/UnsuccessfulApiResponse"}), body)
        if not isinstance(body, dict) or body["success"] is not False or body["code"] != status:
            raise SpecError(f"{where}: an error must say success false and its own status as code")
        return
    if str(status) not in operation["responses"]:
        raise SpecError(f"{where}: the document knows {', '.join(operation['responses'])}")
    content = operation["responses"][str(status)].get("content")
    if content is not None:
        _check(where, _closed(content["application/json"]["schema"]), body)


def request_examples() -> Iterator[tuple[str, str, str, Any]]:
    """(method, path, name, body) of every example request of the document."""
    for path, methods in _document()["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for name, example in content.get("examples", {}).items():
                yield method.upper(), path, name, example["value"]


@cache
def _document() -> Json:
    document: Json = yaml.safe_load(SPEC.read_text(encoding="utf-8"))
    for correction in CORRECTIONS:
        correction.apply(document)
    return document


def _operation(method: str, path: str) -> tuple[Json, list[tuple[str, str]]]:
    parts = urlsplit(path)
    known = re.sub(r"^(/api)?/v2(?=/)", "", parts.path)
    methods = _document()["paths"].get(known)
    if methods is None or method.lower() not in methods:
        raise SpecError(f"the document has no {method} {known}")
    return methods[method.lower()], parse_qsl(parts.query, keep_blank_values=True)


def _check_query(where: str, operation: Json, query: list[tuple[str, str]]) -> None:
    described = [_resolve(parameter) for parameter in operation.get("parameters", [])]
    known = {parameter["name"]: parameter for parameter in described if parameter["in"] == "query"}
    given = [(name.removesuffix("[]"), value) for name, value in query]
    for name, value in given:
        if name not in known:
            raise SpecError(f"{where}: no query parameter {name}")
        schema = known[name]["schema"]
        _check(f"{where} parameter {name}", _closed(schema.get("items", schema)), _typed(value))
        if schema["type"] != "array" and [n for n, _ in given].count(name) > 1:
            raise SpecError(f"{where}: query parameter {name} repeated")
    missing = {name for name, parameter in known.items() if parameter.get("required")} - {name for name, _ in given}
    if missing:
        raise SpecError(f"{where}: query parameters {sorted(missing)} are required")


def _typed(value: str) -> object:
    """A query value in the type it looks like; text that looks like a number still passes for text (see `_Digits`)."""
    if value in {"true", "false"}:
        return value == "true"
    return _Digits(value) if re.fullmatch(r"-?\d+", value) else value


class _Digits(str):
    """Digits in a query: an integer or a text, whichever is asked for."""

    __slots__ = ()


_TYPES = Draft7Validator.TYPE_CHECKER.redefine(
    "integer", lambda _, value: isinstance(value, _Digits) or (isinstance(value, int) and not isinstance(value, bool))
)
_FORMATS = FormatChecker(formats=())


@_FORMATS.checks("date", raises=ValueError)
def _is_date(value: object) -> bool:
    return not isinstance(value, str) or bool(len(value) == 10 and date.fromisoformat(value))


@_FORMATS.checks("date-time", raises=ValueError)
def _is_time(value: object) -> bool:
    """A plain date passes too: the vendor takes one where it says date-time."""
    return not isinstance(value, str) or bool(datetime.fromisoformat(value))


@_FORMATS.checks("email")
def _is_email(value: object) -> bool:
    return not isinstance(value, str) or "@" in value


_Strict = validators.extend(Draft7Validator, type_checker=_TYPES)


def _check(where: str, schema: Json, value: object) -> None:
    found = _Strict(schema, format_checker=_FORMATS).iter_errors(value)
    errors = sorted(found, key=lambda error: list(map(str, error.absolute_path)))
    if errors:
        told = "; ".join(f"{error.json_path}: {error.message}" for error in errors[:5])
        raise SpecError(f"{where}: {told}")


def _resolve(schema: Json) -> Json:
    while "$ref" in schema:
        found: Any = _document()
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        schema = found
    return schema


def _closed(schema: Json) -> Json:
    """The schema without references and allOf, nullable said in JSON Schema's words, objects closed."""
    flat = _flat(schema)
    if "items" in flat:
        flat["items"] = _closed(flat["items"])
    if "properties" in flat:
        flat["properties"] = {name: _closed(member) for name, member in flat["properties"].items()}
        flat.setdefault("additionalProperties", False)
        flat.setdefault("type", "object")
    for word in ("anyOf", "oneOf"):
        if word in flat:
            flat[word] = [_closed(part) for part in flat[word]]
    if flat.pop("nullable", False):
        types = flat.get("type", [])
        flat["type"] = [*([types] if isinstance(types, str) else types), "null"]
        if "enum" in flat:
            flat["enum"] = [*flat["enum"], None]
    return flat


def _flat(schema: Json) -> Json:
    schema = _resolve(schema)
    flat = {
        name: copy.deepcopy(value) for name, value in schema.items() if name not in {"allOf", "example", "examples"}
    }
    for part in schema.get("allOf", []):
        flat = _joined(flat, _flat(part))
    return flat


def _joined(one: Json, other: Json) -> Json:
    """Both schemas at once; members that both describe are joined, too."""
    joined = one | other
    if "properties" in one and "properties" in other:
        mine, theirs = one["properties"], other["properties"]
        both = {name: _joined(_flat(mine[name]), _flat(theirs[name])) for name in mine.keys() & theirs.keys()}
        joined["properties"] = mine | theirs | both
    if "items" in one and "items" in other:
        joined["items"] = _joined(_flat(one["items"]), _flat(other["items"]))
    if "required" in one and "required" in other:
        joined["required"] = sorted({*one["required"], *other["required"]})
    return joined
