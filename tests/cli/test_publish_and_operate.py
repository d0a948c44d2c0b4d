"""Publishing, the schema, the topology, the processes, and how every command ends."""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aio_pika
import pytest

from ops.cli.app import app
from ops.cli.failures import MEANINGS, SAY_IT_THEMSELVES, describe
from ops.stack import local
from simulators.bookings import generate
from tests.fleet import World, free_port

from .conftest import Cli, audited

if TYPE_CHECKING:
    from .conftest import Db, Fail

PUBLISH = ("publish", "pms.booking.cancel", "--company", "acme")
DATA = '{"reservationId": "R1"}'
STAYBUS = str(Path(sys.executable).parent / "staybus")


async def waiting(amqp_url: str, queue: str) -> list[Any]:
    """What lies in a queue: all that comes before a last message of our own."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        declared = await channel.get_queue(queue, ensure=False)
        await channel.default_exchange.publish(aio_pika.Message(b'"the end"'), queue)
        found = []
        async with declared.iterator(timeout=20) as messages:
            async for message in messages:
                await message.ack()
                if message.body == b'"the end"':
                    break
                found.append(json.loads(message.body))
        return found


# ------------------------------------------------------------------------------------------------ publish


async def test_a_command_arrives_at_the_router(acme: Cli, amqp_url: str, db: Db) -> None:
    told = await acme(*PUBLISH, "--data", DATA, "--subject", "R1", "--key", "k1", "--connection", "beds24-acme")
    (event,) = await waiting(amqp_url, "pms.outbound")
    assert event["id"] == told.out.strip()
    assert (event["type"], event["companyid"], event["connectionid"]) == ("pms.booking.cancel", "acme", "beds24-acme")
    assert (event["subject"], event["idempotencykey"], event["data"]) == ("R1", "k1", {"reservationId": "R1"})
    assert f"staybus events show {event['id']}" in told.err
    assert (await audited(db))[-1] == "event.publish"


async def test_a_key_that_was_used_is_told_as_a_duplicate(acme: Cli, failed: Fail) -> None:
    id_, _ = await failed()  # its key is its id
    for words in ((), ("--outbox",)):
        told = await acme(*PUBLISH, "--data", DATA, "--key", str(id_), *words)
        assert f"a duplicate, of which nothing will come: {id_}" in told.err
        assert "watch it" not in told.err


async def test_an_outbox_row_is_inserted_and_can_be_watched(acme: Cli, amqp_url: str, db: Db, folder: Path) -> None:
    (folder / "data.json").write_text(DATA)
    told = (await acme(*PUBLISH, "--data-file", "data.json", "--key", "k1", "--outbox", "--json")).document
    row = await db.fetchrow("SELECT * FROM outbox")
    assert row is not None
    assert (str(row["id"]), row["company_id"], row["idempotency_key"]) == (told["outbox_id"], "acme", "k1")
    assert json.loads(row["payload"]) == {"reservationId": "R1"}
    assert await waiting(amqp_url, "pms.outbound") == []
    assert "no scheduler has taken it" in (await acme("events", "show", told["outbox_id"], code=1)).err
    await db.execute("UPDATE outbox SET taken_at = now(), error = 'duplicate idempotency_key'")
    assert "duplicate idempotency_key" in (await acme("events", "show", told["outbox_id"], code=1)).err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("pms.booking.cancel", "--data", '{"reservationId": '), 2, "not JSON"),
        (("pms.booking.cancel", "--data", "[]"), 2, "a JSON object is needed"),
        (("pms.booking.cancel",), 2, "one of --data and --data-file"),
        (("pms.booking.cancel", "--data", '{"guestName": "Jane Roe"}'), 1, "reservationId: Field required"),
        (("pms.booking.cancle", "--data", DATA), 1, "known: pms.availability.update"),
        (("beds24.booking.modified", "--data", "{}"), 2, "staybus send-webhook beds24"),
        (("core.reservation.upserted", "--data", "{}"), 2, "no command"),
        (("pms.booking.cancel", "--data-file", "missing.json"), 1, "missing.json: cannot be read"),
        (("pms.booking.cancel", "--data", DATA, "--connection", "nope"), 1, "not one of acme's"),
    ],
)
async def test_what_could_not_be_done_is_not_published(
    acme: Cli, amqp_url: str, words: tuple[str, ...], code: int, says: str
) -> None:
    told = await acme("publish", *words, "--company", "acme", code=code)
    assert says in " ".join(told.err.split())
    assert "Jane Roe" not in told.err
    assert await waiting(amqp_url, "pms.outbound") == []


async def test_an_unknown_company_is_refused(acme: Cli) -> None:
    told = await acme("publish", "pms.booking.cancel", "--company", "nobody", "--data", DATA, code=1)
    assert "company nobody: not known" in told.err


# ------------------------------------------------------------------------------------------------ schema, topology


async def test_the_schema_goes_down_and_up(staybus: Cli) -> None:
    assert (await staybus("db", "status", "--json")).document["up_to_date"] is True
    assert "up to date" in (await staybus("db", "upgrade")).out
    assert "--yes" in (await staybus("db", "downgrade", "base", typed="", code=1)).err
    assert (await staybus("db", "status", "--json")).document["up_to_date"] is True
    await staybus("db", "downgrade", "base", "--yes")
    await staybus("db", "status", "--check", code=3)
    assert "staybus db upgrade" in (await staybus("company", "list", code=1)).err
    assert "empty" in (await staybus("db", "upgrade")).out
    assert (await staybus("company", "list", "--json")).document == []
    await staybus("db", "downgrade", "no-such-version", "--yes", code=2)


async def test_the_topology_is_compared_and_applied(staybus: Cli, amqp_url: str) -> None:
    await staybus("topology", "diff")
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        await (await connection.channel()).queue_delete("beds24.inbound")
    found = await staybus("topology", "diff", "--json", code=3)
    assert [(one["kind"], one["name"]) for one in found.document] == [("missing queue", "beds24.inbound")]
    dry = await staybus("topology", "apply", "--dry-run")
    assert "beds24.inbound" in dry.out
    await staybus("topology", "diff", code=3)
    assert "created queue beds24.inbound" in (await staybus("topology", "apply")).out
    await staybus("topology", "diff")


async def test_the_topology_is_shown_without_a_broker(staybus: Cli) -> None:
    staybus.env["STAYBUS_AMQP_URL"] = "amqp://127.0.0.1:1/"
    definitions = (await staybus("topology", "show", "--definitions", "--vhost", "v")).document
    assert {"vhost": "v", "name": "pms.outbound"}.items() <= next(
        queue for queue in definitions["queues"] if queue["name"] == "pms.outbound"
    ).items()
    assert "deliver.beds24.#" in (await staybus("topology", "show")).out
    assert "127.0.0.1:1" in (await staybus("topology", "diff", code=1)).err


# ------------------------------------------------------------------------------------------------ surroundings


async def test_the_stack_of_this_folder_is_used_when_nothing_is_given(staybus: Cli, stack: Any, folder: Path) -> None:
    if stack.postgres is None or stack.rabbitmq is None:
        pytest.skip("the servers are given by the environment")
    for names in (local.DATABASE_VARIABLES, local.AMQP_VARIABLES):
        staybus.env |= dict.fromkeys(names)
    assert "staybus up" in (await staybus("db", "status", code=1)).err
    (folder / ".staybus/stack").symlink_to(stack.folder)
    assert "head" in (await staybus("db", "status")).out


async def test_an_unreachable_database_is_one_line_without_its_password(staybus: Cli) -> None:
    staybus.env["STAYBUS_DATABASE_URL"] = "postgresql://someone:hunter2@127.0.0.1:1/staybus"
    for words in (("company", "list"), ("db", "status"), ("events", "list")):
        told = await staybus(*words, code=1)
        assert "127.0.0.1:1/staybus does not answer" in told.err
        assert "hunter2" not in told.err
        assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    "url",
    [
        *(
            "postgresql:u:geheim@h:1/d",
            "u:geheim@h:1/d",
            "postgresql://u:geh/eim@h:1/d",
            "postgresql://u:1/geheim@h:1/d",
        ),
        *(
            "postgresql://u:1#geheim@h/d",
            "postgresql://u:1?geheim@h/d",
            "postgresql://u:geh@eim@h/d",
            "mysql://u:geheim@h/d",
        ),
        *("postgresql://u:geheim@h:x/d", "postgresql://u:geheim@[::1/d", "postgresql://u:geheim@h:99999/d"),
    ],
)
async def test_a_url_that_would_be_read_amiss_is_refused_and_no_part_of_it_is_shown(staybus: Cli, url: str) -> None:
    cli = Cli(staybus.env | {"STAYBUS_DATABASE_URL": url})
    for words in (("dlq", "list"), ("doctor",)):
        told = await cli(*words, code=1)
        assert "STAYBUS_DATABASE_URL: the form is postgresql://user:password@host:port/name" in told.out + told.err
        assert not [part for part in ("geh", "eim", "u:1") if part in told.out + told.err]


async def test_a_database_may_have_several_hosts(staybus: Cli) -> None:
    """One that has a standby: each is asked in turn. A broker's client reads one."""
    url = str(staybus.env["STAYBUS_DATABASE_URL"])
    several = Cli(staybus.env | {"STAYBUS_DATABASE_URL": url.replace("@", "@127.0.0.1:1,")})
    assert "head" in (await several("db", "status")).out
    nobody = Cli(staybus.env | {"STAYBUS_DATABASE_URL": "postgresql://someone:hunter2@127.0.0.1:1,127.0.0.1:2/staybus"})
    assert "127.0.0.1:1,127.0.0.1:2/staybus does not answer" in (await nobody("db", "status", code=1)).err
    brokers = Cli(staybus.env | {"STAYBUS_AMQP_URL": "amqp://someone:hunter2@127.0.0.1:1,127.0.0.1:2/"})
    assert "STAYBUS_AMQP_URL: the form is amqp://" in (await brokers("db", "status", code=1)).err


