"""Objects as the API server would let them through: generated from the schema, defaulted by it.

The strategies know the schema and nothing of the Python types, so that the two can be held
against each other.
"""

from __future__ import annotations

import copy
import string
from typing import Any

from hypothesis import strategies as st

from qiskit_controller.api.crd import qiskitjob_crd

Schema = dict[str, Any]
Wire = dict[str, Any]

CRD = qiskitjob_crd()
ROOT: Schema = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SPEC: Schema = ROOT["properties"]["spec"]
STATUS: Schema = ROOT["properties"]["status"]

_TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")) | st.sampled_from("\n\t\"'"),
    max_size=12,
)
_NAME = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
_TIME = "2026-01-01T00:00:00Z"
# Where a rule looks at the beginning of a text, plain random text would never get it right.
_LIKELY = {
    "url": ("https://example.com/c.py", "http://a", "ftp://example.com", "https:/x", ""),
    "location": (
        "s3://bucket/key",
        "gs://bucket/key",
        "my-results",
        "my.results",
        "My-Results",
        "a_b",
        "-a",
        "a-",
        "a..b",
        "s3:/bucket",
        "x" * 253,
        "x" * 254,
    ),
    "code": ("", "qc = 1\n"),
    "type": ("ibm_quantum",),
}


def values(schema: Schema, name: str = "") -> st.SearchStrategy[Any]:
    """JSON values that the schema lets through."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return st.integers(0, 64) | st.sampled_from(["500m", "2", "1.5", "4Gi", "1e3", "0.1"])
    match schema["type"]:
        case "object" if "additionalProperties" in schema:
            return st.dictionaries(_NAME, values(schema["additionalProperties"]), max_size=3)
        case "object":
            return _objects(schema)
        case "array":
            if "x-kubernetes-list-map-keys" in schema:
                (key,) = schema["x-kubernetes-list-map-keys"]
                return st.lists(
                    values(schema["items"]), max_size=3, unique_by=lambda item: item[key]
                )
            return st.lists(values(schema["items"]), max_size=3)
        case "boolean":
            return st.booleans()
        case "integer":
            bits = 31 if schema.get("format") == "int32" else 53
            return st.integers(
                schema.get("minimum", -(2**bits)), schema.get("maximum", 2**bits - 1)
            )
        case "number":
            return st.floats(
                schema.get("minimum", -1e9), schema.get("maximum", 1e9), allow_nan=False
            ) | st.sampled_from([0, 1])
    return _strings(schema, name)


def _strings(schema: Schema, name: str) -> st.SearchStrategy[str]:
    low, high = schema.get("minLength", 0), schema.get("maxLength", 10**9)
    if schema.get("format") == "date-time":
        return st.just(_TIME)
    if "pattern" in schema:
        made = st.from_regex(schema["pattern"], fullmatch=True).map(lambda text: text[:high])
        return made.filter(lambda text: len(text) >= low)
    made = st.sampled_from(_LIKELY[name]) | _TEXT if name in _LIKELY else _TEXT
    return made.filter(lambda text: low <= len(text) <= high)


def _objects(schema: Schema) -> st.SearchStrategy[Wire]:
    required = schema.get("required", ())
    made = {name: values(each, name) for name, each in schema["properties"].items()}
    return st.fixed_dictionaries(
        {name: each for name, each in made.items() if name in required},
        optional={name: each for name, each in made.items() if name not in required},
    )


def defaulted(schema: Schema, value: Any) -> Any:
    """The value with the schema's defaults, as the API server stores it."""
    if schema.get("type") == "array":
        return [defaulted(schema["items"], each) for each in value]
    if schema.get("type") != "object" or "properties" not in schema:
        return copy.deepcopy(value)
    result = dict(value)
    for name, inner in schema["properties"].items():
        if name not in result and "default" in inner:
            result[name] = copy.deepcopy(inner["default"])
        if name in result:
            result[name] = defaulted(inner, result[name])
    return result


def omit_empty(value: Any) -> Any:
    """The value without what means the same as nothing: null, "" and empty collections."""
    if isinstance(value, list):
        return [omit_empty(each) for each in value]
    if not isinstance(value, dict):
        return value
    slim = {key: omit_empty(each) for key, each in value.items()}
    return {key: each for key, each in slim.items() if each not in (None, "", [], {})}


specs = _objects(SPEC)
statuses = _objects(STATUS)
