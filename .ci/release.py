"""Look whether a release is ready: what is said about it agrees, and what is built installs and works.

Builds the source distribution and the wheel into dist/, installs each in an empty environment, runs a small workflow
from it, and writes the conda recipe for Bioconda, where Snakemake's executor plugins live. Ends with exit code 1 and a
list of what is lacking, or says what is left to do by hand. Publishes nothing.
"""

import argparse
import email
import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

import jinja2
import yaml

ROOT = Path(__file__).resolve().parents[1]
#: Where conda's package of the same content has another name.
CONDA_NAMES = {"snakemake": "snakemake-minimal", "dask": "dask-core"}
WORKFLOW = """
rule all:
    input: expand("{n}.txt", n=range(3))

rule one:
    output: "{n}.txt"
    shell: "echo {wildcards.n} > {output}"
"""
BY_HAND = """Left to do by hand, for version {version}:
 1. ./run tests, variants, accounting, interior and software, ./run versions, and the three Debians (CONTRIBUTING.md)
    passed on this commit
 2. git tag --annotate v{version} --message "Version {version}", and push it
 3. twine upload dist/{name}-{version}*
 4. The release's page in the repository, with the changelog's section
 5. dist/meta.yaml as recipes/{project}/meta.yaml of bioconda/bioconda-recipes, by pull request, with the accounts of
    its maintainers. It is linted and built there: `bioconda-utils` and `conda-build` are not on PyPI
 6. A look at the plugin catalog's page the day after
"""


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def address() -> str:
    return project()["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def disagreements(version: str, changelog: str, citation: dict, repository: str) -> list[str]:
    """What is said about a release and does not agree. Pure."""
    found = []
    released = re.search(rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$", changelog, re.MULTILINE)
    if released is None:
        found.append(f"CHANGELOG.md has no heading «## [{version}] - YYYY-MM-DD».")
    elif str(citation.get("date-released")) != released[1]:
        dated = citation.get("date-released")
        found.append(f"CITATION.cff has date-released {dated}, and CHANGELOG.md dates {version} {released[1]}.")
    if re.search(r"^## \[Unreleased\]\s+(?!## )\S", changelog, re.MULTILINE):
        found.append("CHANGELOG.md has changes under [Unreleased].")
    if citation["version"] != version:
        found.append(f"CITATION.cff has version {citation['version']}, and pyproject.toml {version}.")
    if citation["repository-code"] != repository:
        found.append(f"CITATION.cff has the address {citation['repository-code']}, and pyproject.toml {repository}.")
    if "/OWNER/" in repository:
        found.append("The repository's address is a placeholder; set it with ./run address URL.")
    return found


def build() -> tuple[Path, Path]:
    """The source distribution, and the wheel that was built from it."""
    for old in (ROOT / "dist").glob("*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist")
    (source,) = (ROOT / "dist").glob("*.tar.gz")
    (wheel,) = (ROOT / "dist").glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", source, wheel)
    return source, wheel


def relative_links(wheel: Path) -> list[str]:
    """Links in what a package index shows that lead nowhere there."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        shown = email.message_from_bytes(archive.read(metadata)).get_payload()
    return re.findall(r"\]\((?![a-z]+:|#)([^)\s]+)\)", shown)


def try_it(distribution: Path, version: str) -> None:
    """Install it in an empty environment, and run a workflow from there, without anything of this tree on the way."""
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        venv.create(here / "venv", with_pip=True)
        commands = here / "venv" / "bin"
        run(commands / "pip", "install", "--quiet", distribution, cwd=here)
        run(commands / "pip", "check", cwd=here)
        found = run(commands / "snakemake-dask", "--version", cwd=here).split()[-1]
        if found != version:
            raise SystemExit(f"{distribution.name} installs version {found}, and {version} is to be released.")
        (here / "Snakefile").write_text(WORKFLOW)
        run(commands / "snakemake", "--executor", "dask", "--jobs", "10", cwd=here)
        outputs = [(here / f"{n}.txt").read_text() for n in range(3)]
        if outputs != ["0\n", "1\n", "2\n"]:
            raise SystemExit(f"{distribution.name}: the workflow wrote {outputs}.")


def conda(requirement: str) -> str:
    """A requirement of pip's as conda writes it: with conda's name, and a space before the versions."""
    name, versions = re.fullmatch(r"([\w.-]+)(.*)", requirement).groups()
    return f"{CONDA_NAMES.get(name, name)} {versions}".rstrip()


def recipe(source: Path) -> str:
    """The recipe of Bioconda's form: `<< >>` are filled in here, `{{ }}` by conda-build."""
    described = project()
    environment = jinja2.Environment(
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.from_string((ROOT / ".ci" / "recipe.yaml").read_text()).render(
        version=described["project"]["version"],
        sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        scripts=described["project"]["scripts"],
        python=described["project"]["requires-python"],
        host=map(conda, described["build-system"]["requires"]),
        run=map(conda, described["project"]["dependencies"]),
        repository=address(),
        summary=described["project"]["description"],
    )


def rendered(recipe: str) -> str:
    """As conda-build reads it."""
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(recipe)
    return template.render(PYTHON="python", pin_subpackage=lambda name, max_pin: f"{name} {max_pin}")


def main() -> int:
    argparse.ArgumentParser(prog="./run release", description=__doc__).parse_args()
    described = project()["project"]
    version = described["version"]
    lacking = disagreements(
        version, (ROOT / "CHANGELOG.md").read_text(), yaml.safe_load((ROOT / "CITATION.cff").read_text()), address()
    )
    if run("git", "status", "--porcelain"):
        lacking.append("The working tree has changes that are not committed.")
    if run("git", "tag", "--list", f"v{version}"):
        lacking.append(f"The tag v{version} exists already; raise the version in pyproject.toml.")
    source, wheel = build()
    lacking += [
        f"README.md, as a package index shows it, has the relative link {link}." for link in relative_links(wheel)
    ]
    (ROOT / "dist" / "meta.yaml").write_text(recipe(source))
    for distribution in (source, wheel):
        try_it(distribution, version)
        print(f"{distribution.name}: installed in an empty environment, and its workflow ran", flush=True)
    if lacking:
        print("\nNot ready:\n" + "\n".join(f" - {what}" for what in lacking))
        return 1
    print("\n" + BY_HAND.format(version=version, name=described["name"].replace("-", "_"), project=described["name"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
