// Whom this site trusts.
import { h, fill } from "../lib/dom.js";
import { get, post, submit } from "../lib/api.js";
import { grouped, moment, t } from "../lib/text.js";
import { alert, button, card, empty, facts, field, head, save, state, table } from "../lib/widgets.js";

export async function show({ me }) {
  const keys = await get("/api/v1/keys");
  const admin = me.role === "admin";
  const print = (key) => h("span.fingerprint", grouped(key.slice(0, 32)));
  const follow = (job) => (location.hash = `#/jobs/${job.id}`);
  const rows = keys.trusted.map((entry) => [h("bdi", entry.name), print(entry.fingerprint), entry.run ? entry.run.slice(0, 12) : t("every run"), moment(entry.added_at),
    entry.revoked_at ? [state("cancelled"), ` ${t("revoked")} ${moment(entry.revoked_at)}`] : admin ? button(t("Revoke"), async () => follow(await submit(undefined, `/api/v1/keys/${entry.fingerprint}/revoke`)), { kind: "danger", confirm: t("Bundles with this key anywhere in their history are refused from now on, and jobs that go on from one are cancelled.") }) : t("trusted")]);
  return [
    head(t("Keys")),
    card(t("This site's key"), keys.own ? [facts([[t("Name"), keys.own.name]]), h("p.fingerprint", { "aria-label": t("Fingerprint, to be read aloud") }, grouped(keys.own.fingerprint.slice(0, 32))), h("p", t("Other sites need its card, and compare this fingerprint with you by telephone.")),
      keys.card && button(t("Save the card"), async () => save("card.json", keys.card, "application/json"))] : empty(t("This site has no key yet (relay keys create, where the worker runs), or no worker runs that could tell of it."))),
    card(t("Trusted sites"), rows.length ? table(t("Trusted sites"), [t("Name"), t("Fingerprint"), t("For"), t("Since"), ""], rows) : empty(t("This site trusts no other yet. Ask the other site for its card."))),
    admin && trust(follow, print),
  ];
}

function trust(follow, print) {
  const file = h("input", { type: "file", accept: ".json", id: "card-file" });
  const shown = h("div", { "aria-live": "polite" });
  file.addEventListener("change", async () => {
    fill(shown);
    if (!file.files[0]) return;
    try {
      const card = await file.files[0].text();
      const preview = await post("/api/v1/key-previews", { card });
      fill(shown, h("p", h("strong", h("bdi", preview.name))), h("p", print(preview.fingerprint)), h("p", t("Does somebody there read the same on the telephone?")),
        button(t("It is the same: trust this card"), async () => follow(await submit({ card }, "/api/v1/keys")), { kind: "primary" }));
    } catch (error) {
      fill(shown, alert(error));
    }
  });
  return card(t("Trust a site"), field(t("Card of the other site (card.json)"), file, t("Trust it only after comparing its fingerprint by telephone.")), shown);
}
