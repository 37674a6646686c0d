// Where this site is in a run: import, check, train, evaluate, audit, export.
import { h } from "./dom.js";
import { all, get } from "./api.js";
import { t } from "./text.js";
import { link } from "./widgets.js";

/** Find out which steps of this site's turn are done, and what comes next. */
export async function turnSteps(run) {
  const order = run.sites.filter((site) => site.trained);
  const own = order.find((site) => site.task_id === run.site) ?? null;
  if (!own) return [{ name: t("Choose this site"), done: false, hint: t("Say which of the run's sites this hospital is, or train all of them on this machine."), href: `#/runs/${run.id}` }];
  const before = order[order.indexOf(own) - 1];
  const last = order.at(-1) === own;
  const [{ items: [dataset] }, checkpoints, exports, { items: [waits] }] = await Promise.all([
    get("/api/v1/datasets", { name: own.name }), all("/api/v1/checkpoints", { run_id: run.id }),
    all("/api/v1/exports", { run_id: run.id }), get("/api/v1/imports", { run_id: run.id, state: "quarantined", limit: 1 }),
  ]);
  const trained = checkpoints.find((row) => row.task_id === own.task_id && row.finished);
  const came = before && checkpoints.some((row) => row.task_id === before.task_id);
  const left = trained && exports.find((row) => row.checkpoint_id === trained.id);
  const newest = async (path, query) => trained && (await get(path, { ...query, checkpoint_id: trained.id, limit: 1 })).items[0];
  const [scored, audited] = await Promise.all([newest("/api/v1/evaluations"), newest("/api/v1/jobs", { kind: "privacy_audit", state: "succeeded" })]);
  const steps = [];
  if (before) steps.push({ name: t("Import"), done: Boolean(came), hint: waits ? t("A bundle waits for your decision.") : t("Bring the bundle of {site}.", { site: before.name }), href: waits ? `#/imports/${waits.id}` : "#/handoff" });
  steps.push({ name: t("Check"), done: Boolean(dataset?.report?.ok), hint: dataset?.report ? t("Some files of {site} cannot be used.", { site: own.name }) : dataset ? t("Let the images of {site} be checked.", { site: own.name }) : t("Register the images of {site} under that name.", { site: own.name }), href: dataset ? `#/data/${dataset.id}` : "#/data" });
  steps.push({ name: t("Train"), done: Boolean(trained), hint: t("Train on this site's images."), href: `#/runs/${run.id}` });
  steps.push({ name: t("Evaluate"), done: Boolean(scored), hint: t("Score the model on the test sets that are here."), href: trained ? `#/checkpoints/${trained.id}` : `#/runs/${run.id}` });
  steps.push({ name: t("Audit"), done: Boolean(audited), word: audited?.result?.outcome, hint: t("Test what the model gives away of the patients here."), href: trained ? `#/checkpoints/${trained.id}` : `#/runs/${run.id}` });
  if (!last) steps.push({ name: t("Export"), done: Boolean(left), hint: t("Build the bundle for the next site, and carry it there."), href: left ? `#/exports/${left.id}` : trained ? `#/checkpoints/${trained.id}` : `#/runs/${run.id}` });
  return steps;
}

/** Draw the steps; the first that is not done is the one to take. */
export function stepper(steps) {
  const now = steps.find((step) => !step.done);
  return h("div",
    h("ol.steps", steps.map((step) => h(`li${step.done ? ".done" : step === now ? ".now" : ""}`, { "aria-current": step === now ? "step" : null },
      h("span", h("span.sign", { "aria-hidden": "true" }, step.done ? "✓ " : step === now ? "▸ " : "○ "), step.name, h("span.hidden", step.done ? ` (${t("done")})` : ""), step.word && ` – ${step.word}`)))),
    now ? h("p", now.hint, " ", link(now.href, t("Go there"))) : h("p", t("This site's turn is done.")));
}
