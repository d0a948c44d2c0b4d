"""One kit over every adapter of the registry, driven by its manifest. Where evidence is missing it fails."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import re
import traceback
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import (
    AdapterError,
    CardDataRefused,
    Malformed,
    Misconfigured,
    RateLimited,
    Rejected,
    SignatureRefused,
    Transient,
    Unauthorized,
    Unknown,
    Unsupported,
)
from adapters.port import (
    Budget,
    Effects,
    Fact,
    Hint,
    Recorded,
    Repeat,
    Request,
    Response,
    Scheme,
    WebhookAuth,
    WebhookRequest,
)
from adapters.registry import adapters
from adapters.signatures import sign, verify
from adapters.transport import NOT_SENT, HttpTransport
from schemas.commands import COMMANDS
from schemas.entities import Reservation
from schemas.event import TYPE_PATTERN
from schemas.ids import uuid7
from store.seal import split
from tests.contract.evidence import RESETS_IN, Break, Evidence, TestSession, World, command

ROOT = Path(__file__).resolve().parents[2]
RECEIVED = datetime(2026, 5, 1, 12, tzinfo=UTC)
PATIENCE = 0.4  # seconds that a test waits for an answer that never comes

SECRET, OLD_SECRET = "current-webhook-secret", "previous-webhook-secret"
FUZZ = settings(
    derandomize=True,
    max_examples=200,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def evidence_of(vendor: str) -> Evidence:
    try:
        module = importlib.import_module(f"tests.adapters.{vendor}.evidence")
    except ModuleNotFoundError as error:
        pytest.fail(f"{vendor} has no tests/adapters/{vendor}/evidence.py ({error})")
    found = getattr(module, "evidence", None)
    assert isinstance(found, Evidence), f"tests/adapters/{vendor}/evidence.py exports no Evidence `evidence`"
    return found


VENDORS = sorted(adapters())
EACH_VENDOR = pytest.mark.parametrize("vendor", VENDORS)
EACH_COMMAND = pytest.mark.parametrize(
    ("vendor", "event_type"),
    [(vendor, name) for vendor in VENDORS for name in sorted(adapters()[vendor].manifest.commands)],
)
EACH_AUTH = pytest.mark.parametrize(
    ("vendor", "auth"),
    [
        pytest.param(vendor, auth, id=f"{vendor}-{auth.scheme}")
        for vendor in VENDORS
        for auth in adapters()[vendor].manifest.webhook_auth
    ],
)


@pytest.fixture
def evidence(vendor: str) -> Evidence:
    return evidence_of(vendor)


@pytest.fixture
async def world(evidence: Evidence) -> AsyncIterator[World]:
    async with evidence.world() as running:
        yield running


@pytest.fixture
async def session(vendor: str, world: World) -> AsyncIterator[TestSession]:
    http = HttpTransport(vendor, connect=PATIENCE, total=PATIENCE)
    yield TestSession(adapters()[vendor], world.connection, http, world.credentials)
    await http.close()


@pytest.fixture(autouse=True)
def quiet_logs(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a case does: no guest's value and no secret in any log, at any level."""
    caplog.set_level(logging.DEBUG)
    vendor = getattr(request.node, "callspec", None) and request.node.callspec.params.get("vendor")
    yield
    if vendor:
        told = "\n".join(record.getMessage() for phase in ("setup", "call") for record in caplog.get_records(phase))
        _tells_nothing(told, evidence_of(vendor).guest_values | {SECRET, OLD_SECRET})


# ------------------------------------------------------------------------------------------------ the manifest


@EACH_VENDOR
def test_evidence_is_complete(vendor: str, evidence: Evidence) -> None:
    manifest = adapters()[vendor].manifest
    assert evidence.commands.keys() == manifest.commands.keys(), "one example for each declared command"
    assert bool(evidence.samples) == bool(manifest.inbound), "sample webhooks where webhooks are received"
    assert evidence.guest_values, "say which values are a guest's, or nothing is proved about them"


