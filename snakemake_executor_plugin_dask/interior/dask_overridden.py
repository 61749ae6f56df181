"""What `dask_listening`, `dask_beside` and `dask_http` import from Dask, or override. Imports nothing of Dask.

They stand here so that they can be looked for before those modules are imported.
"""

from snakemake_executor_plugin_dask.interior.dask_attached import NTHREADS, STATE
from snakemake_executor_plugin_dask.interior.declared import Private, privates

_LISTENER = "distributed.comm.tcp:TLSListener"
_HELD_UP = "a port of the run can be held up by strangers"
_ENCRYPTED = "what a job's own Dask workers send to each other is encrypted on one node, too"
_OPEN = "an HTTP server that anybody can reach would be open beside the run"

NAMES = (
    *privates(_LISTENER, _HELD_UP, "start", "port", "ip", "server_args", "_handle_stream"),
    *privates(_LISTENER, _HELD_UP, "get_host_port", "tcp_server"),
    Private("distributed.comm.tcp:TLSBackend", "_listener_class", _HELD_UP),
    Private(
        "distributed.node", "HTTPServer", "pages of a job's own Dask cluster can be held up by strangers", needed=False
    ),
    *privates(_LISTENER, _ENCRYPTED, "prefix", "comm_handler", "on_connection", needed=False),
    Private("distributed.comm.tcp:TLSConnector", "connect", _ENCRYPTED, needed=False),
    Private("distributed.comm.tcp:TLSBackend", "_connector_class", _ENCRYPTED, needed=False),
    Private("distributed.comm.registry", "backends", _HELD_UP),
    Private("distributed.comm.tcp", "MAX_BUFFER_SIZE", _HELD_UP),
    *privates("tornado.tcpserver:TCPServer", _HELD_UP, "_sockets", "_handlers"),
    Private(
        "distributed.node:ServerNode",
        "start_http_server",
        _OPEN,
        arguments=("routes", "dashboard_address", "default_port", "ssl_options"),
    ),
    Private("distributed.scheduler:Scheduler", "services", "the dashboard's server would be left open at the end"),
    Private(
        "distributed.scheduler:Scheduler",
        "worker_send",
        "the loss of many workers at once holds the driver up",
        needed=False,
        arguments=("worker", "msg"),
    ),
    Private(
        "distributed.worker:Worker", "_register_with_scheduler", "a worker would run no more jobs than it has cores"
    ),
    Private(
        "distributed.worker:Worker", "heartbeat", "workers take more of a core where nothing happens", needed=False
    ),
    STATE,
    NTHREADS,
    Private("distributed.http.routing:RoutingApplication", "find_handler", _OPEN, arguments=("request",)),
)
