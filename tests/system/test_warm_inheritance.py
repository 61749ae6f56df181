"""What the workflow's code leaves at its top level, and what jobs of the warm process make of it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from running import wait_for
from system.warm_harness import PATIENCE_S, Warm, planned, run_cold

RANDOM = """
import random, time
import numpy as np
{top}
rule all:
    input: expand("{{n}}.txt", n=range(2))
rule one:
    output: "{{n}}.txt"
    run:
        drawn = dict({draws})
        open(output[0], "w").write("\\n".join(f"{{key}} {{value}}" for key, value in drawn.items()))
"""

SEVERAL = """
random.seed(1)
random.seed(None)
saved = random.getstate()
random.seed(2)
random.setstate(saved)
rng, known, spawning = np.random.default_rng(), np.random.default_rng(3), np.random.default_rng()
R, S, T = random.Random(), random.Random(4), random.Random(time.time())
legacy, old = np.random.RandomState(), np.random.RandomState(5)
source = np.random.SeedSequence()
timed = np.random.RandomState(int(time.time()))
[generator.random() for generator in (rng, known, R, S)]
np.random.seed(42)
np.random.random()
"""

FRESH = {
    "module": "random.random()",
    "default_rng": "rng.random()",
    "spawned": "spawning.spawn(1)[0].random()",
    "Random": "R.random()",
    "Random(time)": "T.random()",
    "RandomState": "legacy.normal()",
    "SeedSequence": "np.random.default_rng(source).random()",
    "RandomState(time)": "timed.random()",
}
SAME = {
    "np.random": "np.random.random()",
    "default_rng(3)": "known.random()",
    "Random(4)": "S.random()",
    "RandomState(5)": "old.normal()",
}


def draw(workdir: Path, top: str, draws: dict[str, str], depth: int, *, cold: bool = False) -> list[dict[str, str]]:
    """What two jobs draw that start warm, and with ``cold`` a third one that does not."""
    pairs = ", ".join(f"({key!r}, {value})" for key, value in draws.items())
    setup, specs = planned(workdir, RANDOM.format(top=top, draws=f"[{pairs}]"), depth=depth)

    def drawn(n: int) -> dict[str, str]:
        return dict(line.rsplit(" ", 1) for line in (workdir / f"{n}.txt").read_text().splitlines())

    with Warm(setup) as warm:
        assert warm.depth == depth
        ends = [warm.run(spec) for spec in specs]
    assert [end.code for end in ends] == [0, 0], ends[0].log
    found = [drawn(0), drawn(1)]
    if cold:
        assert run_cold(setup, specs[0]).code == 0
        found.append(drawn(0))
        found.append(drawn(1))
    return found


def test_random_numbers(tmp_path: Path) -> None:
    """Generators without a seed draw other numbers in each job, those with one the same, as in jobs that start cold."""
    pytest.importorskip("numpy")
    first, second, *cold = draw(tmp_path, SEVERAL, FRESH | SAME, 3, cold=True)
    assert [name for name in FRESH if first[name] == second[name]] == []
    assert [name for name in SAME if first[name] != second[name]] == []
    assert any({name: drawn[name] for name in SAME} == {name: first[name] for name in SAME} for drawn in cold)
    assert all({name: drawn[name] for name in SAME} == {name: first[name] for name in SAME} for drawn in cold)


def test_random_numbers_where_only_numpy_is_inherited(tmp_path: Path) -> None:
    """Also where each job reads the workflow itself, but not NumPy."""
    pytest.importorskip("numpy")
    (tmp_path / "sitecustomize.py").write_text("import numpy.random\n")
    snakefile = RANDOM.format(top="", draws="[('numpy', np.random.random())]")
    setup, specs = planned(tmp_path, snakefile, depth=1)
    path = os.environ.get("PYTHONPATH", "")
    with Warm(setup, PYTHONPATH=f"{tmp_path}:{path}") as warm:
        assert [warm.run(spec).code for spec in specs] == [0, 0]
    assert (tmp_path / "0.txt").read_text() != (tmp_path / "1.txt").read_text()


LEFT_OPEN = """
import atexit, ctypes, gzip, os, signal, tempfile
TEMPORARY = tempfile.TemporaryDirectory()
open(os.path.join(TEMPORARY.name, "common"), "w").write("common")
open("directory", "w").write(TEMPORARY.name)
atexit.register(lambda: open("exits", "a").write("exit\\n"))
SHARED = open("shared.log", "a")
SHARED.write("header\\n")
FILES, libc = [], ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:  # there are no others
        pass

