from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from qiskit_controller.api.conditions import MAX_MESSAGE, Condition, find, is_true, upsert

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)

conditions = st.builds(
    Condition,
    type=st.sampled_from(["Validated", "Complete", "Failed"]),
    status=st.sampled_from(["True", "False", "Unknown"]),
    reason=st.sampled_from(["", "A", "B"]),
    message=st.sampled_from(["", "a", "x" * (MAX_MESSAGE + 1)]),
    observed_generation=st.integers(1, 3),
)
histories = st.lists(conditions, max_size=8)


def put_all(history: list[Condition], now: datetime = NOW) -> tuple[Condition, ...]:
    result: tuple[Condition, ...] = ()
    for each in history:
        result = upsert(result, each, now)
    return result


@given(histories, conditions)
def test_there_is_one_condition_of_a_type_and_it_is_the_last(
    history: list[Condition], new: Condition
) -> None:
    before = put_all(history)
    after = upsert(before, new, LATER)
    assert len({each.type for each in after}) == len(after)
    found = find(after, new.type)
    assert found is not None
    assert (found.status, found.reason, found.message) == (
        new.status,
        new.reason,
        new.message[:MAX_MESSAGE],
    )
    assert is_true(after, new.type) == (new.status == "True")
    assert [each for each in after if each.type != new.type] == [
        each for each in before if each.type != new.type
    ]
    # Those that were there stay where they were, so that a status reads the same.
    assert [each.type for each in after][: len(before)] == [each.type for each in before]


@given(histories, conditions)
def test_the_transition_time_moves_only_with_the_status(
    history: list[Condition], new: Condition
) -> None:
    before = put_all(history)
    old = find(before, new.type)
    found = find(upsert(before, new, LATER), new.type)
    assert found is not None
    same = old is not None and old.status == new.status
    assert found.last_transition_time == (
        "2026-01-01T00:00:00Z" if same else "2026-01-01T00:05:00Z"
    )


@given(histories, conditions)
def test_what_is_said_twice_is_written_once(history: list[Condition], new: Condition) -> None:
    once = upsert(put_all(history), new, NOW)
    assert upsert(once, new, LATER) == once


def test_what_is_not_there_is_not_true() -> None:
    assert find((), "Complete") is None
    assert not is_true((), "Complete")
