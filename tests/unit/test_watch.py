"""`snakemake-dask watch`: what it shows in which size, what running jobs use, and a terminal that stays as it was."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import wait_for

from snakemake_executor_plugin_dask.cli.screen import Pace, screen
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.observe import live
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.picture import snapshot
from snakemake_executor_plugin_dask.observe.status import table

from .test_events import at, ended, joined, placed, queued

SIZES = [(160, 50), (80, 24), (50, 14), (20, 5)]


def events(jobs: int = 40) -> list[dict[str, Any]]:
    """Jobs of a sample each on two workers: two run, one has failed, the others wait."""
    pool = {"name": "cpu", "cluster": "slurm", "workers_max": 2}
    found = [at(0, "run-started", run_id="abc1", jobs=jobs, options={"pools": [pool]}), joined(1), joined(1, "cpu-1")]
    for number in range(1, jobs + 1):
        job = queued(1, number, "align", memory_mb=1000)
        found.append(job | {"pool": "cpu", "wildcards": {"sample": f"liver{number}", "lane": "a long one"}})
    for number in (1, 2, 3):
        found.append(placed(2, number, rule="align", worker=f"cpu-{number % 2}", memory_mb=1000))
        found.append(at(2, "job-started", key=f"align-run-{number}-1.1", pid=1))
    found.append(ended(5, 3, rule="align", status="failed", detail="its command failed \x1b[31m with exit code 3"))
    blocker = {"pool": "cpu", "jobs": jobs - 3, "what": "cores", "rules": ["align"]}
    return [*found, at(6, "waiting", blockers=[blocker])]


def shown(model: RunModel, width: int, height: int, first: int = 0) -> list[str]:
    return [line.text for line in screen(model, 30.0, Pace(), width, height, first)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_screen_fits(width: int, height: int) -> None:
    """In each size no line is longer, none is too many, none could obey the log, and what matters most is there."""
    lines = shown(RunModel(events()), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "\x1b" not in "".join(lines)
    assert lines[0].startswith("Run abc1, for 30s")
    assert "1 of 40 jobs done"[: width - 1] in lines[1]


def test_a_narrow_screen_keeps_the_head() -> None:
    """Progress is wrapped and not cut; a failure that does not fit ends with an ellipsis."""
    lines = shown(RunModel(events()), 30, 30)
    assert " ".join(line.strip() for line in lines[1:4]).startswith(
        "1 of 40 jobs done, 1 failed, 2 running, 37 waiting"
    )
    assert next(line for line in lines if line.startswith("Failed: job 3")).endswith("…")


def test_what_the_screen_tells() -> None:
    """Progress, workers, running jobs with wildcards and use, what waits for what, and what failed and why."""
    model = RunModel(events())
    model.note_uses({"align-run-1-1.1": (9.0, 10.5, 300.0), "gone": (9.0, 1.0, 1.0)})
    text = "\n".join(shown(model, 160, 50))
    assert "1 of 40 jobs done, 1 failed, 2 running, 37 waiting" in text
    assert re.search(r"cpu +slurm +2 of 2 +2 +37 +up", text)
    assert re.search(r"cpu-1 +n1 +2 of 4 +- +1 GB of 8 GB +- ", text), "21 s ago is not now"
    assert re.search(r"1 +align +sample=liver1, lane=a long one +28s +- of 2 +- of 1 GB", text)
    model.note_uses({"align-run-1-1.1": (28.0, 48.5, 800.0)})
    text = "\n".join(shown(model, 160, 50))
    assert re.search(r"1 +align +sample=liver1, lane=a long one +28s +2\.0 of 2 +800 MB of 1 GB +cpu-1", text)
    assert re.search(r"cpu-1 +n1 +2 of 4 +2\.0 +1 GB of 8 GB +800 MB", text)
    assert "37 jobs (align) wait for cores in pool cpu." in text
    assert "Failed: job 3, align (sample=liver3, lane=a long one): its command failed" in text


def test_running_jobs_are_scrolled() -> None:
    """Where there is no room for all, the arrow keys move what is shown, and never beyond the last."""
    model = RunModel(events())
    for number in range(10, 30):
        model.apply(placed(7, number, rule="align"))
    top, end = shown(model, 100, 24), shown(model, 100, 24, first=1000)
    (more,) = (int(line.split()[2]) for line in top if "more running jobs (arrow keys)" in line)
    assert more + sum("align " in line for line in top if line.strip()[:1].isdigit()) == 22
    assert not any("more running" in line for line in end)
    assert any(line.split()[:2] == ["29", "align"] for line in end)


def test_the_expected_end() -> None:
    """By how many jobs ended lately; nothing is said before some have."""
    pace = Pace()
    pace.note(0.0, 0)
    pace.note(10.0, 4)
    assert pace.end(10) is None
    pace.note(20.0, 10)
    assert pace.end(10) == pytest.approx(40.0)
    for second in range(21, 1001):
        pace.note(float(second), 10)
    pace.note(1100.0, 130)
    assert pace.end(10) == pytest.approx(1110.0), "what was slow long ago does not count"
    assert pace.end(0) is None


def test_use_is_a_rate_between_two_looks() -> None:
    """Cores at work follow from CPU time since the figures before; the same figures told again are no news."""
    model = RunModel(events())
    key = "align-run-1-1.1"
    assert model.note_uses({key: (4.0, 1.0, 10.0)})
    assert not model.note_uses({key: (4.0, 1.0, 10.0)})
    assert model.running[key].now.cores == 0.5
    assert model.note_uses({key: (9.0, 11.0, 10.0)})
    assert model.running[key].now.cores == 2.0
    text = table(snapshot(model, 10.0))
    assert re.search(r"CORES AT WORK +MEMORY IN USE", text)
    assert re.search(r"cpu-1 .* 2\.0 +10 MB", text)


def test_use_is_told_through_a_file(tmp_path: Path) -> None:
    """It lies in the run's own directory; what is missing or damaged there says nothing."""
    log = tmp_path / "abc1.events.jsonl"
    model = RunModel(events())
    model.note_uses({"align-run-1-1.1": (4.0, 1.0, 10.0)})
    live.write(log, live.encoded(model.running.values()))
    assert live.read(log) == {}
    (tmp_path / "abc1").mkdir(mode=0o700)
    live.write(log, live.encoded(model.running.values()))
    assert live.read(log) == {"align-run-1-1.1": model.running["align-run-1-1.1"].now}
    for damaged in ("", "[]", '{"a": 1}', '{"a": [1, 2, 3]}', '{"a": ["x", 1, 2, 3]}'):
        live.place(log).write_text(damaged)
        assert live.read(log) == {}


