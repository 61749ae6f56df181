"""Without a shared file system: sources are deployed, and inputs and outputs go through a storage plugin."""

import subprocess
from pathlib import Path

import pytest
from running import snakemake

SNAKEFILE = """
rule all:
    input: "all.txt"

rule part:
    output: "parts/{i}.txt"
    shell: "echo {wildcards.i} > {output}"

rule together:
    input: expand("parts/{i}.txt", i=range(3))
    output: "all.txt"
    script: "scripts/together.py"
"""


def test_storage_instead_of_a_shared_file_system(tmp_path: Path) -> None:
    """The results are in the storage and not in the working directory; jobs start cold, though warm was asked for."""
    workdir, store = tmp_path / "run", tmp_path / "store"
    (workdir / "scripts").mkdir(parents=True)
    store.mkdir()
    script = workdir / "scripts" / "together.py"
    script.write_text('open(snakemake.output[0], "w").write("".join(open(name).read() for name in snakemake.input))\n')
    (workdir / "Snakefile").write_text(SNAKEFILE)
    # Snakemake deploys what git knows.
    subprocess.run(["git", "init", "--quiet"], cwd=workdir, check=True)
    subprocess.run(["git", "add", "."], cwd=workdir, check=True)
    options = ["--shared-fs-usage", "none", "--default-storage-provider", "fs", "--default-storage-prefix", str(store)]
    with snakemake(workdir, SNAKEFILE, *options) as run:
        assert run.wait() == 0, run.output
        assert (store / "all.txt").read_text() == "0\n1\n2\n"
        assert not (workdir / "all.txt").exists()
        assert {event["start"] for event in run.events("job-started")} == {"cold"}
        run.expect_gone(10)


#: The second job reads its input's local copy when the first one's Snakemake has ended, and removed what was its own.
COMMON_INPUT = """
rule all:
    input: expand("out/{i}.txt", i=range(2))

rule part:
    output: temp("gone.txt"), "kept.txt"
    shell: "echo x > {output[0]}; echo {output} | tee {output[1]}"

rule work:
    input: "kept.txt"
    output: "out/{i}.txt"
    shell:
        '''
        echo $PPID > "$MEET/{wildcards.i}"
        until [ -e "$MEET/0" -a -e "$MEET/1" ]; do sleep 0.05; done
        if [ {wildcards.i} != 0 ]; then while kill -0 $(cat "$MEET/0"); do sleep 0.05; done; fi
        cat {input} > {output}
        '''
"""


@pytest.mark.parametrize("start", ["warm", "cold"])
def test_local_copies_are_each_jobs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """Jobs with a common input, of which one ends while the others have still to read it; nothing is left."""
    workdir, store, meet, local = (tmp_path / name for name in ("run", "store", "meet", "local"))
    for path in (store, meet):
        path.mkdir()
    monkeypatch.setenv("MEET", str(meet))
    monkeypatch.setenv("LOCAL", str(local))
    usage = ["persistence", "sources", "software-deployment", "source-cache"]
    options = ["--default-storage-provider", "fs", "--default-storage-prefix", str(store), "--dask-job-start", start]
    options += ["--remote-job-local-storage-prefix", "$LOCAL/copies", "--shared-fs-usage", *usage]
    with snakemake(workdir, COMMON_INPUT, *options) as run:
        assert run.wait() == 0, run.output
        kept = (store / "kept.txt").read_text()
        assert str(local / "copies") in kept
        assert [(store / "out" / f"{i}.txt").read_text() for i in range(2)] == [kept] * 2
        assert not (store / "gone.txt").exists(), "a temporary file that no other job needs is never stored"
        assert {event["start"] for event in run.events("job-started")} == {start}
        assert list((local / "copies").iterdir()) == []
        run.expect_gone(10)
