"""The price book: what a unit costs, on which device, since when, says who.

One ships with the package (``prices.toml``); an operator's own, of the same form, comes before
it. Whose word counts for one device, first to last: the QiskitBackend's ``spec.pricing``, the
operator's book, the provider, the shipped book. What nobody knows is :class:`Unknown`.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from importlib.resources import files
from typing import Any

import attrs

from qiskit_controller.api.billing import UNITS, BillingUnit, parse_price

SHIPPED = "prices.toml"


@attrs.frozen
class Unknown:
    """An amount that nobody knows; `why` continues a sentence: "the cost is unknown: ..."."""

    why: str


@attrs.frozen
class Rates:
    """What one of each unit costs, in US dollars; none at all is free of charge.

    Attributes:
        source: whose word it is, for people.
    """

    prices: Mapping[BillingUnit, Decimal]
    source: str


@attrs.frozen
class Entry:
    """One line of a price book; see ``prices.toml``."""

    type: str
    device: str
    prices: Mapping[BillingUnit, Decimal]
    source: str
    plan: str | None = None
    beside: bool = False


@attrs.frozen
class PriceBook:
    """Prices of one day.

    Attributes:
        plans: by backend type, the plan of an account that nobody says anything of.
    """

    date: date
    entries: tuple[Entry, ...]
    plans: Mapping[str, str] = attrs.field(factory=dict)

    def find(
        self, backend_type: str, device: str, plan: str | None = None, *, beside: bool = False
    ) -> Rates | None:
        """The rates of the first entry that fits, or None.

        Args:
            beside: also of those that count only beside what the provider tells.
        """
        plan = plan or self.plans.get(backend_type)
        for entry in self.entries:
            if entry.type != backend_type or entry.plan not in (None, plan):
                continue
            if entry.beside and not beside:
                continue
            if fnmatch.fnmatchcase(device.lower(), entry.device.lower()):
                named = f", plan {entry.plan}" if entry.plan else ""
                return Rates(entry.prices, f"price book of {self.date}{named} ({entry.source})")
        return None


@attrs.frozen
class Tariff:
    """All that is known of prices, but for what a QiskitBackend says.

    Attributes:
        operator: the operator's own book, if there is one.
        shipped: the book of the package.
    """

    shipped: PriceBook
    operator: PriceBook | None = None

    def rates(
        self,
        backend_type: str,
        device: str,
        *,
        own: Mapping[BillingUnit, Decimal] | None = None,
        told: Mapping[BillingUnit, Decimal] | None = None,
        plan: str | None = None,
    ) -> Rates | Unknown:
        """The rates of a device.

        Args:
            own: the QiskitBackend's; an empty mapping is free of charge.
            told: the provider's.
            plan: the account's, where the provider has several.
        """
        if own is not None:
            return Rates(own, "spec.pricing of the QiskitBackend")
        if self.operator is not None:
            # An operator's book that names no plans means the usual ones.
            usual = plan or self.operator.plans.get(backend_type)
            usual = usual or self.shipped.plans.get(backend_type)
            found = self.operator.find(backend_type, device, usual)
            if found is not None:
                return attrs.evolve(found, source=f"operator's {found.source}")
        if told:
            more = self.shipped.find(backend_type, device, plan, beside=True)
            if more is None or more.prices.keys() <= told.keys():
                return Rates(told, "the provider")
            return Rates({**more.prices, **told}, f"the provider, and {more.source}")
        found = self.shipped.find(backend_type, device, plan)
        if found is not None:
            return found
        of_plan = f" in the plan {plan}" if plan else ""
        return Unknown(
            f"no price is known for {device} of type {backend_type}{of_plan}; give one in "
            "spec.pricing of a QiskitBackend"
        )


def shipped() -> PriceBook:
    """The book of the package."""
    text = files(__package__).joinpath(SHIPPED).read_text()
    return parse(text)


def parse(text: str) -> PriceBook:
    """Read a price book in TOML.

    Raises:
        ValueError: it is none; the message says where.
    """
    read = tomllib.loads(text)
    day, plans = read.get("date"), read.get("plans", {})
    if not isinstance(day, date):
        raise ValueError("date: a price book needs one, such as date = 2026-09-25")
    if not isinstance(plans, dict) or not all(isinstance(each, str) for each in plans.values()):
        raise ValueError("plans: must name a plan for each backend type")
    entries = [_entry(each, f"price[{n}]") for n, each in enumerate(read.get("price", []))]
    return PriceBook(day, tuple(entries), plans)


def _entry(given: Mapping[str, Any], where: str) -> Entry:
    allowed = {"type", "device", "plan", "source", "beside", *UNITS}
    for key, value in given.items():
        if key not in allowed:
            raise ValueError(f"{where}.{key}: unknown; there are {', '.join(sorted(allowed))}")
        if not isinstance(value, str):
            # A number would be binary, and 0.1 of those are not a dime.
            raise ValueError(f'{where}.{key}: must be a string, such as {key} = "0.30"')
    for key in ("type", "device", "source"):
        if key not in given:
            raise ValueError(f"{where}.{key}: is required")
    try:
        prices = {unit: parse_price(given[unit]) for unit in UNITS if unit in given}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Entry(
        type=given["type"],
        device=given["device"],
        prices=prices,
        source=given["source"],
        plan=given.get("plan"),
        beside=given.get("beside") == "true",
    )