async def test_a_healthy_installation(acme: Cli) -> None:
    findings = {one["check"]: one["state"] for one in (await acme("doctor", "--json")).document}
    broken = {check for check, state in findings.items() if state == "broken"}
    assert not broken
    assert findings.keys() == {
        *("settings", "key file", "adapters", "disk"),
        *("database", "schema", "roles", "companies", "broker"),
    }


async def test_the_doctor_says_what_to_do(acme: Cli, amqp_url: str, folder: Path) -> None:
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        await (await connection.channel()).queue_delete("beds24.inbound")
    (folder / ".staybus/key").unlink()
    await acme("secret", "new-key", ".staybus/key")
    told = await acme("doctor", code=1)
    assert "acme: its data key cannot be opened" in told.out
    assert "broker: staybus topology apply" in told.err
    acme.env |= {
        "STAYBUS_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/x",
        "STAYBUS_AMQP_URL": "amqp://127.0.0.1:1/",
    }
    away = await acme("doctor", code=1)
    assert "STAYBUS_DATABASE_URL" in away.err
    assert "STAYBUS_AMQP_URL" in away.err
    assert "hunter2" not in away.out + away.err


async def test_vendors(staybus: Cli) -> None:
    assert "booking.create" in (await staybus("vendors")).out
    assert "beds24" in [vendor["name"] for vendor in (await staybus("vendors", "--json")).document]
    assert "invite_code" in (await staybus("vendors", "beds24")).out
    assert "no adapter is called" in (await staybus("vendors", "nobody", code=1)).err


