"""Conditions, after the Kubernetes API conventions."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

import attrs

from qiskit_controller.api.fields import field
from qiskit_controller.api.quantities import format_time

ConditionStatus = Literal["True", "False", "Unknown"]
# A status is shown by kubectl describe; a page of text in it helps nobody.
MAX_MESSAGE = 2048


@attrs.frozen
class Condition:
    """One observation about an object, with the time since which it has held."""

    type: str = field(
        "What is observed, in CamelCase.", max_length=316, pattern=r"^[A-Za-z][A-Za-z0-9]*$"
    )
    status: ConditionStatus = field("Whether it holds: True, False or Unknown.")
    reason: str = field("Why, as one CamelCase word for programs.", default="")
    message: str = field("Why, as a sentence for people.", default="")
    last_transition_time: str | None = field(
        "When the status last changed.", default=None, format="date-time"
    )
    observed_generation: int | None = field(
        "The metadata.generation that the observation is about.", default=None, format="int64"
    )


def find(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """The condition of that type, or None."""
    return next((each for each in conditions if each.type == type_), None)


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """Whether the condition of that type is there and True."""
    found = find(conditions, type_)
    return found is not None and found.status == "True"


def upsert(
    conditions: tuple[Condition, ...], new: Condition, now: datetime
) -> tuple[Condition, ...]:
    """`conditions` with `new` in the place of the one of its type.

    The transition time moves only when the status changes, and nothing at all changes when
    only time has passed: an observation made twice is written once.
    """
    new = attrs.evolve(new, message=new.message[:MAX_MESSAGE])
    old = find(conditions, new.type)
    if old is not None and old.status == new.status:
        new = attrs.evolve(new, last_transition_time=old.last_transition_time)
    else:
        new = attrs.evolve(new, last_transition_time=format_time(now))
    if old is None:
        return (*conditions, new)
    return tuple(new if each.type == new.type else each for each in conditions)