@EACH_VENDOR
def test_the_docs_page_exists_and_tells_settings_and_commands(vendor: str) -> None:
    manifest = adapters()[vendor].manifest
    page = ROOT / "docs" / "vendors" / f"{vendor}.md"
    assert page.exists(), f"{page} is missing"
    text = page.read_text()
    missing = [name for name in (*manifest.commands, *(field.name for field in manifest.fields)) if name not in text]
    assert not missing, f"{page} does not tell about {missing}"


@EACH_VENDOR
def test_manifest_is_coherent(vendor: str) -> None:
    manifest = adapters()[vendor].manifest
    assert manifest.commands.keys() <= COMMANDS.keys() | set(manifest.actions)
    assert all(re.fullmatch(TYPE_PATTERN, name) for name in (*manifest.commands, *manifest.actions))
    assert len({field.name for field in manifest.fields}) == len(manifest.fields)
    assert all(field.help for field in manifest.fields)
    assert not [field.name for field in manifest.fields if field.secret and field.default], "a secret has no default"
    assert manifest.rate_limit.reserve < manifest.rate_limit.units
    looked_up = {name for name, how in manifest.commands.items() if how.repeat is Repeat.LOOK_UP}
    assert manifest.commands_with_marker <= looked_up
    assert bool(manifest.pulls) == any(name.startswith("pull.") for name in manifest.capabilities)
    assert bool(manifest.pulls) == ("pull" in {field.name for field in manifest.fields})


# ------------------------------------------------------------------------------------------------ webhooks: proof


def _signed(request: WebhookRequest, auth: WebhookAuth, secret: str) -> WebhookRequest:
    value = sign(request.body, secret) if auth.scheme is Scheme.HMAC else secret
    return dataclasses.replace(request, headers={**request.headers, auth.header.lower(): value})


@EACH_AUTH
def test_a_signed_webhook_is_accepted_also_with_the_previous_secret(
    vendor: str, auth: WebhookAuth, evidence: Evidence
) -> None:
    for sample in evidence.samples:
        for secret in (SECRET, OLD_SECRET):
            verify(_signed(sample.request, auth, secret), auth, auth.header, [SECRET, OLD_SECRET])


@EACH_AUTH
def test_unsigned_wrongly_signed_and_outdated_webhooks_are_refused(
    vendor: str, auth: WebhookAuth, evidence: Evidence
) -> None:
    for sample in evidence.samples:
        unsigned = sample.request
        wrong = _signed(sample.request, auth, "a stranger's secret")
        outdated = _signed(sample.request, auth, OLD_SECRET)
        for request in (unsigned, wrong, outdated):
            with pytest.raises(SignatureRefused, match=re.escape(auth.header)) as caught:
                verify(request, auth, auth.header, [SECRET])
            assert SECRET not in str(caught.value)


@EACH_AUTH
def test_an_altered_body_is_refused_where_the_body_is_signed(
    vendor: str, auth: WebhookAuth, evidence: Evidence
) -> None:
    if auth.scheme is not Scheme.HMAC:
        return  # a static header says nothing of the body
    for sample in evidence.samples:
        signed = _signed(sample.request, auth, SECRET)
        altered = dataclasses.replace(signed, body=signed.body + b" ")
        with pytest.raises(SignatureRefused, match="does not match"):
            verify(altered, auth, auth.header, [SECRET])


# ------------------------------------------------------------------------------------------------ webhooks: facts


def _facts(vendor: str, evidence: Evidence, request: WebhookRequest) -> list[Fact]:
    facts = adapters()[vendor].parse(request, evidence.connection)
    assert facts
    return facts


def _recorded(fact: Fact, evidence: Evidence) -> Recorded:
    payload = orjson.loads(orjson.dumps(fact.payload))  # as it comes back from its row
    return Recorded(uuid7(), fact.event_type, fact.entity_type, fact.external_id, payload, RECEIVED)


