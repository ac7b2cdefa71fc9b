"""Costs: the formulas by hand, the prices as published, and never a negative or a NaN."""

from __future__ import annotations

import tomllib
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiskit_controller.api.billing import (
    UNITS,
    BillingUnit,
    format_amounts,
    parse_amounts,
    parse_price,
)
from qiskit_controller.scheduling import prices
from qiskit_controller.scheduling.cost import (
    CENT,
    Work,
    expected_usage,
    measured_usage,
    price,
)
from qiskit_controller.scheduling.prices import PriceBook, Rates, Tariff, Unknown

BELL = Work(shots=1024, qubits=2, depth=3, gates=4)
TARIFF = Tariff(prices.shipped())


def cost_on(backend_type: str, device: str, work: Work = BELL, **how: object) -> object:
    usage = expected_usage(backend_type, work, **how)  # type: ignore[arg-type]
    return price(usage, TARIFF.rates(backend_type, device))


@pytest.mark.parametrize(
    ("shots", "dollars"),
    # IBM's own example: 2 + 0.00035 * 80000 is 30 seconds.
    [(80_000, "48.00"), (1024, "3.78"), (8192, "7.79"), (1, "3.21")],
)
def test_ibm_by_its_quick_formula(shots: int, dollars: str) -> None:
    work = Work(shots=shots, qubits=5, depth=10, gates=30)
    assert cost_on("ibm_quantum", "ibm_brisbane", work) == Decimal(dollars)


def test_ibm_with_the_devices_own_delay_and_a_deep_circuit() -> None:
    work = Work(shots=10_000, qubits=5, depth=1000, gates=3000)
    usage = expected_usage("ibm_quantum", work, shot_time=timedelta(microseconds=400))
    # 2 + 10000 * (0.0004 + 1000 * 0.6e-6)
    assert usage["second"] == Decimal("12")


@pytest.mark.parametrize(
    ("device", "dollars"),
    [
        ("arn:aws:braket:us-east-1::device/qpu/ionq/Forte-1", "82.22"),
        ("arn:aws:braket:eu-north-1::device/qpu/iqm/Garnet", "1.79"),
        ("Garnet", "1.79"),
        ("Ankaa-3", "1.23"),
    ],
)
def test_braket_by_task_and_shot(device: str, dollars: str) -> None:
    assert cost_on("aws_braket", device) == Decimal(dollars)


def test_braket_simulators_by_the_second_with_their_minimum() -> None:
    arn = "arn:aws:braket:::device/quantum-simulator/amazon/sv1"
    assert cost_on("aws_braket", arn, simulator=True) == Decimal("0.01")  # 3 s at 0.075 a minute
    large = Work(shots=1, qubits=30, depth=100, gates=1000)
    usage = expected_usage("aws_braket", large, simulator=True)
    assert 1000 < usage["second"] < 1100
    vast = Work(shots=1, qubits=5000, depth=100, gates=1000)
    assert expected_usage("aws_braket", vast, simulator=True)["second"] == 6 * 3600


@pytest.mark.parametrize("backend_type", ["local_simulator", "ibm_simulator"])
def test_what_runs_in_the_cluster_is_free(backend_type: str) -> None:
    assert cost_on(backend_type, "aer_simulator") == Decimal("0.00")


def test_what_nobody_knows_is_unknown_and_says_what_to_do() -> None:
    unknown = cost_on("aws_braket", "Nova-9000")
    assert isinstance(unknown, Unknown)
    assert unknown.why.startswith("no price is known for Nova-9000 of type aws_braket; give one in")
    plan = TARIFF.rates("ibm_quantum", "ibm_fez", plan="premium")
    assert isinstance(plan, Unknown)
    assert price({}, Rates({"second": Decimal(1)}, "x")) == Unknown(
        "seconds are billed, and how many it takes is not known"
    )


def test_whose_word_counts() -> None:
    def second(**more: object) -> object:
        rates = tariff.rates("ibm_quantum", "ibm_fez", **more)  # type: ignore[arg-type]
        assert isinstance(rates, Rates)
        return rates.prices.get("second"), rates.source.split()[0]

    operator = prices.parse(
        'date = 2026-10-01\n[[price]]\ntype = "ibm_quantum"\ndevice = "ibm_f*"\n'
        'plan = "pay-as-you-go"\nsecond = "1.10"\nsource = "contract"\n'
    )
    tariff = Tariff(prices.shipped(), operator)
    assert second(own={"second": Decimal("0.9")}) == (Decimal("0.9"), "spec.pricing")
    assert second(told={"second": Decimal("1.5")}) == (Decimal("1.10"), "operator's")
    assert second(plan="open") == (None, "price")
    tariff = TARIFF
    assert second(told={"second": Decimal("1.5")}) == (Decimal("1.5"), "the")
    assert second() == (Decimal("1.60"), "price")


