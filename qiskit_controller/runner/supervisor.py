"""Run the executor's work in a child process, so that something always listens.

Aer holds Python's interpreter lock while it simulates: a handler for SIGTERM in that process
would run when the simulation is over, and process 1 of a container has no default action to
fall back on. The parent here does nothing but wait. It ends the work at once when the pod is
told to stop, and when it takes longer than it may; and where it dies without a word (the kernel's
answer to too much memory, a crash in native code) it is there to write the report.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

import attrs

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.run import Reason, Report, encode_report
from qiskit_controller.runner import story
from qiskit_controller.runner.pod import Cgroup

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@attrs.frozen
class Timer:
    """How the work tells its parent to end it, and what to report then.

    The parent is a process of its own: nothing that the work does can keep it from that.
    """

    _pipe: IO[str]

    def start(self, seconds: float, report: Report) -> None:
        """End the work after so many seconds with this report, unless it is stopped before."""
        self._say({"seconds": seconds, "report": to_wire(report)})

    def stop(self) -> None:
        """The work may take its time from here on."""
        self._say(None)

    def _say(self, order: Any) -> None:
        print(json.dumps(order), file=self._pipe, flush=True)


def supervise(work: Callable[[Timer], int], termination_log: Path, attempt: int) -> int:
    """The exit code of `work`, which runs in a child process.

    When this process gets SIGTERM, it ends with 143 and leaves no report.
    """
    child = 0

    def stop(_signal: int, _frame: object) -> None:
        if child:
            os.kill(child, signal.SIGKILL)
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    oom_kills = Cgroup().oom_kills()
    told, telling = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        _work(work, Timer(os.fdopen(telling, "w")))
    os.close(telling)
    late = _wait(told)
    if late is not None:
        # Not waited for: in a system call on a volume that hangs, it cannot even be killed.
        os.kill(child, signal.SIGKILL)
        story.say(f"Failed     {late.reason}: {late.message}")
        termination_log.write_text(encode_report(late))
        return 1
    _, status = os.waitpid(child, 0)
    child = 0
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    _report_death(-code, Cgroup().oom_kills() > oom_kills, termination_log, attempt)
    return 1


def _wait(orders: int) -> Report | None:
    """Wait until the work has ended, which closes its end of the pipe, or is too late.

    Returns:
        The report of work that is too late.
    """
    deadline: float | None = None
    late: Any = None
    begun = b""
    poll = select.poll()
    poll.register(orders, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(left):
            return from_wire(late, Report)
        read = os.read(orders, 65_536)
        if not read:
            return None
        *lines, begun = (begun + read).split(b"\n")
        for line in lines:
            order = json.loads(line)
            late = order["report"] if order else None
            deadline = time.monotonic() + order["seconds"] if order else None


def _work(work: Callable[[Timer], int], timer: Timer) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Without its parent nobody would end it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    raise SystemExit(work(timer))


def _report_death(number: int, oom_killed: bool, termination_log: Path, attempt: int) -> None:
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    if oom_killed:
        reason = Reason.OUT_OF_MEMORY
        message = (
            "the executor needed more memory than its limit; raise "
            "spec.resources.limits.memory or use fewer qubits"
        )
    else:
        reason = Reason.EXECUTOR_FAILED
        message = f"the executor was ended by the signal {name}"
    story.say(f"Failed     {reason}: {message}")
    report = Report(attempt=attempt, reason=reason, message=message)
    termination_log.write_text(encode_report(report))
