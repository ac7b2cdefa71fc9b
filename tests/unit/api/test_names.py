from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qiskit_controller.api import names

SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")

_part = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?", fullmatch=True)
# What may be the name of a QiskitJob, the long and the nasty ones above all.
job_names = (
    st.lists(_part, min_size=1, max_size=8).map(".".join).map(lambda name: name[:253].rstrip(".-"))
    | st.sampled_from(
        ["a", "0", "a" * 253, "a." * 126 + "a", "a" + "-" * 60 + "a", "x-2", "x-input"]
    )
    | st.integers(1, 250).map(lambda n: "a" + "-" * n + "b")
    | st.integers(1, 120).map(lambda n: "a." * n + "b")
)
attempts = st.integers(1, 1000)


def made_for(job: str, attempt: int) -> list[str]:
    return [
        names.base_name(job),
        names.job_name(job, attempt),
        names.input_name(job),
        names.record_name(job),
    ]


@given(job_names, attempts)
def test_names_are_valid_and_short_enough_for_a_label(job: str, attempt: int) -> None:
    assert SUBDOMAIN.fullmatch(job)
    for name in made_for(job, attempt):
        assert len(name) <= 63
        assert SUBDOMAIN.fullmatch(name), name
    assert SUBDOMAIN.fullmatch(names.default_output(job))
    assert len(names.default_output(job)) <= 253


@given(job_names, attempts)
def test_names_are_the_same_every_time_and_tell_things_apart(job: str, attempt: int) -> None:
    assert made_for(job, attempt) == made_for(job, attempt)
    config_maps = [names.input_name(job), names.record_name(job), names.default_output(job)]
    assert len(set(config_maps)) == 3
    assert names.job_name(job, 1) == names.base_name(job)
    assert len({names.job_name(job, n) for n in range(1, 20)}) == 19


@given(job_names, job_names)
def test_two_jobs_share_no_name(one: str, other: str) -> None:
    assume(one != other)
    for name in (names.base_name, names.input_name, names.record_name, names.default_output):
        assert name(one) != name(other)
    config_maps = {
        name(job) for job in (one, other) for name in (names.input_name, names.record_name)
    }
    assert len(config_maps) == 4


def test_cut_names_differ_although_they_begin_alike() -> None:
    assert names.base_name("a" * 100) != names.base_name("a" * 101)


@pytest.mark.parametrize("job", ["bell-state", "a" * 52])
def test_short_names_are_as_the_reference_says(job: str) -> None:
    assert names.base_name(job) == f"qiskit-job-{job}"
    assert names.default_output(job) == f"{job}-results"


def test_attempts_count_from_the_second() -> None:
    assert names.job_name("bell", 2) == "qiskit-job-bell-2"


@given(job_names)
def test_labels_are_valid(job: str) -> None:
    for value in names.labels(job, "0f6b0a5c-7c2f-4f0e-9d7c-1f6f0a5c7c2f").values():
        assert len(value) <= 63
        assert LABEL_VALUE.fullmatch(value)


def test_owned_is_what_refers_to_the_uid() -> None:
    owned = {"metadata": {"ownerReferences": [{"uid": "other"}, {"uid": "mine"}]}}
    assert names.belongs_to(owned, "mine")
    assert not names.belongs_to(owned, "theirs")
    assert not names.belongs_to({"metadata": {}}, "mine")
    assert not names.belongs_to({"metadata": {"ownerReferences": None}}, "mine")
    assert not names.belongs_to({}, "mine")
