"""A job's log file: find a place that takes it, and read its last lines. Reads and writes files.

A job must not be lost because its log cannot be written, so there are places to fall back to, down to /dev/null.
"""

import contextlib
import errno
import functools
import itertools
import os
import re
import signal
import stat
from collections.abc import Sequence

from snakemake_executor_plugin_dask.model.printed import without_sequences
from snakemake_executor_plugin_dask.node.private import open_own, read_end

_TAIL_LINES = 20
_TAIL_BYTES = 4096
_READ_BYTES = 4 * _TAIL_BYTES  # with what is left out of it
_PROBE = b"\0" * 4096
#: Control characters other than tab and newline.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

#: What Snakemake itself writes around a job's output: the block that announces the job, that of its error, which the
#: main process shows too, and lines of its own start and end. Errors of Python code (`run:`, scripts) are not among it.
_FRAME = r"""^(?:\[\w{3}\ \w{3}\ [\ \d]\d\ [\d:]{8}\ \d{4}\]\n)?
        (?:(?:local)?(?:rule|checkpoint)\ [^\n]*:|(?:Error\ in\ [^\n]*:)\n\ {4}message:\ None)\n(?:\ {4}[^\n]*\n)*
    |^RuleException:\nCalledProcessError\ in\ file\ "[^\n]*",\ line\ \d+:\n
        Command\ '(?:(?!^RuleException:\n)(?s:.))*?'\ (?:returned\ non-zero\ exit\ status\ \d+\.|died\ with\ [^\n]*)\n
    |^Removing\ output\ files\ of\ failed\ job\ [^\n]*\ since\ they\ might\ be\ corrupted:\n[^\n]*\n
    |^(?:\[\w{3}\ \w{3}\ [\ \d]\d\ [\d:]{8}\ \d{4}\]\n)?Finished\ jobid:\ [^\n]*\n(?:\d+\ of\ \d+\ steps[^\n]*\n)?
    |^SNAKEMAKE\n=+\n(?:\ \ [^\n]*\n)*
    |^(?:host:\ [^\n]*|Building\ DAG\ of\ jobs\.\.\.|Using\ shell:\ [^\n]*|Provided\ (?:remote\ nodes|cores):\ [^\n]*
        |Rules\ claiming\ more\ threads\ will\ be\ scaled\ down\.
        |Select\ jobs\ to\ execute\.\.\.|Execute\ \d+\ jobs\.\.\.|Shutting\ down,\ this\ might\ take\ some\ time\.
        |Storing\ output\ in\ storage\.
        |Exiting\ because\ a\ job\ execution\ failed\.\ Look\ above\ for\ error\ messages|Elapsed\ time:\ [^\n]*
        |WorkflowError:\nAt\ least\ one\ job\ did\ not\ complete\ successfully\.)\n"""

_TRIES = 3
_SEARCHED_BYTES = 1 << 20
_SEARCHED_HEADS = 100
_MEMBER = b"\nError in rule "
_SHOWN_MEMBERS = 3
_BLOCK_BYTES = 4096
_SHOWN_CHARACTERS = 100
#: Before what Snakemake prints of a command that failed (the message of CalledProcessError), and how that ends. Any
#: number of both may stand in a job's own output, so they are never one expression, which would look from each head
#: to the end of the log.
_HEAD = b'\nCalledProcessError in file "'
_COMMAND_END = re.compile(
    rb"returned non-zero exit status (?P<code>\d{1,3})\.|died with (?:<Signals\.)?(?P<signal>SIG\w+|unknown signal \d+)"
)


@functools.cache
def _frame() -> "re.Pattern[str]":
    """Compiled when it is needed: each process that starts others imports this module."""
    return re.compile(_FRAME, re.MULTILINE | re.VERBOSE)


def usable_log(path: str, places: Sequence[str], make: bool = True) -> tuple[str, str]:
    """The first file that really takes a write: ``path``, one in ``places``, or /dev/null; and why not ``path``.

    The second value is empty where ``path`` serves. With ``make`` its directory is made. May block where a file server
    does.
    """
    try:
        _probe(path, make)
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        return path, ""
    name = os.path.basename(path) or "job.log"
    for place in places:
        other = os.path.join(place, f"snakemake-dask-{os.getuid()}", name)
        if _made_elsewhere(other):
            return other, f"the log {path} could not be written ({reason}), so it is in {other}"
    return os.devnull, f"the log {path} could not be written ({reason}), nor one elsewhere, so the output is lost"


def _made_elsewhere(path: str) -> bool:
    for _ in range(_TRIES):
        try:
            _own_directory(os.path.dirname(path))
            _probe(path, make=False)
        except FileNotFoundError:
            continue  # the directory was removed in between, with its last log
        except OSError:
            return False
        return True
    return False


