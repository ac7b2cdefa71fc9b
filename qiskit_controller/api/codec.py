"""API types from and to JSON-shaped dicts, through cattrs.

Names are camelCase on the wire. Absent and null are the same; None, "" and empty
collections are left out, as Go's ``omitempty`` does. Unknown fields are ignored on the way
in, so that an object written by a newer version can still be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from qiskit_controller.api.fields import describe, wire_name

T = TypeVar("T")


class DecodeError(ValueError):
    """An object does not have the form of its type; the message names each field."""


def _converter() -> cattrs.Converter:
    # Not prefer_attrib_converters: the types have none.
    converter = cattrs.Converter(detailed_validation=True)

    def structure(cls: type[Any]) -> Callable[[Any, Any], Any]:
        renames = {each.name: override(rename=wire_name(each.name)) for each in describe(cls)}
        build = make_dict_structure_fn(cls, converter, **cast(Any, renames))

        def from_dict(value: Any, target: Any) -> Any:
            if not isinstance(value, Mapping):
                raise TypeError(f"must be an object, not {type(value).__name__}")
            return build({k: v for k, v in value.items() if v is not None}, target)

        return from_dict

    def unstructure(cls: type[Any]) -> Callable[[Any], Any]:
        renames = {each.name: override(rename=wire_name(each.name)) for each in describe(cls)}
        write = make_dict_unstructure_fn(cls, converter, **cast(Any, renames))
        # What the other side must find, it gets, even empty.
        required = {wire_name(each.name) for each in describe(cls) if each.default is attrs.NOTHING}

        def to_dict(value: Any) -> dict[str, Any]:
            return {
                k: v
                for k, v in write(value).items()
                if k in required or v not in (None, "", [], {})
            }

        return to_dict

    converter.register_structure_hook_factory(attrs.has, structure)
    converter.register_unstructure_hook_factory(attrs.has, unstructure)
    converter.register_unstructure_hook(
        tuple, lambda value: [converter.unstructure(v) for v in value]
    )
    # JSON has one kind of number and no silent conversions: "5" is not an integer here.
    converter.register_structure_hook(int, _integer)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(str, _string)
    converter.register_structure_hook(bool, _boolean)
    converter.register_structure_hook(str | int | None, lambda value, _: value)
    converter.register_structure_hook(StrEnum, lambda value, cls: cls(value))
    converter.register_structure_hook_func(
        lambda cls: cast(Any, get_origin(cls)) is Literal, _one_of
    )
    return converter


def _integer(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise TypeError(f"must be an integer, not {value!r}")
    return int(value)


def _number(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"must be a number, not {value!r}")
    return float(value)


def _string(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be a string, not {value!r}")
    return value


def _boolean(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"must be true or false, not {value!r}")
    return value


def _one_of(value: Any, cls: Any) -> Any:
    if value not in get_args(cls):
        raise ValueError(f"must be one of {', '.join(get_args(cls))}, not {value!r}")
    return value


_CONVERTER = _converter()


def from_wire(value: Any, cls: type[T], path: str = "") -> T:
    """Read `cls` from a JSON-shaped value.

    Args:
        path: where the value stands in the object that the user wrote, for messages.

    Raises:
        DecodeError: a field is missing or has the wrong type.
    """
    try:
        return _CONVERTER.structure(value, cls)
    except cattrs.BaseValidationError as error:
        raise DecodeError("; ".join(_flatten(error, path))) from None
    except (TypeError, ValueError) as error:
        raise DecodeError(f"{path or 'object'}: {error}") from None


def to_wire(value: Any) -> Any:
    """Write an API type as a JSON-shaped value."""
    return _CONVERTER.unstructure(value)


def _flatten(error: BaseException, path: str) -> list[str]:
    """cattrs' tree of exceptions as one line a field, each with its path on the wire."""
    if not isinstance(error, cattrs.BaseValidationError):
        if isinstance(error, KeyError):
            return [f"{path}.{wire_name(str(error.args[0]))}".lstrip(".") + ": is required"]
        return [f"{path or 'object'}: {error}"]
    lines: list[str] = []
    for inner in error.exceptions:
        here = path
        for note in getattr(inner, "__notes__", ()):
            if isinstance(note, cattrs.AttributeValidationNote):
                here = f"{path}.{wire_name(note.name)}".lstrip(".")
            elif isinstance(note, cattrs.IterableValidationNote):
                here = f"{path}[{note.index}]"
        # A missing key carries the note of its own attribute already.
        inner_path = path if isinstance(inner, KeyError) else here
        lines += _flatten(inner, inner_path)
    return lines
