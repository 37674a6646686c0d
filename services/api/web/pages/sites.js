// What the model knows of each site: the matrix of scores, its course along the relay, the worst images.
import { h, fill } from "../lib/dom.js";
import { all, get, submit } from "../lib/api.js";
import { count, moment, number, t } from "../lib/text.js";
import { button, card, choice, empty, facts, field, head, link, table } from "../lib/widgets.js";
import { chart } from "../lib/chart.js";

export async function show({ parts: [id], me }) {
  const evaluations = await all("/api/v1/evaluations", {}, 200);
  if (!evaluations.length) return [head(t("Sites")), card(null, empty(t("Nothing was scored yet. A training that is finished, or an evaluation of a checkpoint, leaves scores."), h("div.actions", h("a.button", { href: "#/runs" }, t("To the runs")))))];
  const chosen = evaluations.find((one) => one.id === id) ?? (id ? await get(`/api/v1/evaluations/${id}`) : evaluations[0]);
  const runs = new Map((await all("/api/v1/runs")).map((run) => [run.id, run]));
  const which = choice(evaluations.map((one) => [one.id, `${runs.get(one.run_id)?.name ?? ""} – ${moment(one.created_at)}`]), chosen.id, { id: "which-evaluation" });
  which.addEventListener("change", () => (location.hash = `#/sites/${which.value}`));
  const evaluation = await get(`/api/v1/evaluations/${chosen.id}`);
  const [found, told] = await Promise.all([scores(evaluation), bundleOf(chosen)]);
  for (const [metric, matrix] of Object.entries(evaluation.matrices)) evaluation.matrices[metric] = withHops(matrix, metric, told);
  const metrics = Object.keys(evaluation.matrices).sort((a, b) => rank(a) - rank(b));
  const metric = choice(metrics.map((one) => [one, evaluation.matrices[one].title ?? one]), metrics[0], { id: "which-metric" });
  const box = h("div");
  const baselines = study(metric, evaluation.matrices);
  const draw = () => fill(box, matrixCard(evaluation.matrices[metric.value], found, metric.value), courseCard(evaluation.matrices[metric.value]), baselines.card(), baselines.draw());
  metric.addEventListener("change", draw);
  draw();
  return [
    head(t("Sites"), me.role !== "viewer" && button(t("Sign these scores"), async () => (location.hash = `#/jobs/${(await submit({ evaluation_id: chosen.id }, "/api/v1/exports")).id}`))),
    card(null, h("div.actions", field(t("Scores"), which), field(t("Metric"), metric)),
      h("p.about", t("of"), " ", link(`#/runs/${chosen.run_id}`, runs.get(chosen.run_id)?.name ?? chosen.run_id.slice(0, 12)), chosen.checkpoint_id && [", ", link(`#/checkpoints/${chosen.checkpoint_id}`, t("checkpoint {n}", { n: chosen.checkpoint_id.slice(-6) }))])),
    box, worst(evaluation, found),
  ];
}

/** Find the bundle that a scored checkpoint's line came here by, and what it says. */
async function bundleOf(evaluation) {
  const imports = await all("/api/v1/imports", { run_id: evaluation.run_id, state: "accepted" });
  let checkpoint = imports.length ? evaluation.checkpoint_id : null;
  while (checkpoint) {
    const found = imports.find((one) => one.checkpoint_id === checkpoint);
    if (found) return found.facts;
    checkpoint = await get(`/api/v1/checkpoints/${checkpoint}`).then((row) => row.parent_id, () => null);
  }
  return null;
}

