"""What an outcome says about a vendor's life, what of it counts, and who shares a budget. The numbers: test_limits.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from adapters.port import Effects, RateLimit, Repeat
from adapters.transport import NOT_SENT
from schemas.connection import Connection
from schemas.vocabulary import CallKind, Fault, Owner
from store import limits
from workers.governor import Call, answered, uncounted
from workers.outcome import Defer, Done, Outcome, Park, Retry, Skip

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
UNANSWERED = [Fault.TRANSIENT, Fault.UNKNOWN]
LIMIT = RateLimit(units=100, per=timedelta(minutes=5), scope="account", reserve=20)


def call(*, probe: bool = False, account: str | None = None, limit: RateLimit = LIMIT, id_: str = "c1") -> Call:
    at = Connection(id_, "acme", "beds24", "Acme", external_account_id=account)
    probes = frozenset({(id_, CallKind.WRITE)}) if probe else frozenset[tuple[str, CallKind]]()
    return Call(at, CallKind.WRITE, limit, True, probes=probes)


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("retried", [True, False])
def test_silence_is_silence_a_refusal_is_an_answer_and_our_own_faults_say_nothing(fault: Fault, retried: bool) -> None:
    outcome = Retry(fault, "x", 1.0) if retried else Park(fault, "x", Owner.TENANT)
    expected = {
        Fault.TRANSIENT: False,
        Fault.UNKNOWN: False,
        Fault.REJECTED: True,
        Fault.RATE_LIMITED: True,
    }.get(fault)
    assert answered(outcome) is expected


def test_what_was_done_was_answered_and_what_was_not_asked_was_not() -> None:
    assert answered(Done(Effects())) is True
    assert answered(Skip("stale")) is None
    assert answered(Defer(NOW, "later")) is None
    assert answered(None) is None


@pytest.mark.parametrize("fault", UNANSWERED)
def test_a_probe_that_is_not_answered_is_no_attempt_even_if_it_were_the_last(fault: Fault) -> None:
    for outcome in (Retry(fault, "silent", 1.0), Park(fault, "silent", Owner.PIPELINE)):
        put_off = uncounted(call(probe=True), outcome, NOW)
        assert isinstance(put_off, Defer)
        assert put_off.until == NOW + timedelta(seconds=limits.FIRST_PAUSE)
        assert "silent" in put_off.message


def test_everything_else_counts() -> None:
    failed: list[Outcome] = [Retry(fault, "x", 1.0) for fault in UNANSWERED]
    assert [uncounted(call(), outcome, NOW) for outcome in failed] == failed
    rest: list[Outcome] = [
        Park(Fault.REJECTED, "x", Owner.TENANT),
        Park(Fault.BUG, "x", Owner.PIPELINE),
        Done(Effects()),
    ]
    assert [uncounted(call(probe=True), outcome, NOW) for outcome in rest] == rest


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("repeat", list(Repeat))
def test_a_refusal_for_the_rate_limit_is_no_attempt(probe: bool, repeat: Repeat) -> None:
    refused = Retry(Fault.RATE_LIMITED, "out of credits", 7.0, "429")
    put_off = uncounted(call(probe=probe), refused, NOW, repeat)
    assert put_off == Defer(NOW + timedelta(seconds=7), "out of credits")


def test_what_only_a_person_can_repeat_is_not_repeated_for_having_been_a_probe() -> None:
    """Put off and uncounted it would look like a first attempt, and be done a second time."""
    parked = Park(Fault.UNKNOWN, "no answer", Owner.PIPELINE)
    assert uncounted(call(probe=True), parked, NOW, Repeat.ASK) is parked
    retried = Retry(Fault.TRANSIENT, "503 without JSON", 1.0, "http_503")
    assert uncounted(call(probe=True), retried, NOW, Repeat.ASK) is retried
    not_sent = Park(Fault.TRANSIENT, "not sent", Owner.PIPELINE, NOT_SENT)
    assert isinstance(uncounted(call(probe=True), not_sent, NOW, Repeat.ASK), Defer)
    assert isinstance(uncounted(call(probe=True), parked, NOW, Repeat.LOOK_UP), Defer)


def test_connections_of_one_account_share_a_budget_and_nobody_else_does() -> None:
    assert call(account="7", id_="c1").scope == call(account="7", id_="c2").scope
    assert call(account="7").scope != call(account="8").scope
    assert call(id_="c1").scope != call(id_="c2").scope
    by_token = RateLimit(units=1, per=timedelta(minutes=1), scope="token", reserve=0)
    assert call(account="7", id_="c1", limit=by_token).scope != call(account="7", id_="c2", limit=by_token).scope
