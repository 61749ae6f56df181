"""Made-up genomes, annotations and reads, the same each time."""

import gzip
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

BASES = "ACGT"
COMPLEMENT = str.maketrans(BASES, "TGCA")
READ = 100


def genome(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(BASES, k=length))


def mutated(sequence: str, every: int, seed: int) -> str:
    """With another base at about one place in so many."""
    chance = random.Random(seed)
    bases = list(sequence)
    for place in chance.sample(range(len(bases)), len(bases) // every):
        bases[place] = chance.choice(BASES.replace(bases[place], ""))
    return "".join(bases)


def write_fasta(path: Path, name: str, sequence: str) -> None:
    lines = [sequence[i : i + 60] for i in range(0, len(sequence), 60)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f">{name}\n" + "\n".join(lines) + "\n")
    # Its index, as `samtools faidx` writes it: name, length, offset, bases and bytes of a line.
    path.with_name(f"{path.name}.fai").write_text(f"{name}\t{len(sequence)}\t{len(name) + 2}\t60\t61\n")


def write_pairs(
    first: Path, second: Path, templates: Sequence[str], weights: Sequence[float], pairs: int, seed: int
) -> None:
    """Pairs of reads of fragments of the templates, drawn by their weights."""
    chance = random.Random(seed)
    files: tuple[list[str], list[str]] = ([], [])
    for number, template in enumerate(chance.choices(templates, weights, k=pairs)):
        length = min(len(template), chance.randint(200, 350))
        start = chance.randint(0, len(template) - length)
        fragment = template[start : start + length]
        reads = (fragment[:READ], fragment[-READ:].translate(COMPLEMENT)[::-1])
        for side, read in enumerate(reads):
            files[side].append(f"@read{number}/{side + 1}\n{read}\n+\n{'I' * len(read)}\n")
    for path, reads_of in zip((first, second), files, strict=True):
        write_gzip(path, reads_of)


def write_gzip(path: Path, parts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(parts).encode(), mtime=0))