@EACH_VENDOR
def test_every_fact_reaches_the_vendors_inbound_queue(vendor: str, evidence: Evidence) -> None:
    patterns = adapters()[vendor].manifest.inbound
    for sample in evidence.samples:
        for fact in _facts(vendor, evidence, sample.request):
            assert re.fullmatch(TYPE_PATTERN, fact.event_type)
            assert any(_binds(pattern, fact.event_type) for pattern in patterns), fact.event_type
            pattern = adapters()[vendor].manifest.external_ids.get(fact.entity_type)
            assert pattern is None or re.fullmatch(pattern, fact.external_id), fact.external_id


@EACH_VENDOR
def test_the_same_event_has_the_same_key_and_another_one_another(vendor: str, evidence: Evidence) -> None:
    for sample in evidence.samples:
        keys = _keys(vendor, evidence, sample.request)
        assert all(key is not None for key in keys) == sample.keyed, sample.name
        for resend in sample.resends:
            assert _keys(vendor, evidence, resend) == keys, sample.name
        if sample.keyed:
            everything = [*keys, *(key for other in sample.others for key in _keys(vendor, evidence, other))]
            assert len(set(everything)) == len(everything), sample.name


@EACH_VENDOR
def test_resends_and_changes_are_shown(vendor: str, evidence: Evidence) -> None:
    if adapters()[vendor].manifest.inbound:
        assert any(sample.resends for sample in evidence.samples), "show what the vendor's resend looks like"
        assert any(sample.others for sample in evidence.samples), "show a second change of the same entity"


@EACH_VENDOR
def test_every_sample_is_interpreted_and_sealed(vendor: str, evidence: Evidence) -> None:
    """What the manifest calls personal covers every guest value, in the recorded fact and in the rows."""
    adapter = adapters()[vendor]
    told = False
    for sample in evidence.samples:
        for fact in _facts(vendor, evidence, sample.request):
            readable, sealed = split(fact.payload, adapter.manifest.personal)
            _tells_nothing(_text(readable), evidence.guest_values)
            told |= any(value in _text(sealed) for value in evidence.guest_values)
            effects = adapter.interpret(_recorded(fact, evidence), evidence.connection)
            assert isinstance(effects, Hint | Effects)
            if isinstance(effects, Effects):
                for row in _rows(effects):
                    readable, _ = split(row.document, adapter.manifest.personal)
                    _tells_nothing(_text(readable), evidence.guest_values)
    assert told or not adapter.manifest.inbound, "no sample holds a guest's data, so nothing was proved"


@EACH_VENDOR
def test_card_data_is_refused_and_not_quoted(vendor: str, evidence: Evidence) -> None:
    for request in evidence.card_data:
        with pytest.raises(CardDataRefused) as caught:
            adapters()[vendor].parse(request, evidence.connection)
        hints = caught.value.hints
        assert hints
        assert all(isinstance(hint, Fact) for hint in hints)
        told = str(caught.value) + "".join(_text(hint.payload) for hint in hints if isinstance(hint, Fact))
        _tells_nothing(told, evidence.guest_values)
        assert "4111111111111111" not in told


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@EACH_VENDOR
@FUZZ
@given(data=st.data())
def test_documents_gone_wrong_are_malformed_and_nothing_else(vendor: str, data: st.DataObject) -> None:
    evidence = evidence_of(vendor)
    posts = [sample.request for sample in evidence.samples if sample.request.body]
    request = data.draw(st.sampled_from(posts))
    document = orjson.loads(request.body)
    for _ in range(data.draw(st.integers(1, 3))):
        document = _mutated(document, data)
    body = json.dumps(document).encode("utf-8", "surrogatepass")
    _parse_and_interpret(vendor, evidence, dataclasses.replace(request, body=body))


