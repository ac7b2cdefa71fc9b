"""Run the executor's work in a child process, so that something always listens.

Aer holds Python's interpreter lock while it simulates: a handler for SIGTERM in that process
would run when the simulation is over, and process 1 of a container has no default action to
fall back on. The parent here does nothing but wait. It ends the work at once when the pod is
told to stop, and where the work dies without a word (the kernel's answer to too much memory, a
crash in native code) it is there to write the report.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from qiskit_controller.api.run import Reason, Report, encode_report
from qiskit_controller.runner.pod import Cgroup

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def supervise(work: Callable[[], int], termination_log: Path, attempt: int) -> int:
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
    child = os.fork()
    if child == 0:
        _work(work)
    _, status = os.waitpid(child, 0)
    child = 0
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    _report_death(-code, Cgroup().oom_kills() > oom_kills, termination_log, attempt)
    return 1


def _work(work: Callable[[], int]) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Without its parent nobody would end it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    raise SystemExit(work())


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
    print(f"Failed     {reason}: {message}", flush=True)
    report = Report(attempt=attempt, reason=reason, message=message)
    termination_log.write_text(encode_report(report))
