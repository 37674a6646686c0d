// One job, live: curves, pictures, log, and what it left.
import { h, fill } from "../lib/dom.js";
import { get, post } from "../lib/api.js";
import { bytes, count, duration, moment, number, t } from "../lib/text.js";
import { alert, button, card, facts, head, kindWords, link, progress, outcomeState, state, table, warning } from "../lib/widgets.js";
import { every, follow } from "../lib/live.js";
import { chart } from "../lib/chart.js";
import { comparison } from "../lib/compared.js";
import { findings } from "../lib/findings.js";

const TERMINAL = ["succeeded", "failed", "cancelled"];
const EVERY = 3;

export async function show({ parts: [id], me, signal }) {
  const path = `/api/v1/jobs/${id}`;
  const may = me.role !== "viewer";
  let job = await get(path);
  const top = h("div");
  const bar = h("div");
  let drawn = "";
  const curves = h("div");
  const scores = h("div");
  const pictures = h("div");
  const compared = h("div");
  const predicted = h("div");
  const log = h("pre", { tabindex: "0", "aria-label": t("Log") });
  const files = h("div");
  const charts = new Map();
  let lines = [];
  let waiting = false;
  let drawings = 0;
  let filed = null;
  let shelf = null;
  let stale = true;

  // The top is drawn again when something in it changed, so that a button keeps its focus while steps go by.
  function drawTop() {
    fill(bar, progress(job));
    const { progress: steps, events, ...rest } = job;
    if (JSON.stringify(rest) === drawn) return;
    drawn = JSON.stringify(rest);
    const active = !TERMINAL.includes(job.state);
    const took = job.started_at ? ((job.finished_at ? new Date(job.finished_at) : new Date()) - new Date(job.started_at)) / 1000 : null;
    fill(top, head([kindWords()[job.kind] ?? job.kind, " ", state(job.state)],
      may && active && job.state !== "cancelling" && button(t("Stop"), async () => ((job = await post(`${path}/cancel`)), drawTop()), { kind: "danger", confirm: t("The job ends. A training writes a checkpoint first, from which it can go on.") }),
      may && ["failed", "cancelled"].includes(job.state) && !["keys", "predict_study"].includes(job.kind) && button(t("Try again"), async () => {
        const { events } = job;
        job = await post(`${path}/retry`);
        drawTop();
        listen(events);
      }, { kind: "primary" })),
    card(null, bar, job.error && h("div.alert", { role: "alert" }, h("strong", job.error.code), " ", h("span", { dir: "auto" }, job.error.message)),
      (job.result?.warnings ?? []).map((text) => warning(text)), outcome(job),
      facts([[t("By"), job.created_by], [t("Since"), moment(job.created_at)], [t("Took"), job.started_at ? duration(took) : null], [t("Worker"), job.worker],
        [t("Attempt"), job.attempt > 1 ? count(job.attempt) : null], [t("Run"), job.run_id && link(`#/runs/${job.run_id}`, job.run_id.slice(0, 12))],
        [t("Checkpoint"), job.checkpoint_id && link(`#/checkpoints/${job.checkpoint_id}`, job.checkpoint_id.slice(-8))]])));
  }

  async function drawCurves() {
    if (!stale || !["train", "privacy_audit"].includes(job.kind)) return;
    stale = false;
    const series = await get(`${path}/metrics`, { points: 400 }, { signal });
    const marks = stages(series);
    const groups = new Map();
    for (const one of series.filter((one) => one.name !== "stage")) {
      const [group, label] = grouped(one);
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push({ label, steps: one.steps, values: one.values });
    }
    const single = [...groups].filter(([, lines]) => lines.every((line) => line.steps.length < 2));
    single.forEach(([group]) => groups.delete(group));
    fill(scores, single.length > 0 && card(t("Scores"), facts(single.flatMap(([group, lines]) => lines.map((line) => [`${group} (${line.label})`, number(line.values.at(-1))])))));
    if (!groups.size) return;
    if (!curves.firstChild) curves.append(card(t("Curves"), h("div.charts")));
    for (const [group, found] of groups) {
      if (!charts.has(group)) {
        charts.set(group, chart(group, { digits: group === AUGMENTED() ? 4 : 3 }));
        curves.querySelector(".charts").append(charts.get(group).element);
      }
      await charts.get(group).draw(found, marks);
    }
  }

  async function drawFiles() {
    const found = await get(`${path}/files`).catch((error) => (error.status === 403 ? [] : Promise.reject(error)));
    const images = found.filter((file) => file.media_type === "image/png");
    if (images.length) {
      shelf ??= slider(path);
      shelf.show(images);
      if (!pictures.firstChild) pictures.append(card(t("Pictures"), shelf.element));
    }
    const list = table(t("Files that the job left"), [t("Name"), [t("Size"), "number"]],
      found.map((file) => [h("a", { href: `${path}/files/${encodeURIComponent(file.name)}`, download: file.name, dir: "auto" }, file.name), bytes(file.size)]));
    fill(files, found.length > 0 && card(t("Files"), found.length > 8 ? h("details", { open: files.querySelector("details")?.open }, h("summary", t("{n} files", { n: count(found.length) })), list) : list));
    const has = (name) => found.some((file) => file.name === name);
    if (has("statistics.json")) fill(compared, card(t("Against the sites before"), await comparison(id).catch(alert)));
    if (has("prediction.json")) fill(predicted, card(t("What was found"), await get(`${path}/files/prediction.json`, {}, { signal }).then(findings).catch(alert)));
  }

  async function refresh() {
    const seen = job.progress;
    job = await get(path, {}, { signal });
    if (seen?.site === job.progress?.site && (job.progress?.step ?? 0) < (seen?.step ?? 0)) job.progress = seen;
    drawTop();
    await drawCurves();
    const over = TERMINAL.includes(job.state);
    const wanted = `${job.attempt} ${over} ${drawings}`;
    if (filed !== wanted) {
      await drawFiles();
      filed = wanted;
    }
    return !over;
  }

  function write(event) {
    if (event.event === "step" || event.event === "progress") {
      job.progress = event.event === "step" ? { ...event } : { ...job.progress, ...event };
      stale = true;
      fill(bar, progress(job));
      return;
    }
    if (event.event === "scores") stale = true;
    if (event.event === "samples") drawings += 1;
    const words = event.event === "log" ? event.line : said(event);
    lines.push(words);
    if (!waiting) requestAnimationFrame(drawLog); // a thousand lines at once are drawn once
    waiting = true;
  }

  function drawLog() {
    waiting = false;
    lines = lines.slice(-500);
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.textContent = lines.join("\n");
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  // The story from its last 500 events on, and the job itself beside it, until the attempt is over.
  function listen(after) {
    follow(id, after, write, async () => !(await refresh()), signal);
    every(EVERY, refresh, signal).catch((error) => signal.aborted || curves.append(alert(error)));
  }
  drawTop();
  listen(Math.max(0, job.events - 500)); // what takes longer than the job itself comes after it
  return [top, curves, scores, pictures, compared, predicted, card(t("Log"), log), files];
}

const AUGMENTED = () => t("Share of images augmented for the discriminators");

/** In which chart a series belongs, and what it is called there. */
function grouped({ site, name }) {
  const [group, ...rest] = name.split("/");
  if (rest.length) return [rest.join("/"), t("{test}, after {site}", { test: group, site })];
  if (name === "images_per_second") return [t("Images per second"), site || name];
  if (name.startsWith("ada_")) return [AUGMENTED(), `${name}${site ? ` (${site})` : ""}`];
  return [/^(D|G|r1|pl|adv)_?/.test(name) ? t("Adversarial losses") : t("Losses of the solver"), `${name}${site ? ` (${site})` : ""}`];
}

function outcome(job) {
  const result = job.result ?? {};
  return [
    result.outcome && h("p", t("Privacy audit"), ": ", outcomeState(result.outcome), (result.reasons ?? []).map((reason) => h("span.note", { dir: "auto" }, ` ${reason}`))),
    (result.checkpoints ?? []).length > 0 && h("p", t("It left"), ": ", result.checkpoints.map((one) => [link(`#/checkpoints/${one}`, t("checkpoint {n}", { n: one.slice(-6) })), " "])),
    job.kind === "preflight" && job.params.dataset && h("p", result.ok === false && h("span.state.bad", "✕ ", t("Some files cannot be used."), " "), link(`#/data/${job.params.dataset}`, t("See what the check found"))),
    result.report && h("p", h("a", { href: `/api/v1/evaluations/${result.report}/report.json`, download: "report.json" }, t("Download the signed report"))),
    result.evaluation && h("p", link(`#/sites/${result.evaluation}`, t("See its scores"))),
    result.bundle && h("p", link(`#/exports/${result.bundle}`, t("See the bundle"))),
    result.model && h("p", link(`#/models/${result.model}/${result.version}`, t("See the model {name}, version {n}", { name: result.model, n: result.version }))),
  ];
}

/** Where a training enters another stage of the relay. */
const stages = (series) => series.filter((one) => one.name === "stage").flatMap(({ site, steps, values }) =>
  values.flatMap((value, i) => (i && value !== values[i - 1] ? [{ step: steps[i], label: t("stage {n} of {site}", { n: value, site }) }] : [])));

/** What a picture shows, by its name. */
function caption(name) {
  const [, step] = name.match(/samples-0*(\d+)\.png$/) ?? [];
  if (step) return [t("What the generators draw at step {n}, and this site's own images", { n: count(Number(step)) }), name];
  if (name.endsWith("samples.png")) return [t("What the generators draw of each site"), name];
  if (name.endsWith("predictions.png")) return [t("Test images: image, label, prediction"), name];
  return [name, ""];
}

/** Pictures of a job, which may become more; a slider goes through them, and stays at the newest until somebody moves it. */
function slider(path) {
  let images = [];
  const picture = h("img.wide", { alt: "" });
  const whole = h("a", { target: "_blank" }, picture);
  const name = h("figcaption");
  const choose = (i) => {
    picture.src = `${path}/files/${encodeURIComponent(images[i].name)}`;
    const [words, file] = caption(images[i].name);
    picture.alt = words;
    whole.href = picture.src;
    range.setAttribute("aria-valuetext", words);
    fill(name, words, file && h("span.note", ` ${file}`));
  };
  const range = h("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": t("Which picture"), oninput: () => choose(Number(range.value)) });
  return {
    element: h("figure", whole, name, range),
    show(found) {
      const newest = Number(range.value) === Math.max(0, images.length - 1);
      const seen = images[Number(range.value)]?.name;
      images = [...found].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true })); // task_10 comes after task_2
      range.max = images.length - 1;
      range.hidden = images.length < 2;
      range.value = newest ? images.length - 1 : images.findIndex((image) => image.name === seen);
      choose(Number(range.value));
    },
  };
}

function said(event) {
  const rest = Object.entries(event).filter(([key]) => !["event", "seq", "at", "attempt"].includes(key) && event[key] !== null && event[key] !== "");
  return `${moment(event.at)}  ${event.event}  ${rest.map(([key, value]) => `${key}=${typeof value === "number" ? number(value, Number.isInteger(value) ? 0 : 4) : typeof value === "object" ? JSON.stringify(value) : value}`).join("  ")}`;
}

