"""`staybus connection`: a company's accounts at vendors."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import fields, session
from .companies import identifier
from .output import AsJson, Refused, example, facts, listing, noun, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

    from adapters.port import Manifest

app = noun("Connections: one company's account at one vendor.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The connection, as in `staybus connection list`.")]


@app.command(
    "add",
    epilog=example(
        "staybus connection add beds24 --company acme --id beds24-acme --name 'Harbour Lofts' \\",
        "    --set currency=EUR --set webhook_auth=hmac --generate webhook_secret --secret invite_code",
    ),
)
def add(
    vendor: Annotated[str, typer.Argument(help="As in `staybus vendors`.")],
    company: Annotated[str, typer.Option("--company", help="Whose account it is.")],
    connection_id: Annotated[
        str, typer.Option("--id", callback=identifier, help="How addresses and events name it; never changed later.")
    ],
    name: Annotated[str, typer.Option("--name", help="For people; default: the id.")] = "",
    account: Annotated[str | None, typer.Option("--account", help="The account's id at the vendor.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting; may be repeated.")
    ] = None,
    secret: fields.Prompted = None,
    secret_file: fields.FromFile = None,
    secret_stdin: fields.FromStdin = None,
    generate: fields.Generated = None,
) -> None:
    """Add a connection with its settings and secrets, all at once or not at all."""
    from adapters.registry import adapter

    manifest = adapter(vendor).manifest
    config = fields.pairs(set_ or [], "--set")
    sources = fields.Sources(secret or [], secret_file or [], secret_stdin, generate or [])
    fields.check_settings(manifest, config)
    fields.check_secret_names(manifest, sources.names())
    fields.check_required(manifest, [*config, *sources.names()])
    values = sources.read()
    session.run(_add(manifest, company, connection_id, name or connection_id, account, config, values))
    say(f"added connection {connection_id}")
    for line in _next_steps(manifest, connection_id, config, values):
        say(line)
    sources.tell(values)


async def _add(
    manifest: Manifest,
    company: str,
    connection_id: str,
    name: str,
    account: str | None,
    config: Mapping[str, Any],
    values: Mapping[str, str],
) -> None:
    import asyncpg

    from schemas.connection import Connection
    from store import connections

    async with session.keys() as (pool, directory), pool.acquire() as db, db.transaction():
        cipher = await directory.cipher(company)
        if cipher is None:
            raise session.no_company(company)
        try:
            await connections.add_connection(db, connection_id, company, manifest.name, name, account, config)
        except asyncpg.UniqueViolationError:
            raise Refused(f"connection {connection_id}: is there already; nothing was changed") from None
        of = Connection(connection_id, company, manifest.name, name)
        for secret, value in values.items():
            await connections.put_secret(db, of, secret, cipher.seal_bytes(value.encode()))
        details = {"vendor": manifest.name, "settings": sorted(config), "secrets": sorted(values)}
        await connections.audit(db, session.actor(), company, "connection.add", connection_id, details)


def webhook(manifest: Manifest, connection_id: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Where the vendor must send its webhooks, and how it proves that they are its own; empty: it sends none."""
    schemes = {auth.scheme.value: auth for auth in manifest.webhook_auth}
    if not schemes:
        return {}
    auth = schemes.get(str(config.get(fields.WEBHOOK_AUTH)), manifest.webhook_auth[0])
    return {
        "webhook": f"/webhooks/{manifest.name}/{connection_id}",
        "webhook_auth": auth.scheme.value,
        "webhook_header": str(config.get("webhook_header") or auth.header),
    }


def _next_steps(
    manifest: Manifest, connection_id: str, config: Mapping[str, Any], values: Mapping[str, str]
) -> list[str]:
    lines = []
    place = webhook(manifest, connection_id, config)
    if place:
        proof = "an HMAC-SHA256 of the body" if place["webhook_auth"] == "hmac" else "the webhook secret"
        lines += [
            f"webhook  {place['webhook']}  (header {place['webhook_header']}: {proof})",
            f"next: at {manifest.title} set the webhook to https://<your staybus>{place['webhook']}",
        ]
        if fields.WEBHOOK_SECRET not in values:
            lines.append(
                f"next: webhooks are refused until `staybus secret set {connection_id} {fields.WEBHOOK_SECRET}`"
            )
    return [
        *lines,
        f"next: staybus connection test {connection_id}",
        f"next: staybus mapping add {connection_id} property <its id at {manifest.title}> <your id>",
    ]


@app.command("list", epilog=example("staybus connection list --company acme"))
def list_(
    company: Annotated[str | None, typer.Option("--company", help="Only this company's.")] = None,
    vendor: Annotated[str | None, typer.Option("--vendor", help="Only at this vendor.")] = None,
    as_json: AsJson = False,
) -> None:
    """All connections, with the paths of their webhooks."""
    session.run(_list(company, vendor, as_json))


