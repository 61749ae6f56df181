"""What a site's `jobqueue.yaml` says: honoured, or refused in a sentence that names the file. Needs no batch system."""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from clusters import standins

from snakemake_executor_plugin_dask.backends.base import Link
from snakemake_executor_plugin_dask.backends.jobqueue import JobqueueBackend
from snakemake_executor_plugin_dask.backends.siteconfig import origin
from snakemake_executor_plugin_dask.config.poolsfile import SchedulerPlace, read_options
from snakemake_executor_plugin_dask.frontend.preflight import Answer, Question, answer
from snakemake_executor_plugin_dask.interior import jobqueue
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Pool

Site = Callable[[str], Path]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Writes a site's file, and a PBS to go with it; the configuration is as it was afterwards."""
    jobqueue.load()
    before = dask.config.get("jobqueue")
    monkeypatch.setattr(dask.config, "paths", [os.fspath(tmp_path / "etc")])
    monkeypatch.setenv("PATH", f"{standins.install(tmp_path / 'pbs', 'pbs')}:{os.environ['PATH']}")

    def write(text: str) -> Path:
        file = tmp_path / "etc" / "jobqueue.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        dask.config.refresh(paths=dask.config.paths)
        return file

    yield write
    dask.config.set({"jobqueue": before})


def asked(pool: Pool, place: SchedulerPlace | None = None, *, plan: bool = False) -> Answer:
    """What the preparation of a run answers."""
    where = place or SchedulerPlace()
    options = Options(
        pools=(pool,),
        scheduler_interface=where.interface,
        scheduler_host=where.host,
        scheduler_port=where.port,
        local_by_default=False,
    )
    return answer(Question(options, (), plan=plan))


def complaint(pool: Pool) -> str:
    """The only one."""
    (found,) = asked(pool).complaints
    return found


PBS = Pool("main", "pbs", 0, 2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cores: many", "cores is 'many', which is not a number of cores; write a whole number, such as 48."),
        ("memory: lots", "memory is 'lots', which is not a size; write it with a unit, such as 180 GB"),
        ("memory: 4000", "memory is 4000, which Dask reads as 4000 bytes; write it with a unit, such as 180 GB"),
        ("walltime: forever", "walltime is 'forever'"),
        (
            "job-extra-directives: -q x",
            "job-extra-directives is '-q x', which is not a list of strings; write a list",
        ),
        ("job-script-prologue: {a: b}", "job-script-prologue is a mapping, which is not a list of strings"),
        ("interface: [ib0]", "interface is a list, which is not a string"),
        ("scheduler-options: {port: web}", "scheduler-options is a mapping, which is not a whole number"),
        ("scheduler-options: lo", "scheduler-options is 'lo', which is not a mapping"),
    ],
)
def test_wrong_values_are_told_with_their_file(site: Site, line: str, words: str) -> None:
    """One sentence: the file and key, what was found, what is allowed."""
    lines = {"cores": "cores: 2", "memory": "memory: 4 GB", line.partition(":")[0]: line}
    file = site("jobqueue:\n  pbs:\n" + "".join(f"    {text}\n" for text in lines.values()))
    told = complaint(PBS)
    assert told.startswith(f"{file}: jobqueue.pbs."), told
    assert words in told
    assert "\n" not in told


def test_a_wrong_directory_for_pools_that_are_made(site: Site) -> None:
    """The same sentence where pools are made for Slurm resources, of which there may be none."""
    file = site("jobqueue:\n  slurm:\n    log-directory: [logs]\n")
    options = Options(pools=(Pool("slurm", "slurm", 0, 2),), make_slurm_pools=True, local_by_default=False)
    told = answer(Question(options, ())).complaints
    assert f"{file}: jobqueue.slurm.log-directory is a list, which is not a string; put it in quotes." in told


