// What runs, what waits, and what to do next.
import { h, fill } from "../lib/dom.js";
import { all, get } from "../lib/api.js";
import { bytes, count, moment, t } from "../lib/text.js";
import { card, empty, facts, head, kindWords, link, progress, state, table } from "../lib/widgets.js";
import { every } from "../lib/live.js";
import { chart } from "../lib/chart.js";
import { turnSteps, stepper } from "../lib/steps.js";

export async function show({ signal }) {
  const now = h("div");
  const losses = h("div");
  const steps = h("div");
  const health = h("div.cards");
  const drawLosses = lossesOf(losses, signal);
  await Promise.all([
    every(4, async () => {
      const { items: active } = await get("/api/v1/jobs", { state: "running", limit: 20 }, { signal });
      fill(now, await running(active, signal));
      await drawLosses(active.find((job) => job.kind === "train"));
    }, signal),
    every(20, async () => fill(steps, await turns()), signal),
    every(10, async () => fill(health, await state_of_site(signal)), signal),
  ]);
  return [head(t("Overview")), steps, now, losses, health];
}

/** Returns what draws the losses of a training, and takes them away when there is none. */
function lossesOf(box, signal) {
  let shown = null;
  let curve = null;
  return async (job) => {
    const series = job ? await get(`/api/v1/jobs/${job.id}/metrics`, { name: "solver", points: 200 }, { signal }) : [];
    if (!series.length) {
      shown = null;
      return void fill(box);
    }
    if (shown !== job.id) {
      shown = job.id;
      curve = chart(t("Loss of the solver, live"));
      fill(box, card(null, curve.element, h("p.about", link(`#/jobs/${job.id}`, t("All curves, pictures and the log")))));
    }
    await curve.draw(series.map((one) => ({ label: one.site || one.name, steps: one.steps, values: one.values })));
  };
}

async function running(active, signal) {
  const kinds = kindWords();
  const [waiting, last] = await Promise.all([
    get("/api/v1/jobs", { state: "queued", limit: 50 }, { signal }),
    get("/api/v1/jobs", { limit: 6 }, { signal }),
  ]);
  const row = (job) => h("li", link(`#/jobs/${job.id}`, kinds[job.kind] ?? job.kind), " ", state(job.state), progress(job));
  return [
    card(t("Now"),
      active.length ? h("ul.plain", active.map(row)) : h("p", t("Nothing is running.")),
      waiting.items.length > 0 && h("p.note", t("Waiting: {n}", { n: count(waiting.items.length) + (waiting.next_cursor ? "+" : "") }))),
    last.items.length > 0 && card(t("Latest"), table(t("Latest jobs"), [t("Job"), t("State"), t("By"), t("Since")],
      last.items.map((job) => [link(`#/jobs/${job.id}`, kinds[job.kind] ?? job.kind), state(job.state), h("bdi", job.created_by), moment(job.created_at)]))),
  ];
}

async function turns() {
  const runs = (await get("/api/v1/runs", { limit: 5 })).items;
  if (!runs.length) {
    const [datasets] = await Promise.all([get("/api/v1/datasets", { limit: 1 })]);
    return card(t("What to do next"), empty(
      datasets.items.length ? t("Register a run: it says which sites take part, and how they train. All sites of a relay use the same one.") : t("Begin with a data set: name the folder that holds this site's images."),
      h("div.actions", !datasets.items.length && h("a.button.primary", { href: "#/data" }, t("Register a data set")), h("a.button", { href: "#/runs/new" }, t("Register a run")), h("a.button", { href: "#/handoff" }, t("Bring a bundle")))));
  }
  return Promise.all(runs.slice(0, 3).map(async (run) => {
    const steps = await turnSteps(run);
    return card(h("span", t("What to do next"), ": ", link(`#/runs/${run.id}`, run.name)), stepper(steps));
  }));
}

async function state_of_site(signal) {
  const system = await get("/api/v1/system", {}, { signal });
  const ready = system.readiness;
  const words = { ready: t("The site is ready"), degraded: t("The site works, but not as its settings ask for"), not_ready: t("The site cannot carry out jobs") };
  const tones = { ready: "good", degraded: "waiting", not_ready: "bad" };
  return [
    card(t("Health"), h(`p.state.${tones[ready.status]}`, words[ready.status] ?? ready.status),
      h("ul.checks", Object.entries(ready.checks).map(([name, check]) => h("li", h(`span.state.${check.ok ? "good" : "bad"}`, check.ok ? "✓" : "✕", " ", h("span.hidden", check.ok ? t("good") : t("bad"))), ` ${name}: ${check.detail}`)))),
    card(t("Workers and devices"), system.workers.length
      ? table(t("Workers"), [t("Machine"), t("Device"), t("Seen")], system.workers.map((worker) => [worker.host, String(worker.facts.device ?? "–"), moment(worker.seen_at)]))
      : empty(t("No worker was seen lately: jobs wait until one is started."))),
    card(t("This site"), facts([[t("Name"), h("bdi", system.site_name)], [t("Version"), system.version], [t("Database"), system.database],
      [t("Free storage"), bytes(system.storage_free_mib * 1048576)]])),
  ];
}
