"""The objects of a job: who may do what, and above all who may not."""

from __future__ import annotations

import base64
import json
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qiskit_controller.api import names
from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.qiskitjob import QiskitJobSpec, SourceStatus
from qiskit_controller.api.quantities import parse_quantity
from qiskit_controller.api.run import PLAN_FILE, JobIdentity, Limits, Plan, PlannedSource
from qiskit_controller.reconcilers.qiskitjob import manifests
from qiskit_controller.reconcilers.qiskitjob.manifests import Manifest, Settings
from qiskit_controller.reconcilers.qiskitjob.observed import Source, ToFetch

from ..api import wire  # noqa: TID252 - tests are no package to be imported from
from .support import CODE, spec

SETTINGS = Settings(runner_image="registry.example/runner:1")
UID = "0f6b0a5c-7c2f-4f0e-9d7c-1f6f0a5c7c2f"

_specs = wire.specs.map(lambda value: from_wire(value, QiskitJobSpec))
_quick = settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)


def plan_of(wanted: QiskitJobSpec, name: str = "bell") -> Plan:
    fetched = wanted.circuit.source in ("url", "git")
    return Plan(
        job=JobIdentity(namespace="ns", name=name, uid=UID),
        spec=wanted,
        source=PlannedSource(
            file="circuit.py", sha256="" if fetched else "0" * 64, fetched=fetched
        ),
        record=names.record_name(name),
        output_location=wanted.output.location or names.default_output(name),
    )


def pod_spec(wanted: QiskitJobSpec, **more: Any) -> Manifest:
    job = manifests.kubernetes_job(plan_of(wanted), 2, SETTINGS, **more)
    pod: Manifest = job["spec"]["template"]["spec"]
    return pod


def containers(pod: Manifest) -> dict[str, Manifest]:
    return {each["name"]: each for each in (*pod.get("initContainers", ()), *pod["containers"])}


def volumes(pod: Manifest, container: Manifest) -> dict[str, Manifest]:
    """The volumes that a container sees."""
    by_name = {each["name"]: each for each in pod["volumes"]}
    return {each["name"]: by_name[each["name"]] for each in container["volumeMounts"]}


def holds_secret(volume: Manifest) -> bool:
    return "secret" in volume or any(
        "serviceAccountToken" in each or "secret" in each
        for each in volume.get("projected", {}).get("sources", ())
    )


# --- the security model -----------------------------------------------------------------------


@_quick
@given(_specs)
def test_the_users_code_gets_no_secret_of_any_kind(wanted: QiskitJobSpec) -> None:
    pod = pod_spec(wanted)
    circuit = containers(pod)["circuit"]
    assert "env" not in circuit
    assert "envFrom" not in circuit
    seen = volumes(pod, circuit)
    assert set(seen) <= {"input", "source", "work", "circuit-tmp", "circuit-shm"}
    assert not any(map(holds_secret, seen.values()))
    writable = {each["name"] for each in circuit["volumeMounts"] if not each.get("readOnly")}
    assert writable == {"work", "circuit-tmp", "circuit-shm"}


@_quick
@given(_specs)
def test_each_secret_is_seen_by_one_stage(wanted: QiskitJobSpec) -> None:
    pod = pod_spec(wanted)
    seen = {
        name: {volume for volume, each in volumes(pod, container).items() if holds_secret(each)}
        for name, container in containers(pod).items()
    }
    assert seen["executor"] - {"credentials"} == {"token"}
    assert seen.get("source", set()) <= {"git"}
    assert set(seen) <= {"source", "circuit", "executor"}
    given_ = wanted.credentials
    has_git = bool(given_ and given_.git_secret_ref and wanted.circuit.source == "git")
    assert ("git" in seen.get("source", set())) == has_git
    assert ("credentials" in seen["executor"]) == bool(given_ and given_.secret_ref)


@_quick
@given(_specs)
def test_the_token_is_mounted_by_hand_and_bound_to_the_pod(wanted: QiskitJobSpec) -> None:
    pod = pod_spec(wanted)
    assert pod["automountServiceAccountToken"] is False
    assert manifests.service_account(plan_of(wanted))["automountServiceAccountToken"] is False
    (token,) = (
        each["serviceAccountToken"]
        for volume in pod["volumes"]
        for each in volume.get("projected", {}).get("sources", ())
        if "serviceAccountToken" in each
    )
    assert token["expirationSeconds"] <= 3600
    assert "audience" not in token


