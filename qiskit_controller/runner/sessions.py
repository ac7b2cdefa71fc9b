"""The command ``qiskit-runner session``: open, look at or close a session at a provider."""

from __future__ import annotations

import json
import os
from datetime import timedelta

import attrs

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.quantities import format_time
from qiskit_controller.api.run import (
    MAX_REPORT_BYTES,
    SESSION_ENV,
    Reason,
    SessionReport,
    SessionRequest,
)
from qiskit_controller.drivers import NoDriver, RunFailed, placed, runner_driver
from qiskit_controller.drivers.remote import HasSessions, RemoteDriver, Session, Unavailable
from qiskit_controller.runner import story
from qiskit_controller.runner.devices import patiently
from qiskit_controller.runner.hostile import MESSAGE_CHARACTERS, clean
from qiskit_controller.runner.plan import plan_of_backend
from qiskit_controller.runner.pod import Paths

# The controller comes back later.
PATIENCE = timedelta(minutes=2)


def run_session(paths: Paths) -> int:
    """Do what the SessionRequest asks for, and leave a SessionReport as last word.

    Returns:
        The exit code: 0, or 1 when the report has a reason.
    """
    request = from_wire(json.loads(os.environ[SESSION_ENV]), SessionRequest)
    report = _report(request, paths)
    if report.reason is None:
        story.say(f"Session    {report.id} on {report.backend}: {report.state}")
    else:
        story.say(f"Failed     {report.reason}: {report.message}")
    paths.termination_log.write_text(encode_session(report))
    return 0 if report.reason is None else 1


def _report(request: SessionRequest, paths: Paths) -> SessionReport:
    try:
        session = _asked(request, paths)
    except RunFailed as error:
        reason, message = error.reason, error.message
    except Unavailable as error:
        reason, message = Reason.BACKEND_UNAVAILABLE, error.message
    except NoDriver as error:
        reason, message = Reason.UNSUPPORTED, f"spec.backend.type: {error}"
    else:
        return SessionReport(
            id=session.id,
            backend=clean(session.backend, 80),
            accepting=session.accepting,
            closed=session.closed,
            state=clean(session.state, 80),
            expires_at=format_time(session.expires) if session.expires else None,
            usage=None if session.usage is None else str(session.usage),
        )
    return SessionReport(reason=reason, message=clean(message, MESSAGE_CHARACTERS), id=request.id)


def _asked(request: SessionRequest, paths: Paths) -> Session:
    """What the provider says, asked again while it does not answer.

    To open is asked once more only when nothing came of it. An answer that was lost may have been
    a session that nobody knows the name of: it has no job, so it costs nothing, and the provider
    closes it by itself after a while. Whoever asks again may leave another one, and the controller
    does so with growing pauses, so it is left to the controller.
    """
    kind = request.backend.type
    plan = plan_of_backend(request.backend)
    driver = placed(runner_driver(kind), plan)
    if not isinstance(driver, RemoteDriver):
        raise _no_sessions(kind)
    provider: HasSessions | None = None

    def ask() -> Session:
        nonlocal provider
        if provider is None:
            connected = driver.connect(plan, paths.credentials)
            if not isinstance(connected, HasSessions):
                raise _no_sessions(kind)
            provider = connected
        return _ask(provider, request)

    def again(error: Unavailable) -> bool:
        return request.action != "open" or provider is None or error.nothing_done

    try:
        return patiently(ask, patience=PATIENCE, again=again)
    except Unavailable as error:
        if not again(error):
            error.message += (
                "; a session may have been opened, which costs nothing without a job and ends by "
                "itself"
            )
        raise


def _ask(provider: HasSessions, request: SessionRequest) -> Session:
    if request.action == "open":
        return provider.open_session(request.backend.name, request.mode, request.max_time)
    if request.id is None:
        raise RunFailed(Reason.INVALID_SPEC, f"id: needed to {request.action} a session")
    if request.action == "look":
        return provider.look_at_session(request.id)
    return provider.close_session(request.id)


def _no_sessions(kind: str) -> RunFailed:
    return RunFailed(Reason.UNSUPPORTED, f"spec.backend.type: {kind} has no sessions")


def encode_session(report: SessionReport, limit: int = MAX_REPORT_BYTES) -> str:
    """The report as JSON of at most `limit` bytes; what is too much of the message is cut."""
    while True:
        text = json.dumps(to_wire(report), separators=(",", ":"), ensure_ascii=False)
        if len(text.encode()) <= limit or not report.message:
            return text
        report = attrs.evolve(report, message=report.message[: len(report.message) * 3 // 4])
