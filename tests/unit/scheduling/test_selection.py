"""Selection: the requirements hold, the scores follow the criteria, the reasons can be read."""

from __future__ import annotations

import itertools
import math
from datetime import timedelta
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiskit_controller.scheduling.prices import Unknown
from qiskit_controller.scheduling.selection import (
    CRITERIA,
    Candidate,
    Choice,
    Criterion,
    Needs,
    choose,
)

# Five devices, none the best in two respects. Of a type that does not matter here.
FIVE = (
    Candidate(
        name="ibm_brisbane",
        type="any",
        cost=Decimal("5.20"),
        qubits=127,
        dynamic=True,
        queue_time=timedelta(hours=2),
        error=0.008,
        availability=0.97,
    ),
    Candidate(
        name="ibm_marrakesh",
        type="any",
        cost=Decimal("6.90"),
        qubits=156,
        dynamic=True,
        queue_time=timedelta(minutes=40),
        error=0.0022,
        availability=0.9,
    ),
    Candidate(
        name="Garnet",
        type="any",
        cost=Decimal("6.24"),
        qubits=20,
        dynamic=False,
        pending_jobs=2,
        error=0.006,
        availability=0.6,
    ),
    Candidate(
        name="Forte-1",
        type="any",
        cost=Decimal("327.98"),
        qubits=36,
        dynamic=False,
        pending_jobs=30,
        error=0.004,
        availability=0.5,
    ),
    Candidate(
        name="Emerald",
        type="any",
        cost=Decimal("6.85"),
        qubits=54,
        dynamic=False,
        pending_jobs=12,
        error=0.007,
        availability=0.99,
    ),
)
NEEDS = Needs(type="any", qubits=4)


@pytest.mark.parametrize(
    ("criterion", "best"),
    [
        ("cost", "ibm_brisbane"),
        ("queueTime", "Garnet"),
        ("capability", "ibm_marrakesh"),
        ("availability", "Emerald"),
    ],
)
def test_a_weight_alone_picks_the_best_in_that_respect(criterion: Criterion, best: str) -> None:
    for candidates in (FIVE, FIVE[::-1]):
        choice = choose(candidates, NEEDS, {criterion: 1.0})
        assert choice.winner is not None
        assert choice.winner.candidate.name == best
        assert choice.headline == f"Selected {best} based on {CRITERIA[criterion]}"


def test_the_weights_of_the_reference_choose_by_cost() -> None:
    weights: dict[Criterion, float] = {
        "cost": 0.80,
        "queueTime": 0.10,
        "capability": 0.05,
        "availability": 0.05,
    }
    choice = choose(FIVE, NEEDS, weights)
    assert choice.account.startswith("Selected ibm_brisbane based on cost (score 0.8")
    for each in FIVE[1:]:
        assert f"{each.name} (score 0." in choice.account


def test_what_is_out_of_the_question_and_why() -> None:
    def why(needs: Needs, **changes: Any) -> str:
        candidate = attrs.evolve(FIVE[0], name="it", **changes)
        choice = choose([candidate], needs)
        assert choice.winner is None
        assert choice.headline == "No backend can run this job"
        return choice.rejected["it"]

    assert why(NEEDS, type="other") == "is of type other, not any"
    assert why(attrs.evolve(NEEDS, name="that")) == "is not that, which the job names"
    assert why(NEEDS, operational=False, detail="maintenance") == "is not operational (maintenance)"
    assert why(attrs.evolve(NEEDS, qubits=200)) == "has 127 qubits of 200"
    dynamic = attrs.evolve(NEEDS, dynamic=True)
    assert why(dynamic, dynamic=False) == "does not measure in mid-circuit"
    reset = attrs.evolve(NEEDS, operations=("reset",))
    assert why(reset, dynamic=None, basis_gates=("cz", "rz")) == "has no reset"
    strict = attrs.evolve(NEEDS, max_error=0.001)
    assert why(strict) == "has a two-qubit error of 0.008, above 0.001"
    assert why(strict, error=None) == "does not tell its errors"
    hurried = attrs.evolve(NEEDS, max_queue_time=timedelta(minutes=30))
    assert why(hurried) == "has a wait of 2h, above 30m"
    assert why(hurried, queue_time=None) == "does not tell its queue"
    down = attrs.evolve(NEEDS, refused={"it": "went down"})
    assert why(down) == "went down"


def test_the_account_names_winner_losers_and_outcasts() -> None:
    tiny = attrs.evolve(FIVE[0], name="tiny", qubits=1)
    dear = attrs.evolve(FIVE[0], name="dear", cost=Unknown("nobody knows"))
    choice = choose([*FIVE[:1], tiny, dear], NEEDS, {"cost": 1})
    assert choice.account == (
        "Selected ibm_brisbane based on cost (score 1.00, $5.20: cost 1.00, queue time 0.08, "
        "capability 1.00, availability 0.97). Then came dear (score 0.00, unknown cost: cost "
        "0.00, queue time 0.08, capability 1.00, availability 0.97). Out of the question: tiny "
        "has 1 qubits of 4"
    )


def test_equals_are_decided_by_name() -> None:
    twins = [attrs.evolve(FIVE[0], name=each) for each in ("b", "c", "a")]
    choice = choose(twins, NEEDS)
    assert [each.candidate.name for each in choice.ranked] == ["a", "b", "c"]


