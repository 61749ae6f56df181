from pathlib import Path

Path(snakemake.output[0]).write_text(Path("/etc/name").read_text() + snakemake.rule + "\n")
