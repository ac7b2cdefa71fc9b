from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiskit_controller.api.quantities import (
    DURATION_PATTERN,
    MONEY_PATTERN,
    QUANTITY_PATTERN,
    format_duration,
    format_microtime,
    format_money,
    format_time,
    parse_duration,
    parse_money,
    parse_quantity,
    parse_time,
)


@given(st.integers(1, 10 * 365 * 86400))
def test_a_duration_comes_back(seconds: int) -> None:
    duration = timedelta(seconds=seconds)
    text = format_duration(duration)
    assert re.fullmatch(DURATION_PATTERN, text)
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1h", 3600), ("1h30m", 5400), ("1m1m", 120), ("30s1h", 3630), ("007m", 420)],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "-5m", "5", "1.5h", "1h ", "1h\n", "1d", "1H", "٣m", "0s", "0h0m", "99999h"],
)
def test_what_is_no_duration_is_said_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_duration(text)


def test_short_durations_for_people() -> None:
    assert format_duration(timedelta(0)) == "0s"
    assert format_duration(timedelta(seconds=10.4)) == "10s"
    assert format_duration(timedelta(days=1)) == "24h"


@given(st.decimals(0, 10**12 - 1, places=2))
def test_money_comes_back(amount: Decimal) -> None:
    assert re.fullmatch(MONEY_PATTERN, format_money(amount))
    assert parse_money(format_money(amount)) == amount


@pytest.mark.parametrize(
    ("text", "amount"), [("$10.00", "10"), ("10", "10"), ("$0.5", "0.5"), ("$0", "0")]
)
def test_amounts(text: str, amount: str) -> None:
    assert parse_money(text) == Decimal(amount)


@pytest.mark.parametrize("text", ["", "$", "10€", "$1.234", "-1", "$1,000", "1e3", "10 ", "$ 1"])
def test_what_is_no_amount_is_said_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="US dollars"):
        parse_money(text)


def test_costs_are_written_as_in_the_reference() -> None:
    assert format_money(Decimal(15)) == "$15.00"
    assert format_money(Decimal("0.005")) in ("$0.00", "$0.01")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (2, "2"),
        ("500m", "0.5"),
        ("100n", "1e-7"),
        ("1u", "1e-6"),
        ("4Gi", str(4 * 1024**3)),
        ("1Ki", "1024"),
        ("1k", "1000"),
        ("1M", "1e6"),
        ("1E", "1e18"),
        ("1Ei", str(1024**6)),
        ("1E3", "1000"),
        ("12e-1", "1.2"),
        (".5", "0.5"),
        ("5.", "5"),
        ("+5", "5"),
        ("-1Gi", str(-(1024**3))),
        ("0", "0"),
    ],
)
def test_quantities(text: str | int, number: str) -> None:
    assert parse_quantity(text) == Decimal(number)


@given(
    st.decimals(0, 10**9, places=3),
    st.sampled_from(["", "n", "u", "m", "k", "M", "G", "T", "P", "E"]),
)
def test_decimal_suffixes_are_powers_of_a_thousand(number: Decimal, suffix: str) -> None:
    power = "num kMGTPE".index(suffix or " ") - 3
    assert parse_quantity(f"{number}{suffix}") == number * Decimal(1000) ** power


@given(st.from_regex(QUANTITY_PATTERN, fullmatch=True))
def test_what_the_schema_lets_through_is_a_number_or_said_to_be_none(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_quantity(text).is_finite()


@pytest.mark.parametrize(
    "text", ["", "lots", "1 Gi", "1gi", "1e2.5", "1e.5", "1e9999999999999999999"]
)
def test_what_is_no_quantity_is_said_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=f"{text!r} is not a quantity"):
        parse_quantity(text)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), st.integers(-14, 14))
def test_times_come_back_in_utc(moment: datetime, hours: int) -> None:
    there = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
    assert parse_time(format_microtime(there)) == there
    assert parse_time(format_time(there)) == there.replace(microsecond=0)
    assert format_time(there).endswith("Z")


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        parse_time("2026-01-01T00:00:00")
    assert parse_time("2026-01-01T01:00:00+01:00") == datetime(2026, 1, 1, tzinfo=UTC)
