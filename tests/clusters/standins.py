"""Stand-ins for batch systems that cannot be had for tests: their commands, which truly start what is submitted.

`install(directory, system)` makes the commands of one of them in DIRECTORY/bin. They speak as the real ones do: options
and directives in, ids, listings, errors and exit codes out, in the words of OpenPBS 23 (with a history of jobs),
LSF 10.1 (with LSB_BJOBS_CONSISTENT_EXIT_CODE=Y) and Moab 9 on Torque 6. Started at once, as in an empty cluster, unless
the file DIRECTORY/hold exists; a queue named `nope` does not exist; while DIRECTORY/down exists, nothing answers.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMANDS = {
    "pbs": ("qsub", "qdel", "qstat"),
    "lsf": ("bsub", "bkill", "bjobs"),
    "moab": ("msub", "canceljob", "showq"),
}
ID_VARIABLES = {
    "pbs": "PBS_JOBID",
    "lsf": "LSB_JOBID",
    "moab": "PBS_JOBID",
}


def install(directory: Path, system: str) -> Path:
    """Make the commands; returns the directory for PATH."""
    binaries = directory / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    (directory / "jobs").mkdir(exist_ok=True)
    for name, verb in zip(COMMANDS[system], ("submit", "cancel", "query"), strict=True):
        path = binaries / name
        call = [sys.executable, "-S", os.fspath(Path(__file__).resolve()), os.fspath(directory), system, verb]
        path.write_text(f'#!/bin/sh\nexec {shlex.join(call)} "$@"\n')
        path.chmod(0o755)
    return binaries


def left(directory: Path) -> list[int]:
    """Process ids of what still runs of any job."""
    return [pid for path in (directory / "jobs").glob("*.json") for pid in _processes(directory, path.stem)]


def fail(text: str, code: int = 1) -> None:
    print(text, file=sys.stderr)
    sys.exit(code)


def main() -> None:
    directory, system, verb = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    arguments = sys.argv[4:]
    if (directory / "down").exists():
        fail(f"{system}: cannot connect to server", 2)
    {"submit": submit, "cancel": cancel, "query": query}[verb](directory, system, arguments)


# Submitting


def submit(directory: Path, system: str, arguments: list[str]) -> None:
    script, options = {"pbs": _pbs, "moab": _pbs, "lsf": _lsf}[system](arguments)
    if options.get("queue") == "nope":
        fail(*_NO_QUEUE[system])
    number = _next(directory)
    path = directory / f"jobs/{number}.sh"
    path.write_text(script)
    name = options.get("name", "job")
    output = _output(system, options, name, number)
    job = {"number": number, "name": name, "state": "queued", "cwd": os.getcwd(), "output": output, "script": str(path)}
    _write(directory, job)
    job["environment"] = {ID_VARIABLES[system]: str(number), "STANDIN_JOB": f"{directory}/{number}"}
    if os.fork() == 0:
        _shepherd(directory, job)
    print({
        "pbs": f"{number}.server", "lsf": f"Job <{number}> is submitted to default queue <normal>.",
        "moab": f"\n{number}",
    }[system])  # fmt: skip


_NO_QUEUE = {
    "pbs": ("qsub: Unknown queue", 170),
    "lsf": ("nope: No such queue. Job not submitted.", 255),
    "moab": ("ERROR:  cannot submit job - qsub: submit error (Unknown queue MSG=cannot locate queue)", 1),
}


def _shepherd(directory: Path, job: dict[str, Any]) -> None:
    """Waits for the job's turn, runs it, and notes its end."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    while (directory / "hold").exists():
        if _read(directory, job["number"])["state"] == "gone":
            os._exit(0)
        time.sleep(0.1)
    _write(directory, job | {"state": "running"})
    with open(job["output"], "ab") as output:
        process = subprocess.Popen(
            ["/bin/bash", job["script"]], cwd=job["cwd"], stdout=output, stderr=output, start_new_session=True,
            env=os.environ | job["environment"],
        )  # fmt: skip
    process.wait()
    for pid in _processes(directory, str(job["number"])):
        _signal(pid, signal.SIGKILL)
    _write(directory, job | {"state": "gone"})
    os._exit(0)


def _directives(text: str, mark: str) -> list[str]:
    words: list[str] = []
    for line in text.splitlines():
        if line.startswith(mark + " "):
            words += shlex.split(line[len(mark) + 1 :])
    return words


def _options(words: list[str], names: dict[str, str]) -> dict[str, str]:
    return {names[word]: words[i + 1] for i, word in enumerate(words[:-1]) if word in names}


def _pbs(arguments: list[str]) -> tuple[str, dict[str, str]]:
    text = Path(arguments[-1]).read_text()
    words = _directives(text, "#PBS")
    if "-r" not in words or words[words.index("-r") + 1] != "n":
        fail("the job may be requeued")
    return text, _options(words, {"-N": "name", "-q": "queue", "-o": "output"})


