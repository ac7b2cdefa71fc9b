"""What a QiskitJob has at a provider, and how it gets rid of it: decided as pure functions.

A job at a provider costs money and needs no pod to go on. So a QiskitJob that ends without its
result, or is deleted, is not let go before a pod of its own has cancelled there what may have
been submitted; see :mod:`qiskit_controller.runner.cancel_stage`. That is bounded: where it cannot
be done (the Secret is gone, the key revoked), a Warning names the provider's job.

What may have been submitted is in the record: an executor writes its intent before it submits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import attrs

from qiskit_controller.api.qiskitjob import (
    FINISHED,
    AttemptStatus,
    ProviderStatus,
    QiskitJobStatus,
)
from qiskit_controller.api.quantities import format_time, parse_time
from qiskit_controller.api.run import Reason
from qiskit_controller.reconcilers.qiskitjob.observed import Observed

# The pod is tried CANCEL_TRIES times by its Kubernetes Job, which takes about five minutes; one
# that does not even start (no room, no image) is given up after CANCEL_PATIENCE.
CANCEL_TRIES = 5
CANCEL_PATIENCE = timedelta(minutes=30)

_OVER = ("Done", "Failed", "Cancelled")


def ticket(attempts: Sequence[AttemptStatus]) -> int:
    """The number of the submission that the next pod presents.

    Another one only after the provider's job before has failed: every other end of an attempt
    leaves that job to be found again.
    """
    return 1 + sum(each.reason == Reason.PROVIDER_JOB_FAILED for each in attempts)


def noted(seen: Observed) -> Observed:
    """`seen` with what the record says of the provider's job in its status."""
    told, old = seen.submission, seen.status.provider
    if told is None or seen.status.phase in FINISHED:
        return seen
    provider = ProviderStatus(
        submission=told.ticket,
        job_id=told.id,
        state=told.state,
        detail=told.detail[:512] or None,
        queue_position=told.queue_position,
        estimated_start=told.estimated_start,
    )
    if old is not None and old.submission > told.ticket:
        return seen
    if old is not None and old.submission == told.ticket:
        provider = attrs.evolve(
            provider,
            # A record that was deleted by hand and made anew knows less than we do.
            job_id=told.id or old.job_id,
            cancellation=old.cancellation,
            cancel_time=old.cancel_time,
        )
    return attrs.evolve(seen, status=attrs.evolve(seen.status, provider=provider))


def is_held(status: QiskitJobStatus) -> bool:
    """Whether the provider may still work, or be paid, for the job."""
    provider = status.provider
    return (
        status.phase not in FINISHED
        and provider is not None
        and provider.state not in _OVER
        and provider.cancellation not in ("Done", "Abandoned")
    )


def has_run(status: QiskitJobStatus) -> bool:
    """Whether the provider has executed the circuit, so that only the result is to be fetched."""
    return status.provider is not None and status.provider.state == "Done"


def executing_since(seen: Observed) -> str | None:
    """When the provider began, if it has not ended: a later pod finds it at work."""
    told = seen.submission
    return told.executing if told is not None and told.state == "Running" else None


def requested(seen: Observed) -> QiskitJobStatus:
    """The status from which on it is being cancelled."""
    provider = attrs.evolve(_of(seen), cancellation="Requested", cancel_time=format_time(seen.now))
    return attrs.evolve(seen.status, provider=provider)


def patience_left(seen: Observed) -> timedelta:
    """For how long the pod that cancels is waited for."""
    provider = seen.status.provider
    if provider is None or provider.cancel_time is None:
        return CANCEL_PATIENCE
    return parse_time(provider.cancel_time) + CANCEL_PATIENCE - seen.now


def settled(seen: Observed, *, done: bool) -> QiskitJobStatus:
    """The status when it has been cancelled, or given up."""
    provider = attrs.evolve(_of(seen), cancellation="Done" if done else "Abandoned")
    return attrs.evolve(seen.status, provider=provider)


def given_up(seen: Observed, why: str) -> str:
    """What the user has to know when it could not be cancelled."""
    return (
        f"{_what(seen)} could not be cancelled at the provider, where it may run and be charged: "
        f"{why}. Cancel it there yourself"
    )


def cancelling(seen: Observed) -> str:
    """What is being done."""
    return f"Cancelling {_what(seen)} at the provider"


def waiting_for(seen: Observed) -> str | None:
    """What the job waits for at the provider, in one sentence; None for nothing in particular."""
    if seen.progress is not None and seen.progress.waiting:
        return f"{seen.backend}: {seen.progress.waiting}"
    provider = seen.status.provider
    if provider is None or provider.state != "Queued":
        return None
    text = f"Job {provider.job_id} is in the queue of {_device(seen)}"
    if provider.queue_position is not None:
        text += f", {provider.queue_position} before it"
    if provider.estimated_start is not None:
        text += f", estimated start {provider.estimated_start}"
    return f"{text} ({provider.detail})" if provider.detail else text


def _device(seen: Observed) -> str:
    return (seen.submission.backend if seen.submission else None) or seen.backend


def _what(seen: Observed) -> str:
    provider = seen.status.provider
    if provider is None or provider.job_id is None:
        number = provider.submission if provider else 1
        return f"the job with the ticket {seen.uid}-{number}, if there is one,"
    return f"job {provider.job_id}"


def _of(seen: Observed) -> ProviderStatus:
    return seen.status.provider or ProviderStatus(submission=ticket(seen.status.attempts))
