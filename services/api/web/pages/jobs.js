// All jobs, newest first.
import { h, fill } from "../lib/dom.js";
import { moment, t } from "../lib/text.js";
import { card, choice, empty, field, head, kindWords, link, paged, progress, state, table } from "../lib/widgets.js";

export async function show({ query }) {
  const kinds = kindWords();
  const kind = choice([["", t("all")], ...Object.entries(kinds)], query.get("kind") ?? "");
  const which = choice([["", t("all")], ...["queued", "running", "succeeded", "failed", "cancelled"].map((value) => [value, state(value).textContent.slice(2)])], query.get("state") ?? "");
  const list = h("div");
  const draw = async () => fill(list, await paged("/api/v1/jobs", { kind: kind.value, state: which.value }, (items) => table(t("Jobs"), [t("Job"), t("State"), t("How far"), t("By"), t("Since")],
    items.map((job) => [link(`#/jobs/${job.id}`, kinds[job.kind] ?? job.kind), state(job.state), progress(job) ?? "", h("bdi", job.created_by), moment(job.created_at)])),
  empty(t("No such job yet. Trainings start from a run."), h("div.actions", h("a.button", { href: "#/runs" }, t("To the runs"))))));
  for (const select of [kind, which]) select.addEventListener("change", draw);
  await draw();
  return [head(t("Training and other jobs")), card(null, h("div.actions", field(t("Kind"), kind), field(t("State"), which))), card(null, list)];
}
