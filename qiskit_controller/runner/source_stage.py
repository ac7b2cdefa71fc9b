"""The stage ``source``: fetch the code of a ``url`` or ``git`` source, and run none of it.

It is trusted: it may hold Git credentials, and what it says of the code (its hash, its commit)
is taken for a fact. It has no token for the cluster. Its report is its termination message, and
lies beside the code for the executor.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import resource
import signal
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from qiskit_controller.api.run import (
    COMMIT_ENV,
    SHA256_ENV,
    Plan,
    Reason,
    SourceReport,
    encode_source_report,
)
from qiskit_controller.api.sources import BadAddress
from qiskit_controller.runner import tracing
from qiskit_controller.runner.addresses import (
    AddressPolicy,
    Network,
    Resolver,
    parse_networks,
    system_resolver,
)
from qiskit_controller.runner.fetched import Fetched, SourceFailed, store
from qiskit_controller.runner.hostile import MESSAGE_CHARACTERS, clean
from qiskit_controller.runner.http_fetch import Http
from qiskit_controller.runner.pod import Paths
from qiskit_controller.runner.url_source import fetch_url

_WEB_PAGE = re.compile(rb"\s*(?:<!doctype html|<html)\b", re.IGNORECASE)


class _Deadline(BaseException):
    """The time is over. Not an Exception, so that no library takes it for one of its own."""


@attrs.frozen
class Earlier:
    """What an earlier attempt fetched, so that every attempt runs the same code."""

    sha256: str | None = None
    commit: str | None = None

    @classmethod
    def from_environment(cls) -> Earlier:
        """As the controller passed it on from ``status.source``."""
        return cls(os.environ.get(SHA256_ENV) or None, os.environ.get(COMMIT_ENV) or None)


def run_stage(
    plan: Plan,
    paths: Paths,
    earlier: Earlier | None = None,
    resolve_name: Resolver = system_resolver,
) -> int:
    """Fetch the code that `plan` names into the source folder.

    Args:
        earlier: by default, as the environment says.
        resolve_name: a test has its own.

    Returns:
        The exit code: 0 when the code is there, 1 when the report says why not.
    """
    signal.signal(signal.SIGTERM, lambda _signal, _frame: os._exit(128 + signal.SIGTERM))
    tracing.start()
    with tempfile.TemporaryDirectory(prefix="source-") as scratch:
        earlier = earlier or Earlier.from_environment()
        report = _report(plan, paths, Path(scratch), earlier, resolve_name)
    report = attrs.evolve(report, begun=tracing.begun(), ended=tracing.now())
    paths.termination_log.write_text(encode_source_report(report))
    tracing.finish()
    if report.reason is None:
        return 0
    print(f"{report.reason}: {report.message}", flush=True)
    return 1


def _report(
    plan: Plan, paths: Paths, scratch: Path, earlier: Earlier, resolve_name: Resolver
) -> SourceReport:
    seconds = plan.limits.source_seconds
    try:
        source = plan.spec.circuit.source
        with _time_limit(seconds), tracing.span("fetch", quantum_source_type=source):
            fetched = _fetch(plan, paths, scratch, earlier, resolve_name)
        _check(fetched, plan, earlier)
        report = store(fetched, plan, paths)
    except SourceFailed as error:
        return _failed(error.reason, error.message)
    except BadAddress as error:
        return _failed(Reason.SOURCE_INVALID, f"spec.circuit: the address {error}")
    except _Deadline:
        return _failed(
            Reason.SOURCE_UNAVAILABLE,
            f"the code was not there after {seconds:g} s, which is the limit for fetching it",
        )
    # The last line of defence: the log has the traceback, which is ours and holds no value.
    except Exception as error:
        traceback.print_exc()
        return _failed(Reason.SOURCE_FAILED, f"fetching failed: {type(error).__name__}")
    at = f", commit {report.commit}" if report.commit else ""
    origin = clean(fetched.origin, MESSAGE_CHARACTERS)
    print(f"Fetched    {origin}{at}, {report.size} bytes, sha256 {report.sha256}", flush=True)
    return report


def _failed(reason: Reason, message: str) -> SourceReport:
    return SourceReport(reason=reason, message=clean(message, MESSAGE_CHARACTERS))


def _api_server() -> tuple[Network, ...]:
    """The cluster's own API server is no source, also where its address is a public one."""
    try:
        return (ipaddress.ip_network(os.environ.get("KUBERNETES_SERVICE_HOST", "")),)
    except ValueError:
        return ()


def _fetch(
    plan: Plan, paths: Paths, scratch: Path, earlier: Earlier, resolve_name: Resolver
) -> Fetched:
    circuit, limits = plan.spec.circuit, plan.limits
    policy = AddressPolicy(
        parse_networks(limits.source_allow_cidr),
        parse_networks(limits.source_deny_cidr) + _api_server(),
        resolve_name,
    )
    if circuit.source == "url" and circuit.url:
        return fetch_url(circuit.url, Http(policy), limits)
    if circuit.source == "git" and circuit.git_ref:
        # Only a url needs none of git.
        from qiskit_controller.runner.git_source import fetch_git

        # No file of git's may be larger than all of them: what the poll for size would miss.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.git_bytes, limits.git_bytes))
        return fetch_git(circuit.git_ref, policy, paths.git, scratch, limits, earlier.commit)
    raise SourceFailed(Reason.SOURCE_FAILED, f"nothing is fetched for a source {circuit.source}")


def _check(fetched: Fetched, plan: Plan, earlier: Earlier) -> None:
    """It is the code that was asked for, and not something else that a server gave instead."""
    found = hashlib.sha256(fetched.content).hexdigest()
    wanted = plan.spec.circuit.sha256
    if wanted is not None and found != wanted:
        raise SourceFailed(
            Reason.SOURCE_HASH_MISMATCH,
            f"spec.circuit.sha256 is {wanted}, but the code has {found}",
        )
    if earlier.sha256 is not None and found != earlier.sha256:
        raise SourceFailed(
            Reason.SOURCE_HASH_MISMATCH,
            f"the code has changed since an earlier attempt: that one had SHA-256 "
            f"{earlier.sha256}, now it is {found}; create a new QiskitJob to run it",
        )
    if not fetched.content.strip():
        raise SourceFailed(Reason.SOURCE_INVALID, "the file that was fetched is empty")
    if _WEB_PAGE.match(fetched.content):
        raise SourceFailed(
            Reason.SOURCE_INVALID,
            "what was fetched is a web page (HTML), not code; name the address of the raw file",
        )


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise in the main thread when the time is over, whatever it waits for."""

    def over(_signal: int, _frame: object) -> None:
        raise _Deadline

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
