"""The stage ``cancel``, in a pod of its own: end at the provider what a QiskitJob has there.

It runs when the QiskitJob is cancelled, deleted or has failed, and perhaps no pod of it is left.
It has the credentials and the plan, and no token for the cluster; there is no user code in it.
"""

from __future__ import annotations

import json
import os
import traceback

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.run import PLAN_ENV, Plan, Reason, Report, encode_report
from qiskit_controller.drivers import NoDriver, RunFailed, placed, runner_driver
from qiskit_controller.drivers.remote import RemoteDriver
from qiskit_controller.runner import story
from qiskit_controller.runner.hostile import MESSAGE_CHARACTERS, clean
from qiskit_controller.runner.pod import Paths
from qiskit_controller.runner.remote import Pace, cancel


def run_stage(paths: Paths, ticket: int, provider_job: str | None, pace: Pace | None = None) -> int:
    """Run the stage.

    Args:
        ticket: the number of the submission.
        provider_job: the provider's job, if it is known.
        pace: as for the executor.

    Returns:
        The exit code: 0 when nothing of that ticket runs at the provider any more, or it was
        told to end; 1 when the report says why not.
    """
    reason: Reason | None = None
    try:
        message = _cancel(paths, ticket, provider_job or None, pace)
    except RunFailed as error:
        reason, message = error.reason, error.message
    except NoDriver as error:
        reason, message = Reason.UNSUPPORTED, f"spec.backend.type: {error}"
    # As in the executor: the controller gets a report of whatever it is.
    except Exception as error:
        traceback.print_exc()
        reason, message = Reason.EXECUTOR_FAILED, f"{type(error).__name__}: {error}"
    message = clean(message, MESSAGE_CHARACTERS)
    story.say(f"Failed     {reason}: {message}" if reason else f"Done       {message}")
    report = Report(attempt=ticket, reason=reason, message=message)
    paths.termination_log.write_text(encode_report(report))
    return 0 if reason is None else 1


def _cancel(paths: Paths, ticket: int, provider_job: str | None, pace: Pace | None) -> str:
    plan = from_wire(json.loads(os.environ[PLAN_ENV]), Plan)
    driver = placed(runner_driver(plan.spec.backend.type), plan)
    if not isinstance(driver, RemoteDriver):
        return "this backend has no provider"
    story.say(
        f"QiskitJob  {plan.job.namespace}/{plan.job.name}  (uid {plan.job.uid}), "
        f"submission {ticket}"
    )
    jobs = cancel(driver, plan, paths.credentials, ticket, provider_job, pace)
    if not jobs:
        return "the provider has no job of this submission"
    return "; ".join(f"job {each.id} on {each.backend}: {each.state}" for each in jobs)