# ------------------------------------------------------------------------------------------------ processes


async def test_a_signed_webhook_is_recorded(world: World, folder: Path) -> None:
    """Sent to a real ingress; resent it is a duplicate; refused or unanswered, the exit code is 1."""
    await world.start("ingress")
    url = world.url("ingress", "")
    cli = Cli(
        {
            "STAYBUS_DATABASE_URL": world.database_url,
            "STAYBUS_AMQP_URL": world.amqp_url,
            "STAYBUS_KEY_FILE": str(world.folder / "key"),
        }
    )
    send = ("send-webhook", "beds24", "beds24-acme", "--url", url)
    sent = await cli(*send, "--booking-id", "91000123", "--arrival", "2027-05-01", "--json")
    assert sent.document["status"] == 202
    shown = await cli("events", "list", "--vendor", "beds24", "--json")
    assert [row["entity_external_id"] for row in shown.document] == ["91000123"]
    (folder / "body.json").write_text(json.dumps(generate(31, 1, 0)[0].body))
    assert (await cli(*send, "--file", "body.json", "--json")).document["status"] == 202
    assert (await cli(*send, "--file", "body.json", "--json")).document["status"] == 200
    (folder / "body.json").write_text("not json")
    assert "malformed" in (await cli(*send, "--file", "body.json", code=1)).out
    assert "no answer" in (await cli(*send[:-1], "http://127.0.0.1:1", code=1)).err


