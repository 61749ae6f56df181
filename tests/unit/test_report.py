"""The report: advice, data, and a page that cannot be broken by what is in it."""

import csv
import html
import html.parser
import io
import json
import math
import time
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.jobs import Outcome
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.observe.advice import (
    growth,
    rule_uses,
    set_resources,
    suggest_memory_mb,
    suggest_runtime_min,
)
from snakemake_executor_plugin_dask.observe.charts import nice, use_charts
from snakemake_executor_plugin_dask.observe.events import EventLog, read_events
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.page import page
from snakemake_executor_plugin_dask.observe.picture import snapshot
from snakemake_executor_plugin_dask.observe.report import COLUMNS, json_text, tsv, write_report
from snakemake_executor_plugin_dask.observe.status import table
from snakemake_executor_plugin_dask.observe.timeline import boxes
from snakemake_executor_plugin_dask.observe.use import integral
from snakemake_executor_plugin_dask.observe.wording import starts

from .test_events import at, ended, joined, placed, queued


def run(
    jobs: int, *, rule: str = "a", asked_mb=32_000, asked_s=3600.0, peak_mb=1000.0, took_s=100.0, status="succeeded"
):
    """Events of so many equal jobs, one after the other."""
    events = [joined(0, cores=4)]
    for number in range(jobs):
        start = 1 + number * took_s
        events += [
            queued(0, number, rule, memory_mb=asked_mb, runtime_s=asked_s),
            placed(start, number, rule=rule),
            ended(
                start + took_s,
                number,
                rule=rule,
                status=status,
                started=start,
                ended=start + took_s,
                peak_memory_mb=peak_mb,
                cpu_s=took_s,
            ),
        ]
    return events


def advised(events) -> dict:
    return (yaml.safe_load(set_resources(rule_uses(RunModel(events)))) or {}).get("set-resources", {})


def test_suggestions_keep_head_room():
    """A fifth of memory and half of the runtime more than the most that was used; more where few jobs were measured."""
    assert suggest_memory_mb([1000.0] * 5) == 1200
    assert suggest_memory_mb([1000.0]) == 1500
    assert suggest_memory_mb([1000.0] * 5, [2000.0]) == 3000
    assert suggest_memory_mb([3.0]) == 250
    assert suggest_memory_mb([]) is None
    assert suggest_runtime_min([1200.0] * 5) == 30
    assert suggest_runtime_min([1200.0]) == 40
    assert suggest_runtime_min([1200.0] * 5, [3600.0]) == 120
    assert suggest_runtime_min([0.1]) == 5
    assert suggest_runtime_min([]) is None


@given(st.lists(st.floats(0.0, 1e6), min_size=1), st.lists(st.floats(0.0, 1e5), min_size=1))
def test_a_suggestion_always_holds_what_was_used(peaks, times):
    """No job that succeeded would fail with what is suggested."""
    assert suggest_memory_mb(peaks) >= max(peaks)
    assert suggest_runtime_min(times) * 60 >= max(times)


def test_the_block_is_what_a_profile_takes():
    """The block is YAML: rules with integers."""
    assert advised(run(6)) == {"a": {"mem_mb": 1200, "runtime": 5}}
    assert advised(run(6, asked_mb=None, asked_s=None)) == {"a": {"mem_mb": 1200, "runtime": 5}}


def grown(jobs: int, peak_mb, took_s=lambda _: 100.0):
    """Events of jobs with 0, 100, 200, … MB of input, which use what the functions say for that."""
    events = [joined(0, cores=4)]
    for number in range(jobs):
        size, start = 100.0 * number, 1.0 + number * 10_000
        taken = took_s(size)
        told = {"started": start, "ended": start + taken, "peak_memory_mb": peak_mb(size), "cpu_s": 1.0}
        events.append(queued(0, number, memory_mb=32_000, runtime_s=36_000.0) | {"input_mb": size})
        events += [placed(start, number), ended(start + taken, number, **told)]
    return events


def asked(formula: object, input_mb: float) -> object:
    """What Snakemake would make of a value in a profile."""
    return eval(str(formula), {"input": SimpleNamespace(size_mb=input_mb * 1e6 / 2**20)})