/** Put before a site's own rows what the sites before signed: their test sets are not here, their scores came with the bundle. */
function withHops(matrix, metric, bundle) {
  const hops = (bundle?.history ?? []).filter((hop) => !matrix.rows.includes(hop.site) && Object.values(hop.metrics ?? {}).some((scores) => typeof scores[metric] === "number"));
  if (!hops.length) return matrix;
  const columns = [...new Set([...hops.flatMap((hop) => Object.keys(hop.metrics)), ...matrix.columns])];
  const own = matrix.values.map((row) => columns.map((name) => (matrix.columns.includes(name) ? row[matrix.columns.indexOf(name)] : null)));
  const before = hops.map((hop) => columns.map((name) => hop.metrics[name]?.[metric] ?? null));
  const start = matrix.start && columns.map((name) => (matrix.columns.includes(name) ? matrix.start[matrix.columns.indexOf(name)] : null));
  return { ...matrix, start, columns, rows: [...hops.map((hop) => hop.site), ...matrix.rows], values: [...before, ...own], signed: hops.length };
}

const FIRST = ["dice_per_sample", "balanced_accuracy", "dice", "accuracy"];
const rank = (metric) => (FIRST.includes(metric) ? FIRST.indexOf(metric) : FIRST.length);

/** Read what the evaluation's job says of single images and of intervals: the scores after the newest site. */
async function scores(evaluation) {
  const path = `/api/v1/jobs/${evaluation.job_id}/files`;
  const files = await get(path).catch(() => []);
  const named = files.filter((file) => /(^|\.)scores\.json$/.test(file.name)).at(-1);
  const worst = files.find((file) => file.name === "worst.png");
  return { sites: named ? (await get(`${path}/${encodeURIComponent(named.name)}`)).scores ?? {} : {}, picture: worst && `${path}/${worst.name}` };
}

function matrixCard(matrix, found, metric) {
  const values = matrix.values.flat().filter((value) => value !== null);
  const low = Math.min(...values);
  const span = Math.max(...values) - low;
  const cell = (value, row, column) => {
    const range = row === matrix.rows.length - 1 ? found.sites[matrix.columns[column]]?.ci95?.[metric]?.bootstrap : null;
    const element = h("td.cell", value === null ? "–" : number(value), range && h("span.ci", t("{low} to {high}", { low: number(range[0]), high: number(range[1]) })));
    if (value !== null) shade(element, !span ? 1 : matrix.higher_is_better === false ? 1 - (value - low) / span : (value - low) / span);
    return element;
  };
  const start = matrix.start ? [h("tr", h("th", { scope: "row" }, t("before any training")), matrix.start.map((value) => h("td.cell", number(value))))] : [];
  const summary = Object.entries(matrix.summary ?? {}).filter(([, value]) => typeof value === "number");
  return card(t("After each site, on each test set"),
    h("div.scroll", { tabindex: "0", role: "region", "aria-label": matrix.title ?? metric }, h("table.heat", h("caption.hidden", matrix.title ?? metric),
      h("thead", h("tr", h("th", { scope: "col" }, t("after training at")), matrix.columns.map((name) => h("th", { scope: "col", dir: "auto" }, name)))),
      h("tbody", start, matrix.rows.map((name, i) => h("tr", h("th", { scope: "row", dir: "auto" }, name, i < (matrix.signed ?? 0) && h("span.note", ` ${t("as it signed")}`)), matrix.values[i].map((value, j) => cell(value, i, j))))))),
    h("p.about", t("Read down a column: what the model knows of that site, turn by turn. Brighter is better. Small figures: 95 % interval over the test images.")),
    summary.length > 0 && facts(summary.map(([key, value]) => [words(key), number(value)])));
}

/** Viridis' middle part, from dark to bright, with text that can be read on it. */
function shade(element, share) {
  const stops = [[68, 57, 131], [49, 104, 142], [33, 145, 140], [53, 183, 121], [144, 215, 67]];
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  const colour = stops[i].map((value, k) => Math.round(value + (stops[i + 1][k] - value) * (at - i)));
  const channel = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const bright = 0.2126 * channel(colour[0]) + 0.7152 * channel(colour[1]) + 0.0722 * channel(colour[2]);
  element.style.backgroundColor = `rgb(${colour.join(" ")})`;
  element.style.color = bright > 0.179 ? "#000" : "#fff";
}