# --- properties -----------------------------------------------------------------------------

costs = st.one_of(
    st.builds(Unknown, st.just("why")),
    st.decimals(min_value=0, max_value=10**9, places=2),
)
durations = st.integers(0, 10**7).map(lambda n: timedelta(seconds=n))
errors = st.floats(0, 1)


@st.composite
def candidates(draw: st.DrawFn, name: str) -> Candidate:
    return Candidate(
        name=name,
        type=draw(st.sampled_from(["one", "two"])),
        cost=draw(costs),
        operational=draw(st.booleans()),
        simulator=draw(st.booleans()),
        qubits=draw(st.none() | st.integers(1, 10_000)),
        basis_gates=draw(st.sampled_from([(), ("cz",), ("cz", "reset")])),
        dynamic=draw(st.none() | st.booleans()),
        pending_jobs=draw(st.none() | st.integers(0, 10**6)),
        queue_time=draw(st.none() | durations),
        error=draw(st.none() | errors),
        availability=draw(st.floats(0, 1)),
    )


@st.composite
def fields(draw: st.DrawFn) -> list[Candidate]:
    number = draw(st.integers(1, 6))
    return [draw(candidates(f"d{n}")) for n in range(number)]


needs_ = st.builds(
    Needs,
    type=st.just("one"),
    name=st.none() | st.sampled_from(["d0", "d1"]),
    qubits=st.integers(1, 200),
    dynamic=st.booleans(),
    operations=st.sampled_from([(), ("reset",)]),
    max_error=st.none() | errors,
    max_queue_time=st.none() | durations,
    refused=st.dictionaries(st.sampled_from(["d0", "d1", "d2"]), st.just("refused")),
)
weights_ = st.dictionaries(st.sampled_from(list(CRITERIA)), st.floats(0, 1))


@given(fields(), needs_, weights_)
def test_what_is_selected_meets_every_requirement(
    field: list[Candidate], needs: Needs, weights: dict[Criterion, float]
) -> None:
    choice = choose(field, needs, weights)
    assert {each.candidate.name for each in choice.ranked} | set(choice.rejected) == {
        each.name for each in field
    }
    assert sum(choice.weights.values()) == pytest.approx(1)
    for ranked in choice.ranked:
        each = ranked.candidate
        assert each.type == needs.type
        assert each.operational
        assert needs.name in (None, each.name)
        assert each.name not in needs.refused
        assert each.qubits is None or each.qubits >= needs.qubits
        assert not (needs.dynamic and each.dynamic is False)
        if needs.operations and each.basis_gates and not each.dynamic:
            assert "reset" in each.basis_gates
        if needs.max_error is not None and not each.simulator:
            assert each.error is not None
        if needs.max_error is not None and each.error is not None:
            assert each.error <= needs.max_error
        if needs.max_queue_time is not None:
            assert each.wait is not None
            assert each.wait <= needs.max_queue_time
        for score in (*ranked.scores.values(), ranked.total):
            assert math.isfinite(score)
            assert -1e-9 <= score <= 1 + 1e-9
    totals = [each.total for each in choice.ranked]
    assert all(a >= b - 1e-8 for a, b in itertools.pairwise(totals))
    assert choice == choose(field, needs, weights)
    assert len(choice.account) < 6000


def _better(respect: str, old: Any) -> st.SearchStrategy[Any]:
    """Values of that field that are at least as good."""
    match respect:
        case "cost":
            highest = old if isinstance(old, Decimal) else 10**9
            return st.decimals(min_value=0, max_value=highest, places=2)
        case "queue_time":
            highest = 10**7 if old is None else old // timedelta(seconds=1)
            return st.integers(0, highest).map(lambda n: timedelta(seconds=n))
        case "pending_jobs":
            return st.integers(0, 10**6 if old is None else old)
        case "error":
            return st.floats(0, 1 if old is None else old)
        case "qubits":
            return st.integers(old or 1, 20_000)
    return st.floats(old, 1)


def _score(choice: Choice, name: str) -> float:
    return next(each.total for each in choice.ranked if each.candidate.name == name)


@given(
    fields(),
    st.integers(0, 5),
    weights_,
    st.sampled_from(["cost", "queue_time", "pending_jobs", "error", "qubits", "availability"]),
    st.data(),
)
def test_what_gets_better_never_scores_lower(
    field: list[Candidate],
    which: int,
    weights: dict[Criterion, float],
    respect: str,
    data: st.DataObject,
) -> None:
    """And its rivals never higher: so a winner stays the winner."""
    field = [attrs.evolve(each, type="one", operational=True) for each in field]
    which %= len(field)
    old = getattr(field[which], respect)
    if old is None and (field[which].simulator or field[which].wait is not None):
        return  # to tell what was unknown is better only where nothing better was assumed
    improved = attrs.evolve(field[which], **{respect: data.draw(_better(respect, old))})
    if respect == "pending_jobs" and improved.queue_time is not None:
        return
    needs = Needs(type="one")
    before = choose(field, needs, weights)
    field[which] = improved
    after = choose(field, needs, weights)
    assert _score(after, improved.name) >= _score(before, improved.name) - 1e-9
    for rival in field:
        if rival.name != improved.name:
            # Errors below others' are what these are measured by; where it is the first to
            # tell its own, there is nothing to compare with before.
            assert _score(after, rival.name) <= _score(before, rival.name) + 1e-9
