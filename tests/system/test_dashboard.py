"""Dask's dashboard under its secret path, looked at over HTTP, in the table of sockets, and in a real browser."""

import asyncio
import contextlib
import os
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from distributed import Client, Security, get_worker
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from snakemake_executor_plugin_dask.config.dashboard import parse_dashboard, scheduler_options
from snakemake_executor_plugin_dask.interior.dask_http import DashboardScheduler, QuietScheduler, QuietWorker
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.jobs import task_group, task_key

from .browser import browser

pytestmark = pytest.mark.browser


@contextlib.asynccontextmanager
async def cluster(setting: str):
    address = parse_dashboard(setting)
    security = Security.temporary()
    cls = QuietScheduler if address is None else DashboardScheduler
    async with cls(protocol="tls", host="127.0.0.1", security=security, **scheduler_options(address)) as scheduler:
        worker = QuietWorker(
            scheduler.address, security=security, nthreads=2, host="127.0.0.1", dashboard=False, memory_limit=0
        )
        async with worker:
            yield scheduler, worker, security


def listening() -> set[str]:
    """Addresses at which this process listens."""
    table = subprocess.run(["ss", "-Hltnp"], check=True, capture_output=True, text=True).stdout
    return {line.split()[3] for line in table.splitlines() if f"pid={os.getpid()}," in line}


def answer(url: str) -> tuple[int, str, dict[str, str]]:
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    try:
        with urllib.request.build_opener(Stay).open(url, timeout=60) as response:
            return response.status, response.read().decode("utf-8", "replace"), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace"), dict(error.headers)


def test_without_a_dashboard_only_tls_ports_listen():
    """Scheduler and worker each listen once, on loopback, and neither speaks HTTP."""

    async def look() -> None:
        before = listening()
        async with cluster("none") as (scheduler, worker, _):
            ports = {scheduler.port, worker.port}
            assert listening() - before == {f"127.0.0.1:{port}" for port in ports}

    asyncio.run(look())


def test_a_worker_shows_its_size_and_runs_what_it_is_sent():
    """The dashboard shows real cores, and more jobs than cores run at once: how many is the ledger's business."""

    async def meet(all_of_them: int) -> None:
        here = get_worker().__dict__
        met = here.setdefault("met", asyncio.Semaphore(0))
        here["count"] = here.get("count", 0) + 1
        if here["count"] == all_of_them:
            for _ in range(all_of_them):
                met.release()
        await asyncio.wait_for(met.acquire(), 60)

    async def look() -> None:
        async with cluster("none") as (scheduler, _, security):
            (seen,) = scheduler.workers.values()
            assert seen.nthreads == 2
            async with Client(scheduler.address, security=security, asynchronous=True) as client:
                await client.gather([client.submit(meet, 5, pure=False, workers=[seen.address]) for _ in range(5)])

    asyncio.run(look())


def test_only_the_secret_path_answers():
    """Every path outside the secret gives 404 and names no path; the pages themselves are there."""

    async def look() -> None:
        before = listening()
        async with cluster("auto") as (scheduler, worker, _):
            link = urlsplit(scheduler.link)
            base, secret = f"http://{link.netloc}", link.path.split("/")[1]
            opened = listening() - before
            assert len(opened) == 3
            assert all(address.startswith("127.0.0.1:") for address in opened)
            for path in (
                *("", "/", "/status", "/info", "/info/main/workers.html", "/health", "/metrics", "/sitemap.json"),
                *("/statics/css/base.css", "/static/js/bokeh.min.js", "/json/identity.json", "/individual-cpu"),
                *(f"/{secret[:-1]}/status", f"/{secret}x/status", f"//{secret}/status", f"/x/../{secret}/status"),
                *(f"/{secret.swapcase()}/status", f"/%2f{secret}/status", "/jupyter/lab", "/api/v1/retire_workers"),
                *(f"/{secret}/api/v1/retire_workers", f"/{secret}/proxy/{worker.port}/127.0.0.1/"),
            ):
                status, text, headers = await asyncio.to_thread(answer, base + path)
                assert status == 404, path
                assert secret not in text + repr(headers), path
            for path in (
                "/status",
                "/tasks",
                "/health",
                "/metrics",
                "/info/main/workers.html",
                "/statics/css/base.css",
            ):
                status, _, _ = await asyncio.to_thread(answer, f"{base}/{secret}{path}")
                assert status == 200, path
            for path in (f"/{secret}", f"/{secret}/"):
                status, _, headers = await asyncio.to_thread(answer, base + path)
                assert (status, headers["Location"]) == (302, f"/{secret}/status")

    asyncio.run(look())


def test_other_sites_cannot_open_the_web_socket():
    """A page of another origin is refused even if it knows the path; a tunnel's own origin is not."""

    async def look() -> None:
        async with cluster("auto") as (scheduler, _, _):
            socket_url = scheduler.link.replace("http://", "ws://") + "/ws"

            async def handshake(origin: str, host: str) -> int:
                request = HTTPRequest(socket_url, headers={"Origin": origin, "Host": host})
                try:
                    (await websocket_connect(request)).close()
                except HTTPClientError as error:
                    return error.code
                return 101

            assert await handshake("http://evil.example", urlsplit(socket_url).netloc) == 404
            # bokeh then wants a session token, which is its own matter: not refused for the origin.
            assert await handshake("http://localhost:9999", "localhost:9999") != 404

    asyncio.run(look())


def test_taken_port_is_said():
    """No other one is used: a tunnel to this one would end at whoever has taken it."""

    async def look() -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(ConfigurationError, match=rf"127.0.0.1:{port}: the dashboard cannot listen there"):
                async with cluster(f"127.0.0.1:{port}"):
                    pass

    asyncio.run(look())


def test_browser_shows_tasks_grouped_by_rule(tmp_path):
    """The status page, drawn by a real browser over its web socket, shows each rule once, and asks only this host."""

    async def look() -> None:
        async with (
            cluster("auto") as (scheduler, worker, security),
            Client(scheduler.address, security=security, asynchronous=True) as client,
        ):
            futures = [
                client.submit(pow, i, 2, key=task_key(rule, "ab12cd34", i, 1, 1), workers=[worker.address])
                for rule in ("align_reads", "_1st-call")
                for i in range(20)
            ]
            await client.gather(futures)
            async with browser() as page:
                await page.open(scheduler.link)
                drawn = "JSON.stringify((window.Bokeh ? Bokeh.documents : []).map(d => d.to_json()))"
                for rule in ("align_reads", "_1st-call"):
                    await page.until(f"{drawn}.includes({task_group(rule)!r})")
                await page.screenshot(tmp_path / "dashboard.png")
                if "KEEP_SCREENSHOTS" in os.environ:
                    await page.screenshot(Path(os.environ["KEEP_SCREENSHOTS"], "dashboard.png"))
                elsewhere = [
                    u for u in page.requests if urlsplit(u).netloc not in (urlsplit(scheduler.link).netloc, "")
                ]
                assert elsewhere == []
            assert (tmp_path / "dashboard.png").stat().st_size > 10_000

    asyncio.run(look())