def test_a_task_is_billed_beside_the_shots_that_the_provider_tells_of() -> None:
    for device in ("iqm/Garnet", "vendor/Brand-New-1"):
        arn = f"arn:aws:braket:eu-north-1::device/qpu/{device}"
        rates = TARIFF.rates("aws_braket", arn, told={"shot": Decimal("0.001")})
        assert isinstance(rates, Rates)
        assert rates.prices == {"task": Decimal("0.30"), "shot": Decimal("0.001")}
        assert rates.source.startswith("the provider, and price book of")
    sv1 = "arn:aws:braket:::device/quantum-simulator/amazon/sv1"
    rates = TARIFF.rates("aws_braket", sv1, told={"second": Decimal("0.1") / 3})
    assert isinstance(rates, Rates)
    assert rates.prices.keys() == {"second"}
    # Nor does it count without.
    assert isinstance(TARIFF.rates("aws_braket", "arn:x:device/qpu/a/New"), Unknown)


def test_the_shipped_book_is_dated_and_names_its_sources() -> None:
    book = prices.shipped()
    assert isinstance(book.date, date)
    assert len(book.entries) > 10
    for entry in book.entries:
        assert entry.source
        assert entry.source.startswith("https://") or not entry.prices
    # Nothing binary on the way: every price is a string in the file.
    raw = tomllib.loads(files("qiskit_controller.scheduling").joinpath("prices.toml").read_text())
    assert all(isinstance(each.get(u, ""), str) for each in raw["price"] for u in UNITS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "date: a price book needs one"),
        ("date = 2026-01-01\nplans = 3", "plans: must name a plan"),
        ("date = 2026-01-01\n[[price]]\nsecond = 1.6", "price[0].second: must be a string"),
        ("date = 2026-01-01\n[[price]]\nminute = '1'", "price[0].minute: unknown"),
        ("date = 2026-01-01\n[[price]]\ntype = 'x'", "price[0].device: is required"),
        (
            "date = 2026-01-01\n[[price]]\ntype = 'x'\ndevice = '*'\nsource = 's'\nshot = '-1'",
            "price[0]: '-1' is not a price",
        ),
    ],
)
def test_a_price_book_that_is_none(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=r".+") as error:
        prices.parse(text)
    assert told in str(error.value)


def test_what_a_run_has_used() -> None:
    billed: dict[BillingUnit, Decimal] = {"second": Decimal("4.2")}
    assert measured_usage(billed, shots=10, execution_time=1.0) == billed
    assert measured_usage({}, shots=10, execution_time=0.25) == {
        "task": 1,
        "shot": 10,
        "second": Decimal("0.25"),
    }
    assert measured_usage({}, shots=None, execution_time=None) == {"task": 1}


# --- properties -----------------------------------------------------------------------------

works = st.builds(
    Work,
    shots=st.integers(1, 10_000_000),
    qubits=st.integers(1, 10_000),
    depth=st.integers(0, 10**9),
    gates=st.integers(0, 10**9),
)
rates = st.dictionaries(
    st.sampled_from(UNITS), st.decimals(min_value=0, max_value=10**6, places=8)
).map(lambda given: Rates(given, "here"))
types = st.sampled_from(["ibm_quantum", "aws_braket", "local_simulator", "my_cloud"])
times = st.none() | st.integers(0, 10**9).map(lambda n: timedelta(microseconds=n))


@given(types, works, st.booleans(), times, rates)
def test_an_estimate_is_an_amount_in_cents_or_unknown(
    backend_type: str, work: Work, simulator: bool, shot_time: timedelta | None, given_rates: Rates
) -> None:
    usage = expected_usage(backend_type, work, simulator=simulator, shot_time=shot_time)
    assert all(each.is_finite() and each >= 0 for each in usage.values())
    cost = price(usage, given_rates)
    if isinstance(cost, Unknown):
        assert cost.why
        return
    assert cost.is_finite()
    assert cost >= 0
    assert cost == cost.quantize(CENT)
    prices_ = given_rates.prices
    exact = sum(Fraction(prices_[each]) * Fraction(usage.get(each, 0)) for each in prices_)
    assert exact <= Fraction(cost) < exact + Fraction(CENT)


@given(types, works, st.integers(1, 1000), rates)
def test_more_shots_never_cost_less(
    backend_type: str, work: Work, more: int, given_rates: Rates
) -> None:
    larger = Work(work.shots + more, work.qubits, work.depth, work.gates)
    one = price(expected_usage(backend_type, work), given_rates)
    other = price(expected_usage(backend_type, larger), given_rates)
    if isinstance(one, Decimal) and isinstance(other, Decimal):
        assert other >= one


@given(st.dictionaries(st.sampled_from(UNITS), st.decimals(0, 10**9, places=6)))
def test_amounts_go_over_the_wire_unchanged(amounts: dict[BillingUnit, Decimal]) -> None:
    assert parse_amounts(format_amounts(amounts)) == amounts


def test_a_price_with_many_digits_goes_over_the_wire() -> None:
    minute = {"second": Decimal("0.275") / 60}
    assert parse_amounts(format_amounts(minute)) == minute  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["NaN", "-1", "1e3", "", "Infinity", "1." + 50 * "0"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="amount"):
        parse_amounts({"shot": text})
    with pytest.raises(ValueError, match="price"):
        parse_price(text)


def test_an_empty_book_knows_nothing() -> None:
    assert PriceBook(date(2026, 1, 1), ()).find("x", "y") is None