def test_growth_with_the_input_is_suggested_as_a_formula():
    """Where memory or time grow with the size of the input, the block says how; each job would have had enough."""
    found = advised(grown(20, lambda size: 300 + 4 * size, lambda size: 600 + 3 * size))["a"]
    for size in (0.0, 500.0, 1900.0):
        assert 300 + 4 * size <= asked(found["mem_mb"], size) <= 1.35 * (300 + 4 * size) + 10
        assert 600 + 3 * size <= asked(found["runtime"], size) * 60 <= 1.6 * (600 + 3 * size) + 120


def test_no_growth_is_made_up():
    """Too few jobs, no connection, one that saves little, or use below the least suggestion: one value for all."""
    steep = lambda size: 300 + 4 * size  # noqa: E731
    assert advised(grown(9, steep))["a"]["mem_mb"] == math.ceil(1.2 * steep(800) / 100) * 100
    for use in (lambda _: 1000.0, lambda size: 1000 + 0.1 * size, lambda size: 1000.0 + size * 7 % 1100):
        assert isinstance(advised(grown(20, use))["a"]["mem_mb"], int)
    assert advised(grown(20, lambda size: size / 20))["a"]["mem_mb"] == 250


@given(st.lists(st.tuples(st.floats(0.0, 1e5), st.floats(0.0, 1e6)), min_size=10))
def test_a_line_lies_above_all_that_was_measured(used):
    """No job that succeeded would fail with what is suggested."""
    line = growth(used, 1.2, 250)
    assert line is None or all(line.at(size) >= value * (1 - 1e-9) for size, value in used)


def test_what_fits_is_left_alone():
    """Nothing is suggested for a request that is up to a quarter above the suggestion, and nothing at all then."""
    assert advised(run(6, asked_mb=1400, asked_s=360.0)) == {}
    assert set_resources(rule_uses(RunModel(run(6, asked_mb=1400, asked_s=360.0)))) == ""


def test_little_that_sufficed_is_left_alone():
    """The least that is suggested is no reason to ask for more than was enough."""
    assert advised(run(6, asked_mb=200, asked_s=120.0, peak_mb=63.0, took_s=1.0)) == {}
    assert advised(run(1, asked_mb=200, asked_s=120.0, peak_mb=63.0, took_s=1.0)) == {}
    assert advised(run(6, asked_mb=50, asked_s=120.0, peak_mb=63.0, took_s=1.0)) == {"a": {"mem_mb": 250}}
    hit = advised(run(6, asked_mb=100, asked_s=120.0, peak_mb=63.0, took_s=1.0, status="out-of-memory"))
    assert hit["a"]["mem_mb"] == 250


def test_a_limit_that_was_hit_asks_for_more():
    """A job that was ended for its memory or time gets more, though its own peak says little."""
    assert advised(run(6, asked_mb=2000, status="out-of-memory"))["a"]["mem_mb"] == 3000
    assert advised(run(6, asked_s=3600.0, status="out-of-time"))["a"]["runtime"] == 120


def test_computed_requests_and_groups_are_left_alone():
    """A value that differs by job is a function in the workflow; a group is no rule."""
    events = run(3)
    events[1]["request"]["memory_mb"] = 16_000
    assert "mem_mb" not in advised(events)["a"]
    for event in events:
        if event["kind"] == "job-queued":
            event["group"] = True
    assert advised(events) == {}


@given(st.text(min_size=1, max_size=30))
def test_any_rule_name_gives_a_readable_block(name):
    """Hostile names are quoted so that YAML gives them back."""
    block = advised(run(1, rule=name)) if not any(0xD800 <= ord(c) < 0xE000 for c in name) else None
    assert block is None or list(block) == [name]


@pytest.mark.parametrize("name", ["yes", "No", "null", "on", "y"])
def test_names_that_yaml_reads_otherwise_are_quoted(name):
    """A rule called `yes` stays a text."""
    assert list(advised(run(1, rule=name))) == [name]


def test_the_table_has_a_line_for_each_attempt():
    """Tab-separated, one header, times and amounts as numbers, no line broken by a message."""
    events = run(3)
    events[-1]["outcome"].update(status="failed", detail="line\tone\nline two", exit_code=3)
    rows = list(csv.DictReader(io.StringIO(tsv(RunModel(events))), dialect="excel-tab"))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["status"] for row in rows] == ["succeeded", "succeeded", "failed"]
    assert rows[2]["message"] == "line    one line two"
    assert float(rows[0]["cpu_efficiency"]) == 0.5
    assert float(rows[0]["ended"]) - float(rows[0]["placed"]) == 100


