"""Messages between Dask's scheduler and its workers wait for no others; many at once still travel together."""

import asyncio
from typing import Any

import dask
from distributed import Scheduler, SchedulerPlugin, Worker
from distributed.batched import BatchedSend
from settling import run, settle

from snakemake_executor_plugin_dask.interior import dask_streams
from snakemake_executor_plugin_dask.interior.dask_http import QuietScheduler


class Joined(SchedulerPlugin):
    """As the driver hears of a worker."""

    def add_worker(self, scheduler: Any, worker: str) -> None:
        dask_streams.hurry(dask_streams.TO_WORKERS, scheduler, worker)


def test_a_workers_streams(tmp_path: Any) -> None:
    """Both ways, of a real scheduler and worker, from the moment at which the worker has joined."""

    async def intervals() -> tuple[float, float]:
        async with Scheduler(dashboard=False, protocol="inproc://") as scheduler:
            scheduler.add_plugin(Joined())
            worker = Worker(scheduler.address, nthreads=1, local_directory=str(tmp_path))
            dask_streams.hurry(dask_streams.OF_WORKER, worker)
            async with worker:
                to_worker = dask_streams.INTERVAL.of(dask_streams.TO_WORKERS.of(scheduler)[worker.address])
                return to_worker, dask_streams.INTERVAL.of(dask_streams.OF_WORKER.of(worker))

    with dask.config.set({"distributed.worker.memory.terminate": False, "temporary-directory": str(tmp_path)}):
        assert asyncio.run(intervals()) == (0.0, 0.0)


def test_no_worker_is_told_of_another_ones_end(tmp_path: Any) -> None:
    """None has to do with another, and the messages would grow with the square of their number."""
    told: list[str] = []

    async def script() -> None:
        async with QuietScheduler(dashboard=False, protocol="inproc://") as scheduler:
            workers = [Worker(scheduler.address, local_directory=str(tmp_path), name=name) for name in ("a", "b")]
            async with workers[0], workers[1]:
                stream = dask_streams.TO_WORKERS.of(scheduler)[workers[0].address]
                send = stream.send
                stream.send = lambda *messages: (told.extend(each["op"] for each in messages), send(*messages))
                await scheduler.remove_worker(workers[1].address, stimulus_id="test")
                scheduler.close_worker(workers[0].address)

    with dask.config.set({"distributed.worker.memory.terminate": False, "temporary-directory": str(tmp_path)}):
        asyncio.run(script())
    assert "close" in told
    assert "remove-worker" not in told


class SlowComm:
    """A connection on which each write takes until `go`."""

    def __init__(self) -> None:
        self.written: list[list[int]] = []
        self.go = asyncio.Event()

    def closed(self) -> bool:
        return False

    async def write(self, messages: list[int], **_: Any) -> int:
        self.written.append(list(messages))
        await self.go.wait()
        return len(messages)

    async def close(self) -> None:
        pass


def test_what_comes_while_something_is_sent_follows_at_once() -> None:
    """All of it together, in order, and the next one as soon as there is one."""

    async def script() -> list[list[int]]:
        stream, comm = BatchedSend(interval="1h"), SlowComm()
        dask_streams.hurry_stream(stream)
        stream.start(comm)
        stream.send(1)
        await settle()
        stream.send(2)
        stream.send(3)
        await settle()
        comm.go.set()
        await settle()
        stream.send(4)
        await settle()
        await stream.close()
        return comm.written

    assert run(script()) == [[1], [2, 3], [4]]