@EACH_VENDOR
@FUZZ
@given(data=st.data())
def test_bytes_gone_wrong_are_malformed_and_nothing_else(vendor: str, data: st.DataObject) -> None:
    evidence = evidence_of(vendor)
    request = data.draw(st.sampled_from([sample.request for sample in evidence.samples if sample.request.body]))
    start = data.draw(st.integers(0, len(request.body)))
    end = data.draw(st.integers(start, min(len(request.body), start + 40)))
    body = request.body[:start] + data.draw(st.binary(max_size=10)) + request.body[end:]
    _parse_and_interpret(vendor, evidence, dataclasses.replace(request, body=body))


@EACH_VENDOR
@FUZZ
@given(query=st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=3))
def test_queries_gone_wrong_are_malformed_and_nothing_else(vendor: str, query: dict[str, str]) -> None:
    for method in adapters()[vendor].manifest.webhook_methods:
        _parse_and_interpret(vendor, evidence_of(vendor), WebhookRequest(method, {}, query, b""))


def _parse_and_interpret(vendor: str, evidence: Evidence, request: WebhookRequest) -> None:
    adapter = adapters()[vendor]
    try:
        facts = adapter.parse(request, evidence.connection)
    except Malformed as error:
        _names_its_place(error)
        return
    for fact in facts:
        stored = orjson.dumps(fact.payload)
        assert b"\\u0000" not in stored, "Postgres cannot hold it"
        assert fact.idempotency_key is None or len(fact.idempotency_key) <= 255
        assert 0 < len(fact.external_id) <= 255
        try:
            effects = adapter.interpret(_recorded(fact, evidence), evidence.connection)
        except Malformed as error:
            _names_its_place(error)
            continue
        if isinstance(effects, Effects):
            for row in _rows(effects):
                orjson.dumps(row.document)
                row.entity.model_dump_json()


def _names_its_place(error: Malformed) -> None:
    assert error.field
    assert error.problem


# ------------------------------------------------------------------------------------------------ commands


@EACH_COMMAND
async def test_a_command_is_done_once_under_its_key(
    vendor: str, event_type: str, evidence: Evidence, world: World, session: TestSession
) -> None:
    reply = await adapters()[vendor].execute(session, command(event_type, evidence.commands[event_type], world))
    assert reply.external_id
    assert not reply.found
    assert world.effects() == 1
    assert [request.idempotency_key for request in world.seen()] == ["key-1"]
    assert session.budgets, "the vendor's rate headers were not read"
    _tells_nothing(_text(reply.response), evidence.guest_values | session.secrets)


@EACH_COMMAND
async def test_the_same_command_twice_is_the_same_request(
    vendor: str, event_type: str, evidence: Evidence, world: World, session: TestSession
) -> None:
    same = command(event_type, evidence.commands[event_type], world)
    for _ in range(2):
        await adapters()[vendor].execute(session, same)
    first, second = world.seen()
    assert first == second


FAILURES = {
    Break.TOKEN_DEAD: (Unauthorized, Unauthorized),
    Break.RATE_LIMITED: (RateLimited, RateLimited),
    Break.RATE_LIMITED_BARE: (RateLimited, RateLimited),
    Break.SERVER_ERROR: (Transient, Unknown),
    Break.HTML_200: (Unknown, Unknown),
    Break.EMPTY_200: (Unknown, Unknown),
    Break.HTML_404: (Transient, Unknown),
    Break.HTML_502: (Transient, Unknown),
    Break.CUT_JSON: (Unknown, Unknown),
    Break.TIMEOUT_DONE: (Unknown, Unknown),
    Break.TIMEOUT_NOT_DONE: (Unknown, Unknown),
    Break.REFUSED: (Rejected, Rejected),
}
"""What follows for a command that is safe to repeat, and for one that is not."""


