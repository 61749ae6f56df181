"""The three kinds of error: your configuration, this job, the pool (which may pass). Imports nothing else."""


class ConfigurationError(Exception):
    """What the user set cannot work; raised before anything is started.

    The text is one sentence: what was asked, what was found, the limit, what to change.
    """


class RequestError(Exception):
    """One job's declared resources make no sense, or fit into no pool; that job fails, nothing else."""


class PoolError(Exception):
    """A pool could not be brought up or reached; another attempt, or another pool, may do."""