def test_a_variable_is_named_as_the_origin(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DASK_JOBQUEUE__…` wins over files, and what is packaged with Dask-Jobqueue counts as nobody's."""
    file = site("jobqueue:\n  pbs:\n    cores: 2\n    memory: 4 GB\n    job_extra: []\n")
    assert origin("pbs", "cores") == os.fspath(file)
    assert origin("pbs", "job-extra") == os.fspath(file)
    assert origin("pbs", "walltime") is None
    monkeypatch.setenv("DASK_JOBQUEUE__PBS__CORES", "few")
    dask.config.refresh(paths=dask.config.paths)
    assert complaint(PBS).startswith("DASK_JOBQUEUE__PBS__CORES: jobqueue.pbs.cores is 'few', which")


@pytest.mark.parametrize(("memory", "memory_mb"), [("16GB", 16000), ("16 GiB", 17179), ("16000000000", 16000)])
def test_sizes_as_dask_reads_them(site: Site, memory: str, memory_mb: int) -> None:
    """With units, and a number of bytes."""
    site(f"jobqueue:\n  pbs:\n    cores: 2\n    memory: {memory}\n")
    found = asked(PBS)
    assert not found.complaints
    assert found.options.pools[0].memory_mb == memory_mb


SITE = "jobqueue:\n  pbs:\n    cores: 2\n    memory: 4 GB\n    interface: ib77\n"


def test_an_interface_that_only_the_workers_have(site: Site, tmp_path: Path) -> None:
    """Without more it is refused with advice; each way to follow that advice works, and the workers keep theirs."""
    site(SITE)
    told = complaint(PBS)
    assert "interface 'ib77' does not exist on this host" in told
    assert "`scheduler: {interface: …}` in the pools file" in told
    from_file = SchedulerPlace(interface="lo")
    _, from_options = read_options("{scheduler_options: {interface: lo}}", "pbs")
    for place in (from_file, from_options, SchedulerPlace(host="127.0.0.1")):
        assert not asked(PBS, place).complaints
    assert "does not exist" not in asked(PBS, from_file, plan=True).plan
    site(SITE + "    scheduler-options: {interface: lo, port: 8786}\n")
    found = asked(PBS)
    assert (found.complaints, found.options.scheduler_interface, found.options.scheduler_port) == ((), "lo", 8786)
    # What the user says wins.
    assert asked(PBS, SchedulerPlace(host="127.0.0.1", port=9000)).options.scheduler_interface is None
    backend = JobqueueBackend("pbs")
    _, script = backend.write(found.options.pools[0], "main-0", _link(tmp_path))
    assert '"interface": "ib77"' in script.with_suffix(".json").read_text()


def test_the_schedulers_own_interface_is_looked_for(site: Site) -> None:
    """Named by the site and not there: told, with what there is."""
    site(SITE + "    scheduler-options: {interface: ib78}\n")
    assert "the network interface ib78, but this host has" in complaint(PBS)


def _link(directory: Path) -> Link:
    return Link("ab12cd34", "tls://x:1", ("x", 2), ("a", "b", "c"), os.fspath(directory), "setup")


@pytest.mark.parametrize("said", ["option", "file"])
def test_a_python_of_the_sites_own(site: Site, tmp_path: Path, said: str) -> None:
    """A wrapper that enters a container, as shell text: workers start by it, and are told that jobs run there, too."""
    wrapper = "apptainer exec '/shared/my image.sif' python"
    own: dict[str, Any] = {"python": wrapper} if said == "option" else {}
    site(f"jobqueue:\n  pbs:\n    cores: 2\n    memory: 4 GB\n    python: {wrapper if said == 'file' else 'null'}\n")
    pool = Pool("main", "pbs", 0, 2, options=own)
    found = asked(pool, plan=True)
    assert not found.complaints
    assert f"{wrapper} -P -m snakemake_executor_plugin_dask.worker" in found.plan
    _, script = JobqueueBackend("pbs").write(found.options.pools[0], "main-0", _link(tmp_path))
    assert f"\n{wrapper} -P -m snakemake_executor_plugin_dask.worker --config" in script.read_text()
    assert "SNAKEMAKE_DASK_BEFORE_PROLOGUE" in script.read_text(), "jobs get what the wrapper sets"
    assert '"own_python": true' in script.with_suffix(".json").read_text()


def test_without_one_workers_run_with_snakemakes(site: Site, tmp_path: Path) -> None:
    """As before, and quoted, since it is a path."""
    site("jobqueue:\n  pbs:\n    cores: 2\n    memory: 4 GB\n")
    _, script = JobqueueBackend("pbs").write(PBS, "main-0", _link(tmp_path))
    assert f"\n{sys.executable} -P -m" in script.read_text()
    assert '"own_python": false' in script.with_suffix(".json").read_text()
    assert stat.S_IMODE(script.with_suffix(".json").stat().st_mode) == 0o600
