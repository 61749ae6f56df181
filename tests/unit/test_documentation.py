"""What the documentation points at exists."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOOKS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["metadata"]["hooks"]
OWN = f"{HOOKS['custom']['repository']}/blob/main/"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("example-workflows/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every link and picture that leads into this repository is a file, and every anchor a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target) and not target.startswith(OWN):
            continue
        name, _, anchor = target.removeprefix(OWN).partition("#")
        path = ((ROOT if target.startswith(OWN) else page.parent) / name) if name else page
        assert path.exists(), f"{page.name} points at {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} points at {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_tests_exist(page: Path) -> None:
    """A test that a page names (`test_faults.py::test_worker_killed`, or one of the two) is there."""
    files = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("tests/*/test_*.py")}
    for file, name in re.findall(r"`(?:(test_\w+\.py)(?:::)?)?(test_\w+)?`", page.read_text(encoding="utf-8")):
        assert not file or file in files, f"{page.name} names {file}"
        texts = [files[file]] if file else list(files.values())
        assert not name or any(f"def {name}(" in text for text in texts), f"{page.name} names {file}::{name}"


@pytest.mark.parametrize("name", ["intro", "further"])
def test_links_hold_in_the_plugin_catalog(name: str) -> None:
    """Every link of the catalog's two pages is absolute."""
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []


def test_every_page_is_on_the_site() -> None:
    """A new page is in a table of contents, without which the site is not built."""
    listed = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").splitlines()
    assert {page.stem for page in ROOT.glob("docs/*.md")} - {"index", "intro"} <= set(listed)


def test_troubleshooting_names_real_messages() -> None:
    """Each heading of the page that is ordered by message is part of one that the plugin says."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("snakemake_executor_plugin_dask/**/*.py"))
    said = re.sub(r"\{[^{}]*\}", "…", re.sub(r'"\n\s*f?"', "", code))
    headings = re.findall(r"^### (.+)$", page, re.MULTILINE)
    assert headings
    assert [heading for heading in headings if heading not in said] == []


def test_there_are_pages() -> None:
    """The search for pages finds them: the catalogue's two among them."""
    assert {"README.md", "intro.md", "further.md"} <= {page.name for page in PAGES}
