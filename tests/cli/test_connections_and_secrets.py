"""Companies, connections, secrets, keys and mappings by command line."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from simulators.beds24 import Beds24, create_app
from simulators.server import SimServer
from store.seal import KeyFile

from .conftest import audited

if TYPE_CHECKING:
    from .conftest import Cli, Db

ADD = ("connection", "add", "beds24", "--company", "acme", "--id", "b2")


async def secret_of(db: Db, connection: str, name: str, column: str = "sealed") -> str | None:
    row = await db.fetchrow(
        f"SELECT s.{column} AS sealed, c.data_key FROM secrets s JOIN companies c ON c.id = s.company_id "  # noqa: S608
        "WHERE s.connection_id = $1 AND s.name = $2",
        connection,
        name,
    )
    if row is None or row["sealed"] is None:
        return None
    return KeyFile.read(Path(".staybus/key")).cipher("acme", row["data_key"]).open_bytes(row["sealed"]).decode()


async def test_a_company_is_added_once(staybus: Cli, db: Db) -> None:
    """Added a second time it keeps its data key, and the exit code says so."""
    await staybus("company", "add", "acme", "--name", "Acme Stays")
    key = await db.fetchval("SELECT data_key FROM companies")
    again = await staybus("company", "add", "acme", code=1)
    assert "is there already" in again.err
    assert await db.fetchval("SELECT data_key FROM companies") == key
    assert [row["id"] for row in (await staybus("company", "list", "--json")).document] == ["acme"]
    assert "Acme Stays" in (await staybus("company", "list")).out


async def test_a_company_id_is_plain_words(staybus: Cli) -> None:
    assert "letters, digits" in (await staybus("company", "add", "a/b", code=2)).err


async def test_without_a_key_file_the_command_to_make_one_is_named(staybus: Cli, folder: Path) -> None:
    (folder / ".staybus/key").unlink()
    assert "staybus secret new-key" in (await staybus("company", "add", "acme", code=1)).err


async def test_a_new_connection_tells_its_webhook_and_the_generated_secret_once(staybus: Cli, db: Db) -> None:
    await staybus("company", "add", "acme")
    told = await staybus(*ADD, "--set", "webhook_auth=header", "--generate", "webhook_secret")
    secret = await secret_of(db, "b2", "webhook_secret")
    assert secret is not None
    assert len(secret) > 30
    assert told.out.count(secret) == 1
    assert "/webhooks/beds24/b2" in told.out
    assert "X-Staybus-Key" in told.out
    for words in (("connection", "show", "b2"), ("connection", "list", "--json"), ("secret", "list", "--json")):
        assert secret not in (await staybus(*words)).out
    assert await audited(db) == ["company.add", "connection.add"]


async def test_secrets_come_from_prompt_file_and_stdin_and_are_never_shown(staybus: Cli, db: Db, folder: Path) -> None:
    await staybus("company", "add", "acme")
    (folder / "token").write_text("from-the-file\n")
    told = await staybus(*ADD, "--secret", "webhook_secret", "--secret-file", "refresh_token=token", typed="typed-in\n")
    assert await secret_of(db, "b2", "webhook_secret") == "typed-in"
    assert await secret_of(db, "b2", "refresh_token") == "from-the-file"
    piped = await staybus("secret", "set", "b2", "invite_code", "--stdin", typed="from-stdin\n")
    assert await secret_of(db, "b2", "invite_code") == "from-stdin"
    for text in (told.out, told.err, piped.out, piped.err):
        assert not any(value in text for value in ("typed-in", "from-the-file", "from-stdin"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--set", "currency=euro"), "currency: has another form. ISO 4217 code"),
        (("--set", "fetch=allways"), "fetch: has another form. `hint`: read a booking"),
        (("--set", "pull=5m"), "pull: has another form. Seconds between two pulls"),
        (("--set", "curency=EUR"), "known: base_url, currency, fetch, pull, webhook_auth, webhook_header"),
        (("--set", "webhook_auth=none"), "one of hmac, header"),
        (("--set", "webhook_secret=hunter2"), "use --secret webhook_secret"),
        (("--set", "hunter2"), "NAME=VALUE"),
        (("--secret", "password"), "known: invite_code, refresh_token, webhook_secret"),
        (("--secret", "webhook_secret", "--generate", "webhook_secret"), "given twice"),
    ],
)
async def test_what_the_manifest_does_not_know_is_refused(
    staybus: Cli, db: Db, words: tuple[str, ...], says: str
) -> None:
    await staybus("company", "add", "acme")
    refused = await staybus(*ADD, *words, code=2)
    assert says in " ".join(refused.err.split())
    assert "hunter2" not in refused.err
    assert await db.fetchval("SELECT count(*) FROM connections") == 0


async def test_unknown_vendor_company_and_connection_are_named(acme: Cli) -> None:
    told = await acme("connection", "add", "beds25", "--company", "acme", "--id", "x", code=1)
    assert "beds24" in told.err
    told = await acme("connection", "add", "beds24", "--company", "nobody", "--id", "x", code=1)
    assert "nobody" in told.err
    assert "company add" in told.err
    for words in (("show",), ("test",), ("pause",), ("set", "x=y")):
        verb, *rest = words
        assert "connection nope: not known" in (await acme("connection", verb, "nope", *rest, code=1)).err


async def test_a_connection_that_fails_half_way_leaves_nothing(acme: Cli, db: Db) -> None:
    again = await acme(
        "connection", "add", "beds24", "--company", "acme", "--id", "beds24-acme", "--generate", "invite_code", code=1
    )
    assert "is there already" in again.err
    assert await secret_of(db, "beds24-acme", "invite_code") is None


async def test_settings_are_changed_one_by_one(acme: Cli) -> None:
    await acme("connection", "set", "beds24-acme", "fetch=always", "--unset", "currency")
    shown = (await acme("connection", "show", "beds24-acme", "--json")).document
    assert shown["config"] == {"fetch": "always", "webhook_auth": "hmac"}
    assert shown["webhook"] == "/webhooks/beds24/beds24-acme"
    assert [secret["name"] for secret in shown["secrets"]] == ["webhook_secret"]
    assert "known:" in (await acme("connection", "set", "beds24-acme", "fetsch=always", code=2)).err


async def test_pause_and_resume(acme: Cli, db: Db) -> None:
    for verb, status in (("pause", "paused"), ("resume", "active")):
        await acme("connection", verb, "beds24-acme")
        assert (await acme("connection", "list", "--json")).document[0]["status"] == status
    assert (await audited(db))[-2:] == ["connection.pause", "connection.resume"]


async def test_the_vendor_is_asked_who_we_are(staybus: Cli, folder: Path) -> None:
    """Wrong credentials are one line that names the connection; right ones print what the account says."""
    sim = Beds24()
    async with SimServer(create_app(sim)) as server:
        await staybus("company", "add", "acme")
        (folder / "code").write_text("wrong")
        add = (*ADD, "--set", f"base_url={server.url}/api/v2", "--secret-file", "invite_code=code")
        await staybus(*add)
        refused = await staybus("connection", "test", "b2", code=1)
        assert refused.err.startswith("staybus: connection b2: beds24 authentication.setup: invite_code was refused")
        await staybus("secret", "set", "b2", "invite_code", "--stdin", typed=sim.account.access.invite())
        assert "ownerId" in (await staybus("connection", "test", "b2")).out
        assert "scopes" in (await staybus("connection", "test", "b2", "--json")).document


async def test_rotation_keeps_the_secret_before(acme: Cli, db: Db) -> None:
    old = await secret_of(db, "beds24-acme", "webhook_secret")
    told = await acme("secret", "rotate", "beds24-acme", "webhook_secret", "--generate")
    new = await secret_of(db, "beds24-acme", "webhook_secret")
    assert new != old
    assert str(new) in told.out
    assert await secret_of(db, "beds24-acme", "webhook_secret", "previous") == old
    days = await db.fetchval("SELECT extract(epoch FROM previous_until - now()) / 86400 FROM secrets")
    assert 6.9 < days <= 7
    await acme("secret", "set", "beds24-acme", "webhook_secret", "--generate")
    assert await secret_of(db, "beds24-acme", "webhook_secret", "previous") is None
    assert "none to rotate" in (await acme("secret", "rotate", "beds24-acme", "invite_code", code=1)).err
    assert "7d" in (await acme("secret", "rotate", "beds24-acme", "x", "--overlap", "soon", code=2)).err
    assert "known:" in (await acme("secret", "set", "beds24-acme", "access_token", code=2)).err


async def test_a_secret_that_cannot_be_opened_can_be_replaced(acme: Cli, db: Db) -> None:
    await db.execute("UPDATE secrets SET sealed = 'sealed with another key'")
    refused = await acme("sync", "run", "beds24-acme", "--dry-run", code=1)
    assert "staybus secret set beds24-acme webhook_secret" in refused.err
    assert "cannot be opened" in (await acme("secret", "rotate", "beds24-acme", "webhook_secret", code=1)).err
    await acme("secret", "set", "beds24-acme", "webhook_secret", "--stdin", typed="new")
    assert await secret_of(db, "beds24-acme", "webhook_secret") == "new"
    assert "not known" in (await acme("secret", "set", "nobody", "webhook_secret", "--generate", code=1)).err


async def test_a_new_credential_ends_the_access_token_and_a_webhook_secret_does_not(acme: Cli, db: Db) -> None:
    await db.execute(
        "INSERT INTO secrets (connection_id, company_id, name, sealed, expires_at)"
        " VALUES ('beds24-acme', 'acme', 'access_token', 'sealed', now() + interval '1 day')"
    )
    names = "SELECT array_agg(name ORDER BY name) FROM secrets"
    await acme("secret", "set", "beds24-acme", "webhook_secret", "--generate")
    assert await db.fetchval(names) == ["access_token", "webhook_secret"]
    await acme("secret", "set", "beds24-acme", "refresh_token", "--stdin", typed="of another account")
    assert await db.fetchval(names) == ["refresh_token", "webhook_secret"]
    await acme("secret", "set", "beds24-acme", "invite_code", "--stdin", typed="with wider scopes")
    assert await db.fetchval(names) == ["invite_code", "webhook_secret"]


async def test_a_secret_is_never_asked_for_where_it_would_be_seen(acme: Cli) -> None:
    """No terminal, no prompt: Python would read on and echo."""
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).parent / "staybus"), "secret", "set", "beds24-acme", "invite_code"),
        env=acme.environment(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    _, err = await process.communicate(b"seen-by-all\n")
    assert process.returncode == 1
    assert b"read it from a file or stdin" in err
    assert b"Warning" not in err


async def test_an_empty_secret_changes_nothing(acme: Cli, db: Db) -> None:
    old = await secret_of(db, "beds24-acme", "webhook_secret")
    assert "is empty" in (await acme("secret", "set", "beds24-acme", "webhook_secret", "--stdin", typed="", code=1)).err
    assert await secret_of(db, "beds24-acme", "webhook_secret") == old


async def test_old_secrets_are_found(acme: Cli, db: Db) -> None:
    await acme("secret", "age")
    await db.execute("UPDATE secrets SET rotated_at = now() - interval '91 days'")
    found = await acme("secret", "age", "--json", code=3)
    assert [(row["name"], row["age_days"]) for row in found.document] == [("webhook_secret", 91)]
    await acme("secret", "age", "--days", "120")


async def test_a_key_file_is_never_overwritten(staybus: Cli, folder: Path) -> None:
    await staybus("secret", "new-key", "other/key")
    key = (folder / "other/key").read_bytes()
    assert stat.S_IMODE((folder / "other/key").stat().st_mode) == 0o600
    await staybus("secret", "new-key", "other/key", code=1)
    assert (folder / "other/key").read_bytes() == key


async def test_api_keys_are_shown_once_and_revoked(acme: Cli, db: Db) -> None:
    made = await acme("apikey", "create", "--scope", "admin", "--scope", "pms:read", "--company", "acme")
    key = made.out.strip()
    assert key.startswith("sbk_")
    (row,) = (await acme("apikey", "list", "--json")).document
    assert row["scopes"] == ["admin", "pms:read"]
    audited = await db.fetchval("SELECT target FROM audit_log WHERE action = 'apikey.create'")
    assert audited == row["id"]
    assert key not in (await acme("apikey", "list")).out
    await acme("apikey", "revoke", row["id"])
    assert await db.fetchval("SELECT revoked_at IS NOT NULL FROM api_keys")
    assert "revoked already" in (await acme("apikey", "revoke", row["id"], code=1)).err
    assert "not known" in (await acme("apikey", "create", "--scope", "admin", "--company", "nobody", code=1)).err
    await acme("apikey", "create", "--scope", "everything", code=2)


async def test_mappings(acme: Cli, db: Db) -> None:
    await acme("mapping", "add", "beds24-acme", "property", "345754", "P1")
    (row,) = (await acme("mapping", "list", "beds24-acme", "--json")).document
    assert (row["external_entity_id"], row["internal_entity_id"]) == ("345754", "P1")
    assert "vendor's id comes first" in (await acme("mapping", "add", "beds24-acme", "property", "P1", "1", code=2)).err
    assert "mapped to another" in (await acme("mapping", "add", "beds24-acme", "property", "99", "P1", code=1)).err
    await acme("mapping", "remove", "beds24-acme", "property", "345754")
    assert "is not mapped" in (await acme("mapping", "remove", "beds24-acme", "property", "345754", code=1)).err
    assert (await audited(db))[-2:] == ["mapping.add", "mapping.remove"]
