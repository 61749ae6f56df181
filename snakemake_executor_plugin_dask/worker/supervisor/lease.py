"""The supervisor's lease, and its connection to the driver, which renews it. Talks over TLS.

Time is counted by CLOCK_BOOTTIME, so that a host which was suspended finds its lease run out. A renewal that comes
after the lease ran out does not revive it: it may have waited in a buffer while this process stood still.
"""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any

from snakemake_executor_plugin_dask.model.either import either
from snakemake_executor_plugin_dask.model.lease_messages import RENEW_EVERY_S, encoded, hello

_SLACK_S = 2.0  # by so much a renewal may come later than the one before, as seen from its number
_SILENCE_S = 20.0  # then the connection is made anew
_CONNECT_S = 10.0
_RETRY_S = 2.0


def _boottime() -> float:
    """Seconds since the machine started, suspension included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseClock:
    """How long this worker's jobs may still live. Pure but for the clock."""

    def __init__(self, length_s: float, clock: Callable[[], float] = _boottime) -> None:
        self.length_s = length_s
        self._clock = clock
        self._since = clock()
        self._number: int | None = None

    def remaining_s(self) -> float:
        """Negative once it has run out; it stays so."""
        return self._since + self.length_s - self._clock()

    def renew(self, number: int | None = None, earliest: float | None = None) -> None:
        """Renew, unless it has run out.

        ``number`` counts renewals that are sent every 5 s. The driver counts the lease from when it sent a renewal, so
        one that was held up on its way must not count from its arrival: it counts from when it should have come after
        the one before. ``earliest`` is a time after which the driver is known to have sent it.
        """
        now = self._clock()
        if self._since + self.length_s < now:
            return
        if earliest is not None:
            sent, self._number = earliest, None
        elif number is None:
            sent = now
        else:
            steps = 1 if self._number is None else max(1, number - self._number)
            sent, self._number = min(now, self._since + steps * RENEW_EVERY_S + _SLACK_S), number
        self._since = max(self._since, sent)


class LeaseLine:
    """The connection to the driver: made again until the lease has run out."""

    def __init__(
        self,
        config: Mapping[str, Any],
        lease: LeaseClock,
        receive: Callable[[dict[str, Any]], None],
        uses: Callable[[], dict[str, tuple[float, float]]],
    ) -> None:
        """``config``: where the driver listens (host, port), paths of certificates (ca, cert, key), worker, run.

        ``receive`` gets every message but renewals; ``uses`` gives what each job uses now.
        """
        self._config = config
        self.lease = lease
        self._receive = receive
        self._uses = uses
        self._writer: asyncio.StreamWriter | None = None
        self._unsent: list[dict[str, Any]] = []
        self._connected = asyncio.Event()
        self._nobody = asyncio.Event()
        self._heard = 0
        self._context = ssl.create_default_context(cafile=config["ca"])
        self._context.check_hostname = False  # the certificate is the run's own, and so is its authority
        self._context.load_cert_chain(config["cert"], config["key"])

    async def run(self) -> None:
        """Connect, and connect again, until cancelled."""
        while True:
            try:
                await self._converse()
            except ConnectionRefusedError:
                self._nobody.set()  # the driver's host answers, and the driver is not there
            except (OSError, ValueError, EOFError):
                pass  # the lease says how long this may go on
            self._close()
            await asyncio.sleep(_RETRY_S)

    def say(self, message: dict[str, Any]) -> None:
        """Send now, or as soon as there is a connection."""
        if self._writer is None:
            self._unsent.append(message)
        else:
            self._write(message)

    async def flush(self) -> None:
        """Wait until everything was handed to the network, the lease runs out, or nobody listens."""
        with contextlib.suppress(OSError):
            async with asyncio.timeout(max(0.0, self.lease.remaining_s())):
                await either(self._connected.wait(), self._nobody.wait())
                if self._writer is not None:
                    await self._writer.drain()
                    self._writer.close()
                    await self._writer.wait_closed()

    async def _converse(self) -> None:
        config = self._config
        before = _boottime()
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_connection(config["host"], config["port"], ssl=self._context)
        self._writer = writer
        self._write(hello(config["worker"], config["run"]))
        for message in self._unsent:
            self._write(message)
        self._unsent.clear()
        self._connected.set()
        pulse = asyncio.create_task(self._pulse())
        try:
            first: float | None = before
            while True:
                async with asyncio.timeout(_SILENCE_S):
                    line = await reader.readline()
                if not line:
                    return
                message = json.loads(line)
                if "renew" in message:
                    self._heard = int(message["renew"])
                    # The answer to "hello" was sent after it. Later numbers follow one another.
                    self.lease.renew(self._heard, earliest=first)
                    first = None
                else:
                    self._receive(message)
        finally:
            pulse.cancel()

    async def _pulse(self) -> None:
        while True:
            self._write({"alive": self._heard, "uses": self._uses()})
            await asyncio.sleep(RENEW_EVERY_S)

    def _write(self, message: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encoded(message))

    def _close(self) -> None:
        self._connected.clear()
        if self._writer is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._writer.close()
        self._writer = None
