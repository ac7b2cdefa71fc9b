from __future__ import annotations

from collections.abc import Hashable

from hypothesis import given
from hypothesis import strategies as st

from qiskit_controller.kube.ratelimit import (
    ItemExponentialBackoff,
    MaxOf,
    TokenBucket,
    default_controller_rate_limiter,
)


def test_backoff_doubles_for_each_item_up_to_the_cap() -> None:
    limiter: ItemExponentialBackoff[str] = ItemExponentialBackoff(base=1, cap=10)
    assert [limiter.when("a") for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    assert limiter.when("b") == 1
    assert limiter.num_requeues("a") == 6
    limiter.forget("a")
    assert limiter.num_requeues("a") == 0
    assert limiter.when("a") == 1


def test_backoff_never_overflows() -> None:
    limiter: ItemExponentialBackoff[str] = ItemExponentialBackoff()
    assert [limiter.when("a") for _ in range(3000)][-1] == 1000


@given(st.floats(0, 3))
def test_jitter_only_adds(jitter: float) -> None:
    limiter: ItemExponentialBackoff[str] = ItemExponentialBackoff(base=2, cap=2, jitter=jitter)
    assert 2 <= limiter.when("a") <= 2 * (1 + jitter)


def test_bucket_spends_its_burst_and_then_spreads() -> None:
    now = 0.0
    bucket = TokenBucket(qps=10, burst=3, clock=lambda: now)
    delays = [bucket.when("any") for _ in range(5)]
    assert delays[:3] == [0, 0, 0]
    assert [round(delay, 6) for delay in delays[3:]] == [0.1, 0.2]
    now = 1.0
    assert bucket.when() == 0
    assert bucket.take()
    assert bucket.take()
    assert not bucket.take()


def test_max_of_asks_every_limiter() -> None:
    quick: ItemExponentialBackoff[str] = ItemExponentialBackoff(base=1, cap=100)
    slow: ItemExponentialBackoff[str] = ItemExponentialBackoff(base=3, cap=6)
    both = MaxOf(quick, slow)
    assert [both.when("a") for _ in range(4)] == [3, 6, 6, 8]
    assert both.num_requeues("a") == 4
    both.forget("a")
    assert quick.num_requeues("a") == slow.num_requeues("a") == 0


def test_the_default_holds_back_single_items_and_storms() -> None:
    limiter = default_controller_rate_limiter()
    first: Hashable = "first"
    assert limiter.when(first) == 0.005
    storm = [limiter.when(f"item-{number}") for number in range(200)]
    assert storm[50] == 0.005
    assert storm[-1] > 5
