"""The argument list of a job's Snakemake, as `format_job_exec` means it, but as a list that no shell reads.

Snakemake formats these arguments as text for a shell, quoting with `repr`, which is right for neither a shell nor a
list; here that text is read as it was written. Values that the command line cannot express at all (a comma in a
wildcard of ``--target-jobs``, a file name with a leading dash) travel as overrides, which `worker/entry.py` sets after
parsing. No effects.
"""

import ast
import contextlib
import pickle
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.settings import CommonSettings
from snakemake_interface_executor_plugins.utils import (
    TargetSpec,
    encode_as_base64,
    encode_target_jobs_cli_args,
    format_cli_arg,
)

#: What a job's Snakemake needs beyond Snakemake's own arguments. Its rate limiter would leave a timer of its timespan
#: (1 s by default) behind, for which the interpreter waits at its end. A rule's own `retries` would be made by it too,
#: with the first attempt's resources; rules that count as preemptible have the number of retries that is given here.
ADDED = ("--max-jobs-per-timespan", "1000/0s", "--preemptible-rules", "--preemptible-retries", "0")

#: A command line holds 2 MB, or less, with the environment, and 128 kB in one argument.
_MOST_BYTES = 60_000

#: A text that ``repr`` made, and a word as a shell reads it.
_LITERAL = re.compile(r"""(?:'(?:[^'\\\n\r\0]|\\[\\'nrtxuU])*'|"(?:[^"\\\n\r\0]|\\[\\nrtxuU])*")(?=\s|$)""")
_WORD = re.compile(r"""(?:'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^\s'"\\])+""", re.DOTALL)
_PROBE = 'a \\\\ "$HOME"'

#: Names and values that every reader of ``--target-jobs`` understands.
_PLAIN = re.compile(r"(?!-)[\w./+@%~-]*")


def general_arguments(factory: Any, common_settings: CommonSettings, *, copies_shared: bool = True) -> list[str]:
    """The arguments that are the same for all jobs of a run. Raises WorkflowError where they cannot be read.

    ``factory`` is the workflow's ``spawned_job_args_factory``. Unless local copies of storage files are shared, where
    they are is not among them: each attempt has a place of its own.
    """
    own = ("--max-threads",) if copies_shared else ("--max-threads", "--local-storage-prefix")
    text = factory.general_args(executor_common_settings=common_settings)
    arguments: list[str] = []
    keep = True
    for word, quoted in _words(text, _quotes()):
        if not quoted and word.startswith("--"):
            keep = word not in own
        if keep:
            arguments.append(word)
    return [*arguments, *ADDED]


def _quotes() -> str:
    """How this version of Snakemake's interface quotes: "python" or "shell". Raises WorkflowError where neither."""
    text = format_cli_arg("--probe", _PROBE)
    for quotes in ("python", "shell"):
        with contextlib.suppress(WorkflowError):
            if list(_words(text, quotes)) == [("--probe", False), (_PROBE, True)]:
                return quotes
    msg = (
        "This version of snakemake-interface-executor-plugins quotes the arguments of jobs in a way that the plugin "
        "does not know, so that jobs would get other values; install an earlier version."
    )
    raise WorkflowError(msg)


def _words(text: str, quotes: str) -> Iterator[tuple[str, bool]]:
    """The words of a text, and whether each was quoted.

    "python": by ``repr``, or as for a shell where that cannot be. A value that begins and ends with quotes of its own
    is not quoted again by Snakemake, and loses them, here as in a shell. WorkflowError where the text is no words.
    """
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        literal = _LITERAL.match(text, position) if quotes == "python" else None
        found = literal or _WORD.match(text, position)
        if found is None:
            msg = f"Snakemake's arguments for jobs hold quotes without an end: {text[position : position + 200]}"
            raise WorkflowError(msg)
        value = str(ast.literal_eval(found[0])) if literal else ""
        if not literal or repr(value) != found[0]:
            value = "".join(shlex.split(found[0]))
        yield value, found[0][0] in "\"'"
        position = found.end()


def job_arguments(
    *,
    snakefile: str,
    target: Iterable[TargetSpec],
    rules: Iterable[str],
    cores: int,
    max_threads: int,
    attempt: int,
    groupid: str | None,
    unneeded_temp_files: Iterable[str],
    wait_for_files: Iterable[str],
    local_copies: str | None = None,
) -> tuple[tuple[str, ...], bytes | None]:
    """One job's own arguments, and the pickled overrides (argparse destination to value) where some are needed.

    ``rules``: those that the job's Snakemake is to consider; none: all of them. ``cores`` are what the job's rules see
    as `workflow.cores`; ``groupid`` is given for group jobs only. ``local_copies``: where its local copies of storage
    files are, if it does not share them.
    """
    overrides: dict[str, Any] = {}
    target = [TargetSpec(spec.rulename, dict(spec.wildcards_dict)) for spec in target]
    encoded = encode_target_jobs_cli_args(target)
    unneeded, awaited = [str(path) for path in unneeded_temp_files], [str(path) for path in wait_for_files]
    allowed = sorted(set(rules))
    length = sum(len(text.encode(errors="surrogatepass")) + 1 for text in (*encoded, *allowed, *unneeded, *awaited))
    too_long = length > _MOST_BYTES
    if too_long or not _survives_parsing(target):
        overrides["target_jobs"] = target
        # The parser wants a value that it can read; it is replaced afterwards.
        encoded = ["replaced:"]
    if (too_long and allowed) or any(name.startswith("-") for name in allowed):
        overrides["allowed_rules"] = allowed
        allowed = ["replaced"]
    arguments = ["--snakefile", snakefile, "--target-jobs", *encoded]
    if allowed:
        arguments += ["--allowed-rules", *allowed]
    if groupid is not None:
        arguments += ["--local-groupid", groupid]
    arguments += ["--cores", str(cores), "--max-threads", str(max_threads), "--attempt", str(attempt)]
    if groupid is None:
        arguments.append("--force-use-threads")
    if local_copies is not None:
        arguments += ["--local-storage-prefix", encode_as_base64(local_copies)]
    for flag, values in (
        # Plain text: Snakemake's own kind of file name holds its rule, which cannot be pickled.
        ("--unneeded-temp-files", unneeded),
        ("--wait-for-files", awaited),
    ):
        if (too_long and values) or any(value.startswith("-") for value in values):
            overrides[flag[2:].replace("-", "_")] = values
        elif values:
            arguments += [flag, *values]
    return tuple(arguments), pickle.dumps(overrides) if overrides else None


def _survives_parsing(target: list[TargetSpec]) -> bool:
    names = [spec.rulename for spec in target]
    values = [value for spec in target for item in spec.wildcards_dict.items() for value in item]
    return all(isinstance(text, str) and _PLAIN.fullmatch(text) for text in (*names, *values))
