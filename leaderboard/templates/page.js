// Text of records reaches the document as text alone: there is no innerHTML here. See figures.js, which stands before.
const HEADLINE = 1, CONTROL = 2, CELLS = 4;
const data = JSON.parse(document.getElementById("page-data").textContent);
const filters = document.getElementById("filters");
const dialog = document.getElementById("row");
for (const table of data.tables) {
  const columns = table.cells.map(plain);
  table.rows = table.meta.map((meta, i) => [...meta, ...columns.map((texts) => texts[i])]);
}
for (const table of data.tables.filter((each) => each.costs)) priced(table);
const blocks = [...document.querySelectorAll(".block")];

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Data is columns, in which a text that stands often stands once.
function plain(column) {
  return column.of ? column.at.map((i) => column.of[i]) : column;
}

// The costs of a row stand after its place among the rows, by which its method and budget are known.
function priced(table) {
  const { devices, columns, rows } = table.costs;
  const place = [["Device class", "text", ""], ["Method", "method", ""], ["n train", "number", ""], ["n support", "number", ""]];
  table.costs.columns = [...place, ...columns.map((title) => [title, "number", ""])];
  table.costs.rows = rows.map(([index, device, ...cells]) => {
    const known = index < 0 ? [] : table.rows[index].slice(CELLS + 2, CELLS + 5);
    return [index, devices[device], ...known, ...cells];
  });
}

function keysOf(packed) {
  if (packed.startsWith("=")) return packed.slice(1).split(" ").filter(Boolean);
  const digits = Array.from(atob(packed), (c) => c.charCodeAt(0).toString(16).padStart(2, "0")).join("");
  return digits.match(/.{16}/g) ?? [];
}

// Tables

function cellOf(text, kind) {
  if (kind === "method") return element("th", { scope: "row" }, text);
  const attributes = kind === "people" ? { class: "people" } : kind === "badge" ? { class: `badge ${text}` } : {};
  const at = text.indexOf(" [");
  if (kind !== "number" || at < 0) return element("td", attributes, text);
  return element("td", attributes, text.slice(0, at) + " ", element("small", {}, text.slice(at + 1)));
}

function tableOf(name, columns, rows, extra = "") {
  const head = element("tr", {}, ...columns.map(([title, kind, meaning]) => {
    const made = element("th", { scope: "col" }, title);
    if (kind !== "number") made.className = "t";
    if (meaning) made.title = meaning;
    return made;
  }));
  const body = element("tbody", {}, ...rows);
  const table = element("table", { class: `sortable ${extra}`.trim() }, element("caption", {}, name), element("thead", {}, head), body);
  sortable(table);
  return element("div", { class: "scroll", role: "region", "aria-label": name, tabindex: "0" }, table);
}

function textRow(cells, columns) {
  return element("tr", {}, ...cells.map((text, i) => {
    const made = cellOf(text, columns[i][1]);
    if (columns[i][1] === "text") made.className = "t";
    return made;
  }));
}

function people(cell) {
  const points = cell.textContent.split(" ").map(Number);
  if (points.length !== 5 || points.some(Number.isNaN)) return;
  cell.dataset.value = points[2];
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const draw = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    svg.append(made);
  };
  const [least, low, middle, high, most] = points;
  svg.setAttribute("viewBox", "0 0 100 12");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `5 % ${least}, quarter ${low}, median ${middle}, three quarters ${high}, 95 % ${most} per cent`);
  draw("line", { x1: least, x2: most, y1: 6, y2: 6 });
  draw("rect", { x: low, width: Math.max(high - low, 0.5), y: 3, height: 6 });
  draw("line", { class: "median", x1: middle, x2: middle, y1: 1, y2: 11 });
  cell.replaceChildren(svg);
}

function opens(row, show) {
  const header = row.querySelector("th[scope=row]");
  const button = element("button", { type: "button", "aria-haspopup": "dialog" }, header.textContent);
  button.addEventListener("click", show);
  header.title = header.textContent;
  header.replaceChildren(button);
}

function finished(row, table, index) {
  opens(row, () => showRow(table, index));
  for (const cell of row.querySelectorAll("td.people")) people(cell);
  return row;
}

function valueOf(row, column) {
  const cell = row.cells[column];
  const told = (cell.dataset.value ?? cell.textContent).trim();
  if (told === "" || told === "–") return null;
  if (/^all\b/.test(told)) return Infinity;
  const number = /^[+-]?[\d,]*\.?\d+(e[+-]?\d+)?/i.exec(told);
  return number ? Number(number[0].replaceAll(",", "")) : told;
}

