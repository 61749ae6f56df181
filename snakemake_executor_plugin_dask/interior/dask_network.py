"""Dask's own small functions for addresses, so that the plugin reads them as Dask does."""

from snakemake_executor_plugin_dask.interior.declared import Private, privates

_LOST = "no address can be found at which workers reach the scheduler"
GET_IP = Private("distributed.utils", "get_ip", _LOST)
_READING = ADDRESS_HOST, PARSE_ADDRESS, PARSE_HOST_PORT = privates(
    "distributed.comm.addressing", _LOST, "get_address_host", "parse_address", "parse_host_port"
)

NAMES = (GET_IP, *_READING)


def own_address(towards: str | None = None) -> str:
    """This machine's address on the way to a scheduler (``tls://host:port``), or to the world. Imports Dask."""
    from distributed import utils
    from distributed.comm import addressing

    get_ip = GET_IP.of(utils)
    return str(get_ip() if towards is None else get_ip(ADDRESS_HOST.of(addressing)(towards)))


def host_and_port(address: str) -> tuple[str, int]:
    """Of a scheduler's address. Raises ValueError. Imports Dask."""
    from distributed.comm import addressing

    host, port = PARSE_HOST_PORT.of(addressing)(PARSE_ADDRESS.of(addressing)(address)[1])
    return host, port
