"""From an error to an outcome, as a table."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from adapters import errors
from adapters.port import Repeat
from schemas.vocabulary import Fault, Owner
from topology.retry import POLICIES, RetryPolicy
from workers.decide import LONGEST, SETTLES, SOONEST, SPREAD, decide
from workers.delivery_rows import Work, finish_row
from workers.outcome import Defer, Done, Outcome, Park, Retry

POLICY = POLICIES["channel_event"]
_AT = datetime(2026, 11, 21, tzinfo=UTC)


def outcome(error: Exception, attempt: int = 1, repeat: Repeat = Repeat.SAFE) -> Retry | Park:
    return decide(error, POLICY, attempt=attempt, max_attempts=3, random=lambda: 0.0, repeat=repeat)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (errors.Transient("x"), Fault.TRANSIENT),
        (errors.Unknown("x"), Fault.UNKNOWN),
    ],
)
def test_what_may_come_out_differently_is_tried_again_until_the_budget_is_used_up(
    error: errors.AdapterError, fault: Fault
) -> None:
    for attempt in (1, 2):
        found = outcome(error, attempt)
        assert isinstance(found, Retry)
        assert found.fault is fault
    last = outcome(error, 3)
    assert isinstance(last, Park)
    assert (last.fault, last.owner) == (fault, Owner.PIPELINE)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (errors.Rejected("x", code="1"), Fault.REJECTED),
        (errors.Unsupported("x"), Fault.UNSUPPORTED),
        (errors.Misconfigured("x"), Fault.MISCONFIGURED),
        (errors.Unmapped("x"), Fault.UNMAPPED),
        (errors.Malformed("a.b", "x"), Fault.INVALID),
    ],
)
def test_what_needs_a_person_is_parked_at_once_for_the_tenant(error: errors.AdapterError, fault: Fault) -> None:
    found = outcome(error)
    assert isinstance(found, Park)
    assert (found.fault, found.owner, found.code) == (fault, Owner.TENANT, error.code)


def test_a_token_that_is_refused_as_well_is_a_persons_matter_only_when_it_stays_so() -> None:
    """Not all servers of a vendor know a token at once that one of them has just granted."""
    for attempt in (1, 2):
        assert outcome(errors.Unauthorized("x", code="401"), attempt) == Retry(Fault.MISCONFIGURED, "x", SETTLES, "401")
    assert outcome(errors.Unauthorized("x", code="401"), 3) == Park(Fault.MISCONFIGURED, "x", Owner.TENANT, "401")


def test_the_place_goes_along_to_the_dead_letter() -> None:
    found = outcome(errors.Rejected("beds24 bookings.update: refused: roomId: invalid", place="roomId"))
    assert isinstance(found, Park)
    assert found.place == "roomId"


def test_a_bug_is_ours_and_its_text_is_not_repeated() -> None:
    found = outcome(ValueError("the guest is called Long"))
    assert isinstance(found, Park)
    assert (found.fault, found.owner) == (Fault.BUG, Owner.PIPELINE)
    assert "Long" not in found.message


def test_what_an_earlier_release_gave_more_attempts_ends_with_todays() -> None:
    fewer = RetryPolicy(attempts=2, first=1)
    found = [
        decide(errors.Transient("x"), fewer, attempt=attempt, max_attempts=6, random=lambda: 0.0)
        for attempt in (1, 2, 5)
    ]
    assert [type(one) for one in found] == [Retry, Park, Park]


def test_the_vendors_retry_after_raises_the_delay_and_never_lowers_it() -> None:
    later = outcome(errors.Transient("x", retry_after=120))
    sooner = outcome(errors.Transient("x", retry_after=0.01))
    plain = outcome(errors.Transient("x"))
    assert isinstance(later, Retry)
    assert isinstance(sooner, Retry)
    assert isinstance(plain, Retry)
    assert (later.after, sooner.after) == (120, plain.after)


@pytest.mark.parametrize("attempt", [1, 3, 4])
@pytest.mark.parametrize(("said", "after"), [(120.0, 120.0), (0.0, SOONEST), (None, SOONEST)])
def test_a_refusal_for_the_rate_limit_is_never_the_last_word(attempt: int, said: float | None, after: float) -> None:
    found = outcome(errors.RateLimited("x", code="429", retry_after=said), attempt)
    assert found == Retry(Fault.RATE_LIMITED, "x", after, "429")
    late = decide(
        errors.RateLimited("x", retry_after=said), POLICY, attempt=attempt, max_attempts=3, random=lambda: 0.5
    )
    assert isinstance(late, Retry)
    assert late.after == pytest.approx(after * (1 + SPREAD / 2))


@pytest.mark.parametrize("error", [errors.Transient, errors.RateLimited])
def test_no_word_of_a_vendor_puts_anything_off_for_more_than_an_hour(error: type[errors.AdapterError]) -> None:
    found = outcome(error("x", retry_after=31_536_000))
    assert isinstance(found, Retry)
    assert found.after == LONGEST == 3600


def test_an_unknown_end_that_nobody_can_look_up_is_a_persons() -> None:
    assert isinstance(outcome(errors.Unknown("x"), repeat=Repeat.ASK), Park)
    assert isinstance(outcome(errors.Unknown("x"), repeat=Repeat.LOOK_UP), Retry)
    assert isinstance(outcome(errors.Transient("x"), repeat=Repeat.ASK), Retry)


@pytest.mark.parametrize(
    ("became", "doubt", "attempts", "starts"),
    [
        (Done(None), True, 2, 0),
        (Retry(Fault.TRANSIENT, "away", 1.0), False, 2, 0),
        (Retry(Fault.UNKNOWN, "no answer", 1.0), True, 2, 1),
        (Defer(_AT, "another begins alone"), True, 1, 2),
        (Defer(_AT, "no budget"), False, 1, 2),
    ],
)
def test_what_is_put_off_counts_neither_attempt_nor_start_and_begins_no_count_anew(
    became: Outcome, doubt: bool, attempts: int, starts: int
) -> None:
    """Of a delivery at its second attempt, begun for the third time without an answer."""
    row: Any = SimpleNamespace(id=UUID(int=1), attempts=2, starts=3, error_class=None)
    finished = finish_row(Work(row, _AT, outcome=became, doubt=doubt), _AT)
    assert (finished.attempts, finished.starts) == (attempts, starts)
