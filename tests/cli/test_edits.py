"""`staybus dlq edit`: every way of editing, what is refused, and that guests' data is shown and stored nowhere."""

from __future__ import annotations

import json
import stat
import sys
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from ops.cli.edits import mask, reveal
from ops.cli.output import Refused
from schemas.ids import uuid7
from store.seal import KeyFile

from .conftest import audited

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from .conftest import Cli, Db, Fail

PERIODS = {
    "propertyId": "P1",
    "roomTypeId": "RT1",
    "periods": [{"first": "2027-05-02", "last": "2027-05-01", "available": 2}],
}


@pytest.fixture
async def letter(db: Db, failed: Fail) -> str:
    """Of a command whose period is the wrong way round."""
    event, letter = await failed(error="invalid", operation="pms.availability.update")
    await db.execute(
        "UPDATE channel_events SET payload = $2::jsonb, connection_id = NULL WHERE id = $1", event, json.dumps(PERIODS)
    )
    return str(letter)


async def overlay(db: Db) -> Any:
    text = await db.fetchval("SELECT overlay FROM dead_letters")
    return None if text is None else json.loads(text)


async def test_a_dry_run_shows_what_the_event_would_say(acme: Cli, letter: str, db: Db) -> None:
    before = await audited(db)
    words = ("dlq", "edit", letter, "--set", 'periods.0.last="2027-05-03"', "--dry-run")
    told = await acme(*words)
    assert json.loads(told.out)["periods"][0]["last"] == "2027-05-03"
    assert "it can be read: pms.availability.update about availability RT1" in told.err
    document = (await acme(*words, "--json")).document
    assert (document["kept"], document["problem"], document["paths"]) == (False, None, ["periods"])
    assert await overlay(db) is None
    assert await audited(db) == before


async def test_edits_add_up_are_shown_and_taken_back(acme: Cli, letter: str, db: Db) -> None:
    await acme("dlq", "edit", letter, "--set", 'periods.0.last="2027-05-03"', "--note", "was the wrong way round")
    await acme(
        "dlq",
        "edit",
        letter,
        "--set",
        'currency="EUR"',
        "--set",
        'periods.1={"first":"2027-06-01","last":"2027-06-02","price":900}',
    )
    await acme("dlq", "edit", letter, "--unset", "periods.0.available", "--set", "periods.0.minStay=2")
    shown = (await acme("dlq", "show", letter, "--json")).document
    first, second = shown["edit"]["periods"]
    assert first == {"first": "2027-05-02", "last": "2027-05-03", "minStay": 2}
    assert second["price"] == 900
    assert shown["edited_paths"] == ["currency", "periods"]
    assert shown["edited_by"].startswith("cli:")
    assert shown["notes"] == "was the wrong way round"
    actions = await db.fetch(
        "SELECT details::text AS details FROM audit_log WHERE action = 'dead_letter.edit' ORDER BY id"
    )
    assert json.loads(actions[0]["details"])["note"] == "was the wrong way round"  # the letter has the latest one only
    assert json.loads(actions[1]["details"])["paths"] == ["currency", "periods"]
    assert all("2027" not in row["details"] for row in actions)  # paths, not values
    event = await db.fetchrow("SELECT overlay_id, payload FROM channel_events")
    assert event is not None
    assert (str(event["overlay_id"]), json.loads(event["payload"])) == (letter, PERIODS)
    assert "as it came again" in (await acme("dlq", "edit", letter, "--clear")).out
    assert await overlay(db) is None
    assert await db.fetchval("SELECT overlay_id FROM channel_events") is None
    assert "no edit to take back" in (await acme("dlq", "edit", letter, "--clear", code=1)).err


