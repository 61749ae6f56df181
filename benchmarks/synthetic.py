"""Made-up runs, written through the plugin's own event log, for looking at reports without a cluster."""

import heapq
import random
from pathlib import Path

from snakemake_executor_plugin_dask.model.jobs import Outcome, WorkerFacts
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.observe.events import EventLog

START = 1_790_000_000.0
#: name, share of the jobs, cores, asked memory, asked runtime, used memory, mean seconds, CPU share, GPUs, pool
RULES = (
    ("trim_reads", 0.42, 1, 2_000, 1_800, 640, 70, 0.93, 0, "cpu"),
    ("align", 0.22, 8, 32_000, 7_200, 21_500, 420, 0.82, 0, "cpu"),
    ("sort_bam", 0.12, 4, 16_000, 3_600, 3_100, 95, 0.55, 0, "cpu"),
    ("call_variants", 0.10, 2, 8_000, 14_400, 5_900, 340, 0.97, 0, "cpu"),
    ("qc", 0.08, 1, 1_000, 600, 310, 18, 0.4, 0, "cpu"),
    ("basecall", 0.011, 8, 60_000, 7_200, 31_000, 900, 0.35, 1, "gpu"),
    ("annotate", 0.025, 1, None, None, 900, 40, 0.9, 0, "cpu"),
    ("plot", 0.004, 1, 2_000, 600, 420, 12, 0.7, 0, "cpu"),
    ("summarise", 0.0009, 1, 4_000, 600, 800, 25, 0.8, 0, "cpu"),
    ("report_tables", 0.0001, 1, 4_000, 600, 200, 9, 0.8, 0, "cpu"),
)
SIZES = {"cpu": (48, 180_000, 0), "gpu": (32, 480_000, 4)}


def write(path: Path, jobs: int = 20_000, workers: int = 40, seed: int = 1) -> None:
    """A run on two pools, with a third that is stuck, failures of each kind, and lost workers."""
    rng = random.Random(seed)
    now = [START]
    log = EventLog(path, clock=lambda: now[0])
    pools = [
        Pool("cpu", "slurm", 0, workers, 48, 180_000, walltime_s=14_400.0),
        Pool("gpu", "slurm", 0, 4, 32, 480_000, gpus=4, walltime_s=28_800.0),
        Pool("wide", "slurm", 0, 2, 48, 180_000, nodes=4, walltime_s=7_200.0),
    ]
    versions = {"snakemake": "9.27.1", "plugin": "0.1.0", "python": "3.11.9", "distributed": "2026.8.0"}
    log.write(
        "run-started",
        run_id="demo1234",
        host="login01",
        workdir="/data/project",
        options={"pools": pools},
        versions=versions,
    )
    todo = _queue(log, rng, jobs)
    later: list[tuple[float, int, str, object]] = []  # heap of what will happen
    number = 0

    def plan(when: float, what: str, thing: object) -> None:
        nonlocal number
        number += 1
        heapq.heappush(later, (when, number, what, thing))

    names = [("gpu", i) for i in range(4)] + [("cpu", i) for i in range(max(1, workers - 4))]
    for pool, i in names:
        name = f"{pool}-{i}"
        log.write("allocation-submitted", worker=name, pool=pool, allocation=str(4000 + len(later)))
        plan(START + 20 + rng.expovariate(1 / 240), "join", (name, pool))
    for i in range(2):
        log.write("allocation-submitted", worker=f"wide-{i}", pool="wide", allocation=str(5000 + i))
        log.write("allocation-waiting", worker=f"wide-{i}", pool="wide", reason="PartitionDown")
    free: dict[str, list[int]] = {}
    pool_of: dict[str, str] = {}
    running: dict[str, dict[str, tuple]] = {}
    while later:
        when, _, what, thing = heapq.heappop(later)
        now[0] = max(now[0] + 0.001, when)
        if what == "join":
            name, pool = thing
            cores, memory_mb, gpus = SIZES[pool]
            free[name], pool_of[name], running[name] = [cores, memory_mb, gpus], pool, {}
            facts = WorkerFacts(
                name, f"n{len(free):03}", 1, 2, cores, memory_mb, tuple(map(str, range(gpus))), 14_000.0
            )
            log.write("allocation-running", worker=name, pool=pool)
            now[0] += 8
            log.write("worker-joined", worker=name, pool=pool, facts=facts)
            if name in ("cpu-3", "cpu-7"):
                plan(now[0] + 600, "lose", name)
        elif what == "end" and thing[0] in running.get(thing[1], {}):
            _end(log, rng, now[0], key=thing[0], name=thing[1], running=running, free=free)
        elif what == "lose":
            _lose(log, thing, running=running, free=free, pool_of=pool_of, todo=todo)
        for name, room in list(free.items()):
            _place(
                log,
                now=now,
                name=name,
                pool=pool_of[name],
                room=room,
                running=running,
                todo=todo,
                plan=plan,
            )
        for name in [n for n in free if not running[n] and not todo[pool_of[n]]]:
            log.write("worker-leaving", worker=name, pool=pool_of[name], reason="idle")
            del free[name]
            plan(now[0] + 3, "gone", (name, pool_of[name]))
        if what == "gone":
            log.write("allocation-gone", worker=thing[0], pool=thing[1], reason="given back", joined=True)
    for i in range(2):
        log.write("allocation-gone", worker=f"wide-{i}", pool="wide", reason="cancelled while queued: PartitionDown")
    log.write("run-ended", summary={}, left=[])
    log.close()


