#!/usr/bin/env python3
"""The plugin with other versions of what it stands on. Called by `./run versions`, with the wheel to install.

Each member of the matrix gets an environment of its own below `.venv/versions`. There the core's tests run (the
comparison with the local executor, warm against cold starts, faults), and a workflow of short jobs, in turn with the
environment of the newest versions, so that speeds can be compared on any machine. A row is printed as soon as it is
known, and at the end the table of docs/versions.md.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: By how much of the core is tested. The short ones are the parts in which a minor version may differ.
_WARM = "tests/system/test_warm_equals_cold.py"
_SHORT = "language hostile groups checkpoints failures cache failure-retries"
TESTS = {
    "full": ("tests/system/test_parity.py", _WARM, "tests/system/test_faults.py"),
    "short": (
        *(f"tests/system/test_parity.py::test_same_as_local[{case}-warm]" for case in _SHORT.split()),
        _WARM,
        *(f"tests/system/test_faults.py::test_{name}" for name in ("worker_killed", "error_without_keep_going")),
    ),
    "few": (
        "tests/unit/test_interior.py::test_all_is_there_in_the_installed_versions",
        *(f"tests/system/test_parity.py::test_same_as_local[{case}-warm]" for case in ("checkpoints", "failures")),
        "tests/system/test_faults.py::test_error_without_keep_going",
    ),
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
JOBS = 300
ROUNDS = 3
WORKFLOW = f"""
rule all:
    input: expand("{{n}}.txt", n=range({JOBS}))

rule one:
    output: "{{n}}.txt"
    shell: "echo {{wildcards.n}} > {{output}}"
"""


@dataclass(frozen=True)
class Member:
    """One row. Empty: the newest that the package allows; of Python: the one that runs this."""

    snakemake: str = ""
    distributed: str = ""
    python: str = ""
    called: str = ""

    @property
    def name(self) -> str:
        if self.called:
            return self.called
        parts = [
            f"{what}-{version}"
            for what, version in (
                ("snakemake", self.snakemake),
                ("distributed", self.distributed),
                ("python", self.python),
            )
            if version
        ]
        return "_".join(parts) or "newest"


def released(package: str) -> list[str]:
    """Versions on the package index, newest first, pre-releases included."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "--pre", "--json", package],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return json.loads(told)["versions"]


def key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def is_final(version: str) -> bool:
    return re.fullmatch(r"[\d.]+", version) is not None


