"""A job's own Dask cluster: what a rule asks for, where it fits, and what is said where it does not."""

import ast
import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deciding import a_pool
from imported import imported

from snakemake_executor_plugin_dask.decide.localpool import adapt_to_local, local_warning
from snakemake_executor_plugin_dask.decide.routing import NoPool, route, shape_of
from snakemake_executor_plugin_dask.frontend.handover import cluster_with_options
from snakemake_executor_plugin_dask.model.errors import RequestError
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster, Spread
from snakemake_executor_plugin_dask.model.jobs import JobSpec
from snakemake_executor_plugin_dask.model.pools import Shape
from snakemake_executor_plugin_dask.model.requests import Request, request_from_resources, with_cluster
from snakemake_executor_plugin_dask.node import jobsecrets
from snakemake_executor_plugin_dask.worker.supervisor.jobcluster import ClusterOfJob


def asks(threads: int = 2, **resources: object) -> Request:
    return request_from_resources(resources, threads)


def test_all_parts_are_counted() -> None:
    """Each worker has what the rule declares, script and scheduler one core and the memory once more."""
    request = asks(2, mem_mb=1000, gpu=1, dask_workers=4)
    assert (request.cores, request.memory_mb, request.gpus) == (9, 5000, 4)
    assert request.cluster == JobCluster(4, 2, 1000, 1, 1, 1000)
    request = asks(2, mem_mb_per_cpu=500, dask_workers=4, dask_script_threads=3, dask_script_mem_mb=200)
    assert (request.cores, request.memory_mb) == (11, 4200)
    assert asks(0, dask_workers=2).cores == 3  # a worker has a thread
    assert asks(2, dask_workers=2).memory_mb is None
    assert asks(2, dask_workers=0).cluster is None
    assert not asks(2, dask_workers=1, dask_worker_options="{}").extra


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"dask_workers": -1}, "dask_workers=-1 must be"),
        ({"dask_workers": "2-8"}, "dask_workers='2-8' must be"),
        ({"dask_workers": 2, "nodes": 2}, "dask_workers=2 cannot be combined with nodes"),
        ({"dask_workers": 2, "mpi": "mpirun"}, "dask_workers=2 cannot be combined with nodes"),
        ({"dask_workers": 2, "tasks": 2}, "dask_workers=2 cannot be combined with nodes"),
        ({"dask_workers": 4, "dask_workers_max": 2}, "dask_workers_max=2 must be at least"),
        ({"dask_workers": 4, "dask_script_threads": -1}, "dask_script_threads=-1 must be"),
    ],
)
def test_values_without_sense_are_refused(resources: dict[str, object], said: str) -> None:
    """One sentence names the resource."""
    with pytest.raises(RequestError, match=said):
        asks(**resources)


def test_options_are_arguments_of_a_worker() -> None:
    """As YAML; what the rule's other resources decide is left to them."""
    cluster = JobCluster(1, 1)
    found = cluster_with_options(cluster, {"dask_worker_options": "{resources: {A: 1}}"})
    assert json.loads(found.options) == {"resources": {"A": 1}}
    for text, said in (("{a: ", "is not YAML"), ("a", "must name arguments"), ("{nthreads: 2}", "names nthreads")):
        with pytest.raises(RequestError, match=said):
            cluster_with_options(cluster, {"dask_worker_options": text})


def test_it_is_said_how_many_would_fit() -> None:
    """The message lists all parts, and the setting that fits."""
    pool = a_pool("cpu", cores=8, memory_mb=20_000, workers_max=1)
    shapes = {"cpu": shape_of(pool)}
    assert route(asks(2, dask_workers=3), [pool], shapes) == "cpu"
    with pytest.raises(NoPool, match="4 Dask workers with 2 cores each, and 1 core for the script") as error:
        route(asks(2, dask_workers=4), [pool], shapes, name="mean")
    assert "--set-resources mean:dask_workers=3" in str(error.value)
    with pytest.raises(NoPool, match=r"--set-resources mean:mem_mb=9\d\d\d"):
        route(asks(2, dask_workers=1, mem_mb=15_000), [pool], shapes, name="mean")
    with pytest.raises(NoPool, match="--set-threads mean=7"):
        route(asks(9, dask_workers=1), [pool], shapes, name="mean")


