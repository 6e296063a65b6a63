// Everything is in the page already; this orders, filters and marks. Cards and numbers share their order (worst first).
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll("article")];
  const marked = new Set();
  let shown = cards, current = null;

  const bad = cards.map((card) => [...card.querySelectorAll("dl > div")].map((cell) => cell.classList.contains("bad")));
  const number = (card) => Number(card.id.slice(1));
  const away = (card, metric) => {
    const z = data.z[number(card)][metric], value = data.values[number(card)][metric];
    // Bad ones first, then by distance from the middle; without a value last.
    if (value === null) return -Infinity;
    return (bad[number(card)][metric] ? 1e9 : 0) + Math.abs(z === null ? 0 : z);
  };

  function passes(card) {
    const text = byId("search").value.trim().toLowerCase(), show = byId("show").value;
    const reason = card.querySelector(".reason");
    if (text && !`${card.dataset.scan} ${reason ? reason.textContent : ""}`.toLowerCase().includes(text)) return false;
    if (show === "all") return true;
    if (show === "flagged" || show === "failed") return card.dataset.state === show;
    if (show === "dropped") return card.dataset.dropped === "1";
    if (show === "marked") return marked.has(card.dataset.scan);
    return Boolean(bad[number(card)][Number(show)]);
  }

  function arrange() {
    const order = byId("order").value;
    let sorted = cards;
    if (order === "name") {
      sorted = [...cards].sort((a, b) => a.dataset.scan.localeCompare(b.dataset.scan, "en", { numeric: true }));
    } else if (order !== "worst") {
      sorted = [...cards].sort((a, b) => away(b, Number(order)) - away(a, Number(order)) || number(a) - number(b));
    }
    shown = sorted.filter(passes);
    const visible = new Set(shown);
    cards.forEach((card) => { card.hidden = !visible.has(card); });
    byId("cards").append(...sorted);
    byId("count").textContent = `${shown.length} of ${cards.length} scans`;
    choose(visible.has(current) ? current : shown[0] || null, false);
  }

  function choose(card, jump = true) {
    if (current) current.classList.remove("current");
    current = card;
    byId("whose").textContent = card ? card.dataset.scan : "";
    if (card) {
      card.classList.add("current");
      if (jump) {
        card.focus({ preventScroll: true });
        card.scrollIntoView({ block: "start" });
      }
    }
    drawCurrent();
  }

  function move(step) {
    const place = shown.indexOf(current) + step;
    if (place >= 0 && place < shown.length) choose(shown[place]);
  }

  function mark(card) {
    const scan = card.dataset.scan;
    const on = !marked.delete(scan);
    if (on) marked.add(scan);
    card.classList.toggle("marked", on);
    const button = card.querySelector(".mark");
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "Excluded" : "Exclude";
    tell();
  }

  function tell() {
    const scans = [...data.exclude, ...[...marked].filter((scan) => !data.exclude.includes(scan)).sort()];
    // Quoted where YAML would read something else than text.
    const lines = scans.map((scan) => `      - ${/^sub-[A-Za-z0-9_-]+$/.test(scan) ? scan : JSON.stringify(scan)}`);
    byId("marks").textContent = String(marked.size);
    byId("snippet").textContent = ["cohorts:", `  ${data.cohort}:`, scans.length ? "    exclude:" : "    exclude: []", ...lines].join("\n");
  }

  // Strips: one dot per scan along the metric's range, the median, the limits, and the current scan.
  const scales = [];
  const line = (svg, kind, path) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", "path");
    node.setAttribute("class", kind);
    node.setAttribute("d", path);
    svg.append(node);
    return node;
  };
  const height = (i) => 13 + 7 * (((i * 0.618034) % 1) * 2 - 1);
  document.querySelectorAll("#strips button").forEach((button, metric) => {
    const values = data.values.map((row) => row[metric]).filter((value) => value !== null);
    const svg = button.querySelector("svg"), limits = Object.values(data.limits[data.metrics[metric][0]] || {});
    const low = Math.min(...values), high = Math.max(...values), room = (high - low) * 0.03 || Math.abs(high) * 0.01 || 1;
    const at = (value) => 6 + (288 * (value - low + room)) / (high - low + 2 * room);
    scales.push(at);
    if (!values.length) return;
    const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
    const median = sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
    line(svg, "middle", `M${at(median).toFixed(1)} 0v26`);
    limits.filter((limit) => limit > low - room && limit < high + room).forEach((limit) => line(svg, "limit", `M${at(limit).toFixed(1)} 0v26`));
    line(svg, "dots", data.values.map((row, i) => (row[metric] === null ? "" : `M${at(row[metric]).toFixed(1)} ${height(i).toFixed(1)}h0`)).join(""));
    button.addEventListener("click", () => { byId("order").value = String(metric); arrange(); });
  });

  function drawCurrent() {
    document.querySelectorAll("#strips button").forEach((button, metric) => {
      button.querySelectorAll(".here").forEach((node) => node.remove());
      const value = current ? data.values[number(current)][metric] : null;
      button.querySelector(".now").textContent = value === null ? "" : String(Number(Math.abs(value) < 0.01 ? value.toFixed(4) : value.toPrecision(4)));
      if (value !== null) line(button.querySelector("svg"), "here", `M${scales[metric](value).toFixed(1)} ${height(number(current)).toFixed(1)}h0`);
    });
  }

  byId("search").addEventListener("input", arrange);
  byId("show").addEventListener("change", arrange);
  byId("order").addEventListener("change", arrange);
  byId("copy").addEventListener("click", () => copyText(byId("snippet"), byId("copy")));
  byId("ask").addEventListener("click", () => byId("help").showModal());
  byId("clear").addEventListener("click", () => cards.filter((card) => marked.has(card.dataset.scan)).forEach(mark));
  byId("cards").addEventListener("click", (event) => {
    const card = event.target.closest("article");
    if (!card) return;
    choose(card, false);
    if (event.target.closest(".mark")) mark(card);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const action = {
      j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
      f: () => current && mark(current), "/": () => byId("search").focus(), "?": () => byId("help").showModal(),
    }[event.key];
    if (action) {
      event.preventDefault();
      action();
    }
  });
  tell();
  arrange();
})();
