"""OpenAPI v3 structural schemas from API types.

The result follows https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/
custom-resource-definitions/#specifying-a-structural-schema: every object states its
properties, nothing hides behind ``oneOf``.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.fields import describe, doc_of, rules_of, schema_of, wire_name

Schema = dict[str, Any]

_SCALARS: Mapping[type, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
}


def object_schema(cls: type) -> Schema:
    """The schema of an API type.

    Raises:
        TypeError: an attribute has a type that has no form on the wire.
    """
    properties: Schema = {}
    required: list[str] = []
    for attribute in describe(cls):
        name = wire_name(attribute.name)
        schema = _type_schema(attribute.type)
        schema |= {wire_name(keyword): value for keyword, value in schema_of(attribute).items()}
        schema["description"] = doc_of(attribute)
        if attribute.default is attrs.NOTHING:
            required.append(name)
        elif isinstance(attribute.default, attrs.Factory):  # type: ignore[arg-type]
            # An API type whose own fields all have defaults: an empty object makes the
            # server fill them in, so that the stored object shows every default.
            if schema["type"] == "object" and any(
                "default" in each for each in schema.get("properties", {}).values()
            ):
                schema["default"] = {}
        elif attribute.default not in (None, (), ""):
            schema["default"] = to_wire(attribute.default)
        properties[name] = schema
    result: Schema = {"type": "object", "properties": properties}
    if required:
        result["required"] = required
    if rules_of(cls):
        result["x-kubernetes-validations"] = [
            {"rule": rule.cel, "message": rule.message} for rule in rules_of(cls)
        ]
    return result


def _type_schema(annotation: Any) -> Schema:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _SCALARS:
        return dict(_SCALARS[annotation])
    if origin in (types.UnionType, Union):
        members = [each for each in arguments if each is not type(None)]
        if len(members) == 1:
            return _type_schema(members[0])
        if set(members) == {str, int}:
            return {
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "x-kubernetes-int-or-string": True,
            }
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin is tuple and arguments[1:] == (...,):
        return {"type": "array", "items": _type_schema(arguments[0])}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _type_schema(arguments[1])}
    if isinstance(annotation, type) and attrs.has(annotation):
        return object_schema(annotation)
    raise TypeError(f"{annotation!r} has no form on the wire")