async def test_what_still_cannot_be_read_is_kept_only_by_force(acme: Cli, letter: str, db: Db) -> None:
    words = ("dlq", "edit", letter, "--set", "periods.0.available=-1")
    told = await acme(*words, code=1)
    assert "it still cannot be read: periods.0.available" in told.err
    assert await overlay(db) is None
    assert "it cannot be read" in (await acme(*words, "--force")).err
    assert (await overlay(db))["periods"][0]["available"] == -1
    details = await db.fetchval("SELECT details::text FROM audit_log WHERE action = 'dead_letter.edit'")
    assert json.loads(details)["forced"] is True


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "one of --set"),
        (("--set", "periods.0.last=2027-05-03"), 2, "a text needs its quotes"),
        (("--set", "periods"), 2, "PATH=JSON"),
        (("--set", "periods.7.last=1"), 2, "there is no 7"),
        (("--unset", "currency"), 2, "nothing to take away"),
        (("--clear", "--unset", "currency"), 2, "one of --set"),
        (("--file", "missing.json"), 1, "missing.json: cannot be read"),
        (("--file", "list.json"), 2, "a JSON object is needed"),
        (("--set", 'propertyId="P1"'), 1, "changes nothing"),
        (("--set", 'cardNumber="4111111111111111"', "--force"), 1, "card data is kept nowhere"),
        (("--set", 'guest="Jane Roe"', "--set", 'notes.text="x"', "--force"), 0, "typed into a shell"),
    ],
)
async def test_words_that_do_not_fit_change_nothing(
    acme: Cli, letter: str, db: Db, folder: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    (folder / "list.json").write_text("[1]")
    told = await acme("dlq", "edit", letter, *words, code=code)
    assert says in " ".join(told.err.split())
    if code:
        assert await overlay(db) is None


async def test_a_guests_value_is_sealed_and_shown_nowhere(acme: Cli, db: Db, failed: Fail, folder: Path) -> None:
    _, letter = await failed(operation="pms.booking.update")
    (folder / "patch.json").write_text(
        '{"adults": 2, "guest": {"lastName": "Roe-Unmistakable", "phone": "+44 7700 900123"}}'
    )
    for extra in (("--dry-run",), (), ("--json", "--set", "adults=3")):
        source = ("--file", "patch.json") if "--set" not in extra else ()
        told = await acme("dlq", "edit", str(letter), *source, *extra)
        assert "Unmistakable" not in told.out + told.err
    shown = await acme("dlq", "show", str(letter))
    assert "guest.lastName" in shown.out
    assert "Unmistakable" not in shown.out
    assert await overlay(db) == {"adults": 3}
    for table in ("dead_letters", "audit_log", "channel_events"):
        rows = str([dict(row) for row in await db.fetch(f"SELECT * FROM {table}")])  # noqa: S608
        assert "Unmistakable" not in rows
        assert "900123" not in rows
    later = (await acme("dlq", "edit", str(letter), "--set", "adults=4", "--json")).document
    assert later["payload"]["guest"] == {"lastName": "(sealed 1)", "phone": "(sealed 2)"}


async def test_an_editor_sees_guests_data_covered_and_gives_it_back(
    acme: Cli, db: Db, failed: Fail, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, letter = await failed(operation="pms.booking.update")
    (folder / "patch.json").write_text('{"adults": 2, "guest": {"firstName": "Ann", "lastName": "Roe"}}')
    await acme("dlq", "edit", str(letter), "--file", "patch.json")
    script = folder / "editor.py"
    script.write_text(
        "import json, pathlib, sys; p = pathlib.Path(sys.argv[1]); d = json.loads(p.read_text())\n"
        "pathlib.Path('seen.json').write_text(json.dumps([d, oct(p.parent.stat().st_mode)]))\n"
        "d['adults'] = 5; d['guest']['lastName'], d['guest']['firstName'] = d['guest']['firstName'], 'Bea'\n"
        "p.write_text(json.dumps(d))\n"
    )
    monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")
    monkeypatch.delenv("VISUAL", raising=False)
    await acme("dlq", "edit", str(letter), "--editor")
    seen, mode = json.loads((folder / "seen.json").read_text())
    assert seen["guest"] == {"firstName": "(sealed 1)", "lastName": "(sealed 2)"}
    assert stat.S_IMODE(int(mode, 8)) == 0o700
    sealed = await db.fetchrow("SELECT overlay_sealed, overlay FROM dead_letters")
    assert sealed is not None
    wrapped = await db.fetchval("SELECT data_key FROM companies WHERE id = 'acme'")
    opened = KeyFile.read(folder / ".staybus/key").cipher("acme", wrapped).open(sealed["overlay_sealed"])
    assert opened == {"guest": {"firstName": "Bea", "lastName": "Ann"}}
    assert json.loads(sealed["overlay"]) == {"adults": 5}
    monkeypatch.setenv("EDITOR", "false")
    assert "ended with 1; nothing was changed" in (await acme("dlq", "edit", str(letter), "--editor", code=1)).err
    monkeypatch.setenv("EDITOR", "/no/such/editor")
    assert "set EDITOR" in (await acme("dlq", "edit", str(letter), "--editor", code=1)).err


async def test_a_fact_is_judged_by_its_adapter(acme: Cli, db: Db, failed: Fail) -> None:
    event, letter = await failed(error="invalid", operation="beds24.booking.modified")
    booking = {
        "id": 91000001,
        "propertyId": 345754,
        "roomId": 713992,
        "arrival": "2027-05-01",
        "departure": "2027-05-01",
        "status": "confirmed",
        "modifiedTime": "2026-11-21T08:00:00Z",
    }
    await db.execute(
        "UPDATE channel_events SET direction = 'inbound', payload = $2::jsonb, entity_type = 'reservation',"
        " entity_external_id = '91000001' WHERE id = $1",
        event,
        json.dumps({"booking": booking, "timeStamp": "2026-11-21T08:00:00Z"}),
    )
    words = ("dlq", "edit", str(letter), "--dry-run", "--set")
    assert "reservation 91000001 is stored" in (await acme(*words, 'booking.departure="2027-05-03"')).err
    assert "booking.departure" in (await acme(*words, 'booking.departure="soon"', code=1)).err
    another = (*words, "booking.id=7", "--set", 'booking.departure="2027-05-03"', "--force")
    assert "cannot make it another's" in (await acme(*another, code=1)).err
    hides = await acme(*words, 'booking="all of it"', "--force", code=1)
    assert "must stay an object" in hides.err
    assert (
        "is asked for reservation 91000001"
        in (await acme(*words, "booking.modifiedTime=null", "--set", 'booking.departure="2027-05-03"')).err
    )


async def test_who_edits_what_may_exist_at_the_vendor_is_told(acme: Cli, db: Db, failed: Fail) -> None:
    """A create is found by our marker, and a cancel by the state that it wants: only the create's edit would not be said."""
    for operation, starts, told in (
        ("pms.booking.create", 1, True),
        ("pms.booking.create", 0, False),
        ("pms.booking.cancel", 1, False),
    ):
        event, letter = await failed(error="unknown", operation=operation)
        await db.execute("UPDATE channel_events SET starts = $2 WHERE id = $1", event, starts)
        words = ("dlq", "edit", str(letter), "--set", 'reason="mistaken"', "--force")
        assert ("may exist at the vendor already" in (await acme(*words, "--dry-run")).err) is told
        assert (await acme(*words, "--dry-run", "--json")).document["may_exist"] is told
        assert ("may exist at the vendor already" in (await acme(*words)).err) is told
        assert "may exist" not in (await acme("dlq", "edit", str(letter), "--clear")).err


async def test_only_what_rests_is_edited(acme: Cli, db: Db, letter: str) -> None:
    words = ("--set", 'periods.0.last="2027-05-03"')
    await acme("dlq", "requeue", letter)
    assert "is received" in (await acme("dlq", "edit", letter, *words, code=1)).err
    unread: UUID = uuid7()
    await db.execute(
        """INSERT INTO dead_letters (id, operation, error_class, error_message, fingerprint, attempts, owner)
           VALUES ($1, 'unknown', 'invalid', 'body: not JSON', 'f', 1, 'pipeline')""",
        unread,
    )
    assert "nothing to edit" in (await acme("dlq", "edit", str(unread), *words, code=1)).err
    assert "not known" in (await acme("dlq", "edit", str(uuid7()), *words, code=1)).err


async def test_two_operators_do_not_write_over_each_other(
    acme: Cli, db: Db, letter: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one began before the first one ended."""
    from ops.cli import edits

    before = edits._keep

    async def late(*args: Any) -> None:
        other = await asyncpg.connect(database_url)
        await other.execute("UPDATE dead_letters SET edited_at = now(), overlay = '{}'")
        await other.close()
        await before(*args)

    monkeypatch.setattr(edits, "_keep", late)
    told = await acme("dlq", "edit", letter, "--set", 'periods.0.last="2027-05-03"', code=1)
    assert "edited by somebody else" in told.err
    assert await overlay(db) == {}
    assert await db.fetchval("SELECT overlay_id FROM channel_events") is None


async def test_an_editor_cannot_put_guests_data_where_it_is_not_sealed(
    acme: Cli, db: Db, failed: Fail, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, letter = await failed(operation="pms.booking.update")
    (folder / "patch.json").write_text('{"adults": 2, "guest": {"lastName": "Roe-Unmistakable"}}')
    await acme("dlq", "edit", str(letter), "--file", "patch.json")
    script = folder / "editor.py"
    script.write_text(
        "import json, pathlib, sys; p = pathlib.Path(sys.argv[1]); d = json.loads(p.read_text())\n"
        "d['reference'] = {'ours': [d['guest'].pop('lastName')]}; p.write_text(json.dumps(d))\n"
    )
    monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")
    monkeypatch.delenv("VISUAL", raising=False)
    for extra in ("--dry-run", "--force"):
        told = await acme("dlq", "edit", str(letter), "--editor", extra, code=1)
        assert "reference.ours.0: (sealed 1) stands for guests' data" in told.err
        assert "Unmistakable" not in told.out + told.err
    assert await overlay(db) == {"adults": 2}


async def test_of_a_command_that_does_not_fit_only_what_commands_have_is_shown(
    acme: Cli, db: Db, failed: Fail, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it holds what is a guest's nobody can tell; it can be moved to where it belongs, unseen."""
    event, letter = await failed(error="invalid", operation="pms.booking.update")
    said = {
        "reservationId": "R1",
        "check_in": "2027-05-01",
        "adults": "two",
        "customer": "Roe-Unmistakable",
        "status": {"of": "Roe-Unmistakable"},
        "rooms": [{"guest": {"lastName": "Roe-Unmistakable"}, "beds": 2}],
    }
    wrapped = await db.fetchval("SELECT data_key FROM companies WHERE id = 'acme'")
    sealed = KeyFile.read(folder / ".staybus/key").cipher("acme", wrapped).seal(said)
    await db.execute("UPDATE channel_events SET payload = '{}', sealed = $2 WHERE id = $1", event, sealed)
    shown = json.loads((await acme("dlq", "edit", str(letter), "--set", "adults=2", "--dry-run", code=1)).out)
    assert shown == {
        "reservationId": "R1",
        "check_in": "2027-05-01",
        "adults": 2,
        "customer": "(sealed 1)",
        "status": {"of": "(sealed 2)"},
        "rooms": [{"guest": {"lastName": "(sealed 3)"}, "beds": "(sealed 4)"}],
    }
    script = folder / "editor.py"
    script.write_text(
        "import json, pathlib, sys; p = pathlib.Path(sys.argv[1]); d = json.loads(p.read_text())\n"
        "assert 'Unmistakable' not in p.read_text()\n"
        "d['guest'] = {'lastName': d.pop('customer')}; d['adults'] = 2; del d['status'], d['rooms']\n"
        "p.write_text(json.dumps(d))\n"
    )
    monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")
    monkeypatch.delenv("VISUAL", raising=False)
    told = await acme("dlq", "edit", str(letter), "--editor")
    assert "it can be read: pms.booking.update about reservation R1" in told.err
    assert "Unmistakable" not in told.out + told.err
    assert await overlay(db) == {"adults": 2, "status": None}  # what no command has is sealed, also that it is gone
    assert "Unmistakable" not in (await acme("dlq", "edit", str(letter), "--clear", "--dry-run")).out


async def test_what_no_command_has_is_kept_sealed_with_its_name(acme: Cli, letter: str, db: Db, folder: Path) -> None:
    """Also where the edit itself brings it: a name that nobody expects may be a guest's as well."""
    patch = {"Jane Unmistakable": "Roe-Unmistakable", "guest": {"Jane Unmistakable": 1}, "currency": "EUR"}
    (folder / "patch.json").write_text(json.dumps(patch | {"periods": [{"Roe-Unmistakable": 1}]}))
    await acme("dlq", "edit", letter, "--file", str(folder / "patch.json"), "--force")
    assert await overlay(db) == {"currency": "EUR"}
    (folder / "patch.json").write_text(json.dumps({"Jane Unmistakable": ""}))
    await acme("dlq", "edit", letter, "--file", str(folder / "patch.json"), "--force")
    shown = await acme("dlq", "show", letter, "--json")
    assert shown.document["edited_paths"] == ["an unknown member", "currency", "guest.an unknown member", "periods"]
    kept = await db.fetch("SELECT d::text FROM dead_letters d UNION ALL SELECT a::text FROM audit_log a")
    assert "Unmistakable" not in str(kept) + shown.out
    now = json.loads((await acme("dlq", "edit", letter, "--unset", "currency", "--dry-run", "--force")).out)
    assert (now["Jane Unmistakable"], now["periods"]) == ("", [{"Roe-Unmistakable": "(sealed 2)"}])
    (folder / "patch.json").write_text(json.dumps({"guest.lastName": "Roe"}))
    told = await acme("dlq", "edit", letter, "--file", str(folder / "patch.json"), "--force", code=1)
    assert "has a dot in it" in told.err


def test_covered_values_come_back_wherever_among_their_own_they_were_moved_to() -> None:
    personal = (("guest",), ("notes",))
    document = {"a": 1, "guest": {"name": "Ann", "tags": ["x", "", None, {"y": 2}]}, "notes": ""}
    covered, values = mask(document, personal)
    assert "Ann" not in json.dumps(covered)
    assert covered["notes"] == ""
    assert reveal(covered, values, personal) == document
    covered["notes"] = [covered.pop("guest")["tags"][0]]
    assert reveal(covered, values, personal)["notes"] == ["x"]
    covered["elsewhere"] = covered.pop("notes")
    with pytest.raises(Refused, match=r"elsewhere\.0: \(sealed 2\)"):
        reveal(covered, values, personal)