def test_durations_in_the_table_are_in_milliseconds():
    """Binary fractions of a clock's difference are no digits that anyone measured."""
    model = RunModel([joined(0), queued(0), placed(0), ended(3, started=1.1, ended=2.0880001544952393)])
    (row,) = csv.DictReader(io.StringIO(tsv(model)), dialect="excel-tab")
    assert row["ran_s"] == "0.988"


def test_the_data_hold_every_figure():
    """The JSON's columns of use, integrated by whoever reads them, give its own core-seconds."""
    model = RunModel(run(3))
    data = json.loads(json_text(model))
    use = data["use"]
    spans = [b - a for a, b in zip(use["t"], use["t"][1:], strict=False)]
    assert math.isclose(sum(s * c for s, c in zip(spans, use["cores"], strict=False)), data["figures"]["core_s_held"])
    assert data["figures"]["core_s_used"] == 600
    assert integral(model).job_cores == 600
    assert len(data["attempts"]) == 3
    assert yaml.safe_load(data["set_resources"])


class Checker(html.parser.HTMLParser):
    """Collects what would be loaded or run, and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


HOSTILE = "</script><img src=x onerror=alert(1)>\"'><!--\x1b[31m\u202e\udcff${x}`&amp;"


def hostile_events() -> list[dict]:
    outcome = Outcome(
        *("k.1", "failed", HOSTILE, HOSTILE), exit_code=1, log_path=HOSTILE, log_tail=HOSTILE + "\n", detail=HOSTILE
    )
    return [
        at(0, "run-started", run_id=HOSTILE, host=HOSTILE, workdir=HOSTILE, versions={HOSTILE: HOSTILE}),
        at(0, "allocation-submitted", worker=HOSTILE, pool=HOSTILE, allocation=HOSTILE),
        {**joined(0, HOSTILE), "pool": HOSTILE},
        at(0, "job-queued", key="k.1", rule=HOSTILE, jobid=HOSTILE, attempt=1, request=Request(1)),
        at(0, "job-placed", key="k.1", worker=HOSTILE),
        at(9, "job-ended", outcome=outcome),
        at(9, "pool-given-up", pool=HOSTILE, reason=HOSTILE),
        at(9, "worker-lost", worker=HOSTILE, pool=HOSTILE, reason=HOSTILE),
        at(9, "said", level="info", text=HOSTILE),
    ]


def test_the_page_holds_no_foreign_markup(tmp_path):
    """Names, messages and logs stay text; nothing is loaded from anywhere."""
    path = tmp_path / "report.html"
    write_report(RunModel(hostile_events()), path)
    text = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert "img" not in checker.tags
    assert checker.outside == []
    assert checker.handlers == []
    assert checker.tags.count("script") == 2
    assert "http" not in text.replace("http-equiv", "")
    assert "\x1b" not in text


def test_pages_of_little():
    """A run without workers, without jobs, or without any event has a page, too."""
    for events in ([], [at(0, "run-started", run_id="x")], [queued(0)], [joined(0)], run(1)[:-1]):
        assert "</html>" in page(RunModel(events))
        json.loads(json_text(RunModel(events)))
        assert tsv(RunModel(events)).startswith("rule\t")


def test_a_log_that_stops_says_so():
    """Who reads the report of a killed run learns that it is not complete."""
    assert "ends before the run does" in page(RunModel(run(2)))
    assert "ends before the run does" not in page(RunModel([*run(2), at(500, "run-ended")]))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20), st.integers(1, 6)), min_size=1, max_size=25))
def test_boxes_never_overlap(jobs):
    """In the timeline no two jobs cover each other, whatever the order, and none leaves its worker's band."""
    events = [joined(0, cores=8)]
    for number, (start, length, cores) in enumerate(jobs):
        events += [
            queued(0, number, cores=cores),
            placed(start, number),
            ended(start + length, number),
        ]
    events.sort(key=lambda event: (event["t"], event["kind"] != "worker-joined", event["kind"] != "job-queued"))
    taken: dict[tuple[int, int], str] = {}
    for box in boxes(RunModel(events)):
        assert box.low >= 0
        assert box.low + box.height <= 8
        for slot in range(box.low, box.low + box.height):
            for second in range(int(box.attempt.placed), int(box.attempt.ended)):
                assert taken.setdefault((slot, second), box.attempt.key) == box.attempt.key


