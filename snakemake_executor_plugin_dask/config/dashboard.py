"""Dask's dashboard: whether and where it is served. Pure.

The scheduler classes that serve it are in `interior/dask_http.py`.
"""

import importlib.util
import re
import secrets
from collections.abc import Callable
from typing import Any

from snakemake_executor_plugin_dask.model.options import DashboardAddress

_LOOPBACK = "127.0.0.1"
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]*):)?(?P<port>\d{1,5})", re.ASCII | re.IGNORECASE)


def parse_dashboard(text: str, have_bokeh: bool | None = None) -> DashboardAddress | None:
    """What ``none``, ``auto`` or an address (``host:port``, ``:port``, ``port``) means; None: no HTTP server at all.

    An address without a host means loopback. Raises ValueError, with the second half of a sentence, for anything else,
    and where bokeh is missing.
    """
    setting = text.strip().lower()
    if setting in ("", "none"):
        return None
    address = DashboardAddress(_LOOPBACK)
    if setting != "auto":
        match = _ADDRESS.fullmatch(setting)
        if match is None or int(match["port"]) > 65535:
            msg = "is not an address; write auto, none, or an address such as 127.0.0.1:8787"
            raise ValueError(msg)
        address = DashboardAddress((match["host"] or _LOOPBACK).strip("[]"), int(match["port"]))
    if have_bokeh is None:
        have_bokeh = importlib.util.find_spec("bokeh") is not None
    if not have_bokeh:
        msg = (
            "needs bokeh, which is not installed: run pip install 'snakemake-executor-plugin-dask[dashboard]', or omit "
            "the setting"
        )
        raise ValueError(msg)
    return address


def scheduler_options(
    address: DashboardAddress | None, new_secret: Callable[[], str] = lambda: secrets.token_urlsafe(24)
) -> dict[str, Any]:
    """Arguments of the scheduler's class in `dask_http`. Every path that is answered begins with a new secret."""
    if address is None:
        return {"dashboard": False}
    # Unbracketed hosts of IPv6 would be split at the wrong colon.
    host = f"[{address.host}]" if ":" in address.host else address.host
    return {"dashboard": True, "dashboard_address": f"{host}:{address.port}", "http_prefix": f"/{new_secret()}"}
