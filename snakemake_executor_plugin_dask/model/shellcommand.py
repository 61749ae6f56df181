"""A job that is one plain shell command, as it travels, and what a worker knows of such jobs. Standard library only.

`interior/snakemake_commands.py` says which rules have such jobs; the worker's supervisor starts their shells itself.
"""

from collections.abc import Mapping
from typing import Any

from snakemake_executor_plugin_dask.model.frozen import dataclass


@dataclass(frozen=True, slots=True)
class ShellCommand:
    """What the main process knows of the command of a job, and its Snakemake need not find out again."""

    rule: str
    text: str  # formatted, without what the shell's prefix and suffix add
    digest: str  # of all in its rule that the text was made of; the worker's must be the same
    threads: int
    jobid: int
    wildcards: tuple[tuple[str, str], ...]
    #: Relative paths count from the directory in which the workflow works.
    input: tuple[str, ...]
    output: tuple[str, ...]
    logs: tuple[str, ...]
    marks: tuple[str, ...]  # files by which Snakemake knows that the outputs are incomplete


@dataclass(frozen=True, slots=True)
class Shell:
    """How the run's workflow has its shell commands run on this worker, as the warm process found it."""

    executable: str  # absolute
    prefix: str
    suffix: str
    directory: str  # absolute; in which they run
    temporary: str  # absolute; their TMPDIR
    environment: Mapping[str, str]
    digests: Mapping[str, str]  # by rule
    sources: tuple[tuple[str, Any], ...]  # the files that the workflow was read from, see `node/sources.py`


#: Whatever knows how many threads to start is told so, and libraries look for different names.
_THREADS = (
    "OMP_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
TEMPORARY = ("TMPDIR", "TMP", "TEMPDIR", "TEMP")


def arguments(shell: Shell, command: ShellCommand) -> list[str]:
    """The shell's, as `snakemake.shell` has them."""
    return [shell.executable, "-c", shell_text(shell.prefix, command.text, shell.suffix)]


def shell_text(prefix: str, text: str, suffix: str) -> str:
    """A command with what is put around it."""
    return f"{prefix} {text} {suffix}".strip()


def variables(threads: int, temporary: str) -> dict[str, str]:
    """What `snakemake.shell` sets in the environment of a shell."""
    return dict.fromkeys(_THREADS, str(threads)) | dict.fromkeys(TEMPORARY, temporary)