const words = (key) => ({ average: t("average at the end"), backward_transfer: t("backward transfer"), forward_transfer: t("forward transfer"), forgetting: t("forgetting"), worst: t("worst site") })[key] ?? key.replaceAll("_", " ");

function courseCard(matrix) {
  if (matrix.rows.length < 2) return null;
  const course = chart(matrix.title, { x: t("turn") });
  course.draw(matrix.columns.map((name, j) => {
    const points = matrix.values.map((row, i) => [i + 1, row[j]]).filter(([, value]) => value !== null);
    return { label: name, steps: points.map(([step]) => step), values: points.map(([, value]) => value) };
  }));
  return card(t("What was learned and what was forgotten"), course.element);
}

function worst(evaluation, found) {
  const rows = Object.entries(found.sites).flatMap(([site, scores]) => (scores.samples ?? []).map((sample) => ({ site, ...sample })));
  if (!rows.length) return null;
  const classifies = "probabilities" in rows[0];
  const goodness = (row) => (classifies ? row.probabilities[row.target] : (row.dice ?? -1));
  rows.sort((a, b) => goodness(a) - goodness(b));
  const columns = classifies ? [[t("class"), (row) => count(row.target)], [t("taken for"), (row) => count(row.predicted)], [t("probability of its class"), (row) => number(goodness(row), 2)]]
    : Object.keys(rows[0]).filter((name) => typeof rows[0][name] === "number" && name !== "num_images").map((name) => [name, (row) => number(row[name])]);
  return card(t("Worst images first"),
    found.picture ? h("figure", h("a", { href: found.picture, target: "_blank" }, h("img.wide", { src: found.picture, alt: t("The worst test images with their labels and what the model found") })), h("figcaption", t("Image, label and prediction of the worst of each test set.")))
      : h("p.about", t("An evaluation of the checkpoint draws them.")),
    table(t("Images"), [t("Test set"), t("Image or patient"), ...columns.map(([name]) => [name, "number"])], rows.slice(0, 30).map((row) => [row.site, String(row.subject), ...columns.map(([, say]) => say(row))])),
    rows.length > 30 && h("p.about", t("of {n} images", { n: count(rows.length) })));
}

/** Compare with the baselines of a study (`relay study` writes study.json), read in the browser: it goes to no server. */
function study(metric, matrices) {
  const file = h("input", { type: "file", accept: ".json", id: "study-file" });
  const result = h("div");
  let runs = [];
  const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
  const figures = (matrix) => ({ average: matrix.summary?.average, forgetting: matrix.summary?.forgetting, worst: extreme(matrix) });
  function extreme(matrix) {
    const last = matrix.values.at(-1).filter((value) => value !== null);
    return last.length ? (matrix.higher_is_better === false ? Math.max(...last) : Math.min(...last)) : null;
  }
  function draw() {
    const named = Map.groupBy ? Map.groupBy(runs, (run) => run.strategy) : runs.reduce((map, run) => map.set(run.strategy, [...(map.get(run.strategy) ?? []), run]), new Map());
    const row = (label, all) => {
      const found = all.filter(Boolean).map(figures);
      const column = (key) => number(mean(found.map((one) => one[key]).filter((value) => typeof value === "number")));
      return [label, count(found.length), column("average"), column("worst"), column("forgetting")];
    };
    fill(result, runs.length > 0 && table(t("Compared with a study"), [t("Strategy"), [t("Seeds"), "number"], [t("average at the end"), "number"], [t("worst site"), "number"], [t("forgetting"), "number"]],
      [row(t("this relay"), [matrices[metric.value]]), ...[...named].map(([name, all]) => row(name, all.map((run) => run.matrices[metric.value])))]));
    return null;
  }
  const section = card(t("Compared with a study"), field(t("Result of relay study (study.json)"), file, t("It is read in this browser alone.")), result);
  file.addEventListener("change", async () => {
    try {
      runs = JSON.parse(await file.files[0].text()).runs;
      draw();
    } catch {
      fill(result, h("div.alert", { role: "alert" }, t("This is no study.json.")));
    }
  });
  return { card: () => section, draw };
}
