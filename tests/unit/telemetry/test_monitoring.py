"""What is deployed for Prometheus and Grafana, looked at by Prometheus' own promtool."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from .test_metrics import everything

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "manifests" / "components" / "monitoring"

sys.path.insert(0, str(ROOT / "hack"))
from localcluster import binaries  # noqa: E402 - found by the line before

Ask = Callable[[str], list[tuple[dict[str, str], float]]]


@cache
def promtool() -> Path:
    """Debian's, from the cache that the cluster's programs are in."""
    return binaries.prometheus() / "promtool"


def rules() -> dict[str, Any]:
    """What the PrometheusRule has in it, which is a file of rules to Prometheus."""
    (document,) = yaml.safe_load_all((FOLDER / "rules.yaml").read_text())
    spec: dict[str, Any] = document["spec"]
    return spec


ALERTS = {rule["alert"]: rule for group in rules()["groups"] for rule in group["rules"]}


@attrs.frozen
class Case:
    """Series, a sample a minute, in promtool's notation; when to look; what fires then."""

    series: dict[str, str]
    minutes: int
    labels: dict[str, str] = attrs.field(factory=dict)


JOB = 'job="qiskit-operator-metrics"'
LEADER = 'leader_election_master_status{name="qiskit-controller",pod="%s"}'
RECONCILES = 'controller_runtime_reconcile_total{controller="qiskitjob",result="%s"}'
WAITED = 'workqueue_queue_duration_seconds_bucket{name="qiskitjob",le="%s"}'
LAG = 'qiskit_watch_event_lag_seconds_bucket{name="pods",le="%s"}'
FINISHED = 'qiskit_job_finished_total{backend_type="ibm_quantum",phase="%s",reason="%s"}'
REQUESTS = 'rest_client_requests_total{verb="get",resource="jobs",code="%s"}'
PENDING = 'qiskit_jobs{backend_type="local_simulator",phase="Pending",pod="%s"}'
BEGUN = 'qiskit_job_phase_transitions_total{backend_type="local_simulator",phase="Validating"}'
COST = 'qiskit_job_cost_usd_total{backend_type="ibm_quantum"}'
BUDGET = 'qiskit_budget_%s_dollars{namespace="ns",budget="team"}'
DEVICE_UP = 'qiskit_backend_up{namespace="ns",backend="ibm",device="%s"}'
RETRIES = 'qiskit_job_retries_total{backend_type="ibm_quantum",reason="%s"}'