def _lsf(arguments: list[str]) -> tuple[str, dict[str, str]]:
    text = sys.stdin.read() if not arguments else Path(arguments[-1]).read_text()
    words = _directives(text, "#BSUB")
    if "-rn" not in words:
        fail("the job may be requeued")
    return text, _options(words, {"-J": "name", "-q": "queue", "-o": "output"})


def _output(system: str, options: dict[str, str], name: str, number: int) -> str:
    output = options.get("output", os.getcwd() + "/")
    output = output.replace("%jobname%", name).replace("%jobid%", str(number)).replace("%J", str(number))
    return f"{output}{name}.o{number}" if output.endswith("/") else output


# Cancelling and asking


def cancel(directory: Path, system: str, arguments: list[str]) -> None:
    for argument in arguments:
        if not re.match(r"\d+", argument):
            continue
        number = int(re.findall(r"\d+", argument)[0])
        job = _read(directory, number)
        if job is None or job["state"] == "gone":
            fail(*_not_cancelled(system, number, known=job is not None))
        if job["state"] == "queued":
            _write(directory, job | {"state": "gone"})
        for pid in _processes(directory, str(number)):
            _signal(pid, signal.SIGKILL)
    if said := {"lsf": f"Job <{number}> is being terminated", "moab": f"\njob '{number}' cancelled\n"}.get(system):
        print(said)


def _not_cancelled(system: str, number: int, *, known: bool) -> tuple[str, int]:
    if system == "pbs":
        return (
            (f"qdel: Job has finished {number}.server", 35) if known else (f"qdel: Unknown Job Id {number}.server", 153)
        )
    if system == "lsf":
        return f"Job <{number}>: {'Job has already finished' if known else 'No matching job found'}", 255
    return f"ERROR:  invalid job specified ({number})", 1


def query(directory: Path, system: str, arguments: list[str]) -> None:
    jobs = {int(path.stem): _read(directory, int(path.stem)) for path in sorted((directory / "jobs").glob("*.json"))}
    alive = [job for job in jobs.values() if job and job["state"] != "gone"]
    code = 0
    if system in ("pbs", "lsf"):
        asked = [int(re.findall(r"\d+", word)[0]) for word in arguments if re.match(r"\d+", word)]
        alive = [job for job in alive if job["number"] in asked]
        ended = [number for number in asked if number not in [job["number"] for job in alive]]
        for number in ended:
            if system == "pbs" and number in jobs:
                print(
                    f"qstat: {number}.server Job has finished, use -x or -H to obtain historical job information",
                    file=sys.stderr,
                )
                code = 35
            elif system == "pbs":
                print(f"qstat: Unknown Job Id {number}.server", file=sys.stderr)
                code = 153
            elif number not in jobs:
                print(f"Job <{number}> is not found", file=sys.stderr)
                code = 255
        if system == "lsf" and not alive and not code:
            fail("No unfinished job found", 255)
    _HEAD.get(system, lambda: None)()
    for job in alive:
        print(_LINE[system](job, job["state"] == "queued"))
    sys.exit(code)


_HEAD = {
    "lsf": lambda: print("JOBID   USER    STAT  QUEUE      FROM_HOST   EXEC_HOST   JOB_NAME   SUBMIT_TIME"),
    "moab": lambda: print("active jobs------------------------\nJOBID  USERNAME  STATE  PROCS  REMAINING  STARTTIME\n"),
}
_LINE = {
    "pbs": lambda job, queued: (
        f"Job Id: {job['number']}.server\n    Job_Name = {job['name']}\n    job_state = "
        + ("Q\n    comment = Not Running: no nodes" if queued else "R")
    ),
    "lsf": lambda job, queued: f"{job['number']} me {'PEND' if queued else 'RUN'} normal a b {job['name']} now",
    "moab": lambda job, queued: f"{job['number']}  me  {'Idle' if queued else 'Running'}  1  00:30:00  now",
}


# State


def _next(directory: Path) -> int:
    for number in range(1001, 100000):
        try:
            os.close(os.open(directory / f"jobs/{number}.json", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            continue
        return number
    raise AssertionError


def _write(directory: Path, job: dict[str, Any]) -> None:
    temporary = directory / f"jobs/{job['number']}.new.{os.getpid()}"
    temporary.write_text(json.dumps(job))
    temporary.replace(directory / f"jobs/{job['number']}.json")


def _read(directory: Path, number: int) -> Any:
    try:
        return json.loads((directory / f"jobs/{number}.json").read_text())
    except (OSError, ValueError):
        return None


def _processes(directory: Path, number: str) -> list[int]:
    mark = f"STANDIN_JOB={directory}/{number}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
            except OSError:
                continue
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    main()
