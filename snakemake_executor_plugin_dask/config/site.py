"""For how long a site lets clusters stay, from Dask's configuration. Reads its files, and nothing of Dask."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from snakemake_executor_plugin_dask.config.plainyaml import YamlError, load
from snakemake_executor_plugin_dask.model import units
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.node.daskfiles import files

_PART, _KEY = "snakemake-dask", "keep-at-most"
_VARIABLE = "DASK_SNAKEMAKE_DASK__KEEP_AT_MOST"


def parse_keep_s(text: str) -> float:
    """Seconds; 0: not at all. ValueError."""
    return 0.0 if text.strip() == "0" else units.parse_duration_s(text)


def keep_at_most_s(environment: Mapping[str, str]) -> tuple[float, str] | None:
    """The shortest time that is set anywhere, and where; None: no limit.

    Elsewhere a user's file wins over the site's; here that would lift the limit. ConfigurationError.
    """
    found: list[tuple[float, str]] = []
    for where, value in _said(environment):
        try:
            found.append((parse_keep_s(str(value)), where))
        except ValueError as error:
            msg = f"{where} sets {_PART}.{_KEY} to {str(value)!r:.80}, which {error}."
            raise ConfigurationError(msg) from error
    return min(found, default=None)


def _said(environment: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    if (value := environment.get(_VARIABLE)) is not None:
        yield f"the variable {_VARIABLE}", value
    for path in files(environment):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = path.read_text(encoding="utf-8")
            if _KEY not in text.replace("_", "-"):
                continue  # whatever else is in it is Dask's to read
            try:
                value = _in(_in(load(text), _PART), _KEY)
            except YamlError as error:
                msg = f"{path} cannot be read: {error}."
                raise ConfigurationError(msg) from error
            if value is not None:
                yield str(path), value


def _in(values: Any, name: str) -> Any:
    """Dask takes a name with dashes for the one with underscores."""
    if not isinstance(values, dict):
        return None
    return next((value for key, value in values.items() if str(key).replace("_", "-") == name), None)