def remove_elsewhere(path: str) -> None:
    """Remove a log that is in one of the places of `usable_log`, and its directory with the last one."""
    with contextlib.suppress(OSError):
        os.unlink(path)
        os.rmdir(os.path.dirname(path))


def _own_directory(path: str) -> None:
    """Make a directory that only this user can enter; in /dev/shm another user may have taken the name."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)


def _probe(path: str, make: bool) -> None:
    """Make the file, and write to it: a full file system lets one make a file that takes nothing."""
    try:
        descriptor = open_log(path)
    except FileNotFoundError:
        if not make:
            raise
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = open_log(path)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return
        try:
            written = os.write(descriptor, _PROBE)
            if written < len(_PROBE):
                os.write(descriptor, _PROBE[written:])  # raises the reason why not all of it was taken
        finally:
            os.ftruncate(descriptor, found.st_size)
    finally:
        os.close(descriptor)


def open_log(path: str) -> int:
    """A descriptor that appends to a log, which is made where it is missing. Raises NotPrivate, OSError.

    Others may be able to write in its directory: what is there already is used only if it is this user's own, and no
    link.
    """
    if path == os.devnull:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    except FileExistsError:
        return open_own(path, flags)


def tail(path: str) -> str:
    """The last lines, at most 20 and 4 kB, as `clean_tail` makes them; empty where the file cannot be read."""
    try:
        data, cut = read_end(path, _READ_BYTES)
    except OSError:
        return ""
    return clean_tail(data, cut)


def command_end(path: str) -> str:
    """How the job's own command ended, as its Snakemake wrote it into the log; empty where no command failed.

    The Snakemake around a command ends with exit code 1, whatever the command did.
    """
    try:
        last = _last_end(b"\n" + read_end(path, _SEARCHED_BYTES)[0])
    except OSError:
        return ""
    if last is None:
        return ""
    if last["code"] is not None:
        code = int(last["code"])
        # A shell tells a signal that ended its command by 128 and the signal's number.
        try:
            name = f" ({signal.Signals(code - 128).name})" if code > 128 else ""
        except ValueError:
            name = ""
        return f"its command failed with exit code {code}{name}"
    return f"its command was ended by {last['signal'].decode()}"


def failed_members(path: str) -> str:
    """As "in rule c (output c.txt)": which rules of a group failed; empty where its Snakemake did not write it."""
    try:
        text = b"\n" + read_end(path, _SEARCHED_BYTES)[0]
    except OSError:
        return ""
    found: list[str] = []
    stop = len(text)
    for _ in range(_SHOWN_MEMBERS):
        start = text.rfind(_MEMBER, 0, stop)
        if start < 0:
            break
        first, *rest = text[start + len(_MEMBER) : min(stop, start + _BLOCK_BYTES)].decode(errors="replace").split("\n")
        lines = list(itertools.takewhile(lambda line: line.startswith("    "), rest))
        output = next((line for line in lines if line.startswith("    output: ")), "").strip()
        rule = first.rstrip(":")[:_SHOWN_CHARACTERS]
        name = f"{rule} ({output.replace(':', '', 1)[:_SHOWN_CHARACTERS]})" if output else rule
        if lines[:1] == ["    message: None"] and name not in found:
            found.insert(0, name)
        stop = start
    return f"in rule {', '.join(found)}" if found else ""


def _last_end(text: bytes) -> re.Match[bytes] | None:
    """The end of the last command of which Snakemake's message says it. Takes time in proportion to ``text``."""
    stop = len(text)
    for _ in range(_SEARCHED_HEADS):
        head = text.rfind(_HEAD, 0, stop)
        if head < 0:
            break
        line_end = text.find(b"\n", head + 1, stop)
        if line_end >= 0 and text.startswith(b"Command ", line_end + 1):
            found = _COMMAND_END.search(text, line_end, stop)
            if found is not None:
                return found
        stop = head + len(_HEAD) - 1  # the line before may end another head
    return None


def clean_tail(data: bytes, cut: bool) -> str:
    """The last lines of ``data``, without control characters and without what Snakemake says of each job.

    With ``cut`` the first line is not whole, and is dropped if others follow.
    """
    whole = data.decode(errors="replace")
    lines = _frame().sub("", whole).strip("\n").split("\n")
    # What a progress bar wrote over is gone on a terminal, too.
    lines = [_CONTROL.sub("", without_sequences(line.rstrip("\r").rpartition("\r")[2])).rstrip() for line in lines]
    if cut and len(lines) > 1:
        lines = lines[1:]
    while lines and not lines[-1]:
        lines.pop()
    lines = lines[-_TAIL_LINES:]
    while len(lines) > 1 and sum(len(line.encode()) + 1 for line in lines) > _TAIL_BYTES:
        del lines[0]
    text = "\n".join(lines)
    while len(text.encode()) > _TAIL_BYTES:  # replaced bytes are longer than what they replace
        text = text[len(text) // 8 + 1 :]
    return text