async def test_a_process_runs_until_it_is_told_to_stop(staybus: Cli) -> None:
    port = free_port()
    env = {**staybus.environment(), "STAYBUS_INGRESS_PORT": str(port)}
    process = await asyncio.create_subprocess_exec(STAYBUS, "run", "ingress", env=env, stderr=subprocess.PIPE)
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert process.returncode is None
                await asyncio.sleep(0.05)
                continue
            writer.close()
            await writer.wait_closed()
            break
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_a_process_that_cannot_start_says_why_in_one_line(staybus: Cli, folder: Path) -> None:
    async def refused(**changed: str) -> str:
        env = {**staybus.environment(), **changed}
        process = await asyncio.create_subprocess_exec(
            STAYBUS, "run", "ingress", env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        _, err = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 1
        assert "Traceback" not in err.decode()
        return [line for line in err.decode().splitlines() if line.startswith("staybus: ")][-1]

    assert "does not answer" in await refused(STAYBUS_DATABASE_URL="postgresql://127.0.0.1:1/x")
    assert "STAYBUS_GRACE" in await refused(STAYBUS_GRACE="soon")
    assert "new-key" in await refused(STAYBUS_KEY_FILE="nowhere/key")
    await staybus("db", "downgrade", "base", "--yes")
    assert "staybus db upgrade" in await refused()


async def test_a_simulator_runs_as_a_process(staybus: Cli) -> None:
    process = await asyncio.create_subprocess_exec(
        *(STAYBUS, "simulate", "beds24", "--currency", "USD"), env=staybus.environment(), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    summary = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
    assert urlsplit(summary["url"]).port
    assert summary["properties"][0]["currency"] == "USD"
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert "there are: beds24" in (await staybus("simulate", "nobody", code=1)).err


async def test_a_reader_that_goes_away_is_no_error(acme: Cli) -> None:
    for words in ("connection list --json", "vendors", "topology show"):
        process = await asyncio.create_subprocess_shell(
            f"{STAYBUS} {words} | true", env=acme.environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        _, err = await process.communicate()
        assert err == b""


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
async def test_a_stream_that_is_closed_is_no_error(staybus: Cli, closed: str) -> None:
    process = await asyncio.create_subprocess_shell(
        f"{STAYBUS} vendors {closed}", env=staybus.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, contextlib; from ops.cli.app import app\n"
        "with contextlib.suppress(SystemExit): app(['--help'])\n"
        "heavy = {'asyncpg', 'aio_pika', 'alembic', 'httpx', 'pydantic', 'rich', 'starlette', 'cryptography', 'orjson'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout


def test_the_version_is_told() -> None:
    done = subprocess.run([STAYBUS, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("staybus 0.")


def test_every_command_has_help_with_an_example_and_is_documented() -> None:
    from typer.main import get_command

    def leaves(command: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            return [(path, command)]
        return [leaf for name, child in inner.items() for leaf in leaves(child, (*path, name))]

    found = leaves(get_command(app), ())
    assert len(found) > 35
    page = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    for path, command in found:
        assert f"`{' '.join(path)}" in page, f"docs/cli.md does not tell of {path}"
        assert command.help, path
        assert f"staybus {' '.join(path)}" in (command.epilog or ""), path


@pytest.mark.parametrize("name", sorted({*SAY_IT_THEMSELVES, *MEANINGS}))
def test_the_errors_that_are_named_exist(name: str) -> None:
    module, _, kind = name.rpartition(".")
    found = getattr(importlib.import_module(module), kind)
    assert issubclass(found, Exception)
    assert f"{found.__module__}.{found.__qualname__}" == name


def test_an_unexpected_errors_text_is_not_shown() -> None:
    """It may be a guest's data or a secret."""
    assert "Jane Roe" not in describe(KeyError("Jane Roe"))
