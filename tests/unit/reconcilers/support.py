"""One QiskitJob as the decision sees it, with everything in order unless a test says otherwise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from qiskit_controller.api import names
from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.conditions import Condition, find
from qiskit_controller.api.qiskitjob import AttemptStatus, QiskitJobSpec, QiskitJobStatus
from qiskit_controller.api.quantities import format_time
from qiskit_controller.api.run import Limits
from qiskit_controller.reconcilers.qiskitjob.decision import Decision, StopRuns, decide
from qiskit_controller.reconcilers.qiskitjob.observed import Observed, PodView, Run, Source

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
LIMITS = Limits()
CODE = b"qc = 1"


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def spec(**changes: Any) -> QiskitJobSpec:
    """A sound spec; `changes` are fields of spec as on the wire."""
    wire = {
        "backend": {"type": "local_simulator"},
        "circuit": {"source": "inline", "code": CODE.decode()},
    }
    return from_wire(wire | changes, QiskitJobSpec)


def observed(**changes: Any) -> Observed:
    """A job that was just created."""
    given = {
        "namespace": "ns",
        "name": "bell",
        "uid": "uid-1",
        "generation": 1,
        "deleting": False,
        "finalized": True,
        "spec": spec(),
        "problems": (),
        "unsupported": None,
        "backend": "aer_simulator",
        "cost": "$0.00",
        "status": QiskitJobStatus(),
        "source": None,
        "runs": {},
        "pods_left": 0,
        "progress": None,
        "spec_changed": (),
        "now": NOW,
    }
    return Observed(**given | changes)


def attempt(number: int = 1, **changes: Any) -> AttemptStatus:
    given = {
        "number": number,
        "job_name": names.job_name("bell", number),
        "start_time": format_time(NOW - seconds(60)),
    }
    return AttemptStatus(**given | changes)


def status(phase: str | None = "Pending", *attempts: AttemptStatus, **changes: Any) -> Any:
    """The status of a job in that phase, of the observed generation."""
    given: dict[str, Any] = {
        "phase": phase,
        "observed_generation": 1,
        "start_time": format_time(NOW - seconds(90)),
        "attempts": attempts,
    }
    if phase == "Running":
        given["running_time"] = format_time(NOW - seconds(30))
    return QiskitJobStatus(**given | changes)


def pod(**changes: Any) -> PodView:
    return PodView(**{"name": "qiskit-job-bell-abcde"} | changes)


def run(number: int = 1, **changes: Any) -> Run:
    given = {
        "attempt": number,
        "job_name": names.job_name("bell", number),
        "created": NOW - seconds(60),
    }
    return Run(**given | changes)


def underway(phase: str, pod_: PodView | None = None, **changes: Any) -> Observed:
    """A job whose first attempt is under way."""
    run_changes = changes.pop("run", {})
    given = {
        "status": status(phase, attempt()),
        "runs": {1: run(pod=pod_, **run_changes)},
        "source": Source("circuit.py", CODE),
        "pods_left": 1 if pod_ else 0,
    }
    return observed(**given | changes)


def decided(seen: Observed) -> Decision:
    return decide(seen, LIMITS)


def followed(seen: Observed, decision: Decision) -> Decision:
    """The next decision, with the status of the last one written and all else as it was."""
    return decided(attrs.evolve(seen, status=decision.status))


def brought_to_an_end(seen: Observed, late: Decision) -> Decision:
    """The decision that ends the job, after `late` has said why and its pod was told to end."""
    assert (late.actions, late.status.completion_time) == ((), None), "the verdict comes first"
    assert condition(late, "Failed").status == "Unknown"
    stopping = followed(seen, late)
    assert isinstance(stopping.actions[0], StopRuns)
    runs = {number: attrs.evolve(run, deleting=True) for number, run in seen.runs.items()}
    end = followed(attrs.evolve(seen, runs=runs), stopping)
    assert end.status.phase == "Failed"
    assert (condition(end, "Failed").reason, condition(end, "Failed").message) == (
        condition(late, "Failed").reason,
        condition(late, "Failed").message,
    )
    return end


def condition(decision: Decision, type_: str) -> Condition:
    found = find(decision.status.conditions, type_)
    assert found is not None, f"there is no condition {type_}"
    return found


def reasons(decision: Decision) -> list[str]:
    """The reasons of the Events."""
    return [each.reason for each in decision.events]