FIRE = {
    "QiskitControllerDown": Case({f"up{{{JOB}}}": "1x5 0x60"}, 15),
    "QiskitControllerNoLeader": Case({LEADER % "a": "0x60", LEADER % "b": "0x60"}, 5),
    "QiskitControllerTwoLeaders": Case({LEADER % "a": "1x60", LEADER % "b": "1x60"}, 5),
    "QiskitReconcilesFail": Case(
        {RECONCILES % "error": "0+6x60", RECONCILES % "success": "0+60x60"},
        20,
        {"controller": "qiskitjob"},
    ),
    "QiskitWorkQueueStuck": Case(
        {'workqueue_longest_running_processor_seconds{name="qiskitjob"}': "0+60x60"},
        5,
        {"name": "qiskitjob"},
    ),
    "QiskitWorkQueueSlow": Case(
        {WAITED % "1": "0+1x60", WAITED % "10": "0+10x60", WAITED % "+Inf": "0+10x60"},
        20,
        {"name": "qiskitjob"},
    ),
    "QiskitWatchesFail": Case(
        {
            'reflector_short_watches_total{name="pods"}': "0+2x60",
            'reflector_lists_total{name="pods"}': "0+1x60",
        },
        20,
        {"name": "pods"},
    ),
    "QiskitEventsLate": Case(
        {LAG % "10": "0+1x60", LAG % "30": "0+10x60", LAG % "+Inf": "0+10x60"},
        25,
        {"name": "pods"},
    ),
    "QiskitApiRequestsFail": Case({REQUESTS % "200": "0+60x60", REQUESTS % "503": "0+20x60"}, 20),
    "QiskitJobsFail": Case(
        {
            FINISHED % ("Completed", ""): "0+4x60",
            FINISHED % ("Failed", "BackendUnavailable"): "0+1x60",
        },
        45,
        {"backend_type": "ibm_quantum"},
    ),
    "QiskitJobsRetry": Case(
        {RETRIES % "BackendUnavailable": "0+1x60"},
        50,
        {"backend_type": "ibm_quantum", "reason": "BackendUnavailable"},
    ),
    "QiskitJobsWait": Case(
        {PENDING % "a": "3x120", PENDING % "b": "3x120", BEGUN: "7x120"},
        100,
    ),
    "QiskitJobsCost": Case({COST: "0+2.5x120"}, 90),
    "QiskitBudgetExhausted": Case(
        {BUDGET % "limit": "10x60", BUDGET % "spent": "7+0x60", BUDGET % "reserved": "0+1x60"},
        5,
        {"namespace": "ns", "budget": "team"},
    ),
    "QiskitBackendDown": Case(
        {DEVICE_UP % "a": "1x10 0x60", DEVICE_UP % "b": "0x70"},
        50,
        {"namespace": "ns", "backend": "ibm"},
    ),
}
# A working day: everything happens, nothing too much of it.
HEALTHY = Case(
    {
        f'up{{{JOB},pod="a"}}': "1x120",
        f'up{{{JOB},pod="b"}}': "1x20 0x10 1x90",
        LEADER % "a": "1x60 0x60",
        LEADER % "b": "0x60 1x60",
        RECONCILES % "error": "0+1x120",
        RECONCILES % "success": "0+60x120",
        'workqueue_longest_running_processor_seconds{name="qiskitjob"}': "0.2x120",
        WAITED % "1": "0+10x120",
        WAITED % "10": "0+10x120",
        WAITED % "+Inf": "0+10x120",
        'reflector_lists_total{name="pods"}': "1x120",
        'reflector_watches_total{name="pods"}': "0+0.2x120",
        LAG % "10": "0+10x120",
        LAG % "30": "0+10x120",
        LAG % "+Inf": "0+10x120",
        REQUESTS % "200": "0+60x120",
        REQUESTS % "503": "0+1x120",
        FINISHED % ("Completed", ""): "0+10x120",
        # Users err.
        FINISHED % ("Failed", "CircuitSyntaxError"): "0+10x120",
        RETRIES % "PodLost": "0+0.1x120",
        PENDING % "a": "3x120",
        BEGUN: "0+1x120",
        COST: "0+1x120",
        BUDGET % "limit": "10x120",
        BUDGET % "spent": "7x120",
        BUDGET % "reserved": "2x120",
        DEVICE_UP % "a": "1x120",
        DEVICE_UP % "b": "0x120",
    },
    110,
)


def run(folder: Path, case: Case, expected: dict[str, list[dict[str, str]]]) -> str:
    """promtool's verdict: "" if of these alerts exactly those fire."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules()))
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": n, "values": v} for n, v in case.series.items()],
                "alert_rule_test": [
                    {
                        "eval_time": f"{case.minutes}m",
                        "alertname": alert,
                        "exp_alerts": [{"exp_labels": labels} for labels in fired],
                    }
                    for alert, fired in expected.items()
                ],
            }
        ],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(test))
    command = [promtool(), "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def without_annotations(spec: dict[str, Any]) -> dict[str, Any]:
    """promtool compares them where they are; the texts are not what is tested."""
    for group in spec["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations")
    return spec


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules without their texts, but for the test that is about those."""
    full = rules()
    monkeypatch.setitem(
        globals(), "rules", lambda: without_annotations(json.loads(json.dumps(full)))
    )


def test_every_alert_has_a_case() -> None:
    assert set(FIRE) == set(ALERTS)


@pytest.mark.parametrize("alert", FIRE)
def test_an_alert_fires(tmp_path: Path, alert: str) -> None:
    case = FIRE[alert]
    labels = case.labels | ALERTS[alert]["labels"]
    assert run(tmp_path, case, {alert: [labels]}) == ""
    # Not from the first moment on, where the rule has patience.
    if "for" in ALERTS[alert]:
        assert run(tmp_path, attrs.evolve(case, minutes=0), {alert: []}) == ""


def test_nothing_fires_on_a_working_day(tmp_path: Path) -> None:
    assert run(tmp_path, HEALTHY, {alert: [] for alert in ALERTS}) == ""


def test_jobs_that_wait_where_none_ever_began_are_noticed(tmp_path: Path) -> None:
    case = Case({PENDING % "a": "1x120"}, 100)
    labels = ALERTS["QiskitJobsWait"]["labels"]
    assert run(tmp_path, case, {"QiskitJobsWait": [labels]}) == ""


