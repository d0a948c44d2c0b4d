"""Looking at events and dead letters, and what is done about them, by command line."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from ops.cli.dlq import COLUMNS, _id_of
from ops.cli.output import listing
from schemas.ids import uuid7
from store.settle import DeadLetterRow

from .conftest import audited, status_of

if TYPE_CHECKING:
    from .conftest import Cli, Db, Fail


async def test_events_are_listed_by_filter(acme: Cli, failed: Fail) -> None:
    first, _ = await failed()
    second, _ = await failed(operation="pms.booking.update")
    ids = [row["id"] for row in (await acme("events", "list", "--json")).document]
    assert ids == [str(second), str(first)]
    only = await acme("events", "list", "--status", "failed", "--type", "pms.booking.cancel", "--json")
    assert [row["id"] for row in only.document] == [str(first)]
    page = await acme("events", "list", "--limit", "1")
    assert f"--before {second}" in page.err
    assert "no events" in (await acme("events", "list", "--before", str(first))).err
    assert "begin again" in (await acme("events", "list", "--before", str(uuid4()), code=2)).err
    assert str(second) in page.out
    await acme("events", "list", "--status", "lost", code=2)


@pytest.mark.parametrize(
    "words",
    [
        ("events", "list"),
        ("events", "replay"),
        ("dlq", "list"),
        ("dlq", "stats", "--check"),
        ("dlq", "requeue"),
        ("dlq", "abandon", "--reason", "x"),
        ("lanes", "list"),
        ("lanes", "release", "--requeue"),
    ],
)
async def test_a_vendor_that_nobody_knows_is_a_typo(acme: Cli, words: tuple[str, ...]) -> None:
    assert "nobody: no adapter has this name; known: beds24" in (await acme(*words, "--vendor", "nobody", code=2)).err
    assert (await acme(*words, "--vendor", "beds24")).code == 0


async def test_a_vendor_without_a_name_is_not_every_vendor(acme: Cli, failed: Fail, db: Db) -> None:
    """As of a script whose variable is empty."""
    await failed()
    await db.execute("UPDATE channel_events SET status = 'done', direction = 'inbound'")
    told = await acme("events", "replay", "--vendor", "", "--from", "1h", "--yes", code=2)
    assert "no adapter has this name" in told.err
    assert await db.fetchval("SELECT count(*) FROM channel_events") == 1


async def test_what_a_vendor_without_an_adapter_has_left_is_found(acme: Cli, failed: Fail, db: Db) -> None:
    await failed()
    await db.execute("UPDATE dead_letters SET vendor = 'gone'")
    assert len((await acme("dlq", "list", "--vendor", "gone", "--json")).document) == 1
    assert "requeued 1" in (await acme("dlq", "requeue", "--vendor", "gone", "--yes")).out


async def test_an_event_is_shown_with_history_and_deliveries(acme: Cli, failed: Fail, db: Db) -> None:
    id_, _ = await failed()
    await db.execute(
        "INSERT INTO event_attempts (event_id, company_id, attempt, outcome, error) VALUES ($1, 'acme', 1, 'park', 'no')",
        id_,
    )
    await db.execute(
        """INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, idempotency_key, payload)
           VALUES ($1, 'acme', 'beds24-acme', $2, 'outbound', 'pms.booking.cancel', 'child', '{}')""",
        uuid7(),
        id_,
    )
    shown = (await acme("events", "show", str(id_), "--json")).document
    assert [one["outcome"] for one in shown["history"]] == ["park"]
    assert [one["connection_id"] for one in shown["deliveries"]] == ["beds24-acme"]
    assert "payload" not in shown
    text = (await acme("events", "show", str(id_))).out
    assert "history" in text
    assert "deliveries" in text
    assert "reservationId" in (await acme("events", "show", str(id_), "--payload")).out
    assert "not known" in (await acme("events", "show", str(uuid4()), code=1)).err


async def test_dead_letters_are_listed_shown_and_counted(acme: Cli, failed: Fail) -> None:
    await acme("dlq", "stats", "--check")
    id_, letter = await failed()
    await failed()
    await failed(error="bug")
    assert len((await acme("dlq", "list", "--json")).document) == 3
    assert len((await acme("dlq", "list", "--error", "unmapped", "--json")).document) == 2
    assert (await acme("dlq", "list", "--older-than", "1h", "--json")).document == []
    for either in (id_, letter):
        assert (await acme("dlq", "show", str(either), "--json")).document["event_id"] == str(id_)
    groups = (await acme("dlq", "stats", "--check", "--json", code=3)).document
    assert [group["letters"] for group in groups] == [2, 1]
    fingerprint = groups[0]["fingerprint"]
    assert len((await acme("dlq", "list", "--fingerprint", fingerprint, "--json")).document) == 2


async def test_requeue_by_event_or_letter(acme: Cli, failed: Fail, db: Db) -> None:
    one, _ = await failed()
    two, letter = await failed()
    told = await acme("dlq", "requeue", str(one), str(letter), "--note", "mapped now")
    assert "requeued 2" in told.out
    assert [await status_of(db, id_) for id_ in (one, two)] == ["received", "received"]
    assert (await audited(db))[-2:] == ["dead_letter.requeue"] * 2
    for given in (one, letter):
        again = await acme("dlq", "requeue", str(given), code=1)
        assert f"something newer: {given}\n" in again.err


async def test_an_unknown_id_changes_nothing(acme: Cli, failed: Fail, db: Db) -> None:
    known, _ = await failed()
    unknown = uuid4()
    for words in (("requeue",), ("abandon", "--reason", "x", "--yes")):
        told = await acme("dlq", *words, str(known), str(unknown), code=1)
        assert f"{unknown}: not known; nothing was changed" in told.err
    assert await status_of(db, known) == "failed"
    await acme("dlq", "requeue", "not-an-id", code=2)


async def test_a_dry_run_changes_nothing(acme: Cli, failed: Fail, db: Db) -> None:
    id_, _ = await failed()
    before = await audited(db)
    for words in (("requeue",), ("abandon", "--reason", "x")):
        told = await acme("dlq", *words, "--vendor", "beds24", "--dry-run", "--json")
        assert [row["event_id"] for row in told.document] == [str(id_)]
    assert await status_of(db, id_) == "failed"
    assert await audited(db) == before


UNREAD = """INSERT INTO dead_letters (id, operation, error_class, error_message, fingerprint, attempts, owner)
            VALUES ($1, 'unknown', 'invalid', 'body: not JSON', 'f', 1, 'pipeline')"""


async def test_a_dry_run_counts_what_will_happen(acme: Cli, failed: Fail, db: Db) -> None:
    """Also the question that is asked, and what a job is told."""
    unread = uuid7()
    await db.execute(UNREAD, unread)
    ids = {}
    for status in ("pending", "retrying", "resolved", "abandoned"):
        _, ids[status] = await failed()
        await db.execute("UPDATE dead_letters SET status = $2 WHERE id = $1", ids[status], status)
    named = [str(id_) for id_ in (unread, *ids.values())]
    note = (await acme("dlq", "requeue", *named, "--dry-run")).err
    assert "2 would be requeued" in note
    assert "2 would be left: they run already or have ended" in note
    assert "1 would be left: no event could be read from them" in note
    note = (await acme("dlq", "abandon", *named, "--reason", "x", "--dry-run")).err
    assert "3 would be abandoned, 2 would be left: they are not open" in note
    left = "1 would be left: no event could be read from them"
    told = await acme("dlq", "requeue", "--all", "--dry-run")
    assert f"1 would be requeued, {left}" in told.err
    assert str(unread) in told.out
    assert f"0 would be requeued, {left}" in (await acme("dlq", "requeue", "--all", "--limit", "1", "--dry-run")).err
    asked = (await acme("dlq", "requeue", "--all", typed="n\n", code=1)).err
    assert f"Requeue 1 dead letter (1 beds24 pms.booking.cancel; {left})?" in asked
    await acme("dlq", "requeue", "--all", "--yes", "--detach")
    assert await db.fetchval("SELECT total FROM operator_jobs") == 1
    done = await acme("dlq", "requeue", "--all", "--yes", "--json")
    assert (len(done.document["requeued"]), done.document["unreadable"]) == (1, [str(unread)])


async def test_bulk_asks_first(acme: Cli, failed: Fail, db: Db) -> None:
    """No, and nobody there to answer, both leave everything as it is; without a filter nothing is picked at all."""
    id_, _ = await failed()
    bulk = ("dlq", "requeue", "--vendor", "beds24")
    assert "Requeue 1 dead letter (1 beds24 pms.booking.cancel)?" in (await acme(*bulk, typed="n\n", code=1)).err
    assert "--yes" in (await acme(*bulk, typed="", code=1)).err
    assert "--all" in (await acme("dlq", "requeue", code=2)).err
    assert "not both" in (await acme(*bulk, str(id_), code=2)).err
    assert "ids say how many already" in (await acme("dlq", "requeue", str(id_), "--limit", "1", code=2)).err
    lanes = await acme("lanes", "release", "one", "another", "--requeue", "--limit", "1", code=2)
    assert "lanes say how many already" in lanes.err
    assert await status_of(db, id_) == "failed"
    await acme(*bulk, typed="y\n")
    assert await status_of(db, id_) == "received"


async def test_bulk_requeue_reaches_all_pages_and_keeps_limit_and_rate(acme: Cli, failed: Fail, db: Db) -> None:
    for _ in range(5):
        await failed()
    told = await acme("dlq", "requeue", "--all", "--limit", "2", "--yes", "--json")
    assert len(told.document["requeued"]) == 2
    told = await acme("dlq", "requeue", "--error", "unmapped", "--yes", "--rate", "20", "--json")
    assert len(told.document["requeued"]) == 3
    assert await db.fetchval("SELECT count(*) FROM channel_events WHERE status = 'received'") == 5


async def test_abandon_needs_a_reason_and_keeps_it(acme: Cli, failed: Fail, db: Db) -> None:
    id_, letter = await failed()
    assert "--reason" in (await acme("dlq", "abandon", str(id_), code=2)).err
    await acme("dlq", "abandon", str(id_), "--reason", "cancelled by phone", "--yes")
    assert await status_of(db, id_) == "abandoned"
    row = await db.fetchrow("SELECT status, notes, resolved_by FROM dead_letters WHERE id = $1", letter)
    assert row is not None
    assert (row["status"], row["notes"]) == ("abandoned", "cancelled by phone")
    assert row["resolved_by"].startswith("cli:")
    assert (await audited(db))[-1] == "dead_letter.abandon"
    for given in (id_, letter):
        again = await acme("dlq", "abandon", str(given), "--reason", "again", "--yes", code=1)
        assert f"sent just now: {given}\n" in again.err


async def test_a_letter_without_an_event_can_only_be_abandoned(acme: Cli, db: Db) -> None:
    id_ = uuid7()
    await db.execute(UNREAD, id_)
    assert "cannot be requeued" in (await acme("dlq", "requeue", str(id_), code=1)).err
    await acme("dlq", "abandon", str(id_), "--reason", "noise", "--yes")


async def test_a_vendors_text_cannot_steer_the_terminal(acme: Cli, failed: Fail, db: Db) -> None:
    await failed()
    await db.execute("UPDATE dead_letters SET error_message = E'bad [red]\\u001b[2Jtext'")
    out = (await acme("dlq", "list")).out
    assert "\x1b" not in out
    assert "bad [red]" in out


@pytest.mark.parametrize("width", [20, 60, 80, 100, 132, 200])
def test_an_id_is_whole_and_no_value_is_missing_whatever_the_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    row = {name.partition("=")[0]: uuid4() if name.endswith("id") else f"{name}-of-some-length" for name in COLUMNS}
    listing([row | {"id": uuid4()}, row], list(row), as_json=False)
    shown = capsys.readouterr().out
    assert shown.count(str(row["event id"])) == 2
    assert all(value[:8] in shown for value in map(str, row.values()))


def test_the_same_field_in_any_item_of_a_list_is_one_cause() -> None:
    def fingerprint(message: str) -> str:
        return DeadLetterRow(
            event_id=None, company_id=None, connection_id=None, vendor="beds24", queue=None, operation="x", entity_type=None,
            entity_external_id=None, entity_internal_id=None, error_class="invalid", error_code="invalid_command",
            error_message=message, attempts=1, first_attempt_at=None, owner="tenant",
        ).fingerprint()  # fmt: skip

    assert fingerprint("periods.0.available: must be 0 or more") == fingerprint("periods.12.available: a whole number")
    assert fingerprint("periods.0.available: must be 0 or more") != fingerprint("periods.0.price: must be 0 or more")
    assert fingerprint("booking.custom1: too long") != fingerprint("booking.custom2: too long")
    assert fingerprint("id: too long") == fingerprint("id: missing") != fingerprint("an empty batch")


def test_an_age_is_an_id() -> None:
    assert _id_of(timedelta(0)).int >> 80 == uuid7().int >> 80 or _id_of(timedelta(hours=-1)) > uuid7()
    assert _id_of(timedelta(hours=1)) < uuid7()
    assert _id_of(timedelta(days=99999)).int == 0  # before ids began


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("dlq", "list", "--older-than", "99999d"), 0, "no dead letters"),
        (("events", "replay", "--from", "0001-01-01", "--dry-run"), 0, "1 would be replayed"),
        (("events", "replay", "--to", "9999-12-31T23:59:59.999999", "--dry-run"), 0, "1 would be replayed"),
        (("events", "replay", "--from", "0001-01-01T00:00+02:00", "--dry-run"), 2, "out of the years 1 to 9999"),
        (("events", "replay", "--from", "2027-05-01T15:00", "--to", "2027-05-01T14:00"), 2, "is not after --from"),
        (("events", "replay", "--from", "2027-13-01"), 2, "a time such as 2027-01-31"),
        (("dlq", "requeue", "--all", "--rate", "inf"), 2, "--rate"),
        (("dlq", "abandon", "--all", "--reason", "x", "--rate", "nan"), 2, "--rate"),
        (("events", "replay", "--from", "1h", "--rate", "inf"), 2, "--rate"),
    ],
)
async def test_times_and_numbers_at_their_ends(
    acme: Cli, failed: Fail, db: Db, words: tuple[str, ...], code: int, says: str
) -> None:
    await failed()
    await db.execute("UPDATE channel_events SET status = 'done', direction = 'inbound'")
    assert says in " ".join((await acme(*words, code=code)).err.split())
