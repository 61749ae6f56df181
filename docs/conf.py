"""How Sphinx builds the documentation's site from the Markdown in this directory; `./run docs` calls it.

The pages are read in three places: in the repository, on this site, and two of them (intro.md, further.md) in
Snakemake's plugin catalog. So links out of this directory become addresses in the repository here, and the absolute
ones of the catalog's two pages become pages of the site.
"""

import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
described = tomllib.loads((ROOT / "pyproject.toml").read_text())
repository = described["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]

project = described["project"]["name"]
version = release = described["project"]["version"]
author = "snakemake-executor-plugin-dask contributors"
copyright = author  # noqa: A001
extensions = ["myst_parser", "sphinx_copybutton"]
# How GitHub makes an anchor of a heading, down to this level.
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
# intro.md is part of index.md.
exclude_patterns = ["_build", "intro.md"]
# What a terminal showed is no Python.
highlight_language = "text"
html_theme = "furo"
html_title = f"Snakemake on Dask {version}"
html_theme_options = {"source_repository": repository, "source_branch": "main", "source_directory": "docs/"}
copybutton_prompt_text = "$ "
# A file within a shell command is more than its lexer knows.
suppress_warnings = ["misc.highlighting_failure"]
# What is not published yet.
linkcheck_ignore = [re.escape(repository)] if "/OWNER/" in repository else []


def fit_links(_app: Sphinx, _page: str, source: list[str]) -> None:
    text = source[0].replace(f"]({repository}/blob/main/docs/", "](")
    source[0] = re.sub(r"\]\(\.\./([^)]+)\)", rf"]({repository}/blob/main/\1)", text)


def setup(app: Sphinx) -> None:
    app.connect("source-read", fit_links)
