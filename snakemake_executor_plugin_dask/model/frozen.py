"""The standard library's `dataclass`, for frozen classes with slots, made in a tenth of the time. Pure.

Each of a run's processes makes a hundred of them while it starts, and has objects of few. The standard library writes
and compiles six functions for every class, which takes half a millisecond. Here all classes share them, and what is
compiled, `__init__`, is compiled with the first object. The same is true of a class in all else.
"""

import dataclasses
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - exported
else:

    def dataclass(*, frozen, slots, **options):
        """As that of the standard library; ``frozen`` and ``slots`` are demanded."""
        assert frozen
        assert slots
        return lambda cls: _made(cls, **options)


def _made(cls: type, *, kw_only: bool = False, eq: bool = True, repr: bool = True) -> type:  # noqa: A002 - as there
    cls = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))
    own = dict[str, Any](__init__=_first, __setattr__=_refused, __delattr__=_refused)
    own["_values"] = staticmethod(_values_of(names))
    if repr:
        own["__repr__"] = _repr
    if eq:
        own |= {"__eq__": _eq, "__hash__": _hash}
    if "__getstate__" not in vars(cls):
        own |= {"__getstate__": _state, "__setstate__": _set_state}
        own["_setters"] = tuple(getattr(cls, name).__set__ for name in names)
    for name, value in own.items():
        setattr(cls, name, value)
    return cls


def _values_of(names: tuple[str, ...]) -> Any:
    """What gives the values of an object's fields as a tuple."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda thing: tuple(getattr(thing, name) for name in names)


# What all classes share


def _first(self: Any, *arguments: Any, **named: Any) -> None:
    """``__init__`` of the first object of a class."""
    cls = type(self)
    cls.__init__ = _compiled(cls)
    cls.__init__(self, *arguments, **named)


def _compiled(cls: Any) -> Any:
    names = {"_set": object.__setattr__, "_factory": dataclasses.MISSING}
    parameters, named, body = ["self"], list[str](), list[str]()
    for field in dataclasses.fields(cls):
        text, value = field.name, field.name
        if field.default is not dataclasses.MISSING:
            names[f"_default_{field.name}"] = field.default
            text += f"=_default_{field.name}"
        elif field.default_factory is not dataclasses.MISSING:
            names[f"_make_{field.name}"] = field.default_factory
            text += "=_factory"
            value = f"_make_{field.name}() if {field.name} is _factory else {field.name}"
        (named if field.kw_only else parameters).append(text)
        body.append(f"    _set(self, {field.name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        body.append("    self.__post_init__()")
    parameters += ["*", *named] if named else []
    exec(f"def __init__({', '.join(parameters)}):\n" + "\n".join(body or ["    pass"]), names)  # noqa: S102 - names alone
    return names["__init__"]


def _refused(self: Any, name: str, *_: Any) -> None:
    msg = f"{type(self).__qualname__} is frozen: {name!r} cannot be set"
    raise dataclasses.FrozenInstanceError(msg)


def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: Any) -> Any:
    return self._values(self) == self._values(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(self._values(self))


def _state(self: Any) -> tuple[Any, ...]:
    return self._values(self)  # type: ignore[no-any-return]


def _set_state(self: Any, state: Sequence[Any]) -> None:
    for setter, value in zip(self._setters, state, strict=False):
        setter(self, value)
