"""A job's own call as it travels: `interior/snakemake_calls.py` describes it, the worker's warm process makes it."""

from typing import NamedTuple


class Call(NamedTuple):
    """Pickled as a plain tuple. Names are pairs of a name and the slice of the list that it stands for."""

    rule: str
    wildcards: dict[str, str]
    input: list[str]
    input_names: list[tuple[str, tuple[int, int | None]]]
    directories: list[int]  # input files that are flagged as directories, by index
    output: list[str]  # only to be compared with what the worker finds
    jobid: int
    resources: dict[str, int | float | str]  # values of those that expressions of the command line give