# A real terminal


class Terminal:
    """The command in a terminal of its own, which keeps what was written to it."""

    def __init__(self, directory: Path, *arguments: str, width: int = 100, height: int = 30) -> None:
        self.master, slave = pty.openpty()
        self.resize(width, height)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.written = b""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "snakemake_executor_plugin_dask", "watch", *arguments],
            cwd=directory, stdin=slave, stdout=slave, stderr=slave,
            env=os.environ | {"TERM": "xterm-256color", "LINES": "24", "COLUMNS": "80"},
        )  # fmt: skip

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def read(self) -> bytes:
        while select.select([self.master], [], [], 0)[0]:
            self.written += os.read(self.master, 1 << 16)
        return self.written

    def wait_for(self, condition: Callable[[bytes], Any], what: str) -> None:
        wait_for(lambda: condition(self.read()), f"{what}; so far: {self.written[-2000:]!r}")

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def ended(self) -> int:
        wait_for(lambda: (self.read(), self.process.poll() is not None)[1], "its end")
        self.read()
        return self.process.returncode

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A directory with a run that goes on."""
    folder = tmp_path / ".snakemake" / "dask"
    (folder / "abc1").mkdir(mode=0o700, parents=True)
    (folder / "abc1.events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events()))
    holder = state.Held(folder / "abc1")
    yield tmp_path
    holder.release()


ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


@pytest.mark.parametrize("how", ["q", "Ctrl-C", "SIGTERM", "end of the run"])
def test_a_terminal_stays_as_it_was(run: Path, how: str) -> None:
    """However it ends: the other screen is left, the cursor is back, and keys are echoed again."""
    log = run / ".snakemake" / "dask" / "abc1.events.jsonl"
    terminal = Terminal(run)
    try:
        terminal.wait_for(lambda written: b"liver1" in written, "the running jobs")
        terminal.resize(60, 20)
        terminal.written = terminal.written.replace(b"liver1", b"")
        terminal.wait_for(lambda written: b"liver1" in written, "the same in another size")
        if how == "q":
            terminal.press(b"q")
        elif how == "Ctrl-C":
            terminal.press(b"\x03")
        elif how == "SIGTERM":
            os.kill(terminal.process.pid, signal.SIGTERM)
        else:
            with log.open("a") as stream:
                stream.write(json.dumps(at(time.time(), "run-ended")) + "\n")
        assert terminal.ended() == (0 if how in ("q", "end of the run") else 1)
        written = terminal.read()
        assert written.count(ENTER) == written.count(LEAVE) == 1
        assert written.rindex(b"\x1b[?25h") > written.index(ENTER) or b"\x1b[?12l" in written, "the cursor is back"
        assert termios.tcgetattr(terminal.slave) == terminal.before
        left = written[written.rindex(LEAVE) :]
        assert b"Traceback" not in written
        assert (b"Run abc1, ended after" in left) == (how == "end of the run")
    finally:
        terminal.close()


def test_without_a_terminal(run: Path) -> None:
    """It says what prints the same."""
    command = [sys.executable, "-m", "snakemake_executor_plugin_dask", "watch"]
    done = subprocess.run(command, cwd=run, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "`watch` needs a terminal; `snakemake-dask status` prints the same once.\n"