def test_a_jobs_own_dask_workers_are_part_of_it():
    """Those that come and go have pieces of their own in the timeline, and what they use now is the job's."""
    events = [joined(0, cores=8), queued(0, 1, cores=3), placed(1, 1)]
    key = events[-1]["key"]
    worker = events[0]["worker"]
    part = {"key": key, "worker": worker, "number": 1, "cores": 2}
    model = RunModel([*events, at(5, "dask-workers-placed", **part), at(6, "dask-workers-placed", **part)])
    assert (model.attempts[key].workers, model.attempts[key].dask_workers) == ({worker: 7}, {worker: 2})
    assert snapshot(model).workers[0].running == ((f"{model.attempts[key].rule} (2 Dask workers)", 1),)
    assert ", 2 Dask workers" in page(model)
    model.note_uses({key: (7.0, 1.0, 10.0), f"{key}+1": (8.0, 2.0, 20.0), "other+1": (8.0, 2.0, 20.0)})
    assert (model.attempts[key].now.cpu_s, model.attempts[key].now.memory_mb) == (3.0, 30.0)
    model.apply(at(9, "dask-workers-returned", **part))
    model.apply(ended(20, 1))
    assert [(box.height, box.since, box.until) for box in boxes(model)] == [(3, 1, 20), (2, 5, 20), (2, 6, 9)]


@given(st.floats(1e-3, 1e9))
def test_axes_are_round_and_high_enough(most):
    """An axis holds its largest value, is not much higher, and has few labels."""
    top, step = nice(most)
    assert top * 1.002 >= most
    assert top <= most * 2.6
    assert 2 <= round(top / step) <= 6


def test_charts_need_a_worker():
    """No chart of nothing; GPUs only where there are some."""
    assert use_charts(RunModel([queued(0)])) == ""
    assert use_charts(RunModel(run(2))).count("<svg") == 2


@pytest.mark.parametrize("name", ["report.pdf", "report", "report.html.gz"])
def test_other_endings_are_refused(tmp_path, name):
    """The ending says what is written; others are named with those that work."""
    with pytest.raises(ConfigurationError, match=r"\.html, \.tsv or \.json"):
        write_report(RunModel(), tmp_path / name)


def test_an_old_report_stays_when_the_new_one_cannot_be_written(tmp_path):
    """No half report: it is written beside and moved."""
    directory = tmp_path / "report.html"
    directory.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_report(RunModel(run(1)), directory)
    assert list(tmp_path.iterdir()) == [directory]


def test_small_figures_are_told():
    """Jobs of less than a second, of no memory to speak of and of few core-seconds are not all "0"."""
    text = page(RunModel(run(3, asked_mb=900, asked_s=None, peak_mb=0.0, took_s=0.25)))
    assert "0.25s, 0.25s" in text
    assert "&lt;0.1 MB, &lt;0.1 MB" not in text, "what was not measured is not given as a figure"
    assert "1.5 s" in text, "core time: three jobs of two cores"
    assert "0s, 0s" not in text
    block = set_resources(rule_uses(RunModel(run(3, asked_mb=None, asked_s=None, peak_mb=0.4, took_s=0.25))))
    assert "peak 0.4 MB" in block
    assert "longest 0.25s" in block


def test_local_workers_have_no_allocation():
    """What is started here waits in no queue: no columns that speak of one."""
    started = at(0, "run-started", run_id="x", options={"pools": [{"name": "cpu", "cluster": "local"}]})
    asked = at(0, "allocation-submitted", worker="cpu-0", pool="cpu", allocation="4711")
    text = page(RunModel([started, asked, *run(1)]))
    assert "<h2>Workers</h2>" in text
    for word in ("allocation</th>", "queued for", "4711"):
        assert word not in text