function sortBy(table, column, header) {
  const standing = header.getAttribute("aria-sort");
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  const body = table.tBodies[0];
  body.ordered ??= [...body.rows];
  // A third time gives back the board's own order.
  if (standing === "descending") return body.append(...body.ordered);
  header.setAttribute("aria-sort", standing ? "descending" : "ascending");
  const rows = body.ordered.map((row) => [valueOf(row, column), row]);
  const text = !header.classList.contains("t") ? false : rows.some(([value]) => typeof value === "string");
  rows.sort(([a], [b]) => {
    // What does not exist stays at the end, whichever way the column is sorted.
    if (a === null || b === null) return (a === null) - (b === null);
    const order = text ? String(a).localeCompare(String(b)) : a === b ? 0 : a < b ? -1 : 1;
    return standing ? -order : order;
  });
  body.append(...rows.map(([, row]) => row));
}

function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = element("button", { type: "button" }, header.textContent);
    button.addEventListener("click", () => sortBy(table, column, header));
    header.replaceChildren(button);
  });
}

// Everything that is told of a row

function list(pairs) {
  return element("dl", {}, ...pairs.flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, value)]));
}

function records(table, row) {
  const run = table.runs[row[2]];
  const keys = keysOf(row[3]);
  return [
    element("h3", {}, `${keys.length} records`),
    element("p", {}, "Files of the results folder that the board was made from; a name begins with these digits."),
    element("ul", {}, ...keys.map((key) => element("li", {}, element("code", {}, `records/${table.dataset}/${run.method}/${key}….json`)))),
  ];
}

function show(title, ...parts) {
  const close = element("button", { type: "button", class: "close", "aria-label": "Close" }, "✕");
  close.addEventListener("click", () => dialog.close());
  const body = element("div", { tabindex: "-1" }, ...parts);
  dialog.replaceChildren(element("h2", { id: "row-title" }, title), close, body);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function cardLink(method) {
  const card = document.getElementById(`method-${method}`);
  if (!card) return [];
  const link = element("a", { href: `#method-${method}` }, "Method card");
  link.addEventListener("click", () => { dialog.close(); card.open = true; });
  return [element("p", {}, link)];
}

function showRow(table, index) {
  const row = table.rows[index], run = table.runs[row[2]];
  const place = table.columns.map(([title, , meaning], i) => [title + (meaning && i > 5 ? `: ${meaning}` : ""), row[CELLS + i]]);
  const costs = table.costs ? table.costs.rows.filter((each) => each[0] === index) : [];
  show(
    row[CELLS + 2],
    element("p", {}, `${data.titles[run.method] ?? run.method}; ${table.dataset}, ${table.title.toLowerCase()}, encoder ${table.encoder}`),
    ...cardLink(run.method),
    list(place.filter(([title]) => title !== "Method")),
    ...records(table, row),
    element("h3", {}, "Run"),
    list([
      ["version", run.version],
      ["seeds", run.seeds.join(", ")],
      ...Object.entries(run.config).map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]),
    ]),
    ...costs.map((each) => element("div", {}, element("h3", {}, `Costs on ${each[1]}`),
      list(table.costs.columns.slice(4).map(([title], i) => [title, each[5 + i]])))),
  );
}

function showOverall(label, regime) {
  const found = data.tables.flatMap((table) => table.regime !== regime ? [] :
    table.rows.map((row, i) => [table, row, i]).filter(([, row]) => row[0] & HEADLINE && row[CELLS + 2] === label));
  show(`${label}, ${regime}`, element("p", {}, "The mean is over these rows; each opens the records that it came from."),
    element("ul", {}, ...found.map(([table, row, i]) => {
      const button = element("button", { type: "button" }, `${table.dataset} (${table.encoder})`);
      button.addEventListener("click", () => showRow(table, i));
      const gain = table.columns.findIndex(([title]) => title === "Gain");
      return element("li", {}, button, ` gain ${gain < 0 ? "–" : row[CELLS + gain]}`);
    })));
}

// Filters

const told = (row, name) => row.dataset[name];

function wantedRow(table, row, wanted) {
  const label = row[CELLS + 2], title = data.titles[table.runs[row[2]].method] ?? "";
  return (wanted.budget || row[0] & HEADLINE) &&
    (!wanted.text || `${label} ${title}`.toLowerCase().includes(wanted.text)) &&
    (!wanted.level || row[CELLS + table.level] === wanted.level) &&
    (!wanted.device || table.devices[row[1]].includes(wanted.device));
}

function everyBudget(block) {
  const table = data.tables[block.dataset.table], body = block.querySelector("tbody");
  if (body.rows.length === table.rows.length) return;
  const there = new Map([...body.rows].map((row) => [Number(row.dataset.row), row]));
  const rows = table.rows.map((row, i) => {
    if (there.has(i)) return there.get(i);
    const made = element("tr", { "data-row": i }, ...row.slice(CELLS).map((text, c) => cellOf(text, table.columns[c][1])));
    if (row[0] & CONTROL) made.className = "control";
    return finished(made, table, i);
  });
  for (const header of block.querySelectorAll(".board thead th")) header.removeAttribute("aria-sort");
  body.ordered = rows;
  body.append(...rows);
}

