"""Locations of results, taken apart."""

from __future__ import annotations

from typing import Any

import pytest

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.outputs import BadLocation, bucket_url, folders, problems_of_output
from qiskit_controller.api.qiskitjob import OutputSpec, QiskitJobSpec
from qiskit_controller.api.validation import problems_of


def output(**wire: Any) -> OutputSpec:
    return from_wire(wire, OutputSpec)


@pytest.mark.parametrize(
    ("location", "bucket", "key"),
    [
        ("s3://my-bucket/results/job-123", "my-bucket", "results/job-123/results.json"),
        ("s3://my-bucket", "my-bucket", "results.json"),
        ("s3://my-bucket/", "my-bucket", "results.json"),
        ("s3://My.bucket_1/a//b/", "My.bucket_1", "a//b/results.json"),
    ],
)
def test_a_location_is_a_folder(location: str, bucket: str, key: str) -> None:
    url = bucket_url(output(type="s3", location=location))
    assert (url.bucket, url.key("results.json")) == (bucket, key)
    assert url.url("results.json") == f"s3://{bucket}/{key}"


@pytest.mark.parametrize(
    "location",
    ["s3://", "s3:///x", "s3://-x", "s3://a b/x", "s3://b/\n", "s3://b/" + "x" * 1020, "gs://b"],
)
def test_locations_that_are_none(location: str) -> None:
    with pytest.raises(BadLocation, match=r"^spec\.output\.location: "):
        bucket_url(output(type="s3", location=location))


@pytest.mark.parametrize(
    ("path", "parts"), [(None, ()), ("", ()), ("a/b/", ("a", "b")), (".x/..y", (".x", "..y"))]
)
def test_paths(path: str | None, parts: tuple[str, ...]) -> None:
    assert folders(path) == parts


@pytest.mark.parametrize("path", ["/", "/a", "..", "a/../b", "a//b", "./a", "a\0", "ü" * 128])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(BadLocation, match=r"^spec\.output\.path: "):
        folders(path)


@pytest.mark.parametrize(
    ("wire", "field"),
    [
        ({"type": "gcs", "location": "gs://"}, "spec.output.location"),
        ({"type": "pvc", "location": "claim", "path": "../x"}, "spec.output.path"),
    ],
)
def test_they_are_refused_before_anything_is_started(wire: dict[str, str], field: str) -> None:
    assert [each.partition(": ")[0] for each in problems_of_output(output(**wire))] == [field]
    circuit = {"source": "inline", "code": "qc = 1"}
    spec = {"backend": {"type": "local_simulator"}, "circuit": circuit, "output": wire}
    assert [each for each in problems_of(from_wire(spec, QiskitJobSpec)) if field in each]


@pytest.mark.parametrize(
    "wire",
    [
        {},
        {"type": "pvc", "location": "claim", "path": "a"},
        {"type": "s3", "location": "s3://b"},
        # A rule says what is wrong with these.
        {"type": "s3"},
        {"type": "gcs", "location": "s3://b"},
    ],
)
def test_nothing_is_said_of_these(wire: dict[str, str]) -> None:
    assert list(problems_of_output(output(**wire))) == []
