"""Dataclasses to and from plain JSON values, strictly: an unknown or mistyped field is refused by its full name."""

import dataclasses
import hashlib
import json
import types
import typing
from typing import Any, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")


def to_dict(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists: what ``json.dumps`` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    return value


def from_dict(cls: type[T], data: Any, name: str = "") -> T:
    """Build ``cls`` from JSON values. Raises ValueError naming the field, what is wrong and the choices."""
    return _convert(cls, data, name)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of a dataclass or JSON value."""
    return hashlib.sha256(json.dumps(to_dict(value), sort_keys=True).encode()).hexdigest()


def _convert(kind: Any, value: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, name)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        (kind,) = (arg for arg in args if arg is not type(None))  # only "X | None" is used
        return _convert(kind, value, name)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{name} must be one of {', '.join(map(str, args))}; got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a list, got {value!r}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ValueError(f"{name} must have {len(kinds)} items, got {len(value)}")
        return tuple(_convert(k, v, f"{name}.{i}") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be an object, got {value!r}")
        return {key: _convert(args[1], item, f"{name}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Any or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    raise ValueError(f"{name} must be {_NAMES.get(kind, kind)}, got {value!r}")


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", dict: "an object"}


def _dataclass(cls: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name or cls.__name__} must be an object, got {value!r}")
    hints = typing.get_type_hints(cls)
    prefix = f"{name}." if name else ""
    for key in value:
        if key not in hints:
            raise ValueError(f"unknown field {prefix}{key}; the fields are {', '.join(hints)}")
    required = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for key in required:
        if key not in value:
            raise ValueError(f"missing field {prefix}{key}")
    return cls(**{key: _convert(hints[key], item, prefix + key) for key, item in value.items()})