async def _list(company: str | None, vendor: str | None, as_json: bool) -> None:
    from store import connections

    async with session.owner() as db:
        rows = await connections.list_connections(db, company)
    documents = [_document(row) for row in rows if vendor in {None, row["vendor"]}]
    columns = ["id", "company=company_id", "vendor", "name", "status", "webhook", "last sync=last_sync_at"]
    listing(documents, columns, as_json=as_json, empty="no connections")


@app.command("show", epilog=example("staybus connection show beds24-acme"))
def show(connection_id: Id, as_json: AsJson = False) -> None:
    """One connection: settings, webhook, and the names and ages of its secrets."""
    session.run(_show(connection_id, as_json))


async def _show(connection_id: str, as_json: bool) -> None:
    from store import connections

    async with session.owner() as db:
        document = _document(await _row(db, connection_id))
        secrets = await connections.list_secrets(db, connection_id)
    document["secrets"] = (
        [{"name": row["name"], "rotated_at": row["rotated_at"], "expires_at": row["expires_at"]} for row in secrets]
        if as_json
        else {row["name"]: row["rotated_at"] for row in secrets}
    )
    facts(document, as_json=as_json)


@app.command("test", epilog=example("staybus connection test beds24-acme"))
def try_(connection_id: Id, as_json: AsJson = False) -> None:
    """Ask the vendor who we are: proves address, credentials and scopes."""
    said = session.run(_test(connection_id))
    if not as_json:
        say(f"{connection_id}: works")
    facts(said, as_json=as_json)


async def _test(connection_id: str) -> Mapping[str, Any]:
    from adapters.errors import AdapterError
    from adapters.registry import adapters
    from adapters.transport import HttpTransport
    from store.clock import Clock
    from store.pool import WORKER_ROLE
    from workers.sessions import Sessions, Tokens

    # As the workers do it, role included: a token that is fetched here serves them, too.
    async with session.keys(WORKER_ROLE) as (pool, directory):
        known = await session.known(directory, connection_id)
        transport = HttpTransport(total=30)
        now = await Clock.of(pool)
        try:
            sessions = Sessions(
                dict(adapters()),
                transport.for_vendor,
                lambda vendor: Tokens(pool, transport.for_vendor(vendor), now=now),
                now,
            )
            opened = sessions.open(known)
            return await opened.adapter.check(opened)
        except AdapterError as error:
            raise Refused(f"connection {connection_id}: {error} ({error.fault.value})") from error
        finally:
            await transport.close()


@app.command(
    "set",
    epilog=example(
        "staybus connection set beds24-acme fetch=always", "staybus connection set beds24-acme --unset currency"
    ),
)
def set_(
    connection_id: Id,
    settings: Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUE", help="What to change.")] = None,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", metavar="NAME", help="Back to the vendor's default.")
    ] = None,
) -> None:
    """Change settings; the others stay. Processes see it within seconds."""
    given = fields.pairs(settings or [], "settings")
    if not given and not unset:
        raise typer.BadParameter("say what to change: NAME=VALUE, or --unset NAME")
    session.run(_set(connection_id, given, unset or []))
    say(f"changed {connection_id}: {', '.join([*given, *(unset or [])])}")


async def _set(connection_id: str, given: dict[str, str], unset: list[str]) -> None:
    from adapters.registry import adapter
    from store import connections

    async with session.owner() as db:
        row = await _row(db, connection_id)
        manifest = adapter(row["vendor"]).manifest
        fields.check_settings(manifest, given)
        await connections.set_config(db, connection_id, given)
        await connections.unset_config(db, connection_id, unset)
        details = {"settings": sorted(given), "unset": sorted(unset)}
        await connections.audit(db, session.actor(), row["company_id"], "connection.set", connection_id, details)


@app.command("pause", epilog=example("staybus connection pause beds24-acme"))
def pause(connection_id: Id) -> None:
    """Send the vendor nothing more. Webhooks are still recorded, commands wait."""
    session.run(_status(connection_id, "paused", "connection.pause"))
    say(f"paused {connection_id}")


@app.command("resume", epilog=example("staybus connection resume beds24-acme"))
def resume(connection_id: Id) -> None:
    """Go on where `pause` stopped."""
    session.run(_status(connection_id, "active", "connection.resume"))
    say(f"resumed {connection_id}")


async def _status(connection_id: str, status: str, action: str) -> None:
    from store import connections

    async with session.owner() as db:
        row = await _row(db, connection_id)
        await connections.set_status(db, connection_id, status)
        await connections.audit(db, session.actor(), row["company_id"], action, connection_id, {"was": row["status"]})


async def _row(db: Any, connection_id: str) -> asyncpg.Record:
    """raises Refused"""
    from store import connections

    for row in await connections.list_connections(db, None):
        if row["id"] == connection_id:
            return row
    raise session.no_connection(connection_id)


def _document(row: asyncpg.Record) -> dict[str, Any]:
    import orjson

    from adapters.registry import adapters

    document = dict(row)
    document["config"] = orjson.loads(row["config"])
    adapter = adapters().get(row["vendor"])
    if adapter is not None:
        document |= webhook(adapter.manifest, row["id"], document["config"])
    return document