@_quick
@given(_specs)
def test_the_stages_share_nothing_that_both_may_write(wanted: QiskitJobSpec) -> None:
    pod = pod_spec(wanted)
    writers: dict[str, set[str]] = {}
    for name, container in containers(pod).items():
        for mount in container["volumeMounts"]:
            if not mount.get("readOnly"):
                writers.setdefault(mount["name"], set()).add(name)
    assert all(len(each) == 1 for each in writers.values()), writers
    assert writers["work"] == {"circuit"}


@_quick
@given(_specs, st.none() | st.just(1))
def test_every_container_is_restricted(wanted: QiskitJobSpec, kept_by: int | None) -> None:
    pod = pod_spec(wanted, kept_by=kept_by)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(pod)
    for container in containers(pod).values():
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not {"privileged", "runAsUser", "seccompProfile"} & set(context)
        assert "envFrom" not in container
        assert all("valueFrom" not in each for each in container.get("env", ()))
        assert container["image"] == SETTINGS.runner_image
        assert container["command"] == ["qiskit-runner", container["name"]]
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
    kinds = {kind for volume in pod["volumes"] for kind in set(volume) - {"name"}}
    assert kinds <= {"configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim"}
    used = {each["name"] for one in containers(pod).values() for each in one["volumeMounts"]}
    assert used == {each["name"] for each in pod["volumes"]}


@_quick
@given(_specs)
def test_the_executor_may_fill_its_own_config_maps_and_nothing_else(wanted: QiskitJobSpec) -> None:
    plan = plan_of(wanted)
    (rule,) = manifests.role(plan)["rules"]
    expected = [plan.record] + ([plan.output_location] if wanted.output.type == "configmap" else [])
    assert rule == {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": expected,
        "verbs": ["get", "patch"],
    }
    binding = manifests.role_binding(plan)
    account = manifests.service_account(plan)
    assert binding["roleRef"]["name"] == manifests.role(plan)["metadata"]["name"]
    assert binding["roleRef"]["kind"] == "Role"
    (subject,) = binding["subjects"]
    assert (subject["kind"], subject["name"], subject["namespace"]) == (
        "ServiceAccount",
        account["metadata"]["name"],
        "ns",
    )
    assert pod_spec(wanted)["serviceAccountName"] == account["metadata"]["name"]


def test_a_pod_that_only_stores_runs_no_code() -> None:
    wanted = spec(circuit={"source": "git", "gitRef": {"repository": "r", "path": "p"}})
    pod = pod_spec(wanted, kept_by=1)
    assert list(containers(pod)) == ["executor"]
    assert {"work", "source"}.isdisjoint(volumes(pod, containers(pod)["executor"]))


# --- everything is the job's own ----------------------------------------------------------------