rule all:
    input: expand("{n}.txt", n=range(3))
rule one:
    output: "{n}.txt", "{n}.gz", "{n}.c", "{n}.listed"
    run:
        global KEPT, ZIPPED
        assert open(os.path.join(TEMPORARY.name, "common")).read() == "common"
        KEPT = open(output[0], "w")
        KEPT.write("kept")
        ZIPPED = gzip.open(output[1], "wt")
        ZIPPED.write("zipped")
        stream = libc.fopen(output[2].encode(), b"w")
        libc.fputs(b"buffered in C", ctypes.c_void_p(stream))
        FILES.append(open(output[3], "w"))
        FILES[0].write("listed")
        SHARED.write(f"job {wildcards.n}\\n")
        HELD = tempfile.TemporaryDirectory(dir=".")
        FILES.append(HELD)

signal.signal(signal.SIGCHLD, reap)
"""


def test_what_is_left_open(tmp_path: Path) -> None:
    """Files that jobs keep are whole at their end; what the workflow made lasts until the warm process's own end.

    A handler that waits for every child gets none of the warm process's.
    """
    # Outputs that are still in a buffer have no content yet, which Snakemake does not look at.
    setup, specs = planned(tmp_path, LEFT_OPEN)
    import gzip

    with Warm(setup) as warm:
        assert warm.depth == 3, warm.reason
        ends = [warm.run(spec) for spec in specs]
        assert [end.code for end in ends] == [0, 0, 0], ends[0].log
        for n in range(3):
            assert (tmp_path / f"{n}.txt").read_text() == "kept"
            assert gzip.decompress((tmp_path / f"{n}.gz").read_bytes()) == b"zipped"
            assert (tmp_path / f"{n}.c").read_text() == "buffered in C"
            assert (tmp_path / f"{n}.listed").read_text() == "listed"
        assert (tmp_path / "shared.log").read_text() == "header\n" + "".join(
            f"job {spec.arguments[spec.arguments.index('--target-jobs') + 1][-1]}\n" for spec in specs
        )
        assert not list(tmp_path.glob("tmp*"))
        assert not (tmp_path / "exits").exists()
        directory = Path((tmp_path / "directory").read_text())
        assert directory.is_dir()
        warm.socket.shutdown(1)
        assert warm.process.wait(PATIENCE_S) == 0
    assert not directory.exists()
    assert (tmp_path / "exits").read_text() == "exit\n"


THREAD = """
import ctypes, glob, os, sys, time
libc = ctypes.CDLL(None)
thread = ctypes.c_ulong()
libc.pthread_create(ctypes.byref(thread), None, ctypes.cast(libc.sleep, ctypes.c_void_p), ctypes.c_void_p(600))
libc.pthread_setname_np(thread, b"{name}")
{more}
rule all:
    input: "0.txt"
rule one:
    output: "0.txt"
    shell: "touch {{output}}"
"""


@pytest.mark.parametrize(("name", "depth"), [("jemalloc_bg_thd", 3), ("another", 1)])
def test_native_threads(tmp_path: Path, name: str, depth: int) -> None:
    """The thread of jemalloc, which comes with pyarrow, makes no difference; others do, which is told."""
    setup, specs = planned(tmp_path, THREAD.format(name=name, more=""))
    with Warm(setup) as warm:
        assert warm.depth == depth
        assert ("another" in warm.reason) is (depth == 1)
        assert warm.run(specs[0]).code == 0


def test_descriptors(tmp_path: Path) -> None:
    """More jobs run at once than the limit of open files would let the warm process hold; jobs have that limit."""
    snakefile = """
rule all:
    input: expand("{n}.txt", n=range(60))
rule one:
    output: "{n}.txt"
    shell:
        "test $(ulimit -Sn) = 100; touch started.{wildcards.n}; while ! test -e go; do sleep 1; done; touch {output}"
"""
    setup, specs = planned(tmp_path, snakefile)
    with Warm(replace(setup, soft_limits=()), limit_files=100) as warm:
        for spec in specs:
            warm.start(spec)
        wait_for(lambda: len(list(tmp_path.glob("started.*"))) == 60, "all jobs at once")
        (tmp_path / "go").touch()
        assert {warm.end_of(spec).code for spec in specs} == {0}
