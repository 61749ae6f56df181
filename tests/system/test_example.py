"""The example workflow that the README's first command runs, on fewer years."""

import csv
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

from .test_parity import COMMON, EXECUTORS, run_snakemake

EXAMPLE = Path(__file__).parents[2] / "example-workflows" / "keeling-curve"
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
