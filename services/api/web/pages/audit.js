// The audit log: who did what.
import { h, fill } from "../lib/dom.js";
import { all, get } from "../lib/api.js";
import { count, moment, t } from "../lib/text.js";
import { button, card, empty, field, form, head, input, paged, save, table } from "../lib/widgets.js";

export async function show() {
  const action = input({ id: "audit-action", placeholder: "job.submit" });
  const subject = input({ id: "audit-subject" });
  const list = h("div");
  const said = h("p", { role: "status" });
  const query = () => ({ action: action.value.trim(), subject: subject.value.trim() });
  const draw = async () => fill(list, await paged("/api/v1/audit", query(), (items) => table(t("Audit log"), [["#", "number"], t("When"), t("Who"), t("What"), t("Of what"), t("Details")],
    items.map((row) => [count(row.seq), moment(row.at), h("bdi", row.actor), row.action, row.subject, h("code", JSON.stringify(row.detail))])), empty(t("There is no such entry."))));
  await draw();
  return [
    head(t("Audit log"), button(t("Verify the chain"), async () => {
      const { rows, head: hash } = await get("/api/v1/audit/verification");
      said.textContent = t("All {n} rows fit. The newest hash is {hash}: note it down.", { n: count(rows), hash });
    }), button(t("Save as a file"), async () => save("audit.jsonl", (await all("/api/v1/audit", query(), 100_000)).map((row) => JSON.stringify(row)).join("\n") + "\n", "application/json"))),
    said, card(null, form(t("Search"), draw, field(t("What"), action), field(t("Of what (its id)"), subject))), card(null, list),
  ];
}
