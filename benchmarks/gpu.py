"""Several real CUDA jobs at once through `--dask-cluster cuda`, each saying from inside which device it got.

    ./run bench gpu [--jobs N] [--seconds S] [--json FILE]

Needs an NVIDIA GPU with its driver, Snakemake and this plugin. With the extra `[cuda12]` or `[cuda13]` dask-cuda
finds the devices, as for users; without it they are named to the plugin outright. The jobs call the driver's library by
ctypes, so no CUDA toolkit is needed. Ends with 1 where two jobs held a device at once, a job saw another number of
devices than it holds, or a job without GPU saw one.
"""

import argparse
import contextlib
import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SNAKEFILE = """
rule all:
    input:
        expand("one/{{i}}.json", i=range({jobs})),
        expand("all/{{i}}.json", i=range({whole})),
        expand("none/{{i}}.json", i=range({jobs})),

rule one:
    output: "one/{{i}}.json"
    resources: gpu=1
    shell: "{python} {script} --inside {{output}} --seconds {seconds}"

rule all_of_them:
    output: "all/{{i}}.json"
    resources: gpu={gpus}
    shell: "{python} {script} --inside {{output}} --seconds {seconds}"

rule none:
    output: "none/{{i}}.json"
    shell: "{python} {script} --inside {{output}} --seconds 0"
"""


def inside(output: Path, seconds: float) -> None:
    """A job: which devices CUDA shows it, and work on each of them for so long."""
    began = time.time()
    seen: list[str] = []
    copied_mb = 0.0
    cuda = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_int(0)
    if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
        for index in range(count.value):
            device = ctypes.c_int()
            check(cuda.cuDeviceGet(ctypes.byref(device), index))
            uuid = (ctypes.c_ubyte * 16)()
            check(cuda.cuDeviceGetUuid(uuid, device))
            seen.append(bytes(uuid).hex())
            copied_mb += work(cuda, device, seconds / count.value)
    output.write_text(
        json.dumps(
            {
                "began": began,
                "ended": time.time(),
                "devices": seen,
                "copied_mb": copied_mb,
                "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER"),
            }
        )
    )


def work(cuda: ctypes.CDLL, device: ctypes.c_int, seconds: float) -> float:
    """Copy within the device's memory for so long; megabytes that were copied."""
    context, one, two = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_uint64()
    size = 256 * 2**20
    check(cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device))
    check(cuda.cuMemAlloc_v2(ctypes.byref(one), ctypes.c_size_t(size)))
    check(cuda.cuMemAlloc_v2(ctypes.byref(two), ctypes.c_size_t(size)))
    copied = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check(cuda.cuMemcpyDtoD_v2(two, one, ctypes.c_size_t(size)))
        check(cuda.cuCtxSynchronize())
        copied += size / 1e6
    check(cuda.cuCtxDestroy_v2(context))
    return copied


def check(code: int) -> None:
    """Raises RuntimeError for what the driver calls an error."""
    if code != 0:
        msg = f"the CUDA driver answers {code}"
        raise RuntimeError(msg)


def count_devices() -> int:
    """How many GPUs CUDA shows this process; 0 without a driver."""
    with contextlib.suppress(OSError):
        cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0)
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


def problems(results: dict[str, list[dict[str, object]]], gpus: int) -> list[str]:
    """What is wrong with what the jobs saw."""
    found = []
    for kind, wanted in (("one", 1), ("all", gpus), ("none", 0)):
        found += [
            f"a job of kind {kind} saw {len(result['devices'])} devices instead of {wanted}"  # type: ignore[arg-type]
            for result in results[kind]
            if len(result["devices"]) != wanted  # type: ignore[arg-type]
        ]
    spans = sorted(
        (result["began"], result["ended"], device)
        for result in (*results["one"], *results["all"])
        for device in result["devices"]  # type: ignore[attr-defined]
    )
    last: dict[str, float] = {}
    for began, ended, device in spans:
        if began < last.get(device, 0.0):  # type: ignore[operator]
            found.append(f"two jobs held device {device} at once")
        last[device] = max(last.get(device, 0.0), ended)  # type: ignore[type-var]
    return found


def run(directory: Path, jobs: int, seconds: float, gpus: int) -> tuple[dict[str, list[dict[str, object]]], float, str]:
    """Run the workflow; what the jobs saw, how long all took, and Snakemake's output."""
    text = SNAKEFILE.format(
        jobs=jobs, whole=2, gpus=gpus, python=sys.executable, script=Path(__file__).resolve(), seconds=seconds
    )
    (directory / "Snakefile").write_text(text)
    environment = dict(os.environ)
    if importlib.util.find_spec("dask_cuda") is None:
        environment["SNAKEMAKE_DASK_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(
            str(index) for index in range(gpus)
        )
    command = [sys.executable, "-m", "snakemake", "--executor", "dask", "--dask-cluster", "cuda", "--jobs", "10000"]
    command += ["--scheduler", "firstfit", "--max-jobs-per-timespan", "1000/1s"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    output = done.stdout + done.stderr
    if done.returncode != 0:
        sys.exit(f"Snakemake ended with {done.returncode}:\n{output[-6000:]}")
    results = {
        kind: [json.loads(path.read_text()) for path in sorted((directory / kind).glob("*.json"))]
        for kind in ("one", "all", "none")
    }
    return results, took, output


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=8, help="jobs on one GPU each, and as many without")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each of them works on its GPU")
    parser.add_argument("--json", type=Path, help="write what was seen to this file")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        inside(arguments.inside, arguments.seconds)
        return 0
    gpus = count_devices()
    if gpus == 0:
        print("CUDA shows no GPU here.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as directory:
        results, took, _ = run(Path(directory), arguments.jobs, arguments.seconds, gpus)
    wrong = problems(results, gpus)
    ideal = arguments.seconds * (arguments.jobs / gpus + 2)
    copied = sum(float(result["copied_mb"]) for kind in ("one", "all") for result in results[kind])  # type: ignore[arg-type]
    print(f"{gpus} GPU(s); {arguments.jobs} jobs on one, 2 on all, {arguments.jobs} on none: {took:.1f} s")
    print(f"work on the GPUs alone: {ideal:.1f} s; {copied / 1000:.0f} GB copied within device memory")
    for kind in ("one", "all", "none"):
        for result in results[kind]:
            seen = ", ".join(str(device)[:8] for device in result["devices"]) or "no device"  # type: ignore[attr-defined]
            print(f"  {kind:4} CUDA_VISIBLE_DEVICES={result['CUDA_VISIBLE_DEVICES']!r:12} saw {seen}")
    print("\n".join(wrong) or "each job saw exactly its own devices, and no device was held twice")
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps({"gpus": gpus, "took_s": took, "wrong": wrong, "results": results}, indent=1)
        )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
