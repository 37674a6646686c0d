// Models that can be served, and which version is in production.
import { h } from "../lib/dom.js";
import { bytes, count, moment, t } from "../lib/text.js";
import { card, empty, head, link, paged, table } from "../lib/widgets.js";

export async function show() {
  const list = await paged("/api/v1/models", {}, (items) => table(t("Models"), [t("Model"), [t("Version"), "number"], t("In production"), t("Precision"), [t("Size"), "number"], t("Made")],
    items.map((one) => [link(`#/models/${one.name}/${one.version}`, one.name), count(one.version), one.production ? h("span.state.good", "✓ ", t("yes")) : t("no"), one.precision, bytes(one.size), moment(one.created_at)])),
  empty(t("No model was made here yet. A checkpoint's page makes one.")));
  return [head(t("Models")), card(null, list)];
}
