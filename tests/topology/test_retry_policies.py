import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import topology.retry
from topology.retry import POLICIES, RetryPolicy, delay, describe, schedule


def test_schedules_are_those_of_the_design() -> None:
    assert {name: schedule(policy) for name, policy in POLICIES.items()} == {
        "gateway_action": (30, 60, 120, 240, 480),
        "gateway_forward": (60, 60, 60),
        "pms": (1, 2),
        "channel_sync": (1, 2, 4, 8, 16),
        "channel_event": (1, 2),
    }
    assert {name: policy.attempts for name, policy in POLICIES.items()} == {
        "gateway_action": 6,
        "gateway_forward": 4,
        "pms": 3,
        "channel_sync": 6,
        "channel_event": 3,
    }


def test_each_comment_prints_the_schedule_of_its_policy() -> None:
    source = Path(topology.retry.__file__).read_text(encoding="utf-8")
    printed = dict(re.findall(r"^ +# (\w+): (.+ s in all.*)$", source, flags=re.MULTILINE))
    assert printed == {name: describe(policy) for name, policy in POLICIES.items()}


def test_jitter_is_what_the_design_says() -> None:
    def almost_one() -> float:
        return 0.999999

    assert delay(POLICIES["gateway_action"], 0, almost_one) == pytest.approx(35, abs=0.01)
    assert delay(POLICIES["pms"], 1, almost_one) == pytest.approx(3, abs=0.01)
    assert delay(POLICIES["gateway_forward"], 2, almost_one) == 60


def test_the_cap_holds_before_jitter() -> None:
    policy = RetryPolicy(attempts=10_000, first=30, factor=2, cap=900, jitter_seconds=5)
    assert delay(policy, 9_000, lambda: 0.0) == 900


@given(st.sampled_from(sorted(POLICIES)), st.integers(0, 10), st.floats(0, 1, exclude_max=True))
def test_a_retry_is_never_early_and_at_most_its_jitter_late(name: str, retry: int, chance: float) -> None:
    policy = POLICIES[name]
    if retry >= policy.attempts - 1:
        with pytest.raises(ValueError, match="attempts in all"):
            delay(policy, retry, lambda: chance)
        return
    plain = schedule(policy)[retry]
    assert plain <= delay(policy, retry, lambda: chance) <= plain * (1 + policy.jitter_share) + policy.jitter_seconds


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"first": 0}, {"factor": 0.5}, {"cap": 1}, {"jitter_share": -1}, {"jitter_seconds": -1}]
)
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"policy|jitter"):
        RetryPolicy(**{"attempts": 3, "first": 2, **wrong})  # type: ignore[arg-type]
