"""Without a shared file system: sources are deployed, and inputs and outputs go through a storage plugin."""

import subprocess
from pathlib import Path

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
        assert run.wait(180) == 0, run.output
        assert (store / "all.txt").read_text() == "0\n1\n2\n"
        assert not (workdir / "all.txt").exists()
        assert {event["start"] for event in run.events("job-started")} == {"cold"}
        run.expect_gone(10)
