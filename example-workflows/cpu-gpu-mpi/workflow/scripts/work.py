"""A job: computes something for a second, and writes down where it did."""

import argparse
import ctypes
import json
import os
import platform
import time
from pathlib import Path


def rank() -> tuple[int, int]:
    """This process's rank and the number of ranks, whichever launcher started it."""
    for number, size in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_RANK", "PMI_SIZE"),
        ("SLURM_PROCID", "SLURM_NTASKS"),
    ):
        if number in os.environ and size in os.environ:
            return int(os.environ[number]), int(os.environ[size])
    return 0, 1


def gpu() -> str:
    """The devices that this job may use, or the word that there is none."""
    granted = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        why = f"GPU {granted} is granted, but there is no CUDA driver" if granted else "there is no GPU here"
        return f"CPU, since {why}"
    return f"GPU {granted}" if granted else "CPU, since no GPU is granted"


def main() -> None:
    """Compute a part of pi."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("prepare", "train", "simulate"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--number", type=int, default=0)
    arguments = parser.parse_args()
    began = time.time()
    number, size = rank() if arguments.kind == "simulate" else (arguments.number, 4)
    on = gpu() if arguments.kind == "train" else "CPU"
    if arguments.kind == "train":
        print(f"train {number} runs on the {on}", flush=True)
    share = sum((-1) ** i * 4 / (2 * i + 1) for i in range(number, 400_000, size))
    time.sleep(max(0.0, 1 - (time.time() - began)))
    result = {
        "kind": arguments.kind,
        "number": number,
        "node": os.environ.get("SLURMD_NODENAME") or platform.node(),
        "on": on,
        "began": began,
        "ended": time.time(),
        "share": share,
    }
    path = arguments.output / f"{number}.json" if arguments.kind == "simulate" else arguments.output
    path.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