@EACH_COMMAND
@pytest.mark.parametrize("how", FAILURES)
async def test_a_command_that_fails_says_what_to_do_next(
    vendor: str, event_type: str, how: Break, evidence: Evidence, world: World, session: TestSession
) -> None:
    adapter = adapters()[vendor]
    safe, unsafe = FAILURES[how]
    expected = safe if adapter.manifest.commands[event_type].repeat is Repeat.SAFE else unsafe
    await session.access_token()
    world.fail(how, event_type)
    with pytest.raises(AdapterError) as caught:
        await adapter.execute(session, command(event_type, evidence.commands[event_type], world))
    assert type(caught.value) is expected
    _explains(caught.value, vendor, evidence, session)
    if expected is RateLimited:
        assert caught.value.retry_after == RESETS_IN
        assert session.budgets[-1] == Budget(0, RESETS_IN), "the others of the connection must wait, too"
    if how is Break.REFUSED:
        assert caught.value.code


@EACH_COMMAND
async def test_an_expired_token_is_renewed_once_and_the_command_done_once(
    vendor: str, event_type: str, evidence: Evidence, world: World, session: TestSession
) -> None:
    await session.access_token()
    world.fail(Break.TOKEN_EXPIRED, event_type)
    await adapters()[vendor].execute(session, command(event_type, evidence.commands[event_type], world))
    assert session.renewed == 1
    assert world.effects() == 1


@EACH_COMMAND
async def test_a_vendor_that_cannot_be_reached_was_surely_not_told(
    vendor: str, event_type: str, evidence: Evidence, world: World
) -> None:
    http = HttpTransport(vendor, lower=Unreachable())
    session = TestSession(adapters()[vendor], world.connection, http, {})
    session._token = "a-token-in-a-header"
    with pytest.raises(Transient) as caught:
        await adapters()[vendor].execute(session, command(event_type, evidence.commands[event_type], world))
    assert type(caught.value) is Transient
    _explains(caught.value, vendor, evidence, session)


@EACH_COMMAND
async def test_after_no_answer_the_effect_is_looked_up_and_found(
    vendor: str, event_type: str, evidence: Evidence, world: World, session: TestSession
) -> None:
    adapter = adapters()[vendor]
    if adapter.manifest.commands[event_type].repeat is Repeat.ASK:
        return
    for number, how in enumerate((Break.TIMEOUT_NOT_DONE, Break.TIMEOUT_DONE), start=1):
        sent = command(event_type, evidence.commands[event_type], world, number)
        world.fail(how, event_type)
        with pytest.raises((Unknown, Transient)):
            await adapter.execute(session, sent)
        found = await adapter.find(session, sent)
        if how is Break.TIMEOUT_NOT_DONE:
            assert found is None
        else:
            assert found is not None
            assert found.found
            assert found.external_id
            _tells_nothing(_text(found.response), evidence.guest_values | session.secrets)
    assert world.effects() == 1


@EACH_VENDOR
async def test_what_is_not_declared_is_unsupported_before_any_request(
    vendor: str, evidence: Evidence, world: World
) -> None:
    adapter = adapters()[vendor]
    session = TestSession(adapter, world.connection, Forbidden(), world.credentials)
    some = next(iter(evidence.commands.values()))
    undeclared = sorted(COMMANDS.keys() - adapter.manifest.commands.keys())
    for event_type in (*undeclared, "pms.unheard.of"):
        with pytest.raises(Unsupported):
            await adapter.execute(session, command(event_type, some, world))


# ------------------------------------------------------------------------------------------------ reading, credentials


@EACH_VENDOR
async def test_fetch_brings_what_exists_and_leaves_out_what_is_gone(
    vendor: str, evidence: Evidence, world: World, session: TestSession
) -> None:
    found = await adapters()[vendor].fetch(session, [*world.hints, *world.gone, *world.hints])
    assert list(found) == list(world.hints)
    rows = [row for effects in found.values() for row in _rows(effects)]
    assert len(rows) >= len(world.hints)
    for row in rows:
        readable, _ = split(row.document, adapters()[vendor].manifest.personal)
        _tells_nothing(_text(readable), evidence.guest_values)
        row.entity.model_dump_json()
        assert row.version.observed_at == session.now(), "a machine's own clock may differ from the one that all share"
        assert row.version.asked or not isinstance(row.entity, Reservation)


