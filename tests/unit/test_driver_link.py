"""The driver's messages as Snakemake's process reads them."""

import socket
from types import SimpleNamespace
from typing import Any

from unreadable import OfAnotherVersion

from snakemake_executor_plugin_dask.frontend.driver_process import DriverLink
from snakemake_executor_plugin_dask.frontend.launching import Launched
from snakemake_executor_plugin_dask.model.jobs import RunSetup
from snakemake_executor_plugin_dask.model.messages import Begin, Say, Stopped
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.wire import Channel

SETUP = RunSetup("/work", 0o22, (), {}, True, "python", "abcdefg1", "Snakefile", (), "9.27.1", "0.1.0")


def test_an_error_with_one_message_is_told_and_the_next_ones_are_read() -> None:
    """One that cannot be unpickled, one with which Snakemake's own code has a fault; then the last one arrives."""
    ours, theirs = socket.socketpair()
    heard: list[Any] = []
    errors: list[BaseException] = []

    def hear(message: Any) -> None:
        heard.append(message.text)
        if message.text == "bad":
            raise KeyError(message.text)

    driver = Channel(theirs)
    driver.send(Say("info", "good"))
    driver.send(OfAnotherVersion())
    for message in (Say("info", "bad"), Say("info", "good again"), Stopped()):
        driver.send(message)

    process: Any = SimpleNamespace(wait=lambda _: 0)
    begin = Begin(SETUP, Options(pools=()), "/state", "/state.events.jsonl")
    link = DriverLink(begin, hear, heard.append, errors.append, Launched(process, ours))
    assert link.stop(kill=False, timeout_s=30)
    assert driver.receive() == begin
    assert heard == ["good", "bad", "good again"]
    assert [type(error) for error in errors] == [ModuleNotFoundError, KeyError]
    assert link.last == Stopped()
