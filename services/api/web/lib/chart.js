// Draw lines over steps, and histograms, with uPlot, which `make page` puts beside the page; without it, tables say the same.
import { h, fill } from "./dom.js";
import { count, number, t } from "./text.js";
import { table } from "./widgets.js";

// Okabe and Ito's colours, which people with any kind of colour vision tell apart; lines differ in their dashes too.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a7300", "#56b4e9", "#7f7f7f"];
const DARK = ["#56b4e9", "#ff9b52", "#3ecfa0", "#e9a4cb", "#e6c84c", "#9fd3f2", "#b5b5b5"];
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5], [14, 4], [1, 2]];
const dark = matchMedia("(prefers-color-scheme: dark)");

const WHOLE = [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5, 6, 7].map((power) => n * 10 ** power)).sort((a, b) => a - b);

let library;
function loadLibrary() {
  library ??= import("/web/vendor/uPlot.esm.js").then(
    (module) => {
      document.head.append(h("link", { rel: "stylesheet", href: "/web/vendor/uPlot.min.css" }));
      return module.default;
    },
    () => null,
  );
  return library;
}

/**
 * Draw a chart that can be given new lines.
 * @param {string} title What it shows.
 * @param {object} options `x`: what the steps count; `digits` of the values; `bins`: where the lines are histograms, the width of a
 *     bin, which begins at its step; `place`: says a step in words.
 * @returns {{element: Node, draw: (lines: Array<{label: string, steps: number[], values: number[], width: number, rest: string}>, marks?: Array<{step: number, label: string}>) => Promise}}
 *     A line's `width` is in pixels; `rest` stands beside its label while nobody points at a step, instead of its last value.
 *     `marks` are steps at which something changes: upright lines, and words beneath.
 */
export function chart(title, { x = t("step"), digits = 3, bins = 0, place = count } = {}) {
  const area = h("div");
  const legend = h("ul.legend");
  const details = h("details", h("summary", t("As a table")));
  const element = h("figure.chart", { "aria-label": title }, h("h3", title), area, legend, details);
  let plot = null;
  let shown = "";
  let lines = [];
  let marks = [];

  async function draw(given, marked = []) {
    lines = given;
    marks = marked;
    const Plot = await loadLibrary();
    fill(details, h("summary", t("As a table")), values(title, lines, x, digits, place));
    if (!Plot) return void (details.open = true);
    const colours = dark.matches ? DARK : COLOURS;
    const data = aligned(lines);
    const form = JSON.stringify([lines.map((line) => line.label), dark.matches]);
    if (plot && form === shown) {
      plot.setData(data);
      return say(plot.cursor.idx);
    }
    plot?.destroy();
    shown = form;
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("color");
    const grid = { stroke: dark.matches ? "#39434a" : "#d4dade", width: 1 };
    const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui, sans-serif" };
    plot = new Plot({
      width: Math.max(element.clientWidth, 240), height: 210, legend: { show: false }, cursor: { points: { size: 7 } },
      scales: bins ? { x: { time: false, range: (_, low, high) => [low, high + bins] }, y: { range: (_, low, high) => [0, high * 1.05] } } : { x: { time: false } },
      axes: [{ ...axis, ...(bins ? { values: (_, ticks) => ticks.map(place) } : { incrs: WHOLE }), label: x, labelSize: 18, labelFont: "12px system-ui, sans-serif" }, { ...axis, size: 58 }],
      series: [{}, ...lines.map((line, i) => ({
        label: line.label, stroke: colours[i % colours.length], dash: DASHES[i % DASHES.length], width: line.width ?? 2, spanGaps: true,
        ...(bins ? { paths: Plot.paths.stepped({ align: 1, extend: true }) } : {}), points: { show: !bins && line.steps.length < 15 },
      }))],
      hooks: { setCursor: [(self) => say(self.cursor.idx)], draw: [(self) => upright(self, marks, ink)] },
    }, data, area);
    say(null);
  }

  function say(index) {
    const colours = dark.matches ? DARK : COLOURS;
    const data = aligned(lines);
    fill(legend, index !== null && index !== undefined && h("li", `${x} ${place(data[0][index])}`), lines.map((line, i) => {
      const swatch = h("span.swatch", { "aria-hidden": "true" });
      swatch.style.borderTopColor = colours[i % colours.length];
      swatch.style.borderTopStyle = DASHES[i % DASHES.length].length ? "dashed" : "solid";
      const value = index === null || index === undefined ? (line.rest ?? number(line.values.at(-1), digits)) : number(data[i + 1][index], digits);
      return h("li", swatch, h("bdi", line.label), " ", h("strong", value));
    }), marks.map((mark) => h("li", "┆ ", x, " ", count(mark.step), ": ", h("bdi", mark.label))));
  }

  new ResizeObserver(() => plot?.setSize({ width: Math.max(element.clientWidth, 240), height: 210 })).observe(element);
  const redraw = () => (element.isConnected ? draw(lines, marks) : dark.removeEventListener("change", redraw));
  dark.addEventListener("change", redraw);
  return { element, draw };
}

function upright(plot, marks, ink) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = ink;
  ctx.setLineDash([3, 3]);
  for (const { step } of marks) {
    const at = Math.round(plot.valToPos(step, "x", true));
    if (at < bbox.left || at > bbox.left + bbox.width) continue; // a reader has zoomed in
    ctx.beginPath();
    ctx.moveTo(at, bbox.top);
    ctx.lineTo(at, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

/** Put lines of different steps on one axis. */
function aligned(lines) {
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, i) => [step, i]));
  return [steps, ...lines.map((line) => {
    const column = new Array(steps.length).fill(null);
    line.steps.forEach((step, i) => (column[place.get(step)] = line.values[i]));
    return column;
  })];
}

function values(title, lines, x, digits, place) {
  const [steps, ...columns] = aligned(lines);
  const every = Math.max(1, Math.ceil(steps.length / 25));
  const picked = steps.map((_, i) => i).filter((i) => i % every === 0 || i === steps.length - 1);
  return table(title, [[x, "number"], ...lines.map((line) => [line.label, "number"])],
    picked.map((i) => [place(steps[i]), ...columns.map((column) => number(column[i], digits))]));
}
