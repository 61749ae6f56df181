"""What a release says about itself: its addresses, its README on a package index, and what has to agree."""

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = load(".ci/release.py")


def test_one_address_everywhere() -> None:
    """The repository's address is the same wherever it stands, so that `./run address` can set it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    texts = {
        name: (ROOT / name).read_text(encoding="utf-8", errors="ignore")
        for name in listed.split("\0")
        if (ROOT / name).is_file()
    }
    found = {
        (name, address)
        for name, text in texts.items()
        for address in re.findall(r"https://[\w.-]+/[\w-]+/snakemake-executor-plugin-dask(?![\w-])", text)
    }
    assert {address for _, address in found} == {release.address()}, found
    assert ("pyproject.toml", release.address()) in found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[a](docs/a.md#b)", "[a](https://x.org/o/r/blob/v1/docs/a.md#b)"),
        ("![a](docs/a.png)", "![a](https://x.org/o/r/raw/v1/docs/a.png)"),
        ("[a](https://y.org)", "[a](https://y.org)"),
        ("[a](#b)", "[a](#b)"),
    ],
)
def test_links_on_a_package_index(text: str, shown: str) -> None:
    """Relative links and pictures lead into the repository at the release's tag; others stay."""
    assert load("hatch_build.py").absolute(text, "https://x.org/o/r", "v1") == shown


CITATION = {"version": "1.0", "date-released": "2026-01-02", "repository-code": "https://x.org/o/r"}


def test_a_release_that_agrees() -> None:
    """Version, date and address that agree are no reason to wait."""
    changelog = "## [Unreleased]\n\n## [1.0] - 2026-01-02\n\n- new\n"
    assert release.disagreements("1.0", changelog, CITATION, "https://x.org/o/r") == []


@pytest.mark.parametrize(
    ("version", "changelog", "address", "lacking"),
    [
        ("1.1", "## [1.1] - 2026-01-02\n", "https://x.org/o/r", "CITATION.cff has version 1.0"),
        ("1.0", "## [Unreleased]\n", "https://x.org/o/r", "no heading"),
        ("1.0", "## [1.0] - 2026-01-03\n", "https://x.org/o/r", "date-released 2026-01-02"),
        ("1.0", "## [Unreleased]\n\n### Added\n\n## [1.0] - 2026-01-02\n", "https://x.org/o/r", "under [Unreleased]"),
        ("1.0", "## [1.0] - 2026-01-02\n", "https://x.org/other/r", "has the address https://x.org/o/r"),
        ("1.0", "## [1.0] - 2026-01-02\n", "https://x.org/OWNER/r", "placeholder"),
    ],
)
def test_a_release_that_does_not_agree(version: str, changelog: str, address: str, lacking: str) -> None:
    """Each disagreement is named."""
    assert any(lacking in told for told in release.disagreements(version, changelog, CITATION, address))


def test_the_recipe_follows_the_package(tmp_path: Path) -> None:
    """The conda recipe requires what pip would install, under conda's names, and has the archive's checksum."""
    source = tmp_path / "source.tar.gz"
    source.write_bytes(b"")
    described = yaml.safe_load(release.rendered(release.recipe(source)))
    run = {requirement.split()[0] for requirement in described["requirements"]["run"]}
    named = {re.split(r"[<>=]", name)[0] for name in release.project()["project"]["dependencies"]}
    assert run == {"python", *(release.CONDA_NAMES.get(name, name) for name in named)}
    assert described["source"]["sha256"].startswith("e3b0c44298fc")
