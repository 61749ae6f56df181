"""Dask's own small functions for addresses, so that the plugin reads them as Dask does."""

from snakemake_executor_plugin_dask.interior.declared import Private

_LOST = "no address can be found at which workers reach the scheduler"
GET_IP = Private("distributed.utils", "get_ip", _LOST)
ADDRESS_HOST = Private("distributed.comm.addressing", "get_address_host", _LOST)
PARSE_ADDRESS = Private("distributed.comm.addressing", "parse_address", _LOST)
PARSE_HOST_PORT = Private("distributed.comm.addressing", "parse_host_port", _LOST)

NAMES = (GET_IP, ADDRESS_HOST, PARSE_ADDRESS, PARSE_HOST_PORT)


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
