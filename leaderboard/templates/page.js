"use strict";
const filters = document.getElementById("filters");

function filterRows() {
  const wanted = Object.fromEntries(new FormData(filters));
  const text = wanted.text.trim().toLowerCase();
  for (const row of document.querySelectorAll("table.sortable tbody tr")) {
    const told = row.dataset;
    row.hidden =
      (text && !told.text.includes(text)) ||
      ["regime", "level", "headline", "device"].some((k) => wanted[k] && told[k] !== undefined && told[k] !== wanted[k]);
  }
}

function valueOf(row, column) {
  const cell = row.cells[column];
  const told = cell.dataset.value ?? cell.textContent.trim();
  if (told === "" || told === "–") return null;
  const number = Number(told.replaceAll(",", ""));
  return Number.isNaN(number) ? told : number;
}

function sortBy(table, column, header) {
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
  rows.sort(([a], [b]) => {
    // What does not exist stays at the end, whichever way the column is sorted.
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return down ? -order : order;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => sortBy(table, column, header));
    header.scope = "col";
    header.replaceChildren(button);
  });
}
filters.addEventListener("input", filterRows);
filters.addEventListener("submit", (event) => event.preventDefault());
filterRows();

const figures = JSON.parse(document.getElementById("figures-data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
const ink = dark ? "#c9d0d6" : "#33393f";
const line = dark ? "#343a41" : "#e3e6ea";
const config = {
  background: "transparent",
  view: { stroke: null },
  title: { color: ink, anchor: "start", fontSize: 13 },
  axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: "normal" },
  legend: { labelColor: ink, titleColor: ink },
};

// Figures are drawn when they come into view, so that the first table does not wait for them.
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((e) => e.isIntersecting)) {
    watcher.unobserve(entry.target);
    const spec = figures[entry.target.dataset.figure];
    vegaEmbed(entry.target, spec, { mode: "vega-lite", renderer: "svg", actions: false, config }).catch(console.error);
  }
}, { rootMargin: "200px" });
for (const target of document.querySelectorAll(".figure")) watcher.observe(target);
