"""The controller's command line: ``qiskit-controller``."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from qiskit_controller.api.run import Limits
from qiskit_controller.kube.errors import ApiError
from qiskit_controller.kube.leaderelection import LeadershipLost
from qiskit_controller.manager import NAME, Options, serve
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings
from qiskit_controller.scheduling import prices
from qiskit_controller.scheduling.prices import Tariff
from qiskit_controller.telemetry import logs, otlp

log = structlog.get_logger(__name__)

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; every option can also be given by an environment variable."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Runs QiskitJobs on Kubernetes.",
        epilog="Each option may also be given in the environment, as QISKIT_ and its name in "
        "capitals (QISKIT_RUNNER_IMAGE).",
    )

    def option(name: str, default: object, doc: str, type_: Callable[[str], object] = str) -> None:
        variable = "QISKIT_" + name.upper().replace("-", "_")
        parser.add_argument(
            f"--{name}", default=os.environ.get(variable, default), help=doc, type=type_
        )

    option("kubeconfig", None, "kubeconfig file; by default the pod's own account")
    option("namespace", _own_namespace(), "namespace of the leader election lease")
    option("runner-image", "qiskit-runner:latest", "image of the jobs' pods")
    option("runner-pull-policy", "IfNotPresent", "imagePullPolicy of the jobs' pods")
    option("circuit-timeout", 300.0, "seconds that a circuit's own code may take", float)
    option("source-timeout", 120.0, "seconds that fetching a url or git source may take", float)
    option("source-max-bytes", 10_000_000, "size of the code of a url or git source", int)
    option("git-max-bytes", 256_000_000, "what a Git repository may take up in the pod", int)
    option(
        "source-allow-cidr",
        "",
        "networks that sources may be fetched from beside the public Internet, with commas "
        "between them; by default none",
        _networks,
    )
    option(
        "source-deny-cidr",
        "",
        "networks that sources may not be fetched from, whatever else is allowed, such as those "
        "of pods and Services where these have public addresses",
        _networks,
    )
    option(
        "runner-pull-secrets",
        "",
        "names of Secrets for pulling the runner's image, with commas between them; they have to "
        "be in each namespace that has QiskitJobs",
        _names,
    )
    option(
        "price-book",
        None,
        "file with prices that come before the shipped ones, in the form of scheduling/prices.toml",
    )
    option("alert-webhook", None, "URL that alerts of QiskitBudgets are posted to, as JSON")
    option("workers", 8, "reconciles at a time", int)
    option("health-port", 8081, "port of /healthz and /readyz", int)
    option("metrics-port", 8080, "port of /metrics", int)
    option("lease-duration", 15.0, "seconds after which a silent leader is replaced", float)
    option("renew-deadline", 10.0, "seconds after which a leader that cannot renew stops", float)
    option("retry-period", 2.0, "seconds between two tries for the lease", float)
    option("log-level", "INFO", "DEBUG, INFO, WARNING or ERROR")
    option("log-format", None, "json or console; by default console on a terminal")
    return parser.parse_args(arguments)


def main() -> int:
    """Run one replica; the exit code is 0 only when it was told to stop."""
    given = parse()
    logs.configure(given.log_level, given.log_format)
    try:
        tariff = Tariff(prices.shipped(), _price_book(given.price_book))
    except (OSError, ValueError) as error:
        log.critical("ended", error=f"--price-book: {error}")
        return 1
    options = Options(
        tariff=tariff,
        alert_webhook=given.alert_webhook or None,
        namespace=given.namespace,
        kubeconfig=given.kubeconfig,
        workers=given.workers,
        health_port=given.health_port,
        metrics_port=given.metrics_port,
        lease_duration=given.lease_duration,
        renew_deadline=given.renew_deadline,
        retry_period=given.retry_period,
        settings=Settings(
            runner_image=given.runner_image,
            telemetry=otlp.passed_on(),
            pull_policy=given.runner_pull_policy,
            pull_secrets=given.runner_pull_secrets,
            bounds=Limits(
                circuit_seconds=given.circuit_timeout,
                source_seconds=given.source_timeout,
                source_bytes=given.source_max_bytes,
                git_bytes=given.git_max_bytes,
                source_allow_cidr=given.source_allow_cidr,
                source_deny_cidr=given.source_deny_cidr,
            ),
        ),
    )
    try:
        asyncio.run(serve(options))
    except (LeadershipLost, ApiError, TimeoutError, FileNotFoundError) as error:
        log.critical("ended", error=f"{type(error).__name__}: {error}")
        return 1
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())


def _networks(text: str) -> tuple[str, ...]:
    found = _names(text)
    for each in found:
        try:
            ipaddress.ip_network(each)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return found


def _price_book(path: str | None) -> prices.PriceBook | None:
    return prices.parse(Path(path).read_text()) if path else None


def _own_namespace() -> str:
    return _POD_NAMESPACE.read_text().strip() if _POD_NAMESPACE.exists() else "default"


if __name__ == "__main__":
    sys.exit(main())
