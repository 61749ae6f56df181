"""Reach a Dask scheduler that others brought up, or say within seconds why it cannot be reached. Opens connections.

Dask's own client tries again and again until a long time is over, and then says no more than that.
"""

import asyncio
import contextlib
import socket
import ssl
from typing import Any

from distributed import Client
from distributed.security import Security

from snakemake_executor_plugin_dask.config.schedulerfile import scheduler_address
from snakemake_executor_plugin_dask.interior import dask_network
from snakemake_executor_plugin_dask.model.errors import ConfigurationError

_REACH_S = 5.0
GREETING_S = 2.0  # a scheduler greets whoever connects; one that is busy may take longer
CONNECT_S = 15.0


async def connect(scheduler: str, *, greeting_s: float = GREETING_S, connect_s: float = CONNECT_S) -> tuple[Any, str]:
    """A client, and the scheduler's address. ``scheduler``: an address or a scheduler file. ConfigurationError."""
    try:
        address = scheduler_address(scheduler)
    except ValueError as error:
        msg = f"--dask-scheduler is {scheduler!r}, which {error}."
        raise ConfigurationError(msg) from error
    named = address if address == scheduler else f"{address} (named by the scheduler file {scheduler})"
    context = _context(named) if address.startswith("tls://") else None
    await _probe(address, named, context, greeting_s)
    try:
        async with asyncio.timeout(connect_s):  # Dask's own timeout is for the connection, and not for what follows
            client = await Client(address, asynchronous=True, set_as_default=False, name="snakemake")
    except (OSError, TimeoutError, ValueError, ImportError, RuntimeError) as error:
        msg = (
            f"Something listens at {named}, but does not answer as a Dask scheduler would within {connect_s:.0f} s "
            f"({error!r})."
        )
        raise ConfigurationError(msg) from error
    return client, address


def _context(named: str) -> ssl.SSLContext:
    """Dask's own TLS configuration, as its clients use it."""
    try:
        context = Security().get_connection_args("client").get("ssl_context")
    except (OSError, ValueError) as error:
        msg = f"Dask's TLS configuration (distributed.comm.tls) for {named} cannot be used: {error}."
        raise ConfigurationError(msg) from error
    if context is None:
        msg = (
            f"{named} needs Dask's TLS configuration, which names no certificates here: set "
            "distributed.comm.tls.ca-file, and client.cert and client.key below it, to files that the cluster trusts."
        )
        raise ConfigurationError(msg)
    found: ssl.SSLContext = context
    return found


async def _probe(address: str, named: str, context: ssl.SSLContext | None, greeting_s: float) -> None:
    """Raise ConfigurationError where a connection shows for certain that the client would try in vain."""
    host, port = dask_network.host_and_port(address)
    try:
        await _reach(host, port)
        greeted = await _greeted(host, port, context, greeting_s)
        if not greeted and context is None and await _speaks_tls(host, port, greeting_s):
            msg = f"The scheduler at {named} speaks TLS; name it as tls://{host}:{port}, with Dask's TLS configuration."
            raise ConfigurationError(msg)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        if error.reason in {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"}:
            msg = f"The scheduler at {named} does not speak TLS ({reason}); name it as tcp://{host}:{port}."
        else:
            msg = (
                f"The TLS handshake with {named} failed ({reason}): Dask's configuration here (distributed.comm.tls) "
                "must name the certificate authority and a client certificate of that cluster."
            )
        raise ConfigurationError(msg) from error
    except ConnectionRefusedError as error:
        msg = f"Nothing listens at {named}: the connection was refused; start the cluster, or correct --dask-scheduler."
        raise ConfigurationError(msg) from error
    except socket.gaierror as error:
        msg = f"The host of {named} is not known here ({error.strerror}); correct --dask-scheduler."
        raise ConfigurationError(msg) from error
    except TimeoutError as error:
        msg = f"{named} cannot be reached: no connection within {_REACH_S:.0f} s; is there a firewall in between?"
        raise ConfigurationError(msg) from error
    except OSError as error:
        msg = f"{named} cannot be reached ({error.strerror or error}); correct --dask-scheduler."
        raise ConfigurationError(msg) from error


async def _reach(host: str, port: int) -> None:
    """Raises OSError where nobody accepts connections."""
    async with asyncio.timeout(_REACH_S):
        _, writer = await asyncio.open_connection(host, port)
    await _close(writer)


async def _greeted(host: str, port: int, context: ssl.SSLContext | None, greeting_s: float) -> bool:
    """Whether whoever listens says something at once. Raises OSError, among it SSLError.

    With TLS 1.3 only this first word shows that the client's own certificate was accepted.
    """
    try:
        async with asyncio.timeout(greeting_s):
            hostname = None if context is None else host
            reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=hostname)
            try:
                return bool(await reader.read(1))
            finally:
                await _close(writer)
    except TimeoutError:
        return False


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(GREETING_S):
            await writer.wait_closed()


async def _speaks_tls(host: str, port: int, greeting_s: float) -> bool:
    """Whether it answers a TLS greeting, whatever it then thinks of the certificate that it is not shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        return await _greeted(host, port, context, greeting_s)
    except ssl.SSLError as error:
        return error.reason not in {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"}
    except OSError:
        return False
