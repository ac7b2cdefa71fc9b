"""Durations, money and Kubernetes quantities, as people write them.

Each parser takes the text of a field and raises ValueError with a sentence that can be
shown to the user as it is.
"""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

DURATION_PATTERN = r"^([0-9]+(h|m|s))+$"
MONEY_PATTERN = r"^\$?[0-9]{1,12}(\.[0-9]{1,2})?$"
# Kubernetes' own, from apimachinery's resource.Quantity.
QUANTITY_PATTERN = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+"
    r"(\.[0-9]*)?)|(\.[0-9]+))))?$"
)

_SECONDS = {"h": 3600, "m": 60, "s": 1}
_DECIMAL_SUFFIX = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal("1e3"),
    "M": Decimal("1e6"),
    "G": Decimal("1e9"),
    "T": Decimal("1e12"),
    "P": Decimal("1e15"),
    "E": Decimal("1e18"),
}
_BINARY_SUFFIX = {
    f"{prefix}i": Decimal(1024) ** power for power, prefix in enumerate("KMGTPE", start=1)
}


def parse_duration(text: str) -> timedelta:
    """Read a duration such as ``90s``, ``1h`` or ``1h30m``.

    Raises:
        ValueError: it is not one, or it is zero, or longer than ten years.
    """
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is not a duration; write for example 90s, 30m or 1h30m")
    seconds = sum(int(n) * _SECONDS[unit] for n, unit in re.findall(r"([0-9]+)([hms])", text))
    if not 0 < seconds <= 10 * 365 * 86400:
        raise ValueError(f"{text!r} must be longer than zero and at most ten years")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """Write a duration for people, in whole seconds: ``1h30m``."""
    rest = round(duration.total_seconds())
    text = ""
    for unit, size in _SECONDS.items():
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_money(text: str) -> Decimal:
    """Read an amount of US dollars, such as ``$10.00`` or ``10``.

    Raises:
        ValueError: it is not one.
    """
    if not re.fullmatch(MONEY_PATTERN, text):
        raise ValueError(f"{text!r} is not an amount in US dollars; write for example $10.00")
    return Decimal(text.removeprefix("$"))


def format_money(amount: Decimal) -> str:
    """Write an amount of US dollars to the cent, as in the reference: ``$15.00``."""
    return f"${amount:.2f}"


def parse_quantity(text: str | int) -> Decimal:
    """Read a Kubernetes quantity, such as ``500m``, ``2`` or ``4Gi``.

    Raises:
        ValueError: it is not one.
    """
    written = str(text)
    if re.fullmatch(QUANTITY_PATTERN, written):
        number = written.rstrip("KMGTPEnumki")
        suffix = written.removeprefix(number)
        # The pattern is Kubernetes' own and lets more through than Kubernetes: 1e2.5 is none.
        with contextlib.suppress(ArithmeticError):
            return Decimal(number) * (_BINARY_SUFFIX.get(suffix) or _DECIMAL_SUFFIX[suffix])
    raise ValueError(f"{written!r} is not a quantity; write for example 500m or 4Gi")


def format_time(moment: datetime) -> str:
    """Write a time as Kubernetes does (RFC 3339, UTC, whole seconds)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_microtime(moment: datetime) -> str:
    """Write a time as Kubernetes' MicroTime does."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time, with or without fractions of a second.

    Raises:
        ValueError: it is not one, or it names no time zone.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone")
    return moment
