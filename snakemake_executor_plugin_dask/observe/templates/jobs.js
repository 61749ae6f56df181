// The table of attempts: sorted, filtered, a page at a time. Its rows are data, and each text is set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent).jobs;
  const section = document.getElementById("jobs");
  if (!data || !section) return;
  const PAGE = 50;
  const body = section.querySelector("tbody"), heads = [...section.querySelectorAll("th button")];
  const words = section.querySelector("input"), state = section.querySelector("select");
  const told = section.querySelector("output"), [back, on] = section.querySelectorAll(".pages button");
  let sorted = null, down = true, first = 0, rows = [];

  // A row: job, rule, wildcards, state, then numbers as `data.numbers` lists them, then worker. -1: not known.
  const NUMBERS = 4, WORKER = NUMBERS + data.numbers;
  const cell = (row, i) =>
    i === 1 ? data.rules[row[1]] : i === 3 ? data.states[row[3]] : i === WORKER ? data.workers[row[WORKER]] ?? "" : row[i];

  function memory(mb) {
    if (mb < 10) return mb < 0.1 ? "<0.1 MB" : Number(mb.toPrecision(2)) + " MB";
    return mb < 1000 ? Math.round(mb) + " MB" : (mb / 1000).toFixed(1).replace(".0", "") + " GB";
  }
  const show = { span, memory, part: (value) => Math.round(value * 100) + "%", plain: String };

  function choose() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows = data.rows.filter((row) => {
      if (state.value && data.states[row[3]] !== state.value) return false;
      if (!wanted.length) return true;
      const text = [row[0], cell(row, 1), row[2], cell(row, WORKER)].join("\n").toLowerCase();
      return wanted.every((word) => text.includes(word));
    });
    if (sorted !== null) {
      const by = (row) => cell(row, sorted);
      rows.sort((a, b) => {
        const [x, y] = [by(a), by(b)];
        const order = typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
        return down ? -order : order;
      });
    }
    first = 0;
    draw();
  }
  function draw() {
    body.textContent = "";
    for (const row of rows.slice(first, first + PAGE)) {
      const line = body.insertRow();
      heads.forEach((head, i) => {
        const place = line.insertCell(), value = cell(row, i), kind = head.dataset.kind;
        place.textContent = kind ? (value < 0 ? "–" : show[kind](value)) : value;
        place.className = kind ? "num" : i === 3 && data.bad.includes(row[3]) ? "bad-text" : "name";
      });
    }
    const last = Math.min(first + PAGE, rows.length);
    const all = rows.length === data.rows.length ? "" : " of " + data.rows.length.toLocaleString("en");
    told.textContent = rows.length ? `${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${rows.length.toLocaleString("en")}${all && " found, " + all.slice(4) + " in all"}` : "None fits.";
    back.disabled = first === 0;
    on.disabled = last >= rows.length;
  }

  heads.forEach((head, i) =>
    head.addEventListener("click", () => {
      // Numbers begin with the largest, texts with the first.
      down = sorted === i ? !down : Boolean(head.dataset.kind);
      sorted = i;
      for (const other of heads) other.parentElement.removeAttribute("aria-sort");
      head.parentElement.setAttribute("aria-sort", down ? "descending" : "ascending");
      choose();
    }));
  words.addEventListener("input", choose);
  state.addEventListener("change", choose);
  back.addEventListener("click", () => { first = Math.max(0, first - PAGE); draw(); });
  on.addEventListener("click", () => { first += PAGE; draw(); });
  section.hidden = false;
  choose();
})();