def _queue(log: EventLog, rng: random.Random, jobs: int) -> dict[str, list[tuple]]:
    todo: dict[str, list[tuple]] = {"cpu": [], "gpu": []}
    kinds = rng.choices(RULES, weights=[rule[1] for rule in RULES], k=jobs)
    kinds[: len(RULES)] = RULES  # each at least once
    for jobid, rule in enumerate(kinds):
        name, _, cores, asked_mb, runtime_s, _, _, _, gpus, pool = rule
        key = f"{name}-demo1234-{jobid}-1.1"
        request = Request(cores, asked_mb, runtime_s, gpus=gpus)
        log.write("job-queued", key=key, rule=name, jobid=str(jobid), attempt=1, pool=pool, request=request)
        todo[pool].append((key, jobid, rule))
    for jobs_of_pool in todo.values():
        jobs_of_pool.sort(key=lambda job: -RULES.index(job[2]) + rng.gauss(0, 1.2))
    return todo


def _place(log, *, now, name, pool, room, running, todo, plan) -> None:
    passed = 0
    queue = todo[pool]
    for i in range(len(queue) - 1, -1, -1):
        key, jobid, rule = queue[i]
        cores, asked_mb, gpus = rule[2], rule[3] or 3_750 * rule[2], rule[8]
        if room[0] < cores or room[1] < asked_mb or room[2] < gpus:
            passed += 1
            if passed > 6 or not room[0]:
                return
            continue
        del queue[i]
        for j, amount in enumerate((cores, asked_mb, gpus)):
            room[j] -= amount
        log.write(
            "job-placed", key=key, worker=name, workers={name: cores}, memory_mb=asked_mb, devices={name: ["0"] * gpus}
        )
        log.write("job-started", key=key, worker=name, pid=1000 + jobid, start="warm")
        seconds = random.gammavariate(6, rule[6] / 6)
        running[name][key] = (now[0], rule, jobid)
        plan(now[0] + seconds, "end", (key, name))


def _end(log, rng, now, *, key, name, running, free) -> None:
    began, rule, jobid = running[name].pop(key)
    for j, amount in enumerate((rule[2], rule[3] or 3_750 * rule[2], rule[8])):
        free[name][j] += amount
    peak = rule[5] * rng.gammavariate(40, 1 / 40)
    luck = rng.random()
    status, code, signal, tail, detail = "succeeded", 0, None, "", ""
    if luck < 0.002:
        status, code = "failed", 1
        tail = f"[E::{rule[0]}] file is truncated\nError: sample <{jobid}> & co: exit 1\n"
    elif luck < 0.003 and rule[3]:
        status, code, signal, peak = "out-of-memory", None, 9, rule[3] * 1.02
        tail, detail = "std::bad_alloc\n", f"its processes held {peak:.0f} MB; mem_mb is {rule[3]}"
    elif luck < 0.0035 and rule[4]:
        status, code, signal, detail = "out-of-time", None, 15, f"runtime is {rule[4] / 60:.0f} min"
    log.write(
        "job-ended",
        outcome=Outcome(
            *(key, status, name, f"n{name}", "4711", 1, "warm", code, signal, began, now, peak),
            cpu_s=(now - began) * rule[2] * rule[7],
            log_path=f".snakemake/dask_logs/{rule[0]}/{jobid}.log",
            log_tail=tail,
            detail=detail,
        ),
    )
    if status != "succeeded":
        log.write("job-finished", key=key, status=status, message=detail, runs=1)


def _lose(log, name, *, running, free, pool_of, todo) -> None:
    log.write("worker-lost", worker=name, pool=pool_of[name], reason="its connection closed", planned=False)
    free.pop(name)
    for key, (_, rule, jobid) in running.pop(name).items():
        why = f"worker {name} was lost (its connection closed)"
        log.write("job-ended", outcome=Outcome(key, "lost", name, detail=why))
        log.write("job-requeued", key=key, run=2, reason=why)
        todo[pool_of[name]].append((f"{key.rpartition('.')[0]}.2", jobid, rule))
    log.write("allocation-gone", worker=name, pool=pool_of[name], reason="NODE_FAIL", joined=True)