function filterBlock(block, wanted) {
  const table = data.tables[block.dataset.table];
  block.hidden = Boolean((wanted.dataset && table.dataset !== wanted.dataset) || (wanted.regime && table.regime !== wanted.regime));
  if (block.hidden) return 0;
  block.querySelector(".board").classList.toggle("largest", !wanted.budget);
  if (wanted.budget) everyBudget(block);
  let shown = 0;
  const labels = new Set();
  for (const row of block.querySelectorAll(".board > tbody > tr")) {
    const each = table.rows[row.dataset.row];
    row.hidden = !wantedRow(table, each, wanted);
    shown += !row.hidden;
    if (!row.hidden) labels.add(each[CELLS + 2]);
  }
  for (const row of block.querySelectorAll(".costs tbody > tr")) {
    const each = table.rows[row.dataset.row];
    row.hidden = each ? !wantedRow(table, each, wanted) || Boolean(wanted.device && told(row, "device") !== wanted.device) : false;
  }
  block.hidden = !shown;
  if (shown) narrow(block, labels);
  return shown;
}

function filterRows() {
  const wanted = Object.fromEntries(new FormData(filters));
  wanted.text = wanted.text.trim().toLowerCase();
  let shown = 0;
  for (const block of blocks) shown += filterBlock(block, wanted);
  for (const section of document.querySelectorAll("section[data-dataset]")) {
    section.hidden = [...section.querySelectorAll(".block")].every((block) => block.hidden);
  }
  for (const row of document.querySelectorAll("tr[data-text], tr[data-label]")) {
    const text = told(row, "text") ?? told(row, "label").toLowerCase();
    row.hidden = Boolean((wanted.text && !text.includes(wanted.text)) ||
      ["regime", "device"].some((k) => wanted[k] && told(row, k) !== undefined && told(row, k) !== wanted[k]));
  }
  filters.elements.shown.value = `${shown} rows`;
}

// What is built when it is opened

function costs(block, details) {
  const table = data.tables[block.dataset.table];
  const rows = table.costs.rows.map(([index, ...cells]) => {
    const made = textRow(cells, table.costs.columns);
    made.dataset.row = index;
    made.dataset.device = cells[0];
    if (index >= 0) opens(made, () => showRow(table, index));
    return made;
  });
  details.append(tableOf(`Costs, ${table.dataset}, ${table.title}`, table.costs.columns, rows));
  filterRows();
}

function cells(details) {
  const rows = data.kernels.rows.map((each) => {
    const made = textRow(each, data.kernels.columns);
    made.dataset.device = each[0];
    made.dataset.text = `${each[9]} ${each[3]}`.toLowerCase();
    return made;
  });
  details.append(tableOf("Cells", data.kernels.columns, rows));
  filterRows();
}

function onOpen(details, build) {
  details.addEventListener("toggle", () => {
    if (details.open && !details.querySelector("table")) build();
  });
}

function toHash() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
}

for (const block of blocks) {
  const table = data.tables[block.dataset.table];
  for (const row of block.querySelectorAll("tbody > tr")) finished(row, table, Number(row.dataset.row));
  const details = block.querySelector(".costs");
  if (details) onOpen(details, () => costs(block, details));
}
for (const row of document.querySelectorAll("tr[data-label]")) opens(row, () => showOverall(told(row, "label"), told(row, "regime")));
for (const table of document.querySelectorAll("table.sortable")) sortable(table);
for (const details of document.querySelectorAll("details.cells")) onOpen(details, () => cells(details));
for (const figure of document.querySelectorAll(".figure")) {
  watcher.observe(figure);
  const details = figure.querySelector(".numbers");
  onOpen(details, () => numbers(figure, details));
}
filters.hidden = blocks.length === 0 && !data.kernels.rows.length;
filters.addEventListener("input", filterRows);
filters.addEventListener("reset", () => setTimeout(filterRows));
filters.addEventListener("submit", (event) => event.preventDefault());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
scheme.addEventListener("change", () => {
  for (const figure of document.querySelectorAll(".figure[data-state]")) watcher.observe(figure);
});
let width = innerWidth;
addEventListener("resize", () => {
  if (Math.abs(innerWidth - width) < 40) return;
  width = innerWidth;
  for (const figure of document.querySelectorAll(".figure[data-state]")) watcher.observe(figure);
});
addEventListener("hashchange", toHash);
filterRows();
toHash();
document.documentElement.dataset.ready = "yes";
