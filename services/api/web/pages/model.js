// One version of a model: promote it, go back, try it on an image.
import { h, fill } from "../lib/dom.js";
import { get, getWithTag, raw, remove } from "../lib/api.js";
import { bytes, moment, number, t } from "../lib/text.js";
import { findings } from "../lib/findings.js";
import { alert, area, button, card, dropzone, facts, field, form, head, link, table, warning } from "../lib/widgets.js";

export async function show({ parts: [name, version], me, signal }) {
  const path = `/api/v1/models/${name}/versions/${version}`;
  const [row, comparison, [production, tag]] = await Promise.all([get(path), get(`${path}/comparison`), getWithTag(`/api/v1/models/${name}`)]);
  const may = me.role !== "viewer";
  return [
    head([h("bdi", name), ` ${t("version {n}", { n: version })}`, row.production && h("span.state.good", " ✓ ", t("in production"))],
      may && h("a.button", { href: `${path}/download`, download: `${name}-${version}.onnx` }, t("Download")),
      may && !row.production && button(t("Delete"), async () => (await remove(path), (location.hash = "#/models")), { kind: "danger", confirm: t("This version and its file are deleted.") })),
    card(null, facts([[t("Classes"), (row.facts.classes ?? []).join(", ")], [t("Resolution"), row.facts.resolution], [t("Precision"), row.precision], [t("Size"), bytes(row.size)], [t("Made"), moment(row.created_at)], [t("By"), row.created_by],
      [t("Checkpoint"), link(`#/checkpoints/${row.checkpoint_id}`, row.checkpoint_id.slice(-8))], [t("Run"), link(`#/runs/${row.run_id}`, row.run_id.slice(0, 12))]])),
    h("div.two", trial(name, version, signal), card(t("Production"), compared(comparison, row), may && decisions(name, row, production, tag))),
  ];
}

function compared(comparison, row) {
  return [
    table(t("Compared with the version in production"), [t("Test set"), [t("In production"), "number"], [row.production ? t("This version") : t("This one"), "number"], [t("Difference"), "number"]],
      comparison.sites.map((site) => [site.site, number(site.current), number(site.new), site.difference === null ? "–" : `${site.difference > 0 ? "+" : ""}${number(site.difference)}`])),
    comparison.worse.length > 0 && !row.production && warning(t("Worse, or not tested, on: {sites}. A promotion needs a reason.", { sites: comparison.worse.join(", ") })),
  ];
}

function decisions(name, row, production, tag) {
  const reason = area({ rows: "2", id: "model-reason" });
  const again = () => dispatchEvent(new HashChangeEvent("hashchange"));
  const change = (what, body) => raw("POST", `/api/v1/models/${name}/${what}`, { body, headers: { "If-Match": tag } }).then(again);
  if (row.production) return form(t("Go back to the version before"), () => change("rollback", { reason: reason.value }), field(t("Reason"), reason));
  return form(t("Put into production"), () => change("promote", { version: row.version, reason: reason.value.trim() || null }), field(t("Reason"), reason, production.version ? t("Version {n} is in production now.", { n: production.version }) : t("Nothing is in production yet.")));
}

function trial(name, version, signal) {
  const result = h("div", { "aria-live": "polite" });
  async function see(image) {
    fill(result, h("p", t("The model looks at it.")));
    try {
      const answer = await raw("POST", `/api/v1/models/${name}/predict?version=${version}&output=pictures`, { body: image, headers: { "Content-Type": "application/octet-stream" }, signal });
      if (answer.status === 202) return void (location.hash = `#/jobs/${(await answer.json()).id}`);
      const found = await answer.json();
      fill(result, found.warnings.map((text) => warning(text)), await findings(found));
    } catch (error) {
      if (!signal.aborted) fill(result, alert(error));
    }
  }
  return card(t("Try it"), dropzone(t("Drop an image here (PNG, JPEG, TIFF, NIfTI, DICOM, or a zip of a series), or choose it:"), { id: "trial-image", "aria-label": t("Image") }, see), result,
    h("p.about", t("Nothing is kept of an image. A large volume becomes a job: it is kept until the job has ended, and the answer for a day.")));
}
