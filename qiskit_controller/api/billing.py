"""What providers bill, and prices as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Literal, get_args

# A task as such, each shot, each second of the device.
BillingUnit = Literal["task", "shot", "second"]
UNITS: tuple[BillingUnit, ...] = get_args(BillingUnit)

# Prices of single shots have more digits than a bill.
PRICE_PATTERN = r"^\$?[0-9]{1,9}(\.[0-9]{1,8})?$"

# How an amount that nobody knows is shown; it is never a zero.
UNKNOWN = "Unknown"


def parse_price(text: str) -> Decimal:
    """Read a price in US dollars, such as ``$0.00145``.

    Raises:
        ValueError: it is not one.
    """
    if not re.fullmatch(PRICE_PATTERN, text):
        raise ValueError(f"{text!r} is not a price in US dollars; write for example $0.00145")
    return Decimal(text.removeprefix("$"))


def format_amounts(amounts: Mapping[BillingUnit, Decimal]) -> dict[str, str]:
    """Amounts by unit, as they go over the wire."""
    return {unit: f"{amounts[unit]:f}" for unit in UNITS if unit in amounts}


def parse_amounts(amounts: Mapping[str, str]) -> dict[BillingUnit, Decimal]:
    """What :func:`format_amounts` wrote.

    Raises:
        ValueError: an amount is no number that could be one of money or use.
    """
    found: dict[BillingUnit, Decimal] = {}
    for unit in UNITS:
        if unit in amounts:
            text = amounts[unit]
            if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,40})?", text):
                raise ValueError(f"{unit}: {text!r} is not an amount")
            found[unit] = Decimal(text)
    return found
