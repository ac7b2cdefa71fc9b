"""How long to hold an item back before it is tried again.

Two worries need two limiters. One item that keeps failing must be retried ever more
rarely, whatever happens to the others: :class:`ItemExponentialBackoff`. And all items
together must not turn an outage into a storm when thousands of them fail at once:
:class:`TokenBucket`. :class:`MaxOf` asks several limiters and obeys the strictest, so
that the usual limiter of a controller is both.

A limiter only *answers* with a delay in seconds; waiting is the business of who asked.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)
K_contra = TypeVar("K_contra", bound=Hashable, contravariant=True)

Clock = Callable[[], float]
"""Seconds that only ever go forward, from an arbitrary start, as `time.monotonic`."""


class RateLimiter(Protocol[K_contra]):
    """What a work queue asks before it retries an item."""

    def when(self, item: K_contra) -> float:
        """Seconds to hold `item` back; asking counts as one more failure of it."""

    def forget(self, item: K_contra) -> None:
        """`item` succeeded, or nobody will retry it: its failures no longer count."""

    def num_requeues(self, item: K_contra) -> int:
        """How many failures of `item` are on the books."""


class ItemExponentialBackoff(Generic[K]):
    """`base * 2**failures` seconds for each item by itself, at most `cap`.

    `jitter` adds a random share of the delay, up to that fraction of it, so that items
    which failed together do not come back together.
    """

    def __init__(self, base: float = 0.005, cap: float = 1000.0, jitter: float = 0.0) -> None:
        self._base = base
        self._cap = cap
        self._jitter = jitter
        self._failures: dict[K, int] = {}

    def when(self, item: K) -> float:
        failures = self._failures.get(item, 0)
        self._failures[item] = failures + 1
        # The exponent is bounded because a float is: 2.0 ** 1024 overflows.
        delay = min(self._base * 2.0 ** min(failures, 64), self._cap)
        return delay * (1 + self._jitter * random.random())  # noqa: S311

    def forget(self, item: K) -> None:
        self._failures.pop(item, None)

    def num_requeues(self, item: K) -> int:
        return self._failures.get(item, 0)


class TokenBucket:
    """`qps` a second over time, with `burst` at once, for everything together."""

    def __init__(self, qps: float = 10.0, burst: int = 100, clock: Clock = time.monotonic) -> None:
        self._qps = qps
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._filled_at = clock()

    def when(self, item: object = None) -> float:
        """Reserve a token; seconds until it is there."""
        self._refill()
        self._tokens -= 1  # Below zero the bucket holds promises.
        return max(0.0, -self._tokens / self._qps)

    def take(self) -> bool:
        """Take a token if there is one now."""
        self._refill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def forget(self, item: object) -> None:
        """Nothing to forget: the bucket does not tell items apart."""

    def num_requeues(self, item: object) -> int:
        return 0

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._qps)
        self._filled_at = now


class MaxOf(Generic[K]):
    """Several limiters at once; the longest delay wins."""

    def __init__(self, *limiters: RateLimiter[K]) -> None:
        self._limiters = limiters

    def when(self, item: K) -> float:
        # Every limiter has to be asked, since asking is also how it counts.
        return max([limiter.when(item) for limiter in self._limiters], default=0.0)

    def forget(self, item: K) -> None:
        for limiter in self._limiters:
            limiter.forget(item)

    def num_requeues(self, item: K) -> int:
        return max((limiter.num_requeues(item) for limiter in self._limiters), default=0)


def default_controller_rate_limiter() -> RateLimiter[Hashable]:
    """What controllers use: 5 ms doubling to 1000 s an item, 10 a second in all."""
    return MaxOf[Hashable](ItemExponentialBackoff(), TokenBucket())
