"""The argument list of a job's Snakemake, as `format_job_exec` means it, but as a list that no shell reads.

Snakemake formats these arguments as text for a shell, quoting with `repr`, which is right for neither a shell nor a
list. Here its own functions are asked to join their parts with marks that no value contains, and the text is taken
apart again. Values that the command line cannot express at all (a comma in a wildcard of ``--target-jobs``, a file
name with a leading dash) travel as overrides, which `worker/entry.py` sets after parsing. Reads Snakemake's interior;
no effects.
"""

import pickle
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import snakemake.spawn_jobs
from snakemake.target_jobs import parse_target_jobs_cli_args
from snakemake_interface_common.settings import SettingsEnumBase
from snakemake_interface_common.utils import not_iterable
from snakemake_interface_executor_plugins.settings import CommonSettings
from snakemake_interface_executor_plugins.utils import TargetSpec, encode_as_base64, encode_target_jobs_cli_args

_ARGUMENT, _PART, _BETWEEN = "\x1d", "\x1e", "\x1f"
_patching = threading.Lock()

#: What a job's Snakemake needs beyond Snakemake's own arguments. Its rate limiter would leave a timer of its timespan
#: (1 s by default) behind, for which the interpreter waits at its end. A rule's own `retries` would be made by it too,
#: with the first attempt's resources; rules that count as preemptible have the number of retries that is given here.
ADDED = ("--max-jobs-per-timespan", "1000/0s", "--preemptible-rules", "--preemptible-retries", "0")


#: A command line holds 2 MB, or less, with the environment, and 128 kB in one argument.
_MOST_BYTES = 60_000


def general_arguments(factory: Any, common_settings: CommonSettings, *, copies_shared: bool = True) -> list[str]:
    """The arguments that are the same for all jobs of a run.

    ``factory`` is the workflow's ``spawned_job_args_factory``. Unless local copies of storage files are shared, where
    they are is not among them: each attempt has a place of its own.
    """
    own = ("--max-threads",) if copies_shared else ("--max-threads", "--local-storage-prefix")
    with _marked_formatting():
        text = factory.general_args(executor_common_settings=common_settings)
    arguments = []
    for piece in text.split(_BETWEEN):
        if piece.startswith(_ARGUMENT):
            flag, *values = piece[1:].split(_PART)
            if flag not in own:
                arguments += [flag, *values]
        else:  # a literal in Snakemake's own code, such as "--retries 0"
            arguments.extend(piece.split())
    return [*arguments, *ADDED]


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
    if too_long or not _survives_parsing(encoded, target):
        overrides["target_jobs"] = target
        # The parser wants a value that it can read; it is replaced afterwards.
        encoded = ["replaced:"]
    if (too_long and allowed) or any(rule.startswith("-") for rule in allowed):
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


def _survives_parsing(encoded: list[str], target: list[TargetSpec]) -> bool:
    try:
        parsed = parse_target_jobs_cli_args(encoded)
    except Exception:  # noqa: BLE001 - Snakemake's parser raises many kinds for text that it cannot read
        return False
    return bool(parsed == target) and not any(text.startswith("-") for text in encoded)


@contextmanager
def _marked_formatting() -> Iterator[None]:
    module = snakemake.spawn_jobs
    with _patching:
        saved = module.format_cli_arg, module.join_cli_args
        module.format_cli_arg, module.join_cli_args = _format_argument, _join_arguments
        try:
            yield
        finally:
            module.format_cli_arg, module.join_cli_args = saved


def _join_arguments(arguments: Iterable[str]) -> str:
    return _BETWEEN.join(argument for argument in arguments if argument)


def _format_argument(  # its parameters are those of the function that it stands in for
    flag: str,
    value: Any,
    quote: bool = True,  # noqa: ARG001
    skip: bool = False,
    base64_encode: bool = False,
) -> str:
    """Like Snakemake's ``format_cli_arg``, with marks instead of quotes; but a number that is 0 is one."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if skip or not (value or number):
        return ""
    parts = [flag] if isinstance(value, bool) else [flag, *_format_values(value, base64_encode)]
    return _ARGUMENT + _PART.join(parts)


def _format_values(value: Any, base64_encode: bool) -> list[str]:
    def encode(text: str) -> str:
        return encode_as_base64(text) if base64_encode else text

    if isinstance(value, Mapping):
        return [encode(f"{key}={_text(item)}") for key, item in value.items()]
    items = [value] if not_iterable(value) else list(value)
    return [encode(_text(item)) for item in items]


def _text(value: Any) -> str:
    if isinstance(value, SettingsEnumBase):
        return str(value.item_to_choice())
    if isinstance(value, str | Path):
        return str(value)
    return repr(value)
