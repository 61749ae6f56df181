"""The report page in a real browser: it loads nothing, draws all, and stays small with 20,000 jobs."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.model.jobs import Outcome, WorkerFacts
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.observe.events import EventLog, read_events
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.report import write_report

from .browser import browser

pytestmark = pytest.mark.browser
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "report_size.py"
HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">'\x1b[31m\u202e&amp;"

#: Texts that lie over each other, or leave the page, in a laid-out page.
OVERLAPS = """(() => {
  const boxes = [...document.querySelectorAll('h1, h2, h3, p, td, th, .tile b, .tile span, .legend button, svg text')]
    .map(e => [e, e.getBoundingClientRect()]).filter(([e, r]) => r.width && r.height);
  const bad = boxes.filter(([e, r]) => r.right > innerWidth + 1 && !e.closest('.scroll')).map(([e]) => e.textContent);
  for (const tag of ['svg text', '.legend button', '.tile']) {
    const group = [...document.querySelectorAll(tag)].map(e => [e, e.getBoundingClientRect()]);
    for (let i = 0; i < group.length; i++)
      for (let j = i + 1; j < group.length; j++) {
        const [a, b] = [group[i][1], group[j][1]];
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        if (across > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
          bad.push(group[i][0].textContent + ' / ' + group[j][0].textContent);
      }
  }
  return bad;
})()"""


#: Labels of the timeline's axis that lie over each other, once it is drawn anew.
AXIS = """(() => {
  const shown = [], context = CanvasRenderingContext2D.prototype, plain = context.fillText;
  context.fillText = function (text, x, y) {
    const wide = this.measureText(text).width, from = {left: x, right: x - wide, center: x - wide / 2}[this.textAlign];
    shown.push({text, from, to: from + wide, y});
    plain.apply(this, arguments);
  };
  dispatchEvent(new Event('resize'));
  context.fillText = plain;
  const lowest = Math.max(...shown.map(label => label.y)), axis = shown.filter(label => label.y === lowest);
  return axis.length > 1 && axis.every((label, i) => !i || label.from > axis[i - 1].to + 3) ? [] : axis;
})()"""

#: What of the tables is beyond the edge: on paper nothing can be scrolled.
CUT = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth).filter(much => much > 1)"


def look(
    path: Path, script: str, *, dark: bool = False, width: int = 1320, picture: str = "", paper: bool = False
) -> object:
    """Open the page, check that it is whole and loads nothing, and return the script's value."""

    async def run() -> object:
        async with browser() as page:
            await page.open(path.as_uri(), width, 1000, dark=dark)
            await page.until("document.documentElement.dataset.drawn === 'yes'")
            if paper:
                await page.call("Emulation.setEmulatedMedia", media="print")
            assert await page.evaluate(OVERLAPS) == []
            value = await page.evaluate(script)
            assert page.errors == []
            assert page.requests == [path.as_uri()]
            if picture and "KEEP_SCREENSHOTS" in os.environ:
                await page.screenshot(Path(os.environ["KEEP_SCREENSHOTS"], picture), whole=True)
            return value

    return asyncio.run(run())


#: How many colours the timeline shows: enough to know that it drew jobs.
DRAWN = """(() => {
  const c = document.getElementById('timeline');
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, seen = new Set();
  for (let i = 0; i < d.length; i += 4) if (d[i + 3] === 255) seen.add(d[i] + ',' + d[i + 1] + ',' + d[i + 2]);
  return seen.size;
})()"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """The reports of a made-up run of 20,000 jobs."""
    folder = tmp_path_factory.mktemp("large")
    subprocess.run([sys.executable, BENCHMARK, "--keep", folder], check=True, timeout=280)
    return folder


def test_twenty_thousand_jobs_stay_below_ten_megabytes(large):
    """The page is small, whole, and draws its picture in both colour schemes and on a narrow screen."""
    path = large / "report.html"
    assert path.stat().st_size < 10_000_000
    assert look(path, DRAWN, picture="report.png") > 10
    assert look(path, DRAWN, dark=True, picture="report-dark.png") > 10
    assert look(path, DRAWN, width=600) > 10


def test_on_a_phone_and_on_paper(large):
    """No label of the time axis lies over another on a phone; on a sheet of A4 no column of a table is cut off."""
    assert look(large / "report.html", AXIS, width=400, picture="report-phone.png") == []
    assert look(large / "report.html", CUT, width=718, paper=True, picture="report-paper.png") == []


def test_looking_closer(large):
    """Dragging over the timeline zooms, and so do keys; the button goes back, and a rule's button picks it out."""
    click = """(() => {
      const c = document.getElementById('timeline'), r = c.getBoundingClientRect();
      const reset = document.getElementById('reset');
      const send = (kind, x) =>
        c.dispatchEvent(new PointerEvent(kind, {clientX: r.left + x, clientY: r.top + 60, pointerId: 1}));
      c.setPointerCapture = () => {};
      const seen = [reset.hidden];
      send('pointerdown', 400); send('pointermove', 500); send('pointermove', 600); send('pointerup', 600);
      seen.push(reset.hidden);
      send('pointermove', 500);
      seen.push(document.getElementById('tip').textContent.includes('core'));
      reset.click();
      seen.push(reset.hidden);
      for (const key of ['+', 'ArrowRight', 'Escape']) {
        c.dispatchEvent(new KeyboardEvent('keydown', {key}));
        seen.push(reset.hidden);
      }
      const rule = document.querySelector('.legend button[data-rule]');
      rule.click();
      seen.push(rule.getAttribute('aria-pressed'));
      return seen;
    })()"""
    assert look(large / "report.html", click) == [True, False, True, True, False, False, True, "true"]


def test_jobs_are_found_sorted_and_paged(large):
    """Of 20,000 jobs those with a word and a state are found, the largest comes first, and pages follow each other."""
    use = """(() => {
      const section = document.getElementById('jobs'), told = section.querySelector('output');
      const rows = () => [...section.querySelectorAll('tbody tr')].map(row => [...row.cells].map(c => c.textContent));
      const head = (name) => [...section.querySelectorAll('th button')].find(b => b.textContent === name);
      const type = (what, value, event) => { what.value = value; what.dispatchEvent(new Event(event)); };
      const seen = {all: told.textContent, first: rows().length};
      section.querySelectorAll('.pages button')[1].click();
      seen.second = [told.textContent, rows()[0][0]];
      head('peak').click();
      seen.sorted = head('peak').parentElement.getAttribute('aria-sort');
      head('job').click();
      seen.jobs = rows().slice(0, 3).map(row => row[0]);
      const states = [...section.querySelector('select').options].map(o => o.value);
      type(section.querySelector('select'), 'out of memory', 'change');
      type(section.querySelector('input'), 'ALIGN', 'input');
      seen.found = rows().map(row => [row[1], row[3]].join(' '));
      type(section.querySelector('input'), 'no such thing', 'input');
      return {...seen, states, none: told.textContent};
    })()"""
    seen = look(large / "report.html", use)
    assert seen["all"].startswith("1 to 50 of 20,")
    assert seen["first"] == 50
    assert seen["second"][0].startswith("51 to 100 of 20,")
    assert seen["sorted"] == "descending"
    assert seen["jobs"] == sorted(seen["jobs"], key=int), "texts that are numbers are sorted as such"
    assert {"", "succeeded", "out of memory"} <= set(seen["states"])
    assert set(seen["found"]) == {"align out of memory"}
    assert seen["none"] == "None fits."


def test_hostile_names_stay_text(tmp_path):
    """Markup in rule names, logs and messages neither runs nor breaks the page."""
    log = EventLog(tmp_path / "log", clock=iter(range(100, 200)).__next__)
    log.write("run-started", run_id=HOSTILE, host=HOSTILE, workdir=HOSTILE)
    facts = WorkerFacts(HOSTILE, HOSTILE, 1, 2, 4, 8000)
    log.write("worker-joined", worker=HOSTILE, pool=HOSTILE, facts=facts)
    log.write("job-queued", key="k.1", rule=HOSTILE, jobid=HOSTILE, attempt=1, request=Request(1))
    log.write("job-placed", key="k.1", worker=HOSTILE)
    outcome = Outcome("k.1", "failed", HOSTILE, HOSTILE, log_path=HOSTILE, log_tail=HOSTILE, detail=HOSTILE)
    log.write("job-ended", outcome=outcome)
    log.close()
    path = tmp_path / "report.html"
    write_report(RunModel(read_events(tmp_path / "log")), path)
    title, images = look(path, "[document.title, document.images.length]")
    assert title != "broken"
    assert images == 0


def test_a_run_without_workers_has_a_page(tmp_path):
    """Nothing to draw is no error."""
    path = tmp_path / "report.html"
    write_report(RunModel([{"v": 1, "t": 5.0, "kind": "run-started", "run_id": "x"}]), path)
    assert look(path, "document.querySelector('h1').textContent") == "Run x"
