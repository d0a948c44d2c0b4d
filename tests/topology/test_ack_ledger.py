"""The ledger against a model of the broker, which closes the channel for any tag that is not outstanding."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from topology.ledger import AckLedger, Settlement, Verdict


class BrokerChannel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = AckLedger()
        self.last_tag = 0
        self.outstanding: set[int] = set()
        self.said: dict[int, Verdict] = {}
        self.done: dict[int, Verdict] = {}

    @rule()
    def deliver(self) -> None:
        self.last_tag += 1
        self.outstanding.add(self.last_tag)
        self.ledger.deliver(self.last_tag)

    @precondition(lambda self: self.last_tag)
    @rule(
        data=st.data(),
        verdict=st.sampled_from([Verdict.ACK, Verdict.ACK, Verdict.ACK, Verdict.REQUEUE]),
    )
    def settle(self, data: st.DataObject, verdict: Verdict) -> None:
        tag = data.draw(st.integers(1, self.last_tag))
        assert self.ledger.settle(tag, verdict) is (tag not in self.said)
        self.said.setdefault(tag, verdict)

    @rule(beyond=st.booleans())
    def take(self, beyond: bool) -> None:
        for settlement in self.ledger.take(beyond_hole=beyond):
            self._receive(settlement)
        hole = min(self.outstanding - self.said.keys(), default=self.last_tag + 1)
        left = [tag for tag in self.outstanding if tag in self.said]
        assert all(tag > hole and self.said[tag] is Verdict.ACK for tag in left)
        assert not (left and beyond)
        assert bool(left) is self.ledger.waiting

    def _receive(self, settlement: Settlement) -> None:
        assert settlement.tag in self.outstanding, "the broker closes the channel for an unknown tag"
        covered = (
            {tag for tag in self.outstanding if tag <= settlement.tag} if settlement.multiple else {settlement.tag}
        )
        for tag in covered:
            assert self.said.get(tag) is settlement.verdict, "never settles what was not, nor otherwise than it was"
            self.done[tag] = settlement.verdict
        self.outstanding -= covered

    @invariant()
    def counts(self) -> None:
        assert self.ledger.unsettled == tuple(tag for tag in range(1, self.last_tag + 1) if tag not in self.said)
        assert len(self.ledger) == len(self.ledger.unsettled)

    def teardown(self) -> None:
        for settlement in self.ledger.take(beyond_hole=True):
            self._receive(settlement)
        assert self.done == self.said, "everything settled is told to the broker in the end"


BrokerChannel.TestCase.settings = settings(max_examples=200, stateful_step_count=60)
TestLedger = BrokerChannel.TestCase


def _ledger(count: int) -> AckLedger:
    ledger = AckLedger()
    for tag in range(1, count + 1):
        ledger.deliver(tag)
    return ledger


def test_a_settled_run_is_one_frame() -> None:
    ledger = _ledger(5)
    for tag in (3, 1, 2):
        ledger.settle(tag, Verdict.ACK)
    assert ledger.take(beyond_hole=False) == [Settlement(3, Verdict.ACK, multiple=True)]
    assert ledger.take(beyond_hole=True) == []


def test_what_lies_beyond_a_hole_waits_and_then_goes_singly() -> None:
    ledger = _ledger(4)
    for tag in (4, 1, 3):
        ledger.settle(tag, Verdict.ACK)
    assert ledger.take(beyond_hole=False) == [Settlement(1, Verdict.ACK)]
    assert ledger.waiting
    assert ledger.take(beyond_hole=True) == [Settlement(3, Verdict.ACK), Settlement(4, Verdict.ACK)]
    ledger.settle(2, Verdict.ACK)
    assert ledger.take(beyond_hole=False) == [Settlement(2, Verdict.ACK)]


def test_each_run_of_one_verdict_is_one_frame_in_tag_order() -> None:
    ledger = _ledger(6)
    for tag, verdict in enumerate([Verdict.ACK, Verdict.REQUEUE, Verdict.REQUEUE, Verdict.ACK, Verdict.ACK], start=1):
        ledger.settle(tag, verdict)
    assert ledger.take(beyond_hole=False) == [
        Settlement(1, Verdict.ACK),
        Settlement(3, Verdict.REQUEUE, multiple=True),
        Settlement(5, Verdict.ACK, multiple=True),
    ]


def test_what_is_returned_beyond_a_hole_goes_at_once() -> None:
    ledger = _ledger(4)
    ledger.settle(3, Verdict.ACK)
    ledger.settle(4, Verdict.REQUEUE)
    assert ledger.take(beyond_hole=False) == [Settlement(4, Verdict.REQUEUE)]
