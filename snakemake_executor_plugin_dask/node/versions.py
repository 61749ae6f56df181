"""Versions of what is installed here, as workers and runs compare them."""

from importlib.metadata import PackageNotFoundError, version


def snakemake_version() -> str:
    """Read from the package's metadata, since importing Snakemake takes most of a second."""
    try:
        return version("snakemake")
    except PackageNotFoundError:
        return ""


def plugin_version() -> str:
    """Version of this package, as installed."""
    try:
        return version("snakemake-executor-plugin-dask")
    except PackageNotFoundError:
        return ""