@_quick
@given(_specs)
def test_everything_is_owned_and_found_by_label(wanted: QiskitJobSpec) -> None:
    plan = plan_of(wanted)
    job = manifests.kubernetes_job(plan, 2, SETTINGS)
    made = [
        manifests.input_config_map(plan, Source("circuit.py", CODE)),
        manifests.empty_config_map(plan, plan.record),
        manifests.service_account(plan),
        manifests.role(plan),
        manifests.role_binding(plan),
        job,
    ]
    for each in made:
        metadata = each["metadata"]
        (owner,) = metadata["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("QiskitJob", "bell", UID)
        assert owner["controller"] is True
        assert owner["blockOwnerDeletion"] is True
        assert metadata["namespace"] == "ns"
        assert metadata["labels"][names.UID_LABEL] == UID
        assert metadata["labels"][names.MANAGED_BY] == names.MANAGER
        assert metadata["annotations"][names.JOB_ANNOTATION] == "bell"
    template = job["spec"]["template"]["metadata"]
    assert template["labels"] == job["metadata"]["labels"]
    assert template["labels"][names.ATTEMPT_LABEL] == "2"
    assert template["annotations"][names.JOB_ANNOTATION] == "bell"


def test_the_job_never_retries_by_itself() -> None:
    job = manifests.kubernetes_job(plan_of(spec()), 1, SETTINGS)
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert not {"activeDeadlineSeconds", "ttlSecondsAfterFinished"} & set(job["spec"])
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    assert annotations["kubectl.kubernetes.io/default-container"] == "executor"


@pytest.mark.parametrize("priority", ["low", "normal", "high", "urgent"])
def test_priority_becomes_a_priority_class(priority: str) -> None:
    pod = pod_spec(spec(execution={"priority": priority}))
    assert pod["priorityClassName"] == f"qiskit-{priority}"


def test_a_later_attempt_is_told_what_the_first_one_fetched() -> None:
    wanted = spec(circuit={"source": "git", "gitRef": {"repository": "r", "path": "p"}})
    fetched = SourceStatus(sha256="a" * 64, commit="b" * 40)
    source = containers(pod_spec(wanted, fetched=fetched))["source"]
    assert {each["value"] for each in source["env"]} == {"a" * 64, "b" * 40}
    assert containers(pod_spec(wanted))["source"]["env"] == []


# --- resources --------------------------------------------------------------------------------

_amounts = st.sampled_from([None, 0, 1, 8, "10m", "100m", "2", "64Mi", "1Gi", "16Gi", "1e3", "2k"])
_resources = st.fixed_dictionaries(
    {
        kind: st.fixed_dictionaries({"cpu": _amounts, "memory": _amounts})
        for kind in ("requests", "limits")
    }
)


@given(_resources)
def test_no_request_is_over_its_limit(given_: dict[str, dict[str, Any]]) -> None:
    for container in containers(pod_spec(spec(resources=given_))).values():
        made = container["resources"]
        assert set(made["requests"]) == set(made["limits"]) == {"cpu", "memory"}
        for name in ("cpu", "memory"):
            assert parse_quantity(made["requests"][name]) <= parse_quantity(made["limits"][name])
            asked, capped = given_["requests"][name], given_["limits"][name]
            if capped is not None:
                assert made["limits"][name] == capped
            if asked is not None and capped is None:
                assert made["requests"][name] == asked


def test_a_job_that_says_nothing_gets_the_operators_defaults() -> None:
    made = containers(pod_spec(spec()))["circuit"]["resources"]
    assert made == {"requests": dict(SETTINGS.requests), "limits": dict(SETTINGS.limits)}


# --- the input --------------------------------------------------------------------------------


def _plan_in(config_map: Manifest) -> Plan:
    return from_wire(json.loads(config_map["data"][PLAN_FILE]), Plan)


def test_the_input_holds_the_plan_and_the_code_once() -> None:
    plan = plan_of(spec())
    made = manifests.input_config_map(plan, Source("circuit.py", CODE))
    assert made["immutable"] is True
    assert made["data"]["circuit.py"] == CODE.decode()
    assert json.dumps(made).count(CODE.decode()) == 1
    slim = attrs.evolve(plan.spec, circuit=attrs.evolve(plan.spec.circuit, code=None))
    assert _plan_in(made) == attrs.evolve(plan, spec=slim)


def test_code_that_is_not_the_source_stays_part_of_the_spec() -> None:
    # Or the spec would seem to have changed after the start.
    plan = plan_of(
        spec(
            circuit={
                "source": "configmap",
                "configMapRef": {"name": "c", "key": "k"},
                "code": "left over",
            }
        )
    )
    assert _plan_in(manifests.input_config_map(plan, Source("k", CODE))).spec == plan.spec


def test_code_that_is_no_text_is_kept_byte_by_byte() -> None:
    content = bytes(range(256))
    made = manifests.input_config_map(plan_of(spec()), Source("c.qpy", content))
    assert base64.b64decode(made["binaryData"]["c.qpy"]) == content
    assert "c.qpy" not in made["data"]


def test_code_that_the_pod_fetches_is_not_in_the_input() -> None:
    wanted = spec(circuit={"source": "url", "url": "https://example.com/circuit.py"})
    made = manifests.input_config_map(plan_of(wanted), ToFetch("circuit.py"))
    assert set(made["data"]) == {PLAN_FILE}
    assert _plan_in(made).source.fetched


@_quick
@given(_specs)
def test_the_plan_is_small_beside_the_code(wanted: QiskitJobSpec) -> None:
    made = manifests.input_config_map(plan_of(wanted), Source("circuit.py", b"x" * 1_000_000))
    rest = len(made["data"][PLAN_FILE]) - len(wanted.circuit.code or "")
    assert rest < 16_384


def test_volumes_are_bounded() -> None:
    for each in pod_spec(spec())["volumes"]:
        if "emptyDir" in each:
            # What is in memory counts against the container's limit.
            assert "sizeLimit" in each["emptyDir"] or each["emptyDir"] == {"medium": "Memory"}
    limits = Limits()
    work = next(each for each in pod_spec(spec())["volumes"] if each["name"] == "work")
    assert int(work["emptyDir"]["sizeLimit"]) >= limits.circuit_bytes
