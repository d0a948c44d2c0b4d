"""`staybus send-webhook`: what a vendor would send, signed with the connection's own secret."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import fields, session
from .connections import webhook
from .output import AsJson, Refused, emit, example, note, say
from .samples import SAMPLES, Booking

if TYPE_CHECKING:
    import httpx

    from adapters.port import Manifest

DAY = "%Y-%m-%d"


def register(app: typer.Typer) -> None:
    app.command(
        "send-webhook",
        epilog=example(
            "staybus send-webhook beds24 beds24-acme --booking-id 91000001 --arrival 2027-05-01",
            "staybus send-webhook beds24 beds24-acme --url https://staybus.example.com --file body.json",
        ),
    )(send_webhook)


def send_webhook(
    vendor: Annotated[str, typer.Argument(help="As in `staybus vendors`.")],
    connection_id: Annotated[str, typer.Argument(metavar="CONNECTION", help="As in `staybus connection list`.")],
    url: Annotated[str, typer.Option("--url", help="Where the ingress is.")] = "http://127.0.0.1:8080",
    file: Annotated[
        Path | None, typer.Option("--file", help="This body, as it is; - is stdin.", allow_dash=True)
    ] = None,
    booking_id: Annotated[int, typer.Option("--booking-id", min=1, help="Of the sample.")] = 91_000_001,
    status: Annotated[str, typer.Option("--status", help="Of the sample, in the vendor's word.")] = "confirmed",
    arrival: Annotated[
        datetime | None, typer.Option("--arrival", formats=[DAY], help="Of the sample; default: in 30 days.")
    ] = None,
    nights: Annotated[int, typer.Option("--nights", min=1, max=365, help="Of the sample.")] = 3,
    property_id: Annotated[int, typer.Option("--property-id", min=1, help="Of the sample, the vendor's id.")] = 345754,
    room_id: Annotated[int, typer.Option("--room-id", min=1, help="Of the sample, the vendor's id.")] = 713992,
    price: Annotated[float, typer.Option("--price", min=0, help="Of the sample, in whole units.")] = 300,
    as_json: AsJson = False,
) -> None:
    """Sign a body with the connection's webhook secret, post it, print the answer. Exit code 1 when it is refused."""
    if file is not None:
        body = _read(file)
    else:
        day = arrival.date() if arrival else datetime.now(UTC).date() + timedelta(days=30)
        body = _sample(
            vendor, Booking(booking_id, status, day, day + timedelta(days=nights), property_id, room_id, price)
        )
    path, headers = session.run(_signed(vendor, connection_id, body))
    answer = _post(url.rstrip("/") + path, body, headers)
    if as_json:
        emit({"status": answer.status_code, "body": _body(answer)})
    else:
        note(f"POST {url.rstrip('/')}{path}: {answer.status_code} {answer.reason_phrase}")
        say(answer.text)
    if not answer.is_success:
        raise typer.Exit(1)


def _read(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise Refused(f"--file {file}: cannot be read ({type(error).__name__})") from error


def _sample(vendor: str, booking: Booking) -> bytes:
    import orjson

    if vendor not in SAMPLES:
        raise typer.BadParameter(f"{vendor} has no sample ({', '.join(SAMPLES)} have); give the body with --file")
    return orjson.dumps(SAMPLES[vendor](booking))


async def _signed(vendor: str, connection_id: str, body: bytes) -> tuple[str, dict[str, str]]:
    """The path to post to, and the headers."""
    from adapters.registry import adapter

    manifest = adapter(vendor).manifest
    async with session.keys() as (_, directory):
        known = await session.known(directory, connection_id)
    if known.connection.vendor != vendor:
        raise Refused(f"connection {connection_id}: is one at {known.connection.vendor}, not at {vendor}")
    if not known.webhook_secrets:
        raise Refused(
            f"connection {connection_id}: has no {fields.WEBHOOK_SECRET}; "
            f"`staybus secret set {connection_id} {fields.WEBHOOK_SECRET} --generate`"
        )
    place = _place(manifest, connection_id, known.connection.config)
    return place["webhook"], {
        "content-type": "application/json",
        place["webhook_header"]: _proof(place["webhook_auth"], body, known.webhook_secrets[0]),
    }


def _place(manifest: Manifest, connection_id: str, config: object) -> dict[str, str]:
    place = webhook(manifest, connection_id, dict(config) if isinstance(config, dict) else {})
    if not place:
        raise Refused(f"{manifest.title} sends no webhooks")
    return place


def _proof(scheme: str, body: bytes, secret: str) -> str:
    from adapters.port import Scheme
    from adapters.signatures import sign

    match Scheme(scheme):
        case Scheme.HMAC:
            return sign(body, secret)
        case Scheme.STATIC_HEADER:
            return secret


def _post(url: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
    import httpx

    try:
        return httpx.post(url, content=body, headers=headers, timeout=30)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Refused(f"{url}: no answer ({type(error).__name__}); is `staybus run ingress` running there?") from error


def _body(answer: httpx.Response) -> object:
    try:
        return answer.json()
    except ValueError:
        return answer.text
