// The runs that this site takes part in.
import { h } from "../lib/dom.js";
import { moment, t } from "../lib/text.js";
import { card, empty, head, link, paged, table } from "../lib/widgets.js";

export async function show({ me }) {
  const add = me.role !== "viewer" && h("a.button.primary", { href: "#/runs/new" }, t("Register a run"));
  const list = await paged("/api/v1/runs", {}, (items) => table(t("Runs"), [t("Name"), t("Strategy"), t("Sites"), t("This site"), t("Registered")],
    items.map((run) => [link(`#/runs/${run.id}`, run.name), run.strategy, h("bdi", run.sites.map((site) => site.name).join(", ")),
      run.sites.find((site) => site.task_id === run.site)?.name ?? t("not chosen"), moment(run.created_at)])),
  empty(t("A run says which sites take part, in which order, and how they train. Register the file that the coordinator sent, or make one from a recipe."),
    h("div.actions", add)));
  return [head(t("Runs"), add), card(null, list)];
}

