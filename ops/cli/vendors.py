"""`staybus vendors`: what each adapter can do, as its manifest says."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import AsJson, emit, example, facts, say, table

if TYPE_CHECKING:
    from adapters.port import Manifest


def register(app: typer.Typer) -> None:
    app.command("vendors", epilog=example("staybus vendors", "staybus vendors beds24"))(vendors)


def vendors(
    vendor: Annotated[str | None, typer.Argument(help="All about this one: settings, secrets, capabilities.")] = None,
    as_json: AsJson = False,
) -> None:
    """The vendors that staybus can speak to, and what it can say to each."""
    from adapters.registry import adapter, adapters

    if vendor is not None:
        manifest = adapter(vendor).manifest
        document = _document(manifest)
        fields = document.pop("fields")
        facts(document | ({"fields": fields} if as_json else {}), as_json=as_json)
        if not as_json:
            say("")
            columns = ["name", "secret", "required", "default", "help"]
            table(columns, [[field[column] for column in columns] for field in fields])
        return
    documents = [_document(one.manifest) for one in adapters().values()]
    if as_json:
        emit(documents)
        return
    capabilities = sorted({name for document in documents for name in document["capabilities"]})
    table(
        ["capability", *(document["name"] for document in documents)],
        [
            ["API version", *(document["api_version"] for document in documents)],
            ["webhooks prove themselves by", *(document["webhook_auth"] for document in documents)],
            *([name, *(name in document["capabilities"] for document in documents)] for name in capabilities),
            ["rate limit", *(document["rate_limit"] for document in documents)],
            ["retry policy", *(document["retry_policy"] for document in documents)],
        ],
    )


def refuse_unknown(vendor: str | None) -> None:
    """For a filter that found nothing: what a vendor that was taken out has left is still found.

    raises typer.BadParameter when no adapter has this name either, which is a typo
    """
    from adapters.registry import adapters

    if vendor is not None and vendor not in adapters():
        known = ", ".join(adapters()) or "none"
        raise typer.BadParameter(f"{vendor}: no adapter has this name; known: {known}", param_hint="--vendor")


def _document(manifest: Manifest) -> dict[str, Any]:
    limit = manifest.rate_limit
    return {
        "name": manifest.name,
        "title": manifest.title,
        "api_version": manifest.api_version,
        "capabilities": sorted(manifest.capabilities),
        "commands": sorted(manifest.commands),
        "actions": sorted(manifest.actions),
        "inbound": list(manifest.inbound),
        "webhook_auth": [auth.scheme.value for auth in manifest.webhook_auth],
        "rate_limit": f"{limit.units:g} in {limit.per.total_seconds():g} s for each {limit.scope}",
        "retry_policy": manifest.retry_policy,
        "idempotency": manifest.idempotency,
        "docs_url": manifest.docs_url,
        "docs_read": manifest.docs_read,
        "fields": [
            {
                "name": field.name,
                "secret": field.secret,
                "required": field.required,
                "default": field.default,
                "help": field.help,
            }
            for field in manifest.fields
        ],
    }