def test_how_allocations_end():
    """One that was called back, or still queued at the end, is no failure; one that ended before its worker came is."""
    asked = [at(0, "allocation-submitted", worker=f"cpu-{n}", pool="cpu", allocation=str(n)) for n in range(3)]
    back = [
        at(1, "worker-leaving", worker="cpu-0", pool="cpu", reason="not needed any more"),
        at(2, "allocation-gone", worker="cpu-0", pool="cpu", reason="leaving", joined=False),
        at(2, "allocation-gone", worker="cpu-1", pool="cpu", reason="sbatch: invalid account", joined=False),
        at(3, "run-ended"),
    ]
    model = RunModel([at(0, "run-started", options={"pools": [{"name": "cpu", "cluster": "slurm"}]}), *asked, *back])
    text = page(model)
    assert "<td>called back: not needed any more</td>" in text
    assert '<td class="bad-text">sbatch: invalid account</td>' in text
    assert "<td>called back at the end of the run</td>" in text


def test_a_job_is_named_with_its_wildcards():
    """In failures, in what the pointer shows, and in data: which sample, which jobs of a group, which allocation."""
    events = [
        at(0, "run-started", options={"pools": [{"name": "cpu", "cluster": "slurm"}]}),
        at(0, "allocation-submitted", worker="cpu-0", pool="cpu", allocation="4711"),
        joined(0, cores=4),
        queued(0, 1) | {"wildcards": {"sample": "liver<1>"}},
        placed(1, 1),
        ended(2, 1, status="failed", started=1.0, ended=2.0),
        queued(0, 2) | {"members": [{"rule": "sort", "jobid": "3", "wildcards": {"sample": "skin"}}]},
        placed(1, 2),
        ended(2, 2, status="failed", started=1.0, ended=2.0),
    ]
    model = RunModel(events)
    text = page(model)
    for named in ("sample=liver&lt;1&gt;", "of sort (sample=skin)", "allocation 4711", "1 (sample=liver\\u003c1>)"):
        assert named in text
    first = next(csv.DictReader(io.StringIO(tsv(model)), dialect="excel-tab"))
    assert (first["wildcards"], first["allocation"]) == ("sample=liver<1>", "4711")


def test_values_of_options_are_kept_nowhere(tmp_path):
    """A token in a prologue stands neither in the event log nor in a report; the option's name does."""
    secret = "export TOKEN=ab12cd34"
    pool = Pool("cpu", "slurm", options={"job_script_prologue": [secret], "account": secret})
    log = EventLog(tmp_path / "run.events.jsonl", clock=time.time)
    log.write("run-started", run_id="run", options=Options(pools=(pool,)))
    log.close()
    for ending in ("html", "json", "tsv"):
        write_report(RunModel(read_events(tmp_path / "run.events.jsonl")), tmp_path / f"report.{ending}")
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len(texts) == 4
    assert not [name for name, text in texts.items() if "ab12cd34" in text]
    assert "job_script_prologue" in texts["run.events.jsonl"]


def test_how_deep_attempts_started_is_counted_with_reasons():
    """In status, on the page and as data; what an older log says of the kind of start alone counts for nothing."""
    started = [(3, ""), (3, ""), (2, "Thing has no attribute <x>"), (0, "no graph"), (None, "")]
    events = [joined(0)]
    for number, (depth, reason) in enumerate(started):
        how = {} if depth is None else {"start_depth": depth, "start_reason": reason}
        begun = at(1, "job-started", key=f"a-run-{number}-1.1", worker="cpu-0", pid=7, start="warm", **how)
        events += [queued(0, number), placed(1, number), begun]
    model = RunModel(events)
    lines = [
        "Attempts started: 2 warm at depth 3, 1 warm at depth 2, 1 cold.",
        "1 at depth 2 and not deeper, since: Thing has no attribute <x>",
        "1 cold, since: no graph",
    ]
    assert starts(model.starts) == lines
    assert all(line in table(snapshot(model)) for line in lines)
    assert all(html.escape(line) in page(model) for line in lines)
    assert json.loads(json_text(model))["figures"]["starts"][0] == {"depth": 3, "reason": "", "attempts": 2}
    rows = list(csv.DictReader(tsv(model).splitlines(), delimiter="\t"))
    assert [(row["start_depth"], row["start_reason"]) for row in rows[2:4]] == [
        ("2", "Thing has no attribute <x>"),
        ("0", "no graph"),
    ]
    assert starts({}) == []
