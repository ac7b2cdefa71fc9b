"""Fields of the API types: one declaration serves Python, the wire and the CRD.

An API type is an attrs class whose attributes are made by :func:`field`. The
declaration carries what Kubernetes needs to know and Python does not: the text that
``kubectl explain`` shows, and the OpenAPI bounds that the API server enforces.
:mod:`qiskit_controller.api.schema` turns it into a CRD,
:mod:`qiskit_controller.api.codec` into conversions from and to JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

DOC = "doc"
SCHEMA = "schema"
RULES = "rules"

_UNSET: Any = object()


@attrs.frozen
class Rule:
    """A condition over one object that OpenAPI cannot express.

    It is stated twice, because servers before Kubernetes 1.25 do not know CEL: `cel` goes
    into the CRD, `holds` is what the controller checks. A test holds the two against each
    other on generated objects.

    Attributes:
        cel: the expression for ``x-kubernetes-validations``; ``self`` is the object.
        holds: the same over the decoded object.
        message: what the user is told. It begins with the field it is about, relative to
            the object that carries the rule.
    """

    cel: str
    holds: Callable[[Any], bool]
    message: str


def field(doc: str, *, default: Any = _UNSET, factory: Any = None, **schema: Any) -> Any:
    """Declare an attribute of an API type.

    Args:
        doc: what ``kubectl explain`` shows.
        default: the value when absent; a default other than None also goes into the CRD,
            so that the stored object shows it. Without one the field is required.
        factory: like attrs' ``factory``; an empty collection, never written into the CRD.
        **schema: OpenAPI v3 keywords to add, such as ``minimum`` or ``pattern``.
    """
    metadata = {DOC: doc, SCHEMA: schema}
    if factory is not None:
        return attrs.field(factory=factory, metadata=metadata, kw_only=True)
    if default is _UNSET:
        return attrs.field(metadata=metadata, kw_only=True)
    return attrs.field(default=default, metadata=metadata, kw_only=True)


def wire_name(attribute: str) -> str:
    """The camelCase name of a Python attribute on the wire (``max_cost`` -> ``maxCost``)."""
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), attribute)


def describe(cls: type) -> tuple[attrs.Attribute[Any], ...]:
    """The attributes of an API type, with string annotations resolved."""
    attrs.resolve_types(cls)
    return tuple(attrs.fields(cls))


def doc_of(attribute: attrs.Attribute[Any]) -> str:
    """The description given to :func:`field`."""
    return str(attribute.metadata[DOC])


def schema_of(attribute: attrs.Attribute[Any]) -> Mapping[str, Any]:
    """The extra OpenAPI keywords given to :func:`field`."""
    keywords: Mapping[str, Any] = attribute.metadata[SCHEMA]
    return keywords


def rules_of(cls: type) -> tuple[Rule, ...]:
    """The rules of an API type, in the order in which they are reported."""
    return tuple(getattr(cls, "RULES", ()))