def lowest(package: str) -> str:
    """The lower end of the range in pyproject.toml."""
    found = re.search(rf'"{package}>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found[1]


def matrix() -> list[Member]:
    """The newest, a newer pre-release, Snakemake's minor versions as last patched, the lowest, each Python."""
    members = [Member()]
    versions = released("snakemake")
    if not is_final(versions[0]):
        members.append(Member(snakemake=versions[0]))
    least, latest = key(lowest("snakemake")), {}
    for version in filter(is_final, versions):
        if key(version)[0] == least[0] and key(version) >= least:
            latest.setdefault(key(version)[:2], version)
    minors = sorted(latest, reverse=True)
    members += [Member(snakemake=latest[minor]) for minor in minors[1:]]
    members += [Member(distributed=lowest("distributed")), oldest()]
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    members += [Member(python=version) for version in PYTHONS if version != here and usable(version)]
    return members


def oldest() -> Member:
    """The lowest of all that the package allows."""
    return Member(snakemake=lowest("snakemake"), distributed=lowest("distributed"), called="oldest")


def usable(python: str) -> bool:
    command = shutil.which(f"python{python}")
    return command is not None and subprocess.run([command, "-c", ""], capture_output=True).returncode == 0


class Environment:
    """A virtual environment with the wheel and a member's versions."""

    def __init__(self, member: Member, wheel: Path, base: Path) -> None:
        self.member = member
        self.path = base.absolute() / member.name  # used from other directories
        if not (self.path / "bin" / "pip").exists():
            subprocess.run(
                [f"python{member.python}" if member.python else sys.executable, "-m", "venv", "--clear", self.path],
                check=True,
            )
            self.pip("install", "--upgrade", "pip>=25.1")
        pins = []
        if member.snakemake:
            pins.append(f"snakemake=={member.snakemake}")
        if member.distributed:
            pins += [f"distributed=={member.distributed}", f"dask=={member.distributed}"]
        self.pip("install", "--group", "test", str(wheel), *pins)
        self.pip("install", "--force-reinstall", "--no-deps", str(wheel))

    def pip(self, *arguments: str) -> None:
        subprocess.run([self.path / "bin" / "python", "-m", "pip", "--quiet", *arguments], check=True, cwd=ROOT)

    def versions(self) -> dict[str, str]:
        code = (
            "import json, platform\nfrom importlib.metadata import version\n"
            "found = {name: version(name) for name in ('snakemake', 'distributed')}\n"
            "print(json.dumps({**found, 'python': platform.python_version()}))"
        )
        told = subprocess.run([self.path / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
        return json.loads(told.stdout)

    def short_jobs(self) -> tuple[float, dict[str, int]]:
        """Jobs a second from the first start to the last end, and how many of them started at which depth."""
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "Snakefile").write_text(WORKFLOW)
            run = subprocess.run(
                [
                    self.path / "bin" / "snakemake",
                    "--executor",
                    "dask",
                    "--jobs",
                    "1000",
                    "--scheduler",
                    "firstfit",
                    "--max-jobs-per-timespan",
                    "1000/1s",
                    "--quiet",
                    "all",
                ],
                cwd=directory,
                capture_output=True,
                text=True,
                env={**os.environ, "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}"},
            )
            if run.returncode:
                return 0.0, {run.stderr.strip().splitlines()[-1][:200] if run.stderr.strip() else "failed": JOBS}
            times, depths = [], {}
            for log in Path(directory, ".snakemake", "dask").glob("*.events.jsonl"):
                for line in log.read_text().splitlines():
                    event = json.loads(line)
                    if event["kind"] == "job-started":
                        depth = str(event.get("start_depth") or event.get("start"))
                        depths[depth] = depths.get(depth, 0) + 1
                    if event["kind"] in ("job-started", "job-ended"):
                        times.append(event["t"])
        return len(times) / 2 / (max(times) - min(times)), depths

    def tests(self, how_much: str) -> str:
        run = subprocess.run(
            [
                self.path / "bin" / "python",
                "-P",
                "-m",
                "pytest",
                "-q",
                "-m",
                "not variant",
                *TESTS[how_much],
                "--numprocesses",
                os.environ.get("TEST_PROCESSES", "3"),
                "--dist",
                "loadgroup",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={
                # Of a pytest that has called this, nothing is for the one that is called.
                **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
                "SNAKEMAKE_DASK_TEST_WHEEL": "1",
                "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin",
            },
        )
        (self.path / "tests.log").write_text(run.stdout + run.stderr)
        lines = run.stdout.strip().splitlines()
        for line in lines:
            if line.startswith("FAILED"):
                print(f"    {line}", flush=True)
        return re.sub(r"^=* ?| in [\d.]+s.*$", "", lines[-1]) if lines else run.stderr.strip()[-200:]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run versions", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "members",
        nargs="*",
        metavar="MEMBER",
        help="of the matrix, by name; `oldest` has the lowest Snakemake and Dask. All unless given",
    )
    parser.add_argument("--list", action="store_true", help="the names alone")
    parser.add_argument(
        "--tests", choices=(*TESTS, "none"), default="full", help="how much of the core; full unless given"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=ROUNDS,
        help="of short jobs against the newest, whose median ratio is told (%(default)s)",
    )
    parser.add_argument("--wheel", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--environments", type=Path, required=True, help=argparse.SUPPRESS)
    given = parser.parse_args()
    members = [oldest()] if given.members == ["oldest"] else matrix()
    names = {member.name: member for member in members}
    if given.list:
        print("\n".join(member.name for member in members))
        return 0
    if unknown := [name for name in given.members if name not in names]:
        print(f"There is no {', '.join(unknown)} in the matrix, which has {', '.join(names)}.", file=sys.stderr)
        return 2
    chosen = [names[name] for name in given.members] or members
    given.environments.mkdir(parents=True, exist_ok=True)
    newest = Environment(Member(), given.wheel, given.environments) if given.rounds else None
    rows, failed = [], False
    for member in chosen:
        environment = (
            newest if newest and member == newest.member else Environment(member, given.wheel, given.environments)
        )
        rates: list[float] = []
        ratios: list[float] = []
        for _ in range(given.rounds or 1):
            rate, depths = environment.short_jobs()
            rates.append(rate)
            if newest:
                ratios.append(rate / newest.short_jobs()[0] if environment is not newest else 1.0)
        ratio = f"{sorted(ratios)[len(ratios) // 2]:.2f}" if ratios else "not run"
        tests = "not run" if given.tests == "none" else environment.tests(given.tests)
        failed |= "failed" in tests or "error" in tests or not min(rates) or set(depths) != {"3"}
        versions = environment.versions()
        started = ", ".join(
            f"{count} at {depth}" if len(depths) > 1 else depth for depth, count in sorted(depths.items())
        )
        rows.append(
            f"| {versions['snakemake']} | {versions['distributed']} | {versions['python']} | {started} "
            f"| {ratio} | {tests} |"
        )
        print(rows[-1], flush=True)
    print("\n| Snakemake | distributed | Python | start depth | jobs a second, newest = 1 | tests |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
