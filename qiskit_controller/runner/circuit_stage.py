"""The stage ``circuit``: watch over the user's code and write down what came of it.

The code runs in a child process (:mod:`circuit_child`); this process imports nothing of the
user's, gives the child nothing but a file to read and a folder to write to, and outlives
whatever the child does: it bounds time, printed bytes, memory and the circuit's size, ends every
process that the child left, and writes :class:`~qiskit_controller.api.run.Outcome`. Child and
parent are of one user, so a determined child can still forge files: hence the executor believes
none of them.

The stage ends with 0 whenever there is an outcome, also a bad one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import secrets
import selectors
import shutil
import signal
import subprocess  # the child is this very interpreter
import sys
import time
from pathlib import Path
from typing import IO

import attrs

from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.run import CIRCUIT_FILE, OUTCOME_FILE, Outcome, Plan, Reason
from qiskit_controller.runner.circuit_child import STARTED, WHERE_SIGNAL, WRITTEN, Request
from qiskit_controller.runner.fetched import locate
from qiskit_controller.runner.hostile import MESSAGE_CHARACTERS, Unreadable, clean, read_file
from qiskit_controller.runner.pod import Cgroup, Paths
from qiskit_controller.runner.rules import CHILD_REASONS

# The end of what was printed, for the executor's log.
PRINTED_BYTES = 2048
# What a child may say for itself; a message and a traceback of C Python fit.
REPORT_BYTES = 65_536
# What this process and the kernel need of the container's memory.
RESERVED_BYTES = 80 << 20
# What RLIMIT_DATA counts of a process that has imported Qiskit; half of it is never touched.
QISKIT_BYTES = 288 << 20
# How long a child has to say where it is before it is killed.
WHERE_SECONDS = 0.5
_POLL_SECONDS = 0.05

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from qiskit_controller.runner.circuit_child import main; main()"
)


# The last words of Rust, C++ and OpenBLAS.
_ALLOCATION_FAILED = re.compile(
    r"memory allocation of \d+ bytes failed|std::bad_alloc|OpenBLAS error: Memory allocation"
)


class NotStarted(Exception):
    """The process for the user's code did not come up: a fault of the image or the node."""


def run_stage(plan: Plan, paths: Paths, *, memory_limit: int | None = None) -> Outcome:
    """Run the user's code as `plan` says and leave an outcome in the work folder.

    Args:
        memory_limit: bytes; the container's own limit when absent.

    Raises:
        NotStarted: nothing of the user's ran, and it is no fault of the user's.
    """
    _harden_self()
    watch = _Watch(plan, paths, memory_limit or Cgroup().memory_limit())
    try:
        outcome = watch.run()
    finally:
        _end_descendants()
    if outcome.reason is None:
        outcome = _check_circuit(plan, paths, outcome)
    _write_outcome(paths.work, outcome)
    if outcome.reason is not None:
        print(f"{outcome.reason}: {outcome.message}", flush=True)
    return outcome


