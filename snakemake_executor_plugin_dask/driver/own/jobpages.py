"""The pages of jobs' own Dask clusters, below the secret path of the run's own dashboard.

A job's scheduler serves its pages over TLS to whoever has the job's certificate, which is this process alone. So what a
browser asks for here, pages and web sockets alike, goes there as it is, and so does the answer.
"""

import asyncio
import html
import os
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from tornado.iostream import StreamClosedError
from tornado.tcpclient import TCPClient
from tornado.web import RequestHandler

from snakemake_executor_plugin_dask.model.either import either
from snakemake_executor_plugin_dask.model.frozen import dataclass

_CONNECT_S = 10.0
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class _Page:
    name: str  # of the job, for people
    host: str
    port: int
    context: ssl.SSLContext


class JobPages:
    """Those of the jobs that run, by the keys of their attempts."""

    def __init__(self, prefix: str) -> None:
        """``prefix``: the secret path, which is asked for before anything here is."""
        self._prefix = prefix
        self._pages: dict[str, _Page] = {}  # by the attempt's key

    def path(self, key: str) -> str:
        """Where a job's pages are, here and at its own scheduler alike."""
        return f"{self._prefix}/job/{quote(key, safe='')}"

    def show(self, key: str, name: str, host: str, port: int, certificate: tuple[str, str]) -> None:
        """A job's scheduler serves its pages there from now on, to who has this certificate. Raises OSError."""
        self._pages[key] = _Page(name, host, port, _context(certificate))

    def hide(self, key: str) -> None:
        """The job is over. May be repeated."""
        self._pages.pop(key, None)

    def handlers(self) -> list[tuple[Any, ...]]:
        """For the run's own server: a list of all, and each one's."""
        prefix = self._prefix
        return [
            (rf"{prefix}/jobs/?", _List, {"pages": self._pages, "path": self.path}),
            (rf"{prefix}/job/([^/]+)(/.*)", _Of, {"pages": self._pages}),
        ]


class _List(RequestHandler):
    def initialize(self, pages: dict[str, _Page], path: Callable[[str], str]) -> None:
        self._pages, self._path = pages, path

    def get(self) -> None:
        rows = [
            f'<li><a href="{self._path(key)}/status">{html.escape(page.name)}</a></li>'
            for key, page in self._pages.items()
        ]
        text = f"<ul>{''.join(rows)}</ul>" if rows else "<p>No job with a Dask cluster of its own runs now.</p>"
        title = "Dask clusters of jobs"
        self.write(f"<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1>{text}")


class _Of(RequestHandler):
    def initialize(self, pages: dict[str, _Page]) -> None:
        self._pages = pages

    async def get(self, key: str, _: str) -> None:
        page = self._pages.get(key)
        if page is None:
            self.send_error(404)
            return
        try:
            connecting = TCPClient().connect(page.host, page.port, ssl_options=page.context)
            theirs = await asyncio.wait_for(connecting, _CONNECT_S)
        except (OSError, StreamClosedError, TimeoutError):
            self.send_error(502)
            return
        request, ours = self.request, self.detach()
        lines = [f"GET {request.uri} HTTP/1.1"]
        sockets = request.headers.get("Upgrade", "").lower() == "websocket"
        for name, value in request.headers.get_all():
            if sockets or name not in ("Connection", "Keep-Alive"):
                lines.append(f"{name}: {value}")
        lines += [] if sockets else ["Connection: close"]  # one answer, and then its end
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        try:
            await theirs.write(head)
            await either(_pass_on(theirs, ours.write), _pass_on(ours, theirs.write))
        finally:
            ours.close()
            theirs.close()


async def _pass_on(source: Any, write: Callable[[bytes], Awaitable[None]]) -> None:
    with suppress(StreamClosedError):
        while True:
            await write(await source.read_bytes(_CHUNK_BYTES, partial=True))


def _context(certificate: tuple[str, str]) -> ssl.SSLContext:
    """Both sides show the job's certificate, which nobody else has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=certificate[0])
    with tempfile.NamedTemporaryFile() as file:  # a file that only the user can read
        os.write(file.fileno(), "".join(certificate).encode())
        context.load_cert_chain(file.name)
    return context
