"""The tutorial's commands, as they stand there, in the order in which they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clusters.slurm import VirtualSlurm

from snakemake_executor_plugin_dask.observe.events import read_events

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
FAILS = "simulate:mem_mb=20"


def follow(sections: list[str], home: Path, directory: Path) -> Path:
    """Every command of these sections, as one person types them; the directory in which they end.

    Each one must succeed, but for the one about which the text says that it fails.
    """
    where = home / "where"
    # As `activate` leaves it.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(home), "WHERE": str(where), "PATH": path}
    environment.pop("XDG_CONFIG_HOME", None)
    for section in sections:
        for block in re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            script = f"set -e\n{block}pwd > $WHERE\n"
            done = subprocess.run(
                ["bash", "-c", script], cwd=directory, env=environment, capture_output=True, text=True
            )
            if FAILS in block:
                assert done.returncode == 1
                assert "exceeded the limit of 20 MB (mem_mb)" in done.stderr
            else:
                assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
                directory = Path(where.read_text().strip())
    return directory


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_on_this_machine(tmp_path: Path) -> None:
    """From the workflow to the report, with the failure between them that the text promises."""
    text = sections()
    names = list(text)
    here = names[names.index("A workflow") : names.index("On Slurm")]
    work = follow([text[name] for name in here], tmp_path, tmp_path)
    assert len((work / "results" / "table.tsv").read_text().splitlines()) == 8
    assert "simulate" in (work / "report.html").read_text()


@pytest.mark.slurm
def test_on_slurm(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """The plan, the run, and the run by a profile: in allocations, which are given back."""
    text = sections()
    work = follow([text["A workflow"]], tmp_path, tmp_path)
    (work / "results").mkdir()
    names = list(text)
    follow([text[name] for name in names[names.index("On Slurm") :]], tmp_path, work)
    runs = sorted((work / ".snakemake" / "dask").glob("*.events.jsonl"))
    submitted = [[event for event in read_events(run) if event["kind"] == "allocation-submitted"] for run in runs]
    assert len(submitted) == 2
    assert all(submitted)
    assert len((work / "results" / "table.tsv").read_text().splitlines()) == 8
