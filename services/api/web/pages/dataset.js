// One data set: what its check found, with its images.
import { h } from "../lib/dom.js";
import { get, getWithTag, patch, remove, submit } from "../lib/api.js";
import { count, moment, percent, t } from "../lib/text.js";
import { alert, area, button, card, empty, facts, field, form, head, link, table, warning } from "../lib/widgets.js";
import { checkpointBefore, comparison, newestComparison } from "../lib/compared.js";

export async function show({ parts: [id], me }) {
  const [set, tag] = await getWithTag(`/api/v1/datasets/${id}`);
  const layouts = await get("/api/v1/layouts");
  const may = me.role !== "viewer";
  const check = button(set.report ? t("Check again") : t("Check its files"), async () => {
    const job = await submit({ kind: "preflight", dataset_id: id });
    location.hash = `#/jobs/${job.id}`;
  }, { kind: "primary" });
  const forget = button(t("Forget"), async () => {
    await remove(`/api/v1/datasets/${id}`);
    location.hash = "#/data";
  }, { kind: "danger", confirm: t("The site forgets this data set. Its images stay where they are.") });
  const options = Object.entries(set.options).map(([key, value]) => [key, JSON.stringify(value)]);
  return [
    head(h("bdi", set.name), may && check, may && forget),
    card(null, facts([[t("Folder"), set.path], [t("Layout"), `${set.layout}: ${layouts.find((one) => one.name === set.layout)?.about ?? ""}`],
      [t("Registered"), moment(set.created_at)], ...options, [t("Note"), set.note]])),
    set.report ? report(set.report) : card(t("Check"), empty(t("Nobody has looked into its files yet. The check reads every image and mask, and changes nothing."))),
    set.report && pictures(id, set.report),
    await againstBefore(set, may).catch(alert),
    may && note(id, set, tag),
  ];
}

function report(found) {
  const splits = Object.keys(found.counts);
  const classes = Math.max(0, ...Object.values(found.class_shares).map((shares) => shares.length));
  return [
    card(t("What the check found"),
      found.problems.length ? warning(t("Some files cannot be used; trainings refuse this data set until they are mended or removed.")) : h("p.state.good", "✓ ", t("Every file can be used.")),
      table(t("Images of each part"), [t("Part"), [t("Images"), "number"], [t("Patients"), "number"]],
        splits.map((split) => [split, count(found.counts[split]), count(found.subjects[split])])),
      h("p.about", t("Sizes in pixels: {sizes}", { sizes: Object.entries(found.sizes).map(([size, n]) => `${size} (${n})`).join(", ") })),
      found.duplicates.length > 0 && warning(t("Images that are in both parts, pixel for pixel: {n}. A score on them says nothing.", { n: count(found.duplicates.length) }),
        h("ul", found.duplicates.slice(0, 20).map((pair) => h("li", { dir: "auto" }, pair.join(" = "))))),
      splits.flatMap((split) => found.repeats?.[split] ?? []).length > 0 && warning(t("The same images stand several times in one part."))),
    found.problems.length > 0 && card(t("Files that cannot be used"), problems(found.problems)),
    classes > 0 && card(t("Shares of the classes"), h("div.cards", splits.map((split) => h("div", h("h3", split), bars(found.class_shares[split]))))),
  ];
}

/** One line a file; the reason opens with one click. */
const problems = (found) => [
  h("ul.plain", found.slice(0, SHOWN).map(({ file, message }) => h("li", h("details", h("summary", { dir: "auto" }, file), h("p", { dir: "auto" }, message))))),
  found.length > SHOWN && h("p.about", t("and {n} more: the check's job has all of them", { n: count(found.length - SHOWN) })),
];
const SHOWN = 500;

const bars = (shares) => h("div.bars", shares.flatMap((share, i) => [
  h("span", t("class {n}", { n: i })), h("meter", { min: 0, max: 1, value: share, "aria-label": t("class {n}", { n: i }) }), h("span.number", percent(share)),
]));

function pictures(id, found) {
  if (!found.previews.length) return null;
  return card(t("Images with their masks"), h("div.pictures", found.previews.map((_, i) =>
    h("figure", h("img", { src: `/api/v1/datasets/${id}/preview?index=${i}`, alt: t("Image {n} with its mask drawn over it", { n: i + 1 }), loading: "lazy" })))),
  h("p.about", link(`#/jobs/${found.job}`, t("The check as a job"))));
}

/** How the images differ from those of the sites before: what the newest comparison found, and a button for another one. */
async function againstBefore(set, may) {
  const [before, job] = await Promise.all([checkpointBefore(set.name), newestComparison(set)]);
  if (before === null && !job) return null;
  const compare = may && before && button(t("Compare"), async () => (location.hash = `#/jobs/${(await submit({ kind: "compare_sites", checkpoint_id: before.id })).id}`));
  const about = before && h("p", t("With what the newest checkpoint from before this site draws:"), " ", link(`#/checkpoints/${before.id}`, t("{site}, step {n}", { site: before.site, n: count(before.step) })));
  if (job) return card(t("Against the sites before"), await comparison(job.id, set.name).catch(alert), h("p.about", link(`#/jobs/${job.id}`, t("The comparison as a job")), ", ", moment(job.finished_at)), about, compare);
  return card(t("Against the sites before"), before
    ? empty(t("How do these images differ from those of the sites before: brightness, contrast, colour, sharpness, size of the structures? See it before you train."), about, compare)
    : empty(t("No checkpoint of a site before is here. Register the run that has a site of this name, bring the bundle of the site before, and accept it."), h("div.actions", h("a.button", { href: "#/handoff" }, t("Bring a bundle")))));
}

function note(id, set, tag) {
  const box = area({ rows: "3" });
  box.value = set.note;
  const said = h("span", { role: "status" });
  return card(t("Note"), form(t("Save the note"), async () => {
    await patch(`/api/v1/datasets/${id}`, { note: box.value }, tag);
    said.textContent = t("Saved.");
  }, field(t("For people"), box)), said);
}

