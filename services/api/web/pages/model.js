// One version of a model: promote it, go back, try it on an image.
import { h, fill } from "../lib/dom.js";
import { get, getWithTag, raw, remove } from "../lib/api.js";
import { bytes, count, moment, number, percent, t } from "../lib/text.js";
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
  let urls = [];
  async function see(image) {
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls = [];
    fill(result, h("p", t("The model looks at it.")));
    const ask = (output) => raw("POST", `/api/v1/models/${name}/predict?version=${version}${output ? `&output=${output}` : ""}`, { body: image, headers: { "Content-Type": "application/octet-stream" } });
    try {
      const answer = await ask(null);
      if (answer.status === 202) return void (signal.aborted || (location.hash = `#/jobs/${(await answer.json()).id}`));
      const found = await answer.json();
      fill(result, (found.warnings ?? []).map((text) => warning(text)), findings(found));
      if (found.classes && found.slices === 1 && !signal.aborted) result.prepend(...(await overlay(image, ask)));
    } catch (error) {
      if (!signal.aborted) result.append(alert(error));
    }
  }
  async function overlay(image, ask) {
    urls = [URL.createObjectURL(await (await ask("overlay")).blob()), URL.createObjectURL(image)];
    const drawn = h("img", { src: urls[0], alt: t("The image with what the model found drawn over it") });
    const below = h("img", { src: urls[1], alt: t("The image"), onerror: () => below.remove() }); // not every format is a browser's
    const opacity = h("input", { type: "range", min: 0, max: 100, value: 70, id: "opacity", oninput: () => (drawn.style.opacity = opacity.value / 100) });
    drawn.style.opacity = 0.7;
    return [h("div.layers", below, drawn), field(t("Opacity of what was found"), opacity)];
  }
  return card(t("Try it"), dropzone(t("Drop an image here (PNG, JPEG, TIFF, NIfTI, DICOM, or a zip of a series), or choose it:"), { id: "trial-image", "aria-label": t("Image") }, see), result,
    h("p.about", t("Nothing is kept of an image. A large volume becomes a job: it is kept until the job has ended, and the answer for a day.")));
}

function findings(found) {
  return [
    found.classes && table(t("What was found"), [t("Class"), [t("Pixels"), "number"], [t("Area or volume"), "number"], [t("Confidence"), "number"]],
      found.classes.map((one) => [one.name, count(one.pixels), one.area_mm2 ? `${number(one.area_mm2, 1)} mm²` : one.volume_mm3 ? `${number(one.volume_mm3, 1)} mm³` : "–", one.confidence === null ? "–" : percent(one.confidence)])),
    found.probabilities && table(t("What was found"), [t("Class"), [t("Probability"), "number"]], found.probabilities.map((one) => [one.name, percent(one.probability)])),
    found.cup_to_disc && facts([[t("Cup to disc, vertical"), number(found.cup_to_disc.vertical, 2)], [t("horizontal"), number(found.cup_to_disc.horizontal, 2)], [t("by area"), number(found.cup_to_disc.area, 2)]]),
    found.unlike && h("p", t("How unlike the training images: {score} (most like {site}; above {limit} do not rely on the answer).", { score: number(found.unlike.score, 2), site: found.unlike.most_like, limit: number(found.unlike.warn_above, 1) })),
  ];
}