def _harden_self() -> None:
    """Keep a child of the same user out of this process, and its orphans within reach."""
    set_no_new_privs, set_dumpable, set_child_subreaper = 38, 4, 36  # linux/prctl.h
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((set_no_new_privs, 1), (set_dumpable, 0), (set_child_subreaper, 1)):
        libc.prctl(option, value, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Looked for between other things, because it matters who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    # As process 1, not to be had by the child's either.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _told_to_stop() -> bool:
    """Whether the pod is being deleted.

    The user's code can send the same signal, and would be given a new attempt for it at no
    cost, over and over. Its processes are below this one; the kubelet is outside.
    """
    info = signal.sigtimedwait({signal.SIGTERM}, 0)
    if info is None:
        return False
    # What a process queues says of itself what it likes, its sender included; of what it
    # kills with, the kernel says it. sigaction(2): SI_USER is 0, and nobody may forge that.
    if info.si_code != 0:
        return False
    if os.getpid() == 1:
        return info.si_pid == 0  # as a sender outside the container's pid namespace is seen
    return info.si_pid not in _descendants(os.getpid())


@attrs.define
class _Watch:
    """One run of the child."""

    plan: Plan
    paths: Paths
    memory_limit: int | None
    printed: int = 0
    tail: bytes = b""
    report: bytes = b""

    def run(self) -> Outcome:
        out_read, out_write = os.pipe()
        report_read, report_write = os.pipe()
        oom_kills = Cgroup().oom_kills()
        deadline = time.monotonic() + self.plan.limits.circuit_seconds
        child = self._start(out_write, report_write)
        os.close(out_write)
        os.close(report_write)
        with selectors.DefaultSelector() as selector:
            for fd in (out_read, report_read):
                os.set_blocking(fd, False)
                selector.register(fd, selectors.EVENT_READ)
            stopped = self._follow(child, selector, out_read, report_read, deadline)
        if stopped is not None:
            os.kill(child.pid, signal.SIGKILL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        _end_descendants()
        # What was printed just before the end.
        self._take_output(out_read)
        self._take_report(report_read)
        os.close(out_read)
        os.close(report_read)
        return self._verdict(
            stopped,
            child.returncode,
            oom_killed=Cgroup().oom_kills() > oom_kills,
            peak_bytes=usage.ru_maxrss * 1024,
        )

    def _start(self, out: int, report: int) -> subprocess.Popen[bytes]:
        code = locate(self.plan, self.paths)
        request = Request(
            file=self.plan.source.file,
            path=str(code.path),
            sha256=code.sha256,
            parameters=dict(self.plan.spec.circuit.parameters),
            target=str(self.paths.work / CIRCUIT_FILE),
            circuit_bytes=self.plan.limits.circuit_bytes,
            memory_bytes=_child_memory(self.memory_limit),
            report_fd=report,
        )
        home = "/tmp"  # noqa: S108  a volume of the container's own
        child = subprocess.Popen(  # noqa: S603  the command line is fixed
            # -I: no environment, no user site; -u: printed lines show as they are printed.
            [sys.executable, "-I", "-u", "-c", _BOOT, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            pass_fds=(report,),
            cwd=home,
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "HOME": home,
                "LANG": "C.UTF-8",
                "MPLCONFIGDIR": home,
                # Threads cost memory for each core of the node, not of the container.
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": str(Cgroup().cpus()),
                "RAYON_NUM_THREADS": str(Cgroup().cpus()),
                "QISKIT_PARALLEL": "FALSE",
            },
            start_new_session=True,
        )
        stdin = child.stdin
        assert stdin is not None  # noqa: S101  for the type checker: it was asked for
        _send(stdin, json.dumps(attrs.asdict(request)).encode())
        return child

    def _follow(
        self,
        child: subprocess.Popen[bytes],
        selector: selectors.BaseSelector,
        out: int,
        report: int,
        deadline: float,
    ) -> Reason | None:
        """Pass on what is printed until the child ends, or must be ended, and why."""
        while True:
            for key, _ in selector.select(_POLL_SECONDS):
                take = self._take_output if key.fd == out else self._take_report
                if not take(key.fd):
                    selector.unregister(key.fd)
            if _told_to_stop():
                _end_descendants()
                os._exit(128 + signal.SIGTERM)
            # WNOWAIT: its memory use is asked for when it is reaped.
            if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return None
            stopped = None
            if self.printed > self.plan.limits.printed_bytes:
                stopped = Reason.CIRCUIT_OUTPUT_TOO_LARGE
            elif time.monotonic() > deadline:
                stopped = Reason.CIRCUIT_TIMEOUT
            if stopped is not None:
                self._ask_where(child, report)
                return stopped
            if not selector.get_map():
                time.sleep(_POLL_SECONDS)  # it closed its pipes and lives on

    def _ask_where(self, child: subprocess.Popen[bytes], report: int) -> None:
        known = len(self.report)
        os.kill(child.pid, WHERE_SIGNAL)
        until = time.monotonic() + WHERE_SECONDS
        while time.monotonic() < until and len(self.report) == known:
            time.sleep(_POLL_SECONDS)
            self._take_report(report)

    def _take_output(self, fd: int) -> bool:
        """Pass on what is there to read. False at the end of it."""
        while True:
            try:
                chunk = os.read(fd, 65_536)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            room = max(0, self.plan.limits.printed_bytes - self.printed)
            self.printed += len(chunk)
            if room:
                _print(chunk[:room])
                self.tail = (self.tail + chunk[:room])[-PRINTED_BYTES:]
            if self.printed > self.plan.limits.printed_bytes:
                return True  # enough; the caller ends the child

    def _take_report(self, fd: int) -> bool:
        while True:
            try:
                chunk = os.read(fd, 65_536)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self.report = (self.report + chunk)[:REPORT_BYTES]

    def _verdict(
        self, stopped: Reason | None, code: int, *, oom_killed: bool, peak_bytes: int
    ) -> Outcome:
        file = self.plan.source.file
        limits = self.plan.limits
        printed = self.tail.decode(errors="replace")
        answer = self._answer()
        if answer is not None:
            # Also when it was stopped since: what it left running is no matter.
            return attrs.evolve(answer, printed=printed)

        def outcome(reason: Reason, message: str) -> Outcome:
            return Outcome(reason=reason.value, message=message, printed=printed)

        if STARTED not in self._answers() and stopped is None:
            # Nothing of the user's has run.
            raise NotStarted(f"the process for the user's code ended with {code}")
        if stopped is Reason.CIRCUIT_TIMEOUT:
            return outcome(
                stopped,
                f"{file}{self._where()}: the code was still running after "
                f"{limits.circuit_seconds:g} s, which is the limit for making a circuit",
            )
        if stopped is Reason.CIRCUIT_OUTPUT_TOO_LARGE:
            return outcome(
                stopped,
                f"{file}{self._where()}: the code printed more than {limits.printed_bytes} bytes",
            )
        near_limit = self.memory_limit is not None and peak_bytes > self.memory_limit * 0.85
        # Native libraries abort where Python raises MemoryError.
        aborted = code in (-signal.SIGABRT, 1) and _ALLOCATION_FAILED.search(printed)
        if (code == -signal.SIGKILL and (oom_killed or near_limit)) or aborted:
            return outcome(
                Reason.CIRCUIT_OUT_OF_MEMORY,
                f"{file}: the code needs more memory than the container may use "
                f"({_mebibytes(self.memory_limit)}); raise spec.resources.limits.memory or use "
                "less",
            )
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            return outcome(
                Reason.CIRCUIT_EXITED,
                f"{file}: the process that ran the code was ended by the signal {name}",
            )
        return outcome(
            Reason.CIRCUIT_EXITED,
            f"{file}: the code ended its process with exit code {code} before there was a "
            "circuit; do not call os._exit()",
        )

    def _answer(self) -> Outcome | None:
        """The last line of the report that has the form of a final answer."""
        for answer in reversed(self._answers()):
            if answer == WRITTEN:
                return Outcome()
            reason, message = answer.get("reason"), answer.get("message")
            if isinstance(reason, str) and reason in CHILD_REASONS and isinstance(message, str):
                return Outcome(reason=reason, message=clean(message, MESSAGE_CHARACTERS))
        return None

    def _answers(self) -> list[dict[str, object]]:
        """Every line that is a JSON object; the others can be anything at all."""
        found = []
        for line in self.report.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                answer = json.loads(line)
                if isinstance(answer, dict):
                    found.append(answer)
        return found

    def _where(self) -> str:
        """``, line 7``, from the traceback that faulthandler wrote, innermost frame first."""
        text = self.report.decode(errors="replace")
        found = re.search(rf'File "{re.escape(self.plan.source.file)}", line (\d{{1,7}}) ', text)
        return f", line {found[1]}" if found else ""


def _child_memory(limit: int | None) -> int | None:
    """What the child may allocate, so that it gets a MemoryError and not the kernel's answer."""
    return None if limit is None else max(limit - RESERVED_BYTES, QISKIT_BYTES)


def _mebibytes(size: int | None) -> str:
    return "unlimited" if size is None else f"{size / 2**20:.0f} MiB"


def _send(stdin: IO[bytes], request: bytes) -> None:
    # A child that died at once is found dead soon enough.
    with contextlib.suppress(BrokenPipeError), stdin:
        stdin.write(request)


def _print(chunk: bytes) -> None:
    # A reader that went away does not stop the work.
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def _check_circuit(plan: Plan, paths: Paths, outcome: Outcome) -> Outcome:
    """What the child says it wrote, looked at from outside."""
    limit = plan.limits.circuit_bytes
    try:
        read_file(paths.work, CIRCUIT_FILE, limit)
    except Unreadable as error:
        return attrs.evolve(
            outcome,
            reason=Reason.CIRCUIT_INVALID.value,
            message=f"{plan.source.file}: the code left no circuit that can be read: {error}",
        )
    return outcome


def _write_outcome(work: Path, outcome: Outcome) -> None:
    """Put the outcome, and beside the circuit nothing else, into the work folder."""
    _clear(work, keep=CIRCUIT_FILE if outcome.reason is None else None)
    try:
        _write_new(work / OUTCOME_FILE, json.dumps(to_wire(outcome)))
    except OSError as error:
        if outcome.reason is not None:
            raise
        # The circuit fills the volume.
        _clear(work, keep=None)
        failed = attrs.evolve(
            outcome,
            reason=Reason.CIRCUIT_TOO_LARGE.value,
            message=f"the circuit leaves no room in its volume: {error.strerror}",
        )
        _write_new(work / OUTCOME_FILE, json.dumps(to_wire(failed)))


def _clear(work: Path, keep: str | None) -> None:
    for entry in work.iterdir():
        if entry.name == keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
            if entry.exists():
                # Made unreadable: out of the way of our own names, it does no harm.
                entry.rename(work / f"left.{secrets.token_hex(8)}")
        else:
            entry.unlink()


def _write_new(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    temporary.replace(path)


# --- Ending what the user's code started ------------------------------------------------------


def _end_descendants(seconds: float = 5.0) -> None:
    """Kill every process below this one and reap it.

    Orphans become children of this process, a child subreaper, so that none escapes. One that
    forks faster than it is killed can outlast `seconds`: the container's end is its own.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        if os.getpid() == 1:
            # In a container of our own: everything else in it, at one stroke.
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            for pid in _descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _descendants(root: int) -> list[int]:
    """Process ids below `root`, nearest first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                # "pid (name) state ppid ...", where the name may hold blanks and brackets.
                stat = (entry / "stat").read_bytes()
                parent = int(stat[stat.rindex(b")") + 2 :].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found
