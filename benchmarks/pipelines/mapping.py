"""Reads of five bacteria are trimmed, mapped and searched for variants."""

import random
import re
from pathlib import Path

from recipes import Recipe, plain
from sequences import genome, mutated, write_fasta, write_pairs

SAMPLES = [f"b{number:02}" for number in range(1, 6)]


def prepare(checkout: Path) -> None:
    reference = genome(150_000, seed=1)
    made = checkout / "results" / "get_genome"
    write_fasta(made / "genome.fasta", "NC_1", reference)
    (made / "genome.gff").write_text("##gff-version 3\n")
    lines = ["sample\tdescription\tread1\tread2"]
    for number, sample in enumerate(SAMPLES, 1):
        reads = [f"data/{sample}_R{side}.fastq.gz" for side in (1, 2)]
        of_it = mutated(reference, every=1000, seed=number)
        # Files of different sizes, as they come.
        pairs = random.Random(number).randint(4_000, 8_000)
        write_pairs(checkout / reads[0], checkout / reads[1], [of_it], [1], pairs, seed=number)
        lines.append(f"{sample}\tmade up\t{reads[0]}\t{reads[1]}")
    sheet = checkout / "samples.tsv"
    sheet.write_text("\n".join(lines) + "\n")
    file = checkout / "config" / "config.yml"
    text = file.read_text()
    for pattern, value in (
        (r"^samplesheet: .*", 'samplesheet: "samples.tsv"'),
        (r'^  tool: "bwa_mem2"', '  tool: "bowtie2"'),  # Debian has no bwa-mem2
        (r'extra: "-m 4G"', 'extra: "-m 100M"'),
    ):
        text, found = re.subn(pattern, value, text, flags=re.MULTILINE)
        assert found == 1, pattern
    file.write_text(text)


def calls(path: Path) -> bytes:
    """Without the header's dates and command lines."""
    return b"".join(line for line in path.read_bytes().splitlines(keepends=True) if not line.startswith(b"##"))


def statistics(path: Path) -> bytes:
    return b"".join(line for line in path.read_bytes().splitlines(keepends=True) if not line.startswith(b"#"))


RECIPE = Recipe(
    repository="MPUSP/snakemake-simple-mapping",
    commit="b3529fdbfac99b71d860d70a59fab53d0b513326",  # v1.2.0; later ones are written for Python 3.12
    about="mapping and variants: fastp, bowtie2, samtools, bcftools, by wrappers",
    rules=("workflow",),
    further=("config",),
    prepare=prepare,
    targets=tuple(
        f"results/bcftools/call/{sample}{end}"
        for sample in SAMPLES
        for end in ("_all.vcf", "_variants.vcf", "_stats.txt")
    ),
    compared={
        "results/*/call/*.vcf": calls,
        "results/*/call/*_stats.txt": statistics,
        "results/fastp/*.fastq.gz": plain,
    },
    wrappers=True,
    left_out="the genome's download, freebayes, annotation by VEP, deepTools, RSeQC and MultiQC",
)
