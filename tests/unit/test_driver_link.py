"""The driver's messages as Snakemake's process reads them."""

import socket
import struct
import threading
from types import SimpleNamespace
from typing import Any

from snakemake_executor_plugin_dask.frontend.driver_process import DriverLink
from snakemake_executor_plugin_dask.model.messages import Channel, Say, Stopped


def test_an_error_with_one_message_is_told_and_the_next_ones_are_read() -> None:
    """One that cannot be unpickled, one with which Snakemake's own code has a fault; then the last one arrives."""
    ours, theirs = socket.socketpair()
    link = DriverLink.__new__(DriverLink)
    heard: list[Any] = []
    errors: list[BaseException] = []

    def hear(message: Any) -> None:
        heard.append(message.text)
        if message.text == "bad":
            raise KeyError(message.text)

    link._on_message, link._on_error, link._on_loss = hear, errors.append, heard.append
    link._stopped, link.last, link._channel = threading.Event(), None, Channel(ours)
    link._process = SimpleNamespace(wait=lambda: 0)  # type: ignore[assignment]
    driver = Channel(theirs)
    broken = b"\x80\x05cno_such_module\nNothing\n."
    driver.send(Say("info", "good"))
    theirs.sendall(struct.pack("!I", len(broken)) + broken)
    for message in (Say("info", "bad"), Say("info", "good again"), Stopped()):
        driver.send(message)
    reader = threading.Thread(target=link._read, daemon=True)
    reader.start()
    reader.join(30)
    assert heard == ["good", "bad", "good again"]
    assert [type(error) for error in errors] == [ModuleNotFoundError, KeyError]
    assert link.last == Stopped()
