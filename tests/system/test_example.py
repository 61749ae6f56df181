"""Example workflows on less: the one that the README's first command runs, and the one with Dask in its rules."""

import csv
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from .test_parity import COMMON, EXECUTORS, run_snakemake

EXAMPLES = Path(__file__).parents[2] / "example-workflows"
EXAMPLE = EXAMPLES / "keeling-curve"
FEWER = ("--config", "first_year=1988", "last_year=1991", "resamplings=20")


def test_example_makes_its_table_and_picture(tmp_path: Path) -> None:
    """The same table by both executors, with figures that are right, and a picture with each year in it."""
    tables = []
    for executor in ("local", "warm"):
        work = tmp_path / executor / "work"
        shutil.copytree(EXAMPLE, work, ignore=shutil.ignore_patterns("results", ".snakemake"))
        code, text = run_snakemake(work, (*FEWER, *COMMON, *EXECUTORS[executor]), {})
        assert code == 0, text
        tables.append((work / "results" / "seasons.tsv").read_text())
    assert tables[0] == tables[1]
    years = list(csv.DictReader(tables[0].splitlines(), delimiter="\t"))
    assert [year["year"] for year in years] == ["1988", "1989", "1990", "1991"]
    assert [year["CO2 [ppm]"] for year in years] == ["351.44", "352.87", "354.14", "355.56"]
    picture = ET.parse(tmp_path / "warm" / "work" / "results" / "keeling-curve.svg").getroot()
    dots = [element for element in picture.iter() if element.tag.endswith("circle") and element.get("r") == "3.5"]
    assert len(dots) == 4


@pytest.mark.parametrize("executor", ["dask", "local"])
def test_example_with_dask_in_its_rules(tmp_path: Path, executor: str) -> None:
    """Dask workers find the centres of the clouds, and the picture shows them; the same with a `LocalCluster`."""
    work = tmp_path / "work"
    shutil.copytree(EXAMPLES / "dask-in-a-rule", work, ignore=shutil.ignore_patterns("results", ".snakemake"))
    fewer = ("--config", "parts=2", "points_in_a_part=20000")
    dask = ("--executor", "dask", "--jobs", "50", "--dask-worker-cores", "3")
    code, text = run_snakemake(work, (*fewer, *COMMON, *(dask if executor == "dask" else EXECUTORS["local"])), {})
    assert code == 0, text
    fit = json.loads((work / "results" / "centres.json").read_text())
    assert fit["points"] == 40_000
    assert fit["workers"] == 2 or executor == "local"
    for found, made in zip(fit["centres"], [[-2, -1.5], [2, -2], [1.5, 2], [-1.8, 1.6]], strict=True):
        assert all(abs(one - other) < 0.1 for one, other in zip(found, made, strict=True))
    picture = ET.parse(work / "results" / "density.svg").getroot()
    assert sum(element.tag.endswith("circle") for element in picture.iter()) == 4
