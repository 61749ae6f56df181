"""Pickles of dataclasses that hold fields by name, for what other versions of this package may read. Pure."""

from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

_T = TypeVar("_T")


def by_name(cls: type[_T]) -> type[_T]:
    """Pickles of this frozen dataclass hold its fields by name: other versions may have some more, or fewer.

    A dataclass with slots goes by position otherwise, and takes one field for another. A field that is missing has its
    default; TypeError where it has none.
    """

    def state(self: Any) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_state(self: Any, values: Any) -> None:
        for field in fields(self):
            known = isinstance(values, dict) and field.name in values
            if not known and field.default is MISSING and field.default_factory is MISSING:
                msg = f"{cls.__name__} of another version: no {field.name}"
                raise TypeError(msg)
            object.__setattr__(self, field.name, values[field.name] if known else _default(field))

    for name, method in (("__getstate__", state), ("__setstate__", set_state)):
        setattr(cls, name, method)
    return cls


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default