def test_the_rules_are_well_formed(tmp_path: Path) -> None:
    (document,) = yaml.safe_load_all((FOLDER / "rules.yaml").read_text())
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(document["spec"]))
    command = [promtool(), "check", "rules", tmp_path / "rules.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for alert, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning"), alert
        assert set(rule["annotations"]) == {"summary", "description"}, alert


# --- metrics --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exposition() -> str:
    """All metrics, as ``/metrics`` shows them."""
    registry = CollectorRegistry()
    everything(registry)
    return generate_latest(registry).decode()


def test_promtool_finds_nothing_wrong_with_the_metrics(exposition: str) -> None:
    done = subprocess.run(
        [promtool(), "check", "metrics"],
        input=exposition,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def names_in(queries: str) -> set[str]:
    """The metrics that queries are about."""
    found = re.findall(
        r"\b(?:up|(?:qiskit|workqueue|controller_runtime|rest_client|leader|reflector|process)"
        r"_[a-z_]+)",
        queries,
    )
    return {each for each in found if each != "leader_election"}


def test_rules_and_dashboard_are_about_metrics_that_there_are(exposition: str) -> None:
    # "up" is Prometheus' own, process_* the client library's for Linux.
    there = set(re.findall(r"^(\w+)", exposition, re.MULTILINE)) | {
        "up",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
    }
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    queries = [each["expr"] for panel in dashboard["panels"] for each in panel.get("targets", ())]
    assert len(queries) > 30
    used = names_in(" ".join([*queries, *(rule["expr"] for rule in ALERTS.values())]))
    assert len(used) > 20
    assert used - there == set()


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A Prometheus that has scraped all metrics: the values that a query finds, by labels."""
    folder = tmp_path_factory.mktemp("prometheus")
    registry = CollectorRegistry()
    everything(registry)
    server, _ = start_http_server(0, "127.0.0.1", registry)
    targets = [{"targets": [f"127.0.0.1:{server.server_port}"], "labels": {"pod": "a"}}]
    scrape = {"job_name": "qiskit-operator-metrics", "static_configs": targets}
    scrape |= {"scrape_interval": "200ms", "scrape_timeout": "200ms"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [binaries.prometheus() / "prometheus", f"--web.listen-address={address}"]
    command += ["--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)

    def query(text: str) -> list[tuple[dict[str, str], float]]:
        url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': text})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                # Several scrapes, for what is a rate.
                if query('count_over_time(up{job="qiskit-operator-metrics"}[1m]) > 3'):
                    break
            time.sleep(0.1)
        yield query
    finally:
        process.terminate()
        process.wait(30)
        server.shutdown()


def test_a_real_prometheus_has_the_numbers(ask: Ask) -> None:
    assert [value for _, value in ask("qiskit_job_shots_total")] == [1024]
    assert [value for _, value in ask("qiskit_job_cost_usd_total")] == [1.5]
    ((labels, value),) = ask('qiskit_job_finished_total{phase="Completed"}')
    assert (labels["backend_type"], value) == ("local_simulator", 1)
    assert [value for _, value in ask("sum(qiskit_job_retries_total)")] == [1]


def test_every_query_of_the_dashboard_finds_something(ask: Ask) -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m")
            found = ask(text)
            # Those of the process, and jobs that failed, are not in this exposition.
            assert found or "process_" in text or 'phase="Failed"' in text, text
            for name in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                # Prometheus leaves out what is empty, such as the reason of a success.
                assert name in text or not found or name in found[0][0], (text, name)


def test_every_metric_is_documented(exposition: str) -> None:
    text = (ROOT / "docs" / "telemetry.md").read_text()
    for name in re.findall(r"^# TYPE (\w+)", exposition, re.MULTILINE):
        assert f"`{name}`" in text, name


def test_the_service_monitor_finds_the_service() -> None:
    (monitor,) = yaml.safe_load_all((FOLDER / "service_monitor.yaml").read_text())
    service = yaml.safe_load((ROOT / "manifests/manager/metrics_service.yaml").read_text())
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["namespace"] == service["metadata"]["namespace"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [each["name"] for each in service["spec"]["ports"]]
    # The label `job` of a ServiceMonitor's targets is the name of their Service.
    assert service["metadata"]["name"] == "qiskit-operator-metrics"
