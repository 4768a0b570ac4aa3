// Figures are drawn when they come into view, so that the first table does not wait for them, nor for the library.

const scheme = matchMedia("(prefers-color-scheme: dark)");

function library() {
  const source = document.getElementById("library");
  if (window.vegaEmbed || !source.textContent) return;
  document.head.append(element("script", {}, source.textContent));
  source.remove();
}

function look() {
  const style = getComputedStyle(document.documentElement);
  const [ink, faint, line] = ["--ink", "--faint", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12 };
  return {
    background: "transparent", font: "system-ui, sans-serif", aria: false, view: { stroke: null }, axis,
    title: { color: faint, anchor: "start", fontSize: 12, fontWeight: "normal" },
    legend: { labelColor: ink, titleColor: ink, orient: "bottom", labelFontSize: 11, columnPadding: 12, symbolSize: 60 },
  };
}

function unpacked(value) {
  if (Array.isArray(value)) return value.map(unpacked);
  if (value === null || typeof value !== "object") return value;
  if (value.columns && Object.keys(value).length === 1) {
    const columns = Object.entries(value.columns).map(([name, c]) => [name, plain(c)]);
    const length = Math.max(...columns.map(([, c]) => c.length));
    return { values: Array.from({ length }, (_, i) => Object.fromEntries(columns.map(([name, c]) => [name, c[i]]))) };
  }
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, unpacked(each)]));
}

function specOf(figure) {
  const spec = unpacked(data.figures[figure.dataset.figure]);
  delete spec.title;
  const values = spec.data?.values ?? [];
  if (figure.labels && spec.data) spec.data.values = values.filter((each) => figure.labels.has(each.method));
  const there = new Set((spec.data?.values ?? []).map((each) => each.method));
  // A layer of nothing would have no scale: the front, where none of the methods that are shown is on it.
  const drawn = (filter) => filter?.equal === undefined || spec.data.values.some((each) => each[filter.field] === filter.equal);
  spec.layer = spec.layer?.filter((layer) => (layer.transform ?? []).every(({ filter }) => drawn(filter)));
  if (spec.height?.step) spec.height = spec.height.step * there.size;
  coloured(spec, Object.keys(data.palette).filter((label) => there.has(label)));
  if (!spec.layer) delete spec.layer;
  return spec;
}

// A legend names the methods that are drawn, each in the colour and shape that it has everywhere.
function coloured(value, labels) {
  if (value === null || typeof value !== "object") return;
  for (const channel of ["color", "shape"]) {
    if (value[channel]?.scale !== "palette") continue;
    value[channel].scale = { domain: labels, range: labels.map((label) => data.palette[label][channel] ?? "circle") };
  }
  if (Array.isArray(value.sort)) value.sort = value.sort.filter((label) => labels.includes(label));
  for (const [key, each] of Object.entries(value)) if (key !== "values") coloured(each, labels);
}

function longest(value) {
  if (value === null || typeof value !== "object") return 0;
  const own = Array.isArray(value.domain) ? value.domain.map((text) => String(text).length) : [];
  return Math.max(8, ...own, ...Object.entries(value).map(([key, each]) => key === "values" ? 0 : longest(each)));
}

function fitted(spec, width) {
  const legend = { columns: Math.max(1, Math.floor((width - 60) / (26 + 6.5 * longest(spec)))) };
  if (!spec.hconcat) return [{ ...spec, width, autosize: { type: "fit-x", contains: "padding" } }, legend];
  const beside = width > 640, room = Math.max(150, (beside ? width / spec.hconcat.length : width) - 90);
  const resized = spec.hconcat.map((column) => ({ ...column, vconcat: column.vconcat.map((panel) => ({ ...panel, width: room })) }));
  const { hconcat, ...rest } = spec;
  return [beside ? { ...rest, hconcat: resized } : { ...rest, vconcat: resized }, legend];
}

async function draw(figure) {
  library();
  const plot = figure.querySelector(".plot"), config = look(), wanted = specOf(figure);
  const [spec, legend] = fitted(wanted, plot.clientWidth);
  config.legend = { ...config.legend, ...legend };
  if (plot.clientWidth < 420) config.axis.titleFontSize = 10;
  figure.drawn?.finalize();
  delete figure.drawn;
  if (wanted.data?.values.length === 0) plot.replaceChildren("None of the methods that are shown is in this figure.");
  else figure.drawn = await window.vegaEmbed(plot, spec, {
    mode: "vega-lite", renderer: "svg", actions: false, ast: true, config, tooltip: { theme: scheme.matches ? "dark" : "light" },
  });
  // The plot is one picture with a name; its numbers are in the table under it.
  plot.querySelector("svg")?.setAttribute("aria-hidden", "true");
  figure.dataset.state = "drawn";
}

let queue = Promise.resolve();
function drawSoon(figure) {
  figure.dataset.state = "waiting";
  // One at a time: two at once would share the container's width while the first still settles.
  queue = queue.then(() => draw(figure)).catch(console.error);
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((e) => e.isIntersecting)) {
    watcher.unobserve(entry.target);
    drawSoon(entry.target);
  }
}, { rootMargin: "150px" });

function narrow(block, labels) {
  const table = data.tables[block.dataset.table];
  const every = new Set(table.rows.map((row) => row[CELLS + 2])).size === labels.size;
  const key = every ? "" : [...labels].join("\n");
  if (key === (block.drawnFor ?? "")) return;
  block.drawnFor = key;
  for (const figure of block.querySelectorAll(".figure")) {
    figure.labels = every ? null : labels;
    if (figure.dataset.state) watcher.observe(figure);
    const numbers = figure.querySelector(".numbers");
    numbers.querySelector(".scroll")?.remove();
    numbers.open = false;
  }
}

function numbers(figure, details) {
  const found = [];
  const find = (value) => {
    if (value === null || typeof value !== "object") return;
    if (Array.isArray(value.values) && typeof value.values[0] === "object") found.push(value.values);
    else Object.values(value).forEach(find);
  };
  find(specOf(figure));
  const name = `Numbers: ${figure.querySelector("figcaption").textContent}`;
  details.append(...found.map((values) => {
    const columns = Object.keys(values[0] ?? {}).map((field, i) => [field, i === 0 && typeof values[0][field] === "string" ? "method" : typeof values[0][field] === "string" ? "text" : "number", ""]);
    const rows = values.map((each) => textRow(columns.map(([field]) => String(each[field] ?? "–")), columns));
    return tableOf(name, columns, rows);
  }));
}
