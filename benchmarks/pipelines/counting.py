"""Reads of two conditions' transcripts are trimmed, mapped and counted, and the counts normalised."""

import random
from pathlib import Path

from recipes import Recipe, plain
from sequences import genome, write_fasta, write_pairs

SAMPLES = {f"s{number:02}": "treated" if number % 2 else "untreated" for number in range(1, 9)}
GENES = 80
LENGTH, GAP = 900, 300

CONFIG = """\
samples: config/samples.tsv
units: config/units.tsv
ref: {species: saccharomyces_cerevisiae, release: 115, build: R64-1-1}
trimming: {activate: true}
mergeReads: {activate: false}
pca: {activate: true, labels: [condition]}
diffexp:
  variables_of_interest: {condition: {base_level: untreated}}
  batch_effects: ""
  contrasts: {treated-vs-untreated: {variable_of_interest: condition, level_of_interest: treated}}
  model: ~condition
params:
  star: {index: "--genomeSAindexNbases 7", align: ""}
"""


def prepare(checkout: Path) -> None:
    chromosome = genome(GENES * (LENGTH + GAP), seed=2)
    resources = checkout / "resources"
    write_fasta(resources / "genome.fasta", "I", chromosome)
    starts = [number * (LENGTH + GAP) for number in range(GENES)]
    rows = []
    for number, start in enumerate(starts):
        name = f'gene_id "g{number:03}"; transcript_id "t{number:03}"; gene_name "g{number:03}";'
        rows += [f"I\tmade\t{kind}\t{start + 1}\t{start + LENGTH}\t.\t+\t.\t{name}" for kind in ("gene", "exon")]
    (resources / "genome.gtf").write_text("\n".join(rows) + "\n")
    transcripts = [chromosome[start : start + LENGTH] for start in starts]
    levels = [random.Random(3).lognormvariate(0, 1) for _ in range(GENES)]
    samples, units = (
        ["sample_name\tcondition"],
        ["sample_name\tunit_name\tfq1\tfq2\tsra\tfastp_adapters\tfastp_extra\tstrandedness"],
    )
    for number, (sample, condition) in enumerate(SAMPLES.items(), 1):
        weights = [
            level
            * (4 if condition == "treated" and gene % 8 == 0 else 1)
            * random.Random(number * 1000 + gene).uniform(0.8, 1.25)
            for gene, level in enumerate(levels)
        ]
        reads = [f"reads/{sample}.{side}.fastq.gz" for side in (1, 2)]
        write_pairs(checkout / reads[0], checkout / reads[1], transcripts, weights, 8_000, seed=number)
        samples.append(f"{sample}\t{condition}")
        units.append(f"{sample}\t1\t{reads[0]}\t{reads[1]}\t\t\t\tnone")
    for name, lines in (("samples.tsv", samples), ("units.tsv", units)):
        (checkout / "config" / name).write_text("\n".join(lines) + "\n")
    (checkout / "config" / "config.yaml").write_text(CONFIG)


RECIPE = Recipe(
    repository="snakemake-workflows/rna-seq-star-deseq2",
    commit="aa6b17edf3396230165c18709d04cd982bdaaa4c",
    about="RNA-seq counts: fastp and STAR by wrappers, scripts in Python and R (DESeq2)",
    rules=("workflow",),
    further=("config",),
    prepare=prepare,
    targets=("results/counts/all.tsv", "results/deseq2/normcounts.tsv", "results/pca.condition.svg"),
    compared={
        "results/counts/all.tsv": plain,
        "results/deseq2/normcounts.tsv": plain,
        "results/pca.condition.svg": plain,
        "results/star/*/ReadsPerGene.out.tab": plain,
        "results/trimmed/*/*_R?.fastq.gz": plain,
    },
    wrappers=True,
    left_out="the genome's download, names of genes from biomaRt, the contrasts (R's ashr is not in Debian) and RSeQC",
)
