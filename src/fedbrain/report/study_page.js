// Everything is in the page already; this sorts, searches, opens and prints.
(() => {
  const byId = (id) => document.getElementById(id);
  const tables = [...document.querySelectorAll("main table")];
  const details = [...document.querySelectorAll("main details")];
  byId("controls").hidden = false;
  document.querySelectorAll("button.copy").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", () => copyText(byId(button.dataset.copies), button));
  });

  // Sorting: a header becomes a button; the first click on numbers puts the highest first, on words the first of the alphabet.
  const words = new Intl.Collator("en", { numeric: true });
  tables.forEach((table) => {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    const rows = [...body.rows];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const number = head.classList.contains("n");
        const up = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "descending" : !number;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => {
          const cell = row.cells[column];
          if (!number) return cell.textContent.trim();
          return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
        };
        const sorted = rows.map((row, place) => [key(row), place, row]).sort(([a, i], [b, j]) => {
          if (a === null || b === null || a === "" || b === "") {
            return (a === null || a === "" ? 1 : 0) - (b === null || b === "" ? 1 : 0) || i - j; // what is missing stays last
          }
          return (number ? a - b : words.compare(a, b)) * (up ? 1 : -1) || i - j;
        });
        body.append(...sorted.map(([, , row]) => row));
      });
    });
  });

  // Search: rows that hold all words stay; folded parts with such rows open, and close again when the search is empty.
  const opened = new Set();
  const texts = tables.map((table) => [...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]));
  function search() {
    const wanted = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0, within = 0;
    tables.forEach((table, place) => {
      let here = 0;
      texts[place].forEach(([row, text]) => {
        const hit = wanted.every((word) => text.includes(word));
        row.hidden = !hit;
        row.classList.toggle("hit", hit && wanted.length > 0);
        here += hit;
      });
      found += here;
      within += here > 0;
      let nothing = table.parentNode.querySelector(".nothing");
      if (!here && !nothing) {
        nothing = document.createElement("p");
        nothing.className = "nothing";
        nothing.textContent = "No row of this table has that.";
        table.after(nothing);
      } else if (here && nothing) {
        nothing.remove();
      }
      const fold = table.closest("details");
      if (wanted.length && here && fold && !fold.open) {
        fold.open = true;
        opened.add(fold);
      }
    });
    if (!wanted.length) {
      opened.forEach((fold) => { fold.open = false; });
      opened.clear();
    }
    byId("count").textContent = wanted.length ? `${found} ${found === 1 ? "row" : "rows"} in ${within} ${within === 1 ? "table" : "tables"}` : "";
  }

  function unfold() {
    const open = byId("unfold").getAttribute("aria-pressed") !== "true";
    details.forEach((fold) => { fold.open = open; });
    byId("unfold").setAttribute("aria-pressed", String(open));
    byId("unfold").textContent = open ? "Close all" : "Open all";
  }

  function tellTheme() {
    byId("theme").textContent = theme.isDark() ? "Light" : "Dark";
  }
  function changeTheme() {
    theme.choose(theme.isDark() ? "light" : "dark");
    tellTheme();
  }

  // On paper everything is open.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = details.filter((fold) => !fold.open);
    closed.forEach((fold) => { fold.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((fold) => { fold.open = false; }));

  // In the frame of Snakemake's report a link within the page would load the report once more.
  if (location.protocol === "about:") {
    document.addEventListener("click", (event) => {
      const place = event.target.closest("a")?.getAttribute("href");
      if (!place?.startsWith("#")) return;
      event.preventDefault();
      byId(place.slice(1)).scrollIntoView();
      byId(place.slice(1)).focus({ preventScroll: true });
    });
  }

  // Where the reader is, in the contents.
  const lines = new Map([...document.querySelectorAll("#contents a")].map((a) => [a.hash.slice(1), a]));
  const seen = new Set();
  const watch = new IntersectionObserver((entries) => {
    entries.forEach((entry) => { seen[entry.isIntersecting ? "add" : "delete"](entry.target.id); });
    const first = [...lines.keys()].find((id) => seen.has(id));
    lines.forEach((a, id) => { if (id === first) a.setAttribute("aria-current", "true"); else a.removeAttribute("aria-current"); });
  }, { rootMargin: "-70px 0px -55% 0px" });
  document.querySelectorAll("main > section").forEach((section) => watch.observe(section));

  byId("search").addEventListener("input", search);
  byId("unfold").addEventListener("click", unfold);
  byId("theme").addEventListener("click", changeTheme);
  byId("print").addEventListener("click", () => print());
  byId("ask").addEventListener("click", () => byId("help").showModal());
  theme.system.addEventListener("change", tellTheme);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      if (event.key === "Escape") {
        byId("search").value = "";
        search();
        event.target.blur();
      }
      return;
    }
    const action = { "/": () => byId("search").focus(), d: changeTheme, o: unfold, "?": () => byId("help").showModal() }[event.key];
    if (action) {
      event.preventDefault();
      action();
    }
  });
  tellTheme();
})();
