"""Long-running processes in the node's namespaces, ended by their own pid.

A node is one set of namespaces (network, mount, PID, host name) held by one
process, its *init*. Everything else that runs on the node is started inside
them. When init ends, the kernel ends every other process of that PID namespace,
container shims and pods included, and with the last of them go the node's
mounts, its bridge and its iptables rules. That is what makes ``down`` complete,
also after a crash or a half-finished ``up``.

A process is known by a record of its pid, its start time and the machine's boot
id, so that a pid that was used again is never taken for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from localcluster.proc import ClusterError

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Process:
    """A process known by the record in ``file``, whether or not it still runs."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def pid(self) -> int | None:
        """Its pid while it runs, else None."""
        try:
            record = json.loads(self._file.read_text())
            pid = int(record["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        started = _start_time(pid)
        same = started == record.get("start") and record.get("boot") == _boot_id()
        return pid if same and started is not None else None

    def remember(self, pid: int) -> None:
        """Record ``pid``. Raises ProcessLookupError if it does not run."""
        started = _start_time(pid)
        if started is None:
            raise ProcessLookupError(pid)
        record = {"pid": pid, "start": started, "boot": _boot_id()}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(record))
        fresh.replace(self._file)

    def end(self, grace: float = 10.0) -> None:
        """End it: SIGTERM, and SIGKILL after ``grace`` seconds. Forget it.

        Raises ClusterError if it outlives SIGKILL by a minute.
        """
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                try:
                    # Look again: from here on the handle stands for this process only.
                    if self.pid == pid and not _end(handle, grace):
                        raise ClusterError(
                            f"could not end process {pid}: it does not react to SIGKILL\n"
                            f"  See /proc/{pid}/stack."
                        )
                finally:
                    os.close(handle)
        self._file.unlink(missing_ok=True)


def _end(handle: int, grace: float) -> bool:
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 60.0)):
        if number == signal.SIGTERM and grace <= 0:
            continue
        signal.pidfd_send_signal(handle, number)
        if select.select([handle], [], [], patience)[0]:
            return True
    return False


def start_init(
    process: Process,
    *,
    log: Path,
    before: Callable[[], None],
    prepare: Callable[[], None],
    argv: Sequence[str],
) -> int:
    """Make a node's namespaces, start ``argv`` in them as their init, return its pid.

    ``before`` runs in the new process before it leaves the host's namespaces,
    ``prepare`` as root of the new ones. The init starts only after its pid has
    been recorded: if this program dies before that, so does the init.

    Raises ClusterError with the message of whatever failed inside.
    """
    ready, go = os.pipe()

    def unshare() -> None:
        os.setsid()
        before()
        flags = _CLONE_NEWPID | _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWUTS
        _check(_libc.unshare(flags), "make namespaces")

    def program() -> None:
        os.close(go)
        if not os.read(ready, 1):
            os._exit(0)
        _redirect(log)
        prepare()
        os.execv(argv[0], list(argv))

    def recorded(pid: int) -> None:
        process.remember(pid)
        os.write(go, b"!")

    try:
        return _fork_twice(unshare, program, recorded, f"start the node ({argv[0]})")
    finally:
        os.close(ready)
        os.close(go)


def spawn(
    process: Process,
    *,
    init: int,
    log: Path,
    before: Callable[[], None],
    argv: Sequence[str],
    env: Mapping[str, str],
) -> int:
    """Start ``argv`` in the namespaces of ``init``, record it and return its pid.

    It sees the node's file system, gets only ``env``, and writes to ``log``.
    Raises ClusterError if it cannot be started.
    """

    def enter() -> None:
        before()
        _redirect(log)
        _enter(init, ("net", "uts", "pid", "mnt"))

    def program() -> None:
        os.setsid()
        os.chdir("/")
        os.umask(0o022)
        os.execve(argv[0], list(argv), dict(env))

    return _fork_twice(enter, program, process.remember, f"start {Path(argv[0]).name}")


def enter_network(init: int) -> None:
    """Move this process into the network namespace of ``init``."""
    _enter(init, ("net",))


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0) -> None:
    """mount(2). Raises ClusterError."""
    result = _libc.mount(
        str(source).encode(), str(target).encode(), kind.encode() or None, flags, None
    )
    _check(result, f"mount {source} on {target}")


def _enter(init: int, kinds: Sequence[str]) -> None:
    handles = [os.open(f"/proc/{init}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]
    for kind, handle in zip(kinds, handles, strict=True):
        _check(_libc.setns(handle, 0), f"enter the node's {kind} namespace")
        os.close(handle)


def _fork_twice(
    first: Callable[[], None],
    second: Callable[[], None],
    recorded: Callable[[int], None],
    what: str,
) -> int:
    """Run ``first`` in a child and ``second``, which must exec, in its child.

    Two forks, because a process never changes its own PID namespace, only its
    children's. Calls ``recorded`` with the second child's pid as seen from here.
    """
    incoming, outgoing = os.pipe()  # closed by exec: end of file means success
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _in_child(outgoing, first, second)
    os.close(outgoing)
    with os.fdopen(incoming, "rb") as report:
        head = report.readline().decode(errors="replace")
        pid = int(head) if head.strip().isdigit() else 0
        if pid:
            try:
                recorded(pid)
            except ProcessLookupError:
                pid = 0  # it is gone already; what it wrote, if anything, says why
        problem = report.read().decode(errors="replace") if head[:1].isdigit() else head
    os.waitpid(child, 0)
    if problem or not pid:
        raise ClusterError(f"could not {what}: {problem or 'it ended at once'}")
    return pid


def _in_child(report: int, first: Callable[[], None], second: Callable[[], None]) -> None:
    try:
        first()
        grandchild = os.fork()
        if grandchild:
            os.write(report, f"{grandchild}\n".encode())
            os._exit(0)
        second()
    except BaseException as error:  # a forked child must not run its parent's code
        with contextlib.suppress(OSError):
            os.write(report, str(error).encode() or repr(error).encode())
    os._exit(1)


def _redirect(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(null)
    os.close(sink)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise ClusterError(f"could not {what}: {os.strerror(code)}")


def _start_time(pid: int) -> int | None:
    """When ``pid`` started, in clock ticks since boot; None if it does not run."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold anything; state is the field after it.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def wait_until(condition: Callable[[], bool], seconds: float, *, interval: float = 0.1) -> bool:
    """Poll ``condition`` until it holds or ``seconds`` have passed; whether it held."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval)
    return True
