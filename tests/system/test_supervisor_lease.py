"""The supervisor's connection to the driver's lease server: over TLS, cut, made again, and the driver's own orders."""

import asyncio
import json
import signal
import socket
import threading
from contextlib import contextmanager

import pytest
from running import wait_for
from supervising import alive, fake_worker, marked_processes, run_setup

from snakemake_executor_plugin_dask.driver.own.certificate import make_tls, server_context
from snakemake_executor_plugin_dask.driver.own.leases import LeaseServer
from snakemake_executor_plugin_dask.model.lease_messages import RENEW_EVERY_S


class Driver:
    """A lease server, renewing."""

    def __init__(self, directory, renew_every_s):
        directory.mkdir()
        self.tls = make_tls(directory)[1]
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.run_lives = True
        self.server = LeaseServer(server_context(self.tls), lambda _: self.run_lives, renew_every_s)
        self.call(self.server.start("127.0.0.1"))
        asyncio.run_coroutine_threadsafe(self.server.renew(), self.loop)
        self.config = directory / "lease-w-1.json"
        tls = {"ca": self.tls.ca, "cert": self.tls.cert, "key": self.tls.key}
        self.config.write_text(
            json.dumps({"host": "127.0.0.1", "port": self.server.port, "worker": "w-1", "run": "a", **tls})
        )

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def connected(self):
        connection = self.server.connection("w-1", "a")
        return connection if connection is not None and connection.open else None

    def deaths(self):
        connection = self.server.connection("w-1", "a")
        return set() if connection is None else connection.dead

    def cut(self):
        self.connected().writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


@pytest.fixture
def driver(tmp_path, request):
    driver = Driver(tmp_path / "driver", getattr(request, "param", RENEW_EVERY_S))
    yield driver
    driver.call(driver.server.close())
    driver.loop.call_soon_threadsafe(driver.loop.stop)


@contextmanager
def connected(driver, directory, **changes):
    with fake_worker(directory, run_setup(directory, **changes), "--lease-config", str(driver.config)) as worker:
        wait_for(driver.connected, "the supervisor did not connect")
        yield worker


def test_death_of_the_worker_is_told_to_the_driver(driver, tmp_path):
    """The worker goes: the driver hears that the jobs are dead, and that nothing more will come."""
    with connected(driver, tmp_path) as worker:
        keys = {worker.start("trap '' TERM; sleep 1000; sleep 1000") for _ in range(2)}
        pids = [worker.wait_started(key) for key in keys]
        worker.close()
        wait_for(driver.deaths, "the driver heard nothing")
        assert not any(map(alive, pids))
        assert not marked_processes()
        assert driver.deaths() == keys
        assert driver.server.connection("w-1", "a").ended


def test_driver_ends_jobs_of_a_frozen_worker(driver, tmp_path):
    """With a worker that answers nothing, the order comes over the other connection, and is confirmed there."""
    with connected(driver, tmp_path) as worker:
        keys = {worker.start("trap '' TERM; sleep 1000; sleep 1000"), worker.start("sleep 1000")}
        pids = [worker.wait_started(key) for key in keys]
        driver.server.stop("w-1")
        wait_for(lambda: driver.deaths() == keys, "the end was not confirmed")
        assert not any(map(alive, pids))
        assert worker.wait() == 0


# Renewed far more often than a lease is long, so that a busy machine lets none run out.
@pytest.mark.parametrize("driver", [0.5], indirect=True)
def test_renewals_over_tls_keep_jobs_alive_and_their_end_ends_them(driver, tmp_path):
    """A lease shorter than the test is renewed, though the driver stands still; without one it runs out."""
    with connected(driver, tmp_path, lease_s=7.0) as worker:
        key = worker.start("sleep 1000")
        pid = worker.wait_started(key)
        goes_on = threading.Event()
        driver.loop.call_soon_threadsafe(goes_on.wait)
        with pytest.raises(AssertionError, match="no outcome"):
            worker.outcome(key, 12.0)
        assert alive(pid)
        goes_on.set()
        driver.call(driver.server.close())
        outcome = worker.outcome(key, 30.0)
        assert (outcome.status, alive(pid)) == ("lost", False)
        assert worker.wait() == 0


def test_what_running_jobs_use(driver, tmp_path):
    """CPU time and memory of each job, its children's too, come with the renewals, and by the other way with those."""
    with connected(driver, tmp_path) as worker:
        key = worker.start("python3 -c 'x = b\"x\" * 10**8\nwhile True: pass'")
        idle = worker.start("sleep 1000")
        worker.wait_started(key)

        def used():
            found = driver.server.uses("a")
            return key in found and found[key][1] > 1.0 and found[key][2] > 90 and idle in found and found

        found = wait_for(used, "the driver does not know what the jobs use")
        assert found[idle][1] < 0.5
        assert found[idle][2] < 50


def test_no_lease_outlives_snakemake(driver, tmp_path):
    """Its death ends the renewals, also for a supervisor that connects anew, and though nobody closes the server."""
    with connected(driver, tmp_path, lease_s=7.0) as worker:
        key = worker.start("sleep 1000")
        worker.wait_started(key)
        driver.run_lives = False
        driver.cut()
        assert worker.outcome(key, 30.0).status == "lost"


def test_connection_is_made_again(driver, tmp_path):
    """A cut connection costs no job."""
    with connected(driver, tmp_path) as worker:
        key = worker.start(f"until test -e {tmp_path}/go; do sleep 0.1; done")
        worker.wait_started(key)
        first = driver.connected()
        driver.cut()
        wait_for(lambda: driver.connected() is not None and driver.connected() is not first, "no second connection")
        (tmp_path / "go").touch()
        assert worker.outcome(key).status == "succeeded"


def test_worker_that_was_given_up_is_told_when_it_comes_back(driver, tmp_path):
    """The order to leave was lost with the network: the next connection gets it in place of a renewal."""
    with connected(driver, tmp_path) as worker:
        key = worker.start("sleep 1000")
        pid = worker.wait_started(key)
        driver.cut()
        driver.server.stop("w-1")
        wait_for(lambda: key in driver.deaths(), "the end was not confirmed")
        assert not alive(pid)
        assert worker.wait() == 0


def test_stopped_worker_process_does_not_hold_the_supervisor(driver, tmp_path):
    """The supervisor goes on renewing and answering while its worker reads nothing."""
    with connected(driver, tmp_path) as worker:
        keys = [worker.start(f"head -c 3000 /dev/zero | tr '\\0' x; exit {i % 2}") for i in range(40)]
        wait_for(lambda: not marked_processes(keys[-1]), "jobs go on")
        heard = driver.connected().heard
        wait_for(lambda: driver.connected().heard > heard, "the supervisor stands still")
        assert worker.process.poll() is None
        worker.process.send_signal(signal.SIGCONT)
        assert {worker.outcome(key).exit_code for key in keys} == {0, 1}
