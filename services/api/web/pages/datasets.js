// The data sets of this site, and how to register one.
import { h, fill } from "../lib/dom.js";
import { get, post, submit } from "../lib/api.js";
import { count, t } from "../lib/text.js";
import { alert, card, choice, empty, field, form, head, input, link, paged, table } from "../lib/widgets.js";

export async function show({ me }) {
  const list = await paged("/api/v1/datasets", {}, (items) => table(t("Data sets"), [t("Name"), t("Folder"), t("Layout"), t("Last check")],
    items.map((set) => [link(`#/data/${set.id}`, set.name), set.path, set.layout, set.report ? verdict(set.report) : t("not checked yet")])),
  empty(t("No data set is registered yet. A data set is a folder of this site's images below its data root.")));
  return [head(t("Data sets")), card(null, list), me.role !== "viewer" && (await register())];
}

const verdict = (report) =>
  report.ok ? t("fine: {n} images", { n: count(Object.values(report.counts).reduce((a, b) => a + b, 0)) }) : t("files that cannot be used: {n}", { n: count(report.problems.length) });

async function register() {
  const layouts = await get("/api/v1/layouts");
  const name = input({ id: "set-name", required: true });
  const path = input({ id: "set-path", required: true });
  const layout = choice(layouts.map((entry) => [entry.name, entry.name]), "folder", { id: "set-layout" });
  const about = h("p.about");
  const settings = h("div");
  let fields = [];
  function chosen() {
    const entry = layouts.find((one) => one.name === layout.value);
    about.textContent = entry.about;
    fields = entry.settings.map((setting) => [setting, settingField(setting)]);
    fill(settings, fields.map(([setting, box]) => field(setting.key, box, setting.about)));
  }
  layout.addEventListener("change", chosen);
  chosen();
  const send = form(t("Register and check"), async () => {
    const options = {};
    for (const [setting, box] of fields) {
      const value = valueOf(setting, box);
      if (value !== undefined) options[setting.key] = value;
    }
    const set = await post("/api/v1/datasets", { name: name.value.trim(), path: path.value.trim(), layout: layout.value, options });
    await submit({ kind: "preflight", dataset_id: set.id });
    location.hash = `#/data/${set.id}`;
  },
  field(t("Name"), name, t("A run's site of this name finds its images here by itself.")),
  field(t("Folder"), path, t("Below the data root; choose it here, or write it.")), await browser(path),
  field(t("Layout"), layout), about,
  h("details", h("summary", t("Settings of the layout")), h("p.about", t("What is left empty keeps its default.")), settings));
  return card(t("Register a data set"), send);
}

/** A field for a setting, empty where it keeps its default. */
export function settingField(setting) {
  if (setting.choices.length) return choice([["", t("default: {value}", { value: JSON.stringify(setting.default) })], ...setting.choices.map((value) => [String(value), String(value)])], "");
  if (setting.kind === "switch") return choice([["", t("default: {value}", { value: setting.default ? t("yes") : t("no") })], ["true", t("yes")], ["false", t("no")]], "");
  return input({ placeholder: setting.default === null || setting.default === undefined ? "" : JSON.stringify(setting.default), inputmode: setting.kind === "number" ? "decimal" : null });
}

/** What a field holds, as the API wants it; undefined: nothing. Lists and mappings are written as JSON. */
export function valueOf(setting, box) {
  const text = box.value.trim();
  if (text === "") return undefined;
  if (setting.kind === "text" && !setting.choices.length) return text;
  try {
    return JSON.parse(text);
  } catch {
    if (setting.kind === "yaml" && !/[{["]/.test(text)) return text.includes(",") ? text.split(",").map((part) => part.trim()) : text;
    if (setting.choices.length) return text;
    throw new Error(t("{key}: write it as {example}", { key: setting.key, example: setting.kind === "number" ? "0.5" : '{"0": 0, "255": 1} / ["a", "b"]' }));
  }
}

/** Choose a folder below the data root. */
async function browser(target) {
  const box = h("div");
  async function open(path) {
    let folder;
    try {
      folder = await get("/api/v1/folders", { path });
    } catch (error) {
      return fill(box, alert(error));
    }
    const up = path.split("/").slice(0, -1).join("/");
    const entry = (label, where) => h("li", h("button", { type: "button", onclick: () => open(where) }, label));
    fill(box, h("p.about", h("bdi", path || t("data root")), ` – ${t("files: {n}", { n: count(folder.files) })} `),
      h("ul.tree", { "aria-label": t("Folders") }, path && entry("↑ ..", up), folder.folders.map((where) => entry(`▸ ${where.split("/").at(-1)}`, where)),
        !folder.folders.length && !path && h("li.note", t("There is no folder yet: copy or mount images below the data root."))));
    if (path) target.value = path;
  }
  await open("");
  return box;
}

