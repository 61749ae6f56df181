"""Another value for a while, in an object of somebody else's."""

from typing import Any


class Instead:
    """Sets an attribute until the block is over. It must be there; else AttributeError."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self._value = owner, name, value

    def __enter__(self) -> None:
        self._saved = getattr(self._owner, self._name)
        setattr(self._owner, self._name, self._value)

    def __exit__(self, *_: object) -> None:
        setattr(self._owner, self._name, self._saved)
