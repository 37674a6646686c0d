// Make a run file from a recipe, or take one, and see what it says before it is registered.
import { h, fill } from "../lib/dom.js";
import { get, raw } from "../lib/api.js";
import { t } from "../lib/text.js";
import { area, card, choice, facts, field, form, head, input, warning } from "../lib/widgets.js";
import { settingField, valueOf } from "./datasets.js";

const YAML = { "Content-Type": "application/yaml" };
const FORM = ["num_mimgs", "num_epochs", "batch_size", "augment"];

export async function show() {
  const [recipes, layouts, training] = await Promise.all([get("/api/v1/recipes"), get("/api/v1/layouts"), get("/api/v1/training-settings")]);
  const text = area({ id: "run-text", rows: "22" });
  const name = input({ id: "run-name", value: "run" });
  const recipe = choice(recipes.map((one) => [one.name, one.name]), "fundus-cpu", { id: "run-recipe" });
  const about = h("p.about");
  const sites = area({ rows: "4", id: "run-sites" });
  sites.value = "North\nSouth";
  const layout = choice([["", t("as in the recipe")], ...layouts.map((one) => [one.name, one.name])], "");
  const classes = input({ inputmode: "numeric" });
  const fields = training.filter((setting) => FORM.includes(setting.key)).map((setting) => [setting, settingField(setting)]);
  const preview = h("div", { "aria-live": "polite" });

  let mine = false; // whether the text is a file's, or was changed by hand: the form leaves it alone then
  function write() {
    about.textContent = recipes.find((one) => one.name === recipe.value).about;
    if (mine) return;
    fill(preview);
    try {
      text.value = written(recipe.value, sites.value, layout.value, classes.value, fields);
    } catch {
      return; // a value that is being typed
    }
  }
  const form_ = h("fieldset", h("legend", t("From a recipe")), field(t("Recipe"), recipe), about,
    field(t("Sites, one a line, in the order of the relay"), sites, t("Each site's images are the data set of that name.")),
    field(t("Layout of the data sets"), layout), field(t("Number of classes"), classes, t("The background counts too. Left empty: as in the recipe.")),
    fields.map(([setting, box]) => field(`train.${setting.key}`, box, setting.about)));
  form_.addEventListener("input", write);
  write();

  const file = h("input", { type: "file", accept: ".yaml,.yml", id: "run-file" });
  file.addEventListener("change", async () => {
    if (!file.files[0]) return;
    text.value = await file.files[0].text();
    mine = true;
    fill(preview);
    name.value = file.files[0].name.replace(/\.ya?ml$/i, "").replace(/[^A-Za-z0-9 ._-]/g, "-").slice(0, 100) || "run";
  });

  const send = (path, [title, body]) => raw("POST", `/api/v1/${path}?name=${encodeURIComponent(title)}`, { body, headers: YAML }).then((answer) => answer.json());
  for (const box of [text, name]) box.addEventListener("input", () => fill(preview));
  text.addEventListener("input", () => (mine = true));
  const check = form(t("Check"), async () => {
    const checked = [name.value.trim(), text.value]; // this, and nothing that is typed later, is what is registered
    const run = await send("run-previews", checked);
    fill(preview, card(t("What it would be"), facts([[t("Strategy"), run.strategy], [t("Sites"), run.sites.map((site) => site.name).join(", ")], [t("Id"), run.id]]),
      run.notes.map((note) => warning(note)), h("details", h("summary", t("The whole file")), h("pre", { tabindex: "0" }, run.text)),
      form(t("Register"), async () => {
        const kept = await send("runs", checked);
        location.hash = `#/runs/${kept.id}`;
      })));
    preview.scrollIntoView({ block: "nearest" });
  }, field(t("Name"), name, t("What people call it: letters, digits, dots, hyphens and spaces.")), field(t("Run file (YAML)"), text, t("What the form says stands here, and may be changed by hand; from then on the form leaves it alone.")));
  return [head(t("Register a run")), card(null, field(t("A run file from this computer"), file, t("The one that the coordinator sent: all sites register the same."))),
    h("div.two", card(null, h("form", { onsubmit: (event) => event.preventDefault() }, form_)), h("div", card(null, check), preview))];
}

/** Write a run file that extends a recipe. JSON is YAML, so values are written as such. */
function written(recipe, sites, layout, classes, fields) {
  const names = sites.split("\n").map((line) => line.trim()).filter(Boolean);
  const dataset = [layout && `    name: ${layout}`, classes.trim() && `    kwargs: {num_classes: ${Number(classes)}}`].filter(Boolean);
  const train = fields.map(([setting, box]) => [setting.key, valueOf(setting, box)]).filter(([, value]) => value !== undefined);
  const model = classes.trim() ? ["  model:", `    kwargs: {label_num_classes: ${Number(classes)}, solver_kwargs: {num_classes: ${Number(classes)}}}`] : [];
  const common = [...(dataset.length ? ["  dataset:", ...dataset] : []), ...model, ...(train.length ? ["  train:", ...train.map(([key, value]) => `    ${key}: ${JSON.stringify(value)}`)] : [])];
  return [
    `extends: ${recipe}`, ...(common.length ? ["common:", ...common] : []), "all_tasks_datasets:",
    ...names.map((site, i) => `  - kwargs: {task_id: ${i + 1}, task_name: ${JSON.stringify(site)}, img_folder: ${JSON.stringify(site)}}`),
    "current_tasks:", `  task_ids: [${names.map((_, i) => i + 1).join(", ")}]`, "",
  ].join("\n");
}
