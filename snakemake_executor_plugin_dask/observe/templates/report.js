(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvas = document.getElementById("timeline");
  const tip = document.getElementById("tip");
  const reset = document.getElementById("reset");
  const buttons = [...document.querySelectorAll(".legend button[data-rule]")];
  const FIELDS = 8; // worker, slot, slots, start, duration (ms), rule, failed, number of the attempt
  const boxes = data.boxes;
  const whole = [0, data.length];
  let view = whole, only = null, drag = null, wide = 0;

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const count = data.workers.length;
  const band = Math.max(2, Math.min(46, Math.floor(860 / Math.max(1, count))));
  const gap = band > 8 ? 3 : band > 3 ? 1 : 0;
  const top = 12, bottom = 24;
  const height = top + count * band + bottom;
  let names = 0;  // the width of the workers' names; as wide as the charts' margin where there is room
  const left = () => Math.max(wide * 0.1, Math.min(names + 12, wide * 0.3));
  const right = 12;
  const x = (t) => left() + ((t - view[0]) / (view[1] - view[0])) * (wide - left() - right);
  const time = (px) => view[0] + ((px - left()) / (wide - left() - right)) * (view[1] - view[0]);
  const y = (w) => top + w * band;

  function tick(range) {
    const most = Math.max(2, Math.min(9, (wide - left() - right) / 80));  // a label takes up to 70 pixels
    for (const step of [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800])
      if (range / step <= most) return step;
    return Math.ceil(range / most / 86400) * 86400;
  }
  function fit(context, text, width) {
    if (context.measureText(text).width <= width) return text;
    while (text && context.measureText(text + "…").width > width) text = text.slice(0, -1);
    return text + "…";
  }

  function draw() {
    const scale = window.devicePixelRatio || 1;
    wide = canvas.clientWidth;
    canvas.style.height = height + "px";
    canvas.width = Math.round(wide * scale);
    canvas.height = Math.round(height * scale);
    const c = canvas.getContext("2d");
    c.scale(scale, scale);
    c.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    c.textBaseline = "middle";
    names = Math.max(...data.workers.map((worker) => c.measureText(worker.name).width));
    const soft = style("--soft"), lines = style("--line"), bad = style("--bad"), empty = style("--band");
    const step = tick(view[1] - view[0]);
    for (let t = Math.ceil(view[0] / step) * step; t <= view[1]; t += step) {
      c.fillStyle = lines;
      c.fillRect(Math.round(x(t)), top - 4, 1, height - top - bottom + 4);
      c.fillStyle = soft;
      c.textAlign = t === 0 && view[0] === 0 ? "left" : x(t) > wide - 40 ? "right" : "center";
      c.fillText(t === 0 ? "0" : span(t), x(t), height - 10);
    }
    c.textAlign = "right";
    const every = Math.ceil(14 / band);
    data.workers.forEach((worker, w) => {
      if (w % every === 0) {
        c.fillStyle = soft;
        c.fillText(fit(c, worker.name, left() - 12), left() - 8, y(w) + (band - gap) / 2);
      }
    });
    c.save();
    c.beginPath();
    c.rect(left(), 0, wide - left() - right, height - bottom);
    c.clip();
    c.fillStyle = empty;
    data.workers.forEach((worker, w) => c.fillRect(x(worker.from), y(w), Math.max(1, x(worker.to) - x(worker.from)), band - gap));
    const failed = [];
    for (let i = 0; i < boxes.length; i += FIELDS) {
      const from = boxes[i + 3] / 1000, to = from + boxes[i + 4] / 1000;
      if (to < view[0] || from > view[1]) continue;
      const unit = (band - gap) / data.workers[boxes[i]].cores;
      const x0 = x(from), w = Math.max(0.7, x(to) - x0), tall = boxes[i + 2] * unit;
      const border = w > 3 && tall > 3 ? 0.6 : 0;
      c.globalAlpha = only === null || only === boxes[i + 5] ? 1 : 0.12;
      c.fillStyle = data.colours[boxes[i + 5]];
      c.fillRect(x0, y(boxes[i]) + boxes[i + 1] * unit, w - border, Math.max(0.7, tall - border));
      if (boxes[i + 6] && (only === null || only === boxes[i + 5])) failed.push([x0 + w, y(boxes[i]) + boxes[i + 1] * unit]);
    }
    c.globalAlpha = 1;
    for (const [px, py] of failed) {
      c.beginPath();
      c.moveTo(px, py + 7);
      c.lineTo(px - 5, py - 2);
      c.lineTo(px + 5, py - 2);
      c.closePath();
      c.fillStyle = bad;
      c.fill();
      c.strokeStyle = style("--card");
      c.stroke();
    }
    c.fillStyle = bad;
    data.workers.forEach((worker, w) => { if (worker.lost) c.fillRect(x(worker.to) - 2, y(w) - 1, 3, band - gap + 2); });
    c.restore();
    if (drag && drag.moved) {
      c.fillStyle = "rgba(127,127,127,.25)";
      c.fillRect(Math.min(drag.from, drag.to), top, Math.abs(drag.to - drag.from), height - top - bottom);
    }
    reset.hidden = view === whole;
  }

  function at(px, py) {
    const w = Math.floor((py - top) / band);
    if (w < 0 || w >= count || px < left()) return null;
    const t = time(px), slot = ((py - top - w * band) / (band - gap)) * data.workers[w].cores;
    const near = (1.5 / (wide - left() - right)) * (view[1] - view[0]);
    for (let i = 0; i < boxes.length; i += FIELDS) {
      if (boxes[i] !== w) continue;
      const from = boxes[i + 3] / 1000;
      if (t >= from - near && t <= from + boxes[i + 4] / 1000 + near && slot >= boxes[i + 1] && slot < boxes[i + 1] + boxes[i + 2]) return i;
    }
    return -1 - w;
  }
  function describe(i) {
    if (i < 0) {
      const worker = data.workers[-1 - i];
      return worker.name + "\n" + worker.about;
    }
    const lines = [data.rules[boxes[i + 5]] + ", job " + data.ids[boxes[i + 7]], data.workers[boxes[i]].name];
    lines.push("from " + span(boxes[i + 3] / 1000) + ", for " + span(boxes[i + 4] / 1000) + ", " + boxes[i + 2] + (boxes[i + 2] === 1 ? " core" : " cores"));
    if (boxes[i + 6]) lines.push(data.states[boxes[i + 6]]);
    return lines.join("\n");
  }

  const place = (event) => { const r = canvas.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; };
  canvas.addEventListener("pointermove", (event) => {
    const [px, py] = place(event);
    if (drag) {
      drag.to = Math.max(left(), Math.min(wide - right, px));
      drag.moved = drag.moved || Math.abs(drag.to - drag.from) > 4;
      tip.hidden = true;
      draw();
      return;
    }
    const found = at(px, py);
    tip.hidden = found === null;
    if (found !== null) {
      tip.textContent = describe(found);
      tip.style.left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8) + "px";
      tip.style.top = Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 8) + "px";
    }
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("pointerdown", (event) => {
    const [px] = place(event);
    if (px < left() || event.button) return;
    drag = { from: px, to: px, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", () => {
    if (drag && drag.moved) {
      const ends = [time(Math.min(drag.from, drag.to)), time(Math.max(drag.from, drag.to))];
      if (ends[1] - ends[0] > 0.5) view = ends;
    }
    drag = null;
    draw();
  });
  canvas.addEventListener("pointercancel", () => { drag = null; draw(); });
  canvas.addEventListener("keydown", (event) => {
    const [from, to] = view, long = to - from, middle = (from + to) / 2;
    const next = {
      "+": [middle - long / 4, middle + long / 4], "-": [middle - long, middle + long],
      ArrowLeft: [from - long / 4, to - long / 4], ArrowRight: [from + long / 4, to + long / 4], Escape: whole,
    }[event.key];
    if (!next || next[1] - next[0] < 0.5) return;
    event.preventDefault();
    const wanted = Math.min(next[1] - next[0], whole[1]);
    const start = Math.max(0, Math.min(next[0], whole[1] - wanted));
    view = wanted === whole[1] ? whole : [start, start + wanted];
    draw();
  });
  canvas.addEventListener("dblclick", () => { view = whole; draw(); });
  reset.addEventListener("click", () => { view = whole; draw(); });
  for (const button of buttons)
    button.addEventListener("click", () => {
      const rule = Number(button.dataset.rule);
      only = only === rule ? null : rule;
      for (const other of buttons) other.setAttribute("aria-pressed", String(only === Number(other.dataset.rule)));
      draw();
    });
  const copy = document.getElementById("copy");
  if (copy)
    copy.addEventListener("click", () => {
      const range = document.createRange();
      range.selectNodeContents(document.getElementById("resources"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      try { document.execCommand("copy"); copy.textContent = "Copied"; } catch { copy.textContent = "Selected"; }
    });
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => { document.documentElement.classList.add("light"); draw(); });
  addEventListener("afterprint", () => { document.documentElement.classList.remove("light"); draw(); });
  draw();
  document.documentElement.dataset.drawn = "yes";
})();
