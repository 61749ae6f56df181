"""Dask's scheduler and worker without their HTTP servers, and a scheduler that serves its pages under a secret path.

Dask opens plain HTTP on all interfaces for each scheduler and worker, with logs and metrics, whether or not the
dashboard is wanted. Imports Dask; opens the dashboard's socket.
"""

import asyncio
import hmac
import logging
import os
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

import dask.config
from distributed import Scheduler, Worker
from distributed.http.routing import RoutingApplication
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream, SSLIOStream
from tornado.netutil import bind_sockets, ssl_wrap_socket
from tornado.web import ErrorHandler, RedirectHandler

from snakemake_executor_plugin_dask.interior.dask_scheduler import calm_heartbeat
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.node.door import Door

#: Those that only show something. Left out: `api`, which can stop workers, and `proxy`, which forwards to workers.
PAGES = (
    "distributed.http.scheduler.prometheus",
    "distributed.http.scheduler.info",
    "distributed.http.scheduler.json",
    "distributed.http.health",
    "distributed.http.statics",
)

_BODY_MAX = 1 << 16  # nothing is uploaded
_JOBS_AT_ONCE = 4096


class _NoHTTP:
    """Stands before Dask's class: nothing but its own TLS port listens."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Open nothing."""


class _Discreet(Scheduler):
    """Tells no worker of others that are gone: here none has to do with another one.

    Where a hundred of a thousand are lost, that would be ninety thousand messages.
    """

    def worker_send(self, worker: str, msg: dict[str, Any]) -> None:
        """Of all that a scheduler says to its workers."""
        if msg.get("op") != "remove-worker":
            super().worker_send(worker, msg)


class QuietScheduler(_NoHTTP, _Discreet):
    """Dask's scheduler without HTTP server."""


class QuietWorker(_NoHTTP, Worker):
    """Dask's worker without HTTP server, which runs whatever it is sent.

    To the scheduler, and so to Dask's dashboard, it has the cores that it was made with.
    """

    async def _register_with_scheduler(self) -> None:
        await super()._register_with_scheduler()
        # Nothing is received before this returns. Jobs are coroutines, and hold no thread.
        self.state.nthreads = _JOBS_AT_ONCE

    async def heartbeat(self) -> None:
        """What it says is for the dashboard. A scheduler with few workers wants to hear it twice a second."""
        await super().heartbeat()
        calm_heartbeat(self)


class _Gate(RoutingApplication):
    """Answers below ``/<secret>/`` alone; whatever else is asked for, there is nothing, and no redirect either.

    Pages of other sites cannot open its web sockets: an Origin other than the host that was asked is refused. (A list
    of allowed origins would shut out tunnels, whose port on the user's machine is not known here.)
    """

    def __init__(self, routes: list[Any], prefix: str) -> None:
        super().__init__(routes)  # type: ignore[no-untyped-call]
        self._prefix = prefix.encode()
        self.strangers: dict[Any, asyncio.Future[None]] = {}  # by stream
        to_status = {"url": f"{prefix}/status", "permanent": False}
        self.add_handlers(".*$", [(rf"{prefix}/?", RedirectHandler, to_status)])

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        path = request.path.encode("utf-8", "surrogatepass")
        known = hmac.compare_digest(path[: len(self._prefix)], self._prefix)
        origin = request.headers.get("Origin")
        if (
            not known
            or path[len(self._prefix) :][:1] not in (b"", b"/")
            or (origin and urlsplit(origin).netloc != request.host)
        ):
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 404})
        passed = self.strangers.get(getattr(request.connection, "stream", None))
        if passed is not None and not passed.done():
            passed.set_result(None)
        return super().find_handler(request, **kwargs)


class _GuardedHTTPServer(HTTPServer):
    """Whoever does not know the secret path is a stranger, and is gone after a while."""

    gate: _Gate

    def add_sockets(self, sockets: Any) -> None:
        for sock in sockets:
            self._sockets[sock.fileno()] = sock
            self._handlers[sock.fileno()] = Door(sock, self._meet).close

    async def _meet(self, connection: socket.socket, address: Any) -> None:
        stream: IOStream | None = None
        try:
            if self.ssl_options is not None:
                wrapped = ssl_wrap_socket(connection, self.ssl_options, server_side=True, do_handshake_on_connect=False)
                stream = SSLIOStream(wrapped)
            else:
                stream = IOStream(connection)
            passed = self.gate.strangers[stream] = asyncio.get_running_loop().create_future()
            self.handle_stream(stream, address)
            await passed
        except BaseException:
            (stream or connection).close()
            raise
        finally:
            self.gate.strangers.pop(stream, None)


class DashboardScheduler(_Discreet):
    """Dask's scheduler with its pages under a secret path. ``link`` is complete."""

    link: str = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # bokeh warns of any wildcard; the gate has checked the origin before bokeh does.
        logging.getLogger("bokeh.server.util").setLevel(logging.ERROR)
        self._prefix = f"/{str(kwargs.get('http_prefix') or '').strip('/')}"
        if len(self._prefix) < 2:
            msg = "the dashboard needs a secret path (http_prefix)"
            raise ValueError(msg)
        with dask.config.set(
            {
                "distributed.scheduler.http.routes": list(PAGES),
                "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin": ["*"],
            }
        ):
            super().__init__(*args, **kwargs)

    def start_http_server(
        self, routes: list[Any], dashboard_address: str, default_port: int = 0, ssl_options: Any = None
    ) -> None:
        """Listen on the one address. ConfigurationError where that cannot be.

        Another port instead would leave the user's tunnel, or bookmark, at whoever has taken this one.
        """
        certificate = dask.config.get("distributed.scheduler.dashboard.tls.cert")
        if certificate:
            ssl_options = ssl.create_default_context(
                ssl.Purpose.CLIENT_AUTH, cafile=dask.config.get("distributed.scheduler.dashboard.tls.ca-file")
            )
            ssl_options.load_cert_chain(certificate, dask.config.get("distributed.scheduler.dashboard.tls.key"))
        host, _, port = dashboard_address.rpartition(":")
        host = host.strip("[]")
        self.http_application = _Gate(routes, self._prefix)
        self.http_server = _GuardedHTTPServer(self.http_application, ssl_options=ssl_options, max_body_size=_BODY_MAX)
        self.http_server.gate = self.http_application
        try:
            sockets = bind_sockets(int(port), host)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            msg = (
                f"--dask-dashboard {dashboard_address}: the dashboard cannot listen there ({why}); give another port, "
                "or `auto` for a free one."
            )
            raise ConfigurationError(msg) from error
        self.http_server.add_sockets(sockets)
        address, port_number = sockets[0].getsockname()[:2]
        self.http_server.address = address  # type: ignore[attr-defined]  # both are read by Dask
        self.http_server.port = port_number  # type: ignore[attr-defined]
        self.services["dashboard"] = self.http_server
        everywhere = host in ("0.0.0.0", "::")  # noqa: S104 - only compared: the user asked for it
        shown = socket.gethostname() if everywhere else f"[{host}]" if ":" in host else host
        scheme = "https" if certificate else "http"
        self.link = f"{scheme}://{shown}:{port_number}{self._prefix}/status"


def serve_beside(dashboard: DashboardScheduler, handlers: list[Any]) -> None:
    """Further pages, whose paths begin with the secret one."""
    dashboard.http_application.add_handlers(".*$", handlers)
