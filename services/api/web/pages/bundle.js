// One bundle: who signed it, what it went through, and the decision.
import { h, fill } from "../lib/dom.js";
import { get, getText, post } from "../lib/api.js";
import { bytes, count, grouped, moment, number, t } from "../lib/text.js";
import { area, button, card, empty, facts, field, form, head, link, outcomeState, state, table, warning } from "../lib/widgets.js";
import { every } from "../lib/live.js";

export async function show({ parts: [kind, id], me, signal }) {
  const box = h("div");
  let shown = "";
  await every(2, async () => {
    const row = await get(`/api/v1/${kind}/${id}`, {}, { signal });
    if (JSON.stringify(row) === shown) return;
    shown = JSON.stringify(row);
    fill(box, kind === "imports" ? await brought(row, me) : built(row, me));
  }, signal);
  return box;
}

function built(row, me) {
  return [
    head([t("Bundle of"), " ", h("bdi", row.facts?.site ?? "")], me.role !== "viewer" && h("a.button.primary", { href: `/api/v1/exports/${row.id}/download`, download: `${row.id}.relay` }, t("Download"))),
    card(null, h("p", t("Carry this file to the next site, and read the fingerprint of this site's key to somebody there by telephone.")), main(row)),
    ...story(row.facts),
  ];
}

async function brought(row, me) {
  const may = me.role !== "viewer" && row.state === "quarantined";
  const cardText = ["quarantined", "accepted"].includes(row.state) ? await getText(`/api/v1/imports/${row.id}/card`).catch(() => null) : null;
  const path = `/api/v1/imports/${row.id}`;
  const reason = area({ rows: "3", id: "reject-reason" });
  const again = () => dispatchEvent(new HashChangeEvent("hashchange"));
  return [
    head([t("Bundle of"), " ", h("bdi", row.facts?.site ?? t("an unknown site")), " ", state(row.state)]),
    row.error && h("div.alert", { role: "alert" }, h("strong", row.error.code), " ", h("span", { dir: "auto" }, row.error.message)),
    row.state === "verifying" && h("p", { role: "status" }, t("Signatures, history and networks are being verified.")),
    card(null, main(row), row.reason && h("p", t("Reason"), ": ", h("bdi", row.reason)), row.decided_by && h("p.about", `${row.decided_by}, ${moment(row.decided_at)}`)),
    ...story(row.facts),
    may && card(t("Decide"), h("p", t("Compare the fingerprint by telephone, and look at hops, scores and audits. Then:")),
      button(t("Accept"), async () => (await post(`${path}/accept`), again()), { kind: "primary" }),
      h("details", h("summary", t("Reject it")), form(t("Reject"), async () => (await post(`${path}/reject`, { reason: reason.value }), again()), field(t("Reason"), reason)))),
    cardText && card(t("Model card"), h("pre", { tabindex: "0", dir: "auto" }, cardText)),
  ];
}

function main(row) {
  const told = row.facts;
  if (!told) return facts([[t("Size"), bytes(row.size)], [t("Came"), moment(row.created_at)], [t("Job"), link(`#/jobs/${row.job_id}`, row.job_id.slice(-8))]]);
  return [
    h("p", t("Signed by"), " ", h("strong", h("bdi", told.signer.name)), told.signer.trusted === false && h("span.state.bad", ` ${t("not trusted here")}`)),
    h("p.fingerprint", { "aria-label": t("Fingerprint, to be read aloud") }, grouped(told.signer.fingerprint.slice(0, 32))),
    h("p.about", t("Its whole fingerprint"), ": ", told.signer.fingerprint),
    facts([[t("Hop"), count(told.hop)], [t("Trained on"), t("{n} images", { n: count(told.images) })], [t("Steps"), count(told.step)], [t("Made"), moment(told.created_at)],
      [t("Size"), bytes(row.size)], [t("Version"), told.version], [t("For"), told.recipient?.name ?? told.recipient ?? t("whoever has the file")], [t("Run"), row.run_id && link(`#/runs/${row.run_id}`, row.run_id.slice(0, 12))]]),
    (told.warnings ?? []).map((text) => warning(text)),
  ];
}

/** The chain of custody, with what each site scored and whether it was audited. */
function story(told) {
  if (!told) return [];
  const hops = [...(told.history ?? [])];
  if (!hops.some((hop) => hop.hop === told.hop)) hops.push({ hop: told.hop, site: told.site, signer: told.signer.name, images: told.images, created_at: told.created_at, audit: told.audit });
  const metrics = Object.entries(told.metrics ?? {});
  const names = [...new Set(metrics.flatMap(([, scores]) => Object.keys(scores).filter((name) => (typeof scores[name] === "number" || scores[name] === null) && !/^num_|withheld/.test(name))))];
  return [
    card(t("Where it has been"), h("ol.hops", hops.map((hop) => h("li", h("strong", h("bdi", hop.site)), h("div", h("bdi", typeof hop.signer === "string" ? hop.signer : hop.signer?.name)),
      h("div.note", [hop.images && t("{n} images", { n: count(hop.images) }), hop.created_at && moment(hop.created_at)].filter(Boolean).join(" · ")), h("div", t("Audit"), ": ", auditOf(hop.audit)), hop.privacy && h("div.note", t("differential privacy: epsilon {n}", { n: number(hop.privacy.epsilon, 2) })))))),
    card(t("Scores that it brings"), metrics.length ? table(t("Scores by site"), [t("Test set"), [t("Images"), "number"], ...names.map((name) => [name, "number"])], metrics.map(([site, scores]) => [site, count(scores.num_images), ...names.map((name) => (typeof scores[name] === "number" ? number(scores[name]) : scores.withheld ? t("withheld") : "–"))])) : empty(t("It brings no scores."))),
  ];
}

function auditOf(audit) {
  if (!audit) return t("none");
  return [outcomeState(audit.outcome ?? "–"), typeof audit.auc === "number" && ` AUC ${number(audit.auc, 2)}, ${t("at most {n}", { n: number(audit.auc_high, 2) })}`, audit.override && h("div", t("let leave because"), ": ", h("bdi", audit.override))];
}

