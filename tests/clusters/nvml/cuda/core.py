"""No context is made on any device."""


class Device:
    """The current one."""

    def set_current(self) -> None: ...
