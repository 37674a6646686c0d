// Bundles that came and went; bring one.
import { h } from "../lib/dom.js";
import { newKey, post, upload } from "../lib/api.js";
import { bytes, count, moment, percent, t } from "../lib/text.js";
import { alert, card, check, dropzone, empty, head, link, paged, outcomeState, state, table } from "../lib/widgets.js";

export async function show({ me, signal }) {
  const imports = await paged("/api/v1/imports", {}, (items) => table(t("Imports"), [t("From"), t("State"), t("For"), [t("Size"), "number"], t("Came")],
    items.map((one) => [link(`#/imports/${one.id}`, one.facts ? `${one.facts.site} (${one.facts.signer.name})` : t("a file")), state(one.state), one.purpose === "evaluate" ? t("scoring alone") : t("training"), bytes(one.size), moment(one.created_at)])),
  empty(t("No bundle was brought here yet.")));
  const exports = await paged("/api/v1/exports", {}, (items) => table(t("Exports"), [t("After"), t("For"), [t("Size"), "number"], t("Built"), t("Audit")],
    items.map((one) => [link(`#/exports/${one.id}`, `${one.facts?.site ?? one.id}, ${t("hop {n}", { n: count(one.facts?.hop) })}`), one.facts?.recipient?.name ?? one.facts?.recipient ?? t("whoever has the file"), bytes(one.size), moment(one.created_at), outcomeState(outcome(one.facts))])),
  empty(t("No bundle was built here yet. A finished checkpoint can be handed on from its page.")));
  return [head(t("Hand-off")), me.role !== "viewer" && bring(signal), card(t("Brought here"), imports), card(t("Built here"), exports)];
}

/** The outcome of the privacy audit of the newest hop. */
const outcome = (facts) => facts?.audit?.outcome ?? facts?.history?.at(-1)?.audit?.outcome ?? t("no audit");

function bring(signal) {
  const [only, onlyBox] = check(t("only to score it"));
  const note = h("div", { role: "status" });
  async function send(one) {
    const bar = h("progress", { max: "1", value: 0, "aria-label": t("Upload") });
    const share = h("span");
    note.replaceChildren(bar, share);
    try {
      const name = await upload(one, (at) => ((bar.value = at), (share.textContent = ` ${percent(at)}`)), signal);
      const row = await post(`/api/v1/imports?purpose=${only.checked ? "evaluate" : "train"}&upload=${name}`, undefined, { "Idempotency-Key": newKey() });
      if (!signal.aborted) location.hash = `#/imports/${row.id}`;
    } catch (error) {
      if (!signal.aborted) note.replaceChildren(alert(error));
    }
  }
  return card(t("Bring a bundle"), dropzone(t("Drop a bundle (.relay) here, or choose it:"), { id: "bundle-file", accept: ".relay", "aria-label": t("Bundle") }, send), onlyBox, note,
    h("p.about", t("It is verified, and then waits for your decision. Nothing uses it before.")));
}