def test_several_workers_of_a_pool_hold_more() -> None:
    """Script and Dask workers each fit on one; the message counts those that all of them hold."""
    pool = a_pool("cpu", cores=8, memory_mb=20_000, workers_max=3)
    shapes = {"cpu": shape_of(pool)}
    assert route(asks(2, dask_workers=11), [pool], shapes) == "cpu"
    assert route(asks(8, dask_workers=2), [pool], shapes) == "cpu"
    with pytest.raises(NoPool, match="are too much for its 3 workers, which hold 11 Dask workers") as error:
        route(asks(2, dask_workers=12), [pool], shapes, name="mean")
    assert "--set-resources mean:dask_workers=11" in str(error.value)
    with pytest.raises(NoPool, match="--set-threads mean=7"):
        route(asks(9, dask_workers=2), [pool], shapes, name="mean")
    wide = a_pool("wide", nodes=2, cores=8, memory_mb=20_000)
    shapes["wide"] = shape_of(wide)
    assert route(asks(2, dask_workers=7), [wide], shapes) == "wide"
    assert route(asks(2, dask_workers=7), [wide, pool], shapes) == "cpu"  # which holds no whole nodes
    with pytest.raises(NoPool, match="are too much for the 2 nodes of a worker, which hold 7 Dask workers") as error:
        route(asks(2, dask_workers=8), [wide], shapes, name="mean")
    assert "--set-resources mean:dask_workers=7" in str(error.value)
    with pytest.raises(NoPool, match="the nodes of its workers take no Dask workers: srun failed"):
        route(asks(2, dask_workers=7), [wide], shapes, closed={"wide": "srun failed"})
    other = replace(wide, cluster="pbs")
    with pytest.raises(NoPool, match="with PBS, supervise one: a job's own Dask workers need a pool without nodes"):
        route(asks(2, dask_workers=7), [other], shapes)
    container = with_cluster(asks(), JobCluster(4, 2, together="in a container"))
    with pytest.raises(NoPool, match="in a container and thus all on one node") as error:
        route(container, [pool], shapes, name="mean")
    assert "--set-resources mean:dask_workers=3" in str(error.value)
    others = a_pool("others", "attached", cores=8, memory_mb=20_000)
    assert route(asks(2, dask_workers=40), [others], {"others": shape_of(others)}) == "others"  # `Unfit` knows them


@pytest.mark.parametrize(
    ("cores", "memory_mb", "workers", "threads", "kinds"),
    [
        (9, 5000, 4, 2, ()),
        (8, 5000, 3, 2, ("dask_workers",)),
        (9, 3500, 2, 2, ("dask_workers",)),
        (2, 5000, 1, 2, ("dask_workers shared",)),
        (1, 5000, 1, 1, ("dask_workers shared",)),
        (9, 1500, 1, 2, ("dask_workers",)),  # too much, and told as such where it is routed
    ],
)
def test_capped_on_this_machine(cores: int, memory_mb: int, workers: int, threads: int, kinds: tuple[str, ...]) -> None:
    """To what fits; where nothing fits beside the script, one worker shares its cores. With one sentence."""
    request, shape = asks(2, mem_mb=1000, dask_workers=4), Shape(cores=cores, memory_mb=memory_mb, gpus=0)
    adapted, found = adapt_to_local(request, shape)
    assert found == kinds
    assert adapted.cluster is not None
    assert (adapted.cluster.workers, adapted.cluster.cores) == (workers, threads)
    assert adapted.cores == min(cores, 2 * workers + 1)
    assert adapted.memory_mb == 1000 * (workers + 1)
    for kind in found:
        assert "Rule mean asks for 4 Dask workers" in local_warning(kind, "mean", request, shape)


def test_files_of_a_cluster(tmp_path: Path) -> None:
    """Only the user can read them, also below a path too long for a socket, and they go with the attempt."""
    parent = tmp_path / ("long" * 40)
    parent.mkdir()
    devices = (("CUDA_VISIBLE_DEVICES", "3,5"),)
    spec = JobSpec("k", "n", "1", 1, (), 1, "log", memory_limit_mb=9, environment=devices, certificate=("cert", "key"))

    async def prepare() -> tuple[dict[str, str | None], list[str]]:
        cluster = ClusterOfJob(print, print)
        changes = await cluster.prepare(spec, JobCluster(2, 1, 100, 1), str(parent), "log", {})
        for path in next(parent.iterdir()).glob("*.pem"):
            assert not path.stat().st_mode & 0o77
        return dict(changes), cluster.close()

    changes, directories = asyncio.run(prepare())
    (directory,) = parent.iterdir()
    assert directory.stat().st_mode & 0o77 == 0
    assert os.fspath(directory) in directories
    assert changes["CUDA_VISIBLE_DEVICES"] in ("", "-1")
    assert (changes["DASK_SCHEDULER_ADDRESS"] or "").startswith("tls://127.0.0.1:")
    settings = json.loads((directory / "settings.json").read_text())
    assert settings["environment"] == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert settings["enforce"]


