"""The pages of jobs' own Dask clusters, below the secret path of the run's."""

import asyncio
import ssl
import tempfile
from pathlib import Path

from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler, websocket_connect

from snakemake_executor_plugin_dask.driver.own.jobpages import JobPages
from snakemake_executor_plugin_dask.node.certificate import self_signed


class Page(RequestHandler):
    def get(self) -> None:
        self.write(f"{self.request.uri} {self.request.headers['Connection']}")


class Echo(WebSocketHandler):
    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)


def served(application: Application, context: ssl.SSLContext | None = None) -> int:
    server = HTTPServer(application, ssl_options=context)
    (listening,) = bind_sockets(0, "127.0.0.1")
    server.add_socket(listening)
    return int(listening.getsockname()[1])


def of_job(certificate: tuple[str, str]) -> ssl.SSLContext:
    """As the job's scheduler has it (`injob/cluster.py`)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as name:
        for file, text in zip(("cert", "key"), certificate, strict=True):
            Path(name, file).write_text(text)
        context.load_cert_chain(Path(name, "cert"), Path(name, "key"))
        context.load_verify_locations(Path(name, "cert"))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def status(url: str) -> int:
    try:
        return (await AsyncHTTPClient().fetch(url)).code
    except HTTPClientError as error:
        return error.code


def test_any_name_has_a_page() -> None:
    """Also one that is not ASCII, or that looks like a quoted one."""

    async def play() -> None:
        certificate = self_signed()
        port = served(Application([("/secret/job/.*", Page)]), of_job(certificate))
        pages = JobPages("/secret")
        here = served(Application(pages.handlers()))
        for key in ("größe-1.1", "a%41 b+c-1.1"):
            pages.show(key, key, "127.0.0.1", port, certificate)
            assert await status(f"http://127.0.0.1:{here}{pages.path(key)}/status") == 200
            pages.hide(key)
            assert await status(f"http://127.0.0.1:{here}{pages.path(key)}/status") == 404

    asyncio.run(play())


def test_pages_and_web_sockets_pass_through() -> None:
    """Under the job's path and as long as it runs; over TLS with its certificate, and no other."""

    async def play() -> None:
        certificate = self_signed()
        there = [("/secret/job/a-1.1/status", Page), ("/secret/job/a-1.1/ws", Echo)]
        port = served(Application(there), of_job(certificate))
        pages = JobPages("/secret")
        here = served(Application(pages.handlers()))
        at = f"127.0.0.1:{here}{pages.path('a-1.1')}"
        assert await status(f"http://{at}/status") == 404
        pages.show("a-1.1", "mean <1>", "127.0.0.1", port, certificate)
        answer = await AsyncHTTPClient().fetch(f"http://{at}/status?x=1")
        assert answer.body.decode() == "/secret/job/a-1.1/status?x=1 close"
        listed = (await AsyncHTTPClient().fetch(f"http://127.0.0.1:{here}/secret/jobs")).body.decode()
        assert f'<a href="{pages.path("a-1.1")}/status">mean &lt;1&gt;</a>' in listed
        talk = await websocket_connect(f"ws://{at}/ws")
        await talk.write_message("hello")
        assert await talk.read_message() == "hello"
        pages.show("a-1.1", "mean", "127.0.0.1", port, self_signed())
        assert await status(f"http://{at}/status") == 502
        pages.hide("a-1.1")
        assert await status(f"http://{at}/status") == 404

    asyncio.run(play())
