"""Messages of a supervisor and the driver about leases: JSON lines over TLS. Pure.

From the supervisor: ``{"hello": worker, "run": run id}``, ``{"alive": n, "uses": {key: [CPU seconds, 10^6 bytes]}}``
every 5 s, and at its end ``{"dead": [keys], "last": true}``. To it: ``{"renew": n}`` every 5 s, ``{"stop": true}``.
"""

import json
from collections.abc import Mapping
from typing import Any

RENEW_EVERY_S = 5.0


def hello(worker: str, run: str) -> dict[str, str]:
    """A supervisor's first message."""
    return {"hello": worker, "run": run}


def encoded(message: Mapping[str, Any]) -> bytes:
    """A message as it travels, in either direction."""
    return json.dumps(message).encode() + b"\n"