def test_what_a_job_has_a_copy_of_needs_no_plugin(tmp_path: Path) -> None:
    """The job's Python, of a `conda:` environment or a container, may not have it."""

    async def prepare() -> list[str]:
        cluster = ClusterOfJob(print, print)
        spec = JobSpec("k", "n", "1", 1, (), 1, "log", certificate=("cert", "key"))
        await cluster.prepare(spec, JobCluster(1, 1), str(tmp_path), "log", {})
        return cluster.close()

    asyncio.run(prepare())
    copies = list(tmp_path.rglob("*.py"))
    assert {"cluster.py", "door.py", "dask_listening.py", "dask_beside.py"} <= {path.name for path in copies}
    for path in copies:
        names = [name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)]
        assert names
        assert not [name for name in names if name.startswith("snakemake")], path.name


def test_what_is_not_sent_is_in_files(tmp_path: Path) -> None:
    """Where nothing is encrypted: the script's node finds its certificate there, the others what that one has told."""
    secrets = tmp_path / "secrets"
    jobsecrets.make(secrets, ("cert", "key"))
    spread = Spread("127.0.0.1", 2, secrets=os.fspath(secrets))
    script = JobSpec("k", "n", "1", 1, (), 1, "log", spread=spread)

    async def told() -> Mapping[str, Any]:
        said: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        home = ClusterOfJob(print, said.set_result)
        await home.prepare(script, JobCluster(1, 1), str(tmp_path), "log", {"OWN": "1"})
        directory = Path(home.directory)
        _, writer = await asyncio.open_unix_connection(directory / "supervisor")
        started = {"started": 1, "python": "py", "environment": {"SECRET": "1", "TMPDIR": "/there"}}
        writer.write(json.dumps(started).encode() + b"\n")
        writer.close()
        return await said

    async def part(scheduler: str) -> dict[str, str | None]:
        more = {"scheduler": scheduler, "python": "py", "modules": ("dask.array",)}
        part = dataclasses.replace(script, spread=dataclasses.replace(spread, part=1, **more))
        other = ClusterOfJob(print, print)
        changes = await other.prepare(part, JobCluster(1, 1), str(tmp_path), "log", {"OWN": "1"})
        other.close()
        return dict(changes)

    message = asyncio.run(told())
    assert message["environment"] == []
    changes = asyncio.run(part(message["started"]))
    assert (changes["SECRET"], changes["OWN"]) == ("1", None)
    assert "TMPDIR" not in changes
    assert {file.read_text() for file in tmp_path.glob("dask-*/key.pem")} == {"key"}
    assert [json.loads(file.read_text()) for file in tmp_path.glob("dask-*/modules.json")] == [["dask.array"]]
    assert secrets.stat().st_mode & 0o77 == 0
    assert not any(file.stat().st_mode & 0o77 for file in secrets.iterdir())


SCHEDULER = """
import json, os, socket, sys
there = socket.socket(socket.AF_UNIX)
os.chdir(sys.argv[1])
there.connect("supervisor")
there.sendall(json.dumps({"started": 1, "python": "py", "environment": {}}).encode() + b"\\n")
there.sendall(json.dumps({"note": "told"}).encode() + b"\\n")
print(there.makefile().readline())
"""


@pytest.mark.parametrize("apart", [False, True])
def test_a_container_is_known_by_what_it_sees(tmp_path: Path, apart: bool) -> None:
    """And not by its variables, which are there too where all of Snakemake runs in a container."""
    spec = JobSpec("k", "n", "1", 1, (), 1, "log", certificate=("c", "k"), spread=Spread("127.0.0.1", 2))
    command = ["unshare", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")), "--mount"] if apart else []

    async def said() -> tuple[list[Mapping[str, Any]], str]:
        found: list[Mapping[str, Any]] = []
        told = asyncio.Event()
        cluster = ClusterOfJob(print, lambda message: (found.append(message), "note" in message and told.set()))
        await cluster.prepare(spec, JobCluster(1, 1), str(tmp_path), "log", {"APPTAINER_CONTAINER": "/image.sif"})
        process = await asyncio.create_subprocess_exec(
            *command,
            *(sys.executable, "-c", SCHEDULER, cluster.directory),
            env={**os.environ, "APPTAINER_CONTAINER": "/image.sif"},
            stdout=subprocess.PIPE,
        )
        await told.wait()
        cluster.tell({"failed": "no reason"})
        output, _ = await process.communicate()
        cluster.close()
        return found, output.decode()

    messages, heard = asyncio.run(said())
    assert [message.get("python") for message in messages] == ([None] if apart else ["py", None])
    assert ("a script in a container has Dask workers on its own node only" in heard) is apart
