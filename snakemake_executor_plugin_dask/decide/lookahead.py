"""Jobs that become ready when jobs end which were handed over: what workers are kept and brought up for. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from snakemake_executor_plugin_dask.model.messages import Later
from snakemake_executor_plugin_dask.model.requests import Request


@dataclass(slots=True, eq=False)
class _Awaiting:
    pool: str
    request: Request
    after: set[str]
    counts: bool = True


class LookAhead:
    """Those that are known, by pool, for as long as what they wait for may still succeed."""

    def __init__(self) -> None:
        self._by_key: dict[str, list[_Awaiting]] = {}
        self._requests: dict[str, Counter[Request]] = {}

    def add(self, pool: str, later: Later) -> None:
        """One that becomes ready for this pool."""
        entry = _Awaiting(pool, later.request, set(later.after))
        for key in entry.after:
            self._by_key.setdefault(key, []).append(entry)
        self._requests.setdefault(pool, Counter())[later.request] += 1

    def ended(self, key: str, *, succeeded: bool) -> None:
        """A job is over: what waited for it alone is handed over next; after a failure it never is."""
        for entry in self._by_key.pop(key, ()):
            entry.after.discard(key)
            if entry.counts and not (succeeded and entry.after):
                entry.counts = False
                requests = self._requests[entry.pool]
                requests[entry.request] -= 1
                if not requests[entry.request]:
                    del requests[entry.request]

    def of(self, pool: str) -> Sequence[tuple[Request, int]]:
        """Requests with their number."""
        return tuple(self._requests.get(pool, {}).items())
