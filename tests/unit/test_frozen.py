"""The plugin's frozen dataclasses behave as those of the standard library do."""

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

import pytest

from snakemake_executor_plugin_dask.model import frozen


def both(**options: Any) -> list[type]:
    """The same class, made by the standard library and here."""
    made = []
    for make in (dataclasses.dataclass, frozen.dataclass):

        @make(frozen=True, slots=True, **options)
        class Thing:
            """A class of each kind of field."""

            one: int
            two: str = "b"
            three: Mapping[str, int] | None = None
            made: list[int] = field(default_factory=list)

        made.append(Thing)
    return made


def told(do: Callable[[], Any]) -> str:
    """What comes of it, in words that are the same for two classes of one name."""
    try:
        return repr(do())
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
        return type(error).__name__


@pytest.mark.parametrize(
    "options", [{}, {"kw_only": True}, {"eq": False}, {"repr": False}, {"eq": False, "kw_only": True}]
)
def test_they_are_those_of_the_standard_library(options: dict[str, Any]) -> None:
    """In what can be made, compared, hashed, shown, changed, taken apart and matched."""
    found = []
    for cls in both(**options):
        thing, other = cls(one=1), cls(one=1, made=[])
        found.append(
            {
                "by position": told(lambda cls=cls: cls(1, "c").two),
                "too few": told(lambda cls=cls: cls()),
                "too many": told(lambda cls=cls: cls(one=1, four=4)),
                "fields": [each.name for each in dataclasses.fields(cls)],
                "asdict": dataclasses.asdict(thing),
                "equal": thing == other,
                "unequal": thing == cls(one=2),
                "of another kind": thing == 1,
                "repr": repr(thing) if options.get("repr", True) else "",
                "hash": told(lambda cls=cls: {hash(cls(one=1, made=())), hash(cls(one=1, made=()))}.__len__())
                if options.get("eq", True)
                else hash(thing) == hash(thing),
                "unhashable": told(lambda thing=thing: hash(thing)) if options.get("eq", True) else "",
                "set": told(lambda thing=thing: setattr(thing, "one", 2)),
                "delete": told(lambda thing=thing: delattr(thing, "one")),
                "replace": dataclasses.replace(thing, two="x").two,
                "made anew": thing.made is not other.made,
                "copied": copy.copy(thing).two,
                "match": cls.__match_args__,
                "parameters": list(inspect.signature(cls).parameters),
                "no dictionary": hasattr(thing, "__dict__"),
            }
        )
    assert found[0] == found[1]


@frozen.dataclass(frozen=True, slots=True)
class Travels:
    """For pickle, which finds it by name."""

    one: int
    two: tuple[str, ...] = ()


def test_they_travel_before_any_was_made_here() -> None:
    """What another process has pickled is read, and equal to what is made here."""
    data = pickle.dumps(Travels(1, ("a",)))
    del Travels.__init__
    assert pickle.loads(data) == pickle.loads(data)
    assert pickle.loads(data).two == ("a",)
