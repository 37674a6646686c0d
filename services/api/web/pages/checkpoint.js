// One checkpoint: what it is, and what can be made of it.
import { h } from "../lib/dom.js";
import { get, getWithTag, patch, remove, submit } from "../lib/api.js";
import { bytes, count, moment, t } from "../lib/text.js";
import { area, button, card, check, choice, empty, facts, field, form, head, input, kindWords, link, outcomeState, paged, state, table, warning } from "../lib/widgets.js";

export async function show({ parts: [id], me }) {
  const [row, tag] = await getWithTag(`/api/v1/checkpoints/${id}`);
  const audited = { checkpoint_id: id, kind: "privacy_audit", state: "succeeded", limit: 1 };
  const [run, { items: [audit] }, evaluations, jobs] = await Promise.all([
    get(`/api/v1/runs/${row.run_id}`), get("/api/v1/jobs", audited), get("/api/v1/evaluations", { checkpoint_id: id, limit: 20 }),
    paged("/api/v1/jobs", { checkpoint_id: id }, jobTable, empty(t("Nothing was done with it yet."))),
  ]);
  const may = me.role !== "viewer";
  const go = (body, path) => async () => (location.hash = `#/jobs/${(await submit(body, path)).id}`);
  const again = () => dispatchEvent(new HashChangeEvent("hashchange"));
  return [
    head([h("bdi", row.site), `, ${t("step {n}", { n: count(row.step) })}`],
      may && h("a.button", { href: `/api/v1/checkpoints/${id}/download`, download: `${id}.safetensors` }, t("Download")),
      may && button(row.pinned ? t("Unpin") : t("Pin"), async () => (await patch(`/api/v1/checkpoints/${id}`, { pinned: !row.pinned }, tag), again())),
      may && button(t("Delete"), async () => (await remove(`/api/v1/checkpoints/${id}`), (location.hash = `#/runs/${row.run_id}`)), { kind: "danger", confirm: t("The checkpoint and its file are deleted. Scores that were taken of it stay.") })),
    !row.finished && warning(t("Its solver is ready; its generators are not trained to the end. No later site can start from it.")),
    card(null, facts([[t("Run"), link(`#/runs/${run.id}`, run.name)], [t("Training"), link(`#/jobs/${row.job_id}`, row.job_id.slice(-8))], [t("Made"), moment(row.created_at)],
      [t("Size"), bytes(row.size)], [t("State"), [row.finished ? t("finished") : t("the solver is ready"), row.pinned && ` 📌 ${t("pinned")}`]], [t("Went on from"), row.parent_id && link(`#/checkpoints/${row.parent_id}`, row.parent_id.slice(-8))],
      [t("Digest"), h("span.fingerprint", row.digest.slice(0, 32))], [t("Note"), row.note]])),
    may && h("div.cards",
      card(t("Score it"), h("p", t("On every test set of the run that is registered here.")), button(t("Evaluate"), go({ kind: "evaluate", checkpoint_id: id }), { kind: "primary" }),
        evaluations.items.length > 0 && h("ul", evaluations.items.map((one) => h("li", link(`#/sites/${one.id}`, moment(one.created_at)))))),
      card(t("Look at the replay"), h("p", t("Pictures that its generators draw of each site so far.")), button(t("Draw pictures"), go({ kind: "samples", checkpoint_id: id, per_site: 8 }))),
      card(t("Privacy audit"), h("p", t("Attack the networks as a receiver could: which images were they trained on, and are any copied?")),
        audit ? h("p", t("The last one"), ": ", link(`#/jobs/${audit.id}`, outcomeState(audit.result?.outcome))) : null, button(t("Start the audit"), go({ kind: "privacy_audit", checkpoint_id: id }))),
      onnx(id, run, go)),
    may && row.finished && handOver(id, audit),
    card(t("Jobs with it"), jobs),
  ];
}

const jobTable = (jobs) => table(t("Jobs with this checkpoint"), [t("Job"), t("State"), t("Since")],
  jobs.map((job) => [link(`#/jobs/${job.id}`, kindWords()[job.kind] ?? job.kind), state(job.state), moment(job.created_at)]));

function onnx(id, run, go) {
  const name = input({ id: "model-name", value: run.name.toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[-._]+/, "").slice(0, 64) });
  const precision = choice([["fp32", "fp32"], ["fp16", t("fp16, half the size")], ["int8", t("int8, a quarter")]], "fp32");
  return card(t("Serve it"), form(t("Make a model"), () => go({ kind: "export_onnx", checkpoint_id: id, name: name.value, precision: precision.value })(),
    field(t("Name of the model"), name, t("It is tested on every test set here, and becomes the next version of that name.")), field(t("Precision"), precision)));
}

function handOver(id, audit) {
  const recipient = input({ id: "recipient" });
  const [half, halfBox] = check(t("in half precision: half the size"));
  const [discriminators, discriminatorsBox] = check(t("with the discriminators: the next site need not start its own anew"), true);
  const reason = area({ rows: "3", id: "override" });
  return card(t("Hand it on"), h("p", t("A signed file for the next site. Carry it there, or let a person do so.")),
    audit ? h("p", t("Privacy audit of this checkpoint"), ": ", outcomeState(audit.result?.outcome)) : warning(t("No privacy audit of this checkpoint was made.")),
    form(t("Build the bundle"), async () => {
      const job = await submit({ checkpoint_id: id, recipient: recipient.value.trim() || null, half: half.checked, discriminators: discriminators.checked, override: reason.value.trim() || null }, "/api/v1/exports");
      location.hash = `#/jobs/${job.id}`;
    }, field(t("Recipient"), recipient, t("Name or fingerprint of a trusted site: nobody else can read the file. Empty: whoever has the file can.")), halfBox, discriminatorsBox,
    h("details", h("summary", t("Let it leave although no audit passed")), field(t("Reason"), reason, t("It stands in the audit log, and travels signed with the model: every later site reads it.")))));
}
