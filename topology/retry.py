"""When a failed command is tried again: named policies as data, and the delay as a pure function.

A vendor's Retry-After raises the delay that is computed here, never lowers it; which faults are retried at all is decided
where faults are known. Both belong to the function that turns a fault into an outcome, not to the policy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Delay before retry n (from 0): min(first·factorⁿ, cap), then jitter, which only ever adds. Seconds after the failure.

    attempts         all attempts allowed, the first one included
    first, cap       seconds
    jitter_share     up to this share of the delay on top: 0.5 is up to half as long again
    jitter_seconds   up to this many seconds on top
    """

    attempts: int
    first: float
    factor: float = 1
    cap: float = 900
    jitter_share: float = 0
    jitter_seconds: float = 0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first <= 0 or self.factor < 1 or self.cap < self.first:
            raise ValueError(
                f"a policy needs one attempt or more, and delays that are positive and do not shrink: {self}"
            )
        if self.jitter_share < 0 or self.jitter_seconds < 0:
            raise ValueError(f"jitter never makes a retry earlier: {self}")


def delay(policy: RetryPolicy, retry: int, random: Callable[[], float]) -> float:
    """Seconds from a failure to retry number `retry` (from 0).

    random   gives numbers in [0, 1); pass `random.random`
    raises   ValueError for a retry that the policy does not allow
    """
    if not 0 <= retry < policy.attempts - 1:
        raise ValueError(f"retry {retry} of a policy with {policy.attempts} attempts in all")
    plain = _plain(policy, retry)
    return plain + random() * (policy.jitter_share * plain + policy.jitter_seconds)


def schedule(policy: RetryPolicy) -> tuple[float, ...]:
    """The delays before each retry in seconds, without jitter."""
    return tuple(_plain(policy, retry) for retry in range(policy.attempts - 1))


def describe(policy: RetryPolicy) -> str:
    """The schedule in one line, as the comments below and the documentation print it."""
    delays = schedule(policy)
    jitter = [f"{policy.jitter_share:.0%}"] if policy.jitter_share else []
    jitter += [f"{policy.jitter_seconds:g} s"] if policy.jitter_seconds else []
    text = f"{', '.join(f'{seconds:g}' for seconds in delays)} s; {sum(delays):g} s in all"
    return text + (f"; jitter up to {' and '.join(jitter)} each" if jitter else "")


def _plain(policy: RetryPolicy, retry: int) -> float:
    # Compared before it is raised to a power: a configured policy with very many attempts must not overflow.
    wait = policy.first
    for _ in range(retry):
        if wait >= policy.cap or policy.factor == 1:
            break
        wait *= policy.factor
    return float(min(wait, policy.cap))


POLICIES: Mapping[str, RetryPolicy] = MappingProxyType(
    {
        # gateway_action: 30, 60, 120, 240, 480 s; 930 s in all; jitter up to 5 s each
        "gateway_action": RetryPolicy(attempts=6, first=30, factor=2, cap=900, jitter_seconds=5),
        # gateway_forward: 60, 60, 60 s; 180 s in all
        "gateway_forward": RetryPolicy(attempts=4, first=60),
        # pms: 1, 2 s; 3 s in all; jitter up to 50% each
        "pms": RetryPolicy(attempts=3, first=1, factor=2, cap=30, jitter_share=0.5),
        # channel_sync: 1, 2, 4, 8, 16 s; 31 s in all; jitter up to 20% each
        "channel_sync": RetryPolicy(attempts=6, first=1, factor=2, cap=16, jitter_share=0.2),
        # channel_event: 1, 2 s; 3 s in all; jitter up to 20% each
        "channel_event": RetryPolicy(attempts=3, first=1, factor=2, cap=2, jitter_share=0.2),
    }
)
"""design.md §5. Its sources give no amount of jitter for the two `channel_…` policies: a fifth, enough to part what failed together."""