READ_FAILURES = {
    Break.TOKEN_DEAD: Unauthorized,
    Break.RATE_LIMITED: RateLimited,
    Break.RATE_LIMITED_BARE: RateLimited,
    Break.SERVER_ERROR: Transient,
    Break.HTML_200: Transient,
    Break.EMPTY_200: Transient,
    Break.HTML_404: Transient,
    Break.HTML_502: Transient,
    Break.CUT_JSON: Transient,
    Break.TIMEOUT_NOT_DONE: Transient,
}


@EACH_VENDOR
@pytest.mark.parametrize("how", READ_FAILURES)
async def test_a_read_that_fails_can_be_tried_again(
    vendor: str, how: Break, evidence: Evidence, world: World, session: TestSession
) -> None:
    await session.access_token()
    world.fail(how, None)
    with pytest.raises(AdapterError) as caught:
        await adapters()[vendor].fetch(session, world.hints)
    assert type(caught.value) is READ_FAILURES[how]
    _explains(caught.value, vendor, evidence, session)
    if READ_FAILURES[how] is RateLimited:
        assert session.budgets[-1] == Budget(0, RESETS_IN), "the others of the connection must wait, too"


@EACH_COMMAND
async def test_without_a_token_the_vendor_was_surely_not_told(
    vendor: str,
    event_type: str,
    evidence: Evidence,
    world: World,
    session: TestSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def no_token() -> str:
        raise Transient(f"{vendor}: the login is away", code="503")

    monkeypatch.setattr(session, "access_token", no_token)
    with pytest.raises(Transient) as caught:
        await adapters()[vendor].execute(session, command(event_type, evidence.commands[event_type], world))
    assert caught.value.code == NOT_SENT
    assert "the login is away" in str(caught.value)


PULLING = pytest.mark.parametrize("vendor", [name for name in VENDORS if adapters()[name].manifest.pulls])
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def _changes(vendor: str, session: TestSession) -> list[Fact]:
    return [fact async for page in adapters()[vendor].changes(session, LONG_AGO) for fact in page.facts]


@PULLING
async def test_what_a_pull_lists_are_the_facts_of_the_webhooks(
    vendor: str, evidence: Evidence, world: World, session: TestSession
) -> None:
    """The same key, or a webhook that did arrive would be told a second time."""
    adapter = adapters()[vendor]
    sent = [fact for request in world.webhooks() for fact in adapter.parse(request, world.connection)]
    assert sent, "show a webhook about something that a pull lists"
    listed = {(fact.entity_type, fact.external_id): fact for fact in await _changes(vendor, session)}
    assert {kind for kind, _ in listed} == adapter.manifest.pulls
    for fact in sent:
        pulled = listed[fact.entity_type, fact.external_id]
        assert pulled.idempotency_key == fact.idempotency_key is not None
        assert (pulled.event_type, pulled.property_external_id) == (fact.event_type, fact.property_external_id)
        pulled_state, sent_state = (adapter.interpret(_recorded(f, evidence), world.connection) for f in (pulled, fact))
        assert isinstance(pulled_state, Effects)
        assert isinstance(sent_state, Effects)
        assert [row.entity for row in _rows(pulled_state)] == [row.entity for row in _rows(sent_state)]
        assert {(row.version.observed_at, row.version.asked) for row in _rows(pulled_state)} == {(session.now(), True)}
        readable, _ = split(pulled.payload, adapter.manifest.personal)
        _tells_nothing(_text(readable), evidence.guest_values)
    assert session.budgets, "the vendor's rate headers were not read"


@PULLING
@pytest.mark.parametrize("how", READ_FAILURES)
async def test_a_pull_that_fails_can_be_tried_again(
    vendor: str, how: Break, evidence: Evidence, world: World, session: TestSession
) -> None:
    await session.access_token()
    world.fail(how, None)
    with pytest.raises(AdapterError) as caught:
        await _changes(vendor, session)
    assert type(caught.value) is READ_FAILURES[how]
    _explains(caught.value, vendor, evidence, session)


@EACH_VENDOR
async def test_check_tells_what_the_account_is_without_secrets(
    vendor: str, evidence: Evidence, world: World, session: TestSession
) -> None:
    told = await adapters()[vendor].check(session)
    assert told
    _tells_nothing(_text(told), evidence.guest_values | session.secrets)


@EACH_VENDOR
async def test_a_grant_names_its_life_and_only_declared_credentials(
    vendor: str, world: World, session: TestSession
) -> None:
    adapter = adapters()[vendor]
    grant = await adapter.grant(session.http, world.connection, world.credentials)
    assert grant.access_token
    assert grant.expires_in > 0
    assert grant.credentials.keys() <= {field.name for field in adapter.manifest.fields if field.secret}


@EACH_VENDOR
async def test_missing_and_refused_credentials_are_misconfigured(
    vendor: str, evidence: Evidence, world: World, session: TestSession
) -> None:
    adapter = adapters()[vendor]
    for credentials in ({}, evidence.bad_credentials):
        with pytest.raises(Misconfigured) as caught:
            await adapter.grant(session.http, world.connection, credentials)
        _explains(caught.value, vendor, evidence, session)
        _tells_nothing(str(caught.value), credentials.values())


# ------------------------------------------------------------------------------------------------ the kit's own parts


class Forbidden:
    async def send(self, request: Request) -> Response:
        pytest.fail(f"{request.operation} was sent")


class Unreachable:
    """The lower transport of a host that refuses connections."""

    def __new__(cls) -> Any:
        import httpx

        def refuse(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused", request=request)

        return httpx.MockTransport(refuse)


def _explains(error: AdapterError, vendor: str, evidence: Evidence, session: TestSession) -> None:
    """Names the vendor; neither its text nor its trace tells a guest's data or a secret."""
    assert vendor in str(error)
    whole = "".join(traceback.format_exception(error))
    lines = [line for line in whole.splitlines() if not line.lstrip().startswith(("File ", "^"))]
    _tells_nothing(str(error) + "\n".join(lines), evidence.guest_values | session.secrets)


def _tells_nothing(text: str, secrets: Any) -> None:
    assert not [value for value in secrets if value and value in text]


def _text(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, default=str)


def _rows(effects: Effects) -> list[Any]:
    return [*effects.reservations, *effects.availability, *effects.properties, *effects.room_types]


def _keys(vendor: str, evidence: Evidence, request: WebhookRequest) -> list[str | None]:
    return [fact.idempotency_key for fact in _facts(vendor, evidence, request)]


def _binds(pattern: str, routing_key: str) -> bool:
    """AMQP topic matching: * is one word, # any number of them."""

    def match(rest: list[str], words: list[str]) -> bool:
        if not rest:
            return not words
        if rest[0] == "#":
            return any(match(rest[1:], words[at:]) for at in range(len(words) + 1))
        return bool(words) and rest[0] in {"*", words[0]} and match(rest[1:], words[1:])

    return match(pattern.split("."), routing_key.split("."))


def _mutated(document: Any, data: st.DataObject) -> Any:
    """The document with one place replaced by anything, or removed."""
    if not isinstance(document, dict | list) or not document or data.draw(st.integers(0, 9)) == 0:
        return data.draw(_ANYTHING)
    place = data.draw(st.sampled_from(sorted(document) if isinstance(document, dict) else range(len(document))))
    copy = dict(document) if isinstance(document, dict) else list(document)
    match data.draw(st.sampled_from(["into", "into", "replace", "remove"])):
        case "remove":
            del copy[place]
        case "replace":
            copy[place] = data.draw(_ANYTHING)
        case _:
            copy[place] = _mutated(copy[place], data)
    return copy
