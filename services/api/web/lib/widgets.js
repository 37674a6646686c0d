// Pieces that several pages are made of.
import { h, fill } from "./dom.js";
import { Problem, get } from "./api.js";
import { t, count, duration, number, percent } from "./text.js";

const STATES = {
  queued: ["waiting", "◷"], running: ["busy", "▶"], cancelling: ["waiting", "◼"], succeeded: ["good", "✓"], failed: ["bad", "✕"],
  cancelled: ["quiet", "◼"], verifying: ["busy", "▶"], quarantined: ["waiting", "◷"], refused: ["bad", "✕"], accepted: ["good", "✓"],
  rejected: ["quiet", "✕"], passed: ["good", "✓"], inconclusive: ["waiting", "?"], overridden: ["waiting", "!"],
};
const STATE_WORDS = () => ({
  queued: t("waiting"), running: t("running"), cancelling: t("stopping"), succeeded: t("done"), failed: t("failed"),
  cancelled: t("cancelled"), verifying: t("being verified"), quarantined: t("waits for a decision"), refused: t("refused"),
  accepted: t("accepted"), rejected: t("rejected"), passed: t("passed"), inconclusive: t("inconclusive"), overridden: t("overridden"),
});
export const kindWords = () => ({
  train: t("Training"), evaluate: t("Evaluation"), preflight: t("Check of a data set"), samples: t("Pictures of the replay"),
  export: t("Export of a bundle"), import: t("Verification of a bundle"), report: t("Signed report"), export_onnx: t("Export to ONNX"),
  predict: t("Predictions of a data set"), predict_study: t("Prediction of a study"), privacy_audit: t("Privacy audit"), compare_sites: t("Comparison of sites"), keys: t("Change of keys"),
});

/** A state in words, with a sign and a colour. */
export function state(value) {
  const [tone, sign] = STATES[value] ?? ["quiet", "•"];
  return h(`span.state.${tone}`, h("span", { "aria-hidden": "true" }, sign), " ", STATE_WORDS()[value] ?? value);
}

/** The outcome of a privacy audit; a job that fails is something else. */
export const outcomeState = (value) => (value === "failed" ? h("span.state.bad", h("span", { "aria-hidden": "true" }, "✕"), " ", t("not passed")) : state(value));

/** A heading with what can be done beside it. */
export const head = (title, ...actions) => h("div.head", h("h1", { tabindex: "-1" }, title), h("div.actions", actions));

export const card = (title, ...children) => h("section.card", title && h("h2", title), children);

/** What to see where there is nothing yet, and what to do about it. */
export const empty = (text, ...actions) => h("div.empty", h("p", text), actions);

/** Facts as terms with their values. */
export const facts = (entries) =>
  h("dl.facts", entries.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([term, value]) => h("div", h("dt", term), h("dd", { dir: "auto" }, value))));

/**
 * A table that a phone can scroll sideways.
 * @param {string} caption What it shows, for whoever does not see it.
 * @param {Array} columns Titles; [title, "number"] sets a column to the right.
 * @param {Array<Array>} rows Cells.
 */
export function table(caption, columns, rows) {
  const titles = columns.map((column) => (Array.isArray(column) ? column : [column, ""]));
  return h(
    "div.scroll", { tabindex: "0", role: "region", "aria-label": caption },
    h("table", h("caption.hidden", caption), h("thead", h("tr", titles.map(([title, kind]) => h("th", { scope: "col", class: kind || null }, title)))),
      h("tbody", rows.map((row) => h("tr", row.map((cell, i) => h("td", { class: titles[i]?.[1] || null, dir: "auto" }, cell)))))),
  );
}

export const link = (href, ...children) => h("a", { href, dir: "auto" }, children);

/** A button that shows that it works, and says what was refused beneath it. */
export function button(label, act, { kind = "", confirm = null } = {}) {
  const note = h("span.refused", { role: "alert" });
  const press = h(`button${kind ? `.${kind}` : ""}`, { type: "button" }, label);
  press.addEventListener("click", async () => {
    if (confirm && !(await sure(confirm, label))) return;
    if (press.getAttribute("aria-disabled")) return;
    press.setAttribute("aria-disabled", "true"); // it keeps the focus
    note.textContent = "";
    try {
      await act(press);
    } catch (error) {
      note.replaceChildren(problem(error));
    } finally {
      press.removeAttribute("aria-disabled");
    }
  });
  return h("span.press", press, note);
}

/** Ask before something that cannot be taken back. */
function sure(question, label) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog", { "aria-label": label }, h("p", question),
      h("form", { method: "dialog" }, h("div.actions", h("button", { value: "" }, t("Cancel")), h("button.primary", { value: "yes" }, label))),
    );
    dialog.addEventListener("close", () => (resolve(dialog.returnValue === "yes"), dialog.remove()));
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** What was refused, in the catalogue's words. */
export function problem(error) {
  if (!(error instanceof Problem)) {
    console.error(error);
    return h("span", String(error?.message ?? error));
  }
  const wrong = (error.content.errors ?? []).map((entry) => h("li", { dir: "auto" }, `${entry.path}: ${entry.message}`));
  return h("span", h("strong", error.title), " ", h("span", { dir: "auto" }, error.message), wrong.length > 1 && h("ul", wrong));
}

export const alert = (error) => h("div.alert", { role: "alert" }, problem(error));
export const warning = (...children) => h("div.warning", { role: "note" }, h("span", { "aria-hidden": "true" }, "⚠ "), children);

let fields = 0;
/**
 * A field with its label and what it means.
 * @param {string} label The label.
 * @param {Element} input The field.
 * @param {string} [about] What it means.
 */
export function field(label, input, about = "") {
  const id = input.id || (input.id = `field-${++fields}`);
  if (about) input.setAttribute("aria-describedby", `${id}-about`);
  return h("div.field", h("label", { for: id }, label), input, about && h("p.about", { id: `${id}-about` }, about));
}

export const input = (attributes = {}) => h("input", { type: "text", autocomplete: "off", spellcheck: "false", ...attributes });
export const area = (attributes = {}) => h("textarea", { rows: "12", spellcheck: "false", ...attributes });
export const choice = (options, chosen, attributes = {}) =>
  h("select", attributes, options.map(([value, label]) => h("option", { value, selected: value === chosen }, label)));
export function check(label, checked = false) {
  const box = h("input", { type: "checkbox", checked });
  return [box, h("label.check", box, " ", label)];
}

/** A form that says what was refused, and cannot be sent twice. */
export function form(label, act, ...children) {
  const note = h("div");
  const send = h("button.primary", { type: "submit" }, label);
  const element = h("form", { novalidate: true }, children, note, h("div.actions", send));
  element.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (send.getAttribute("aria-disabled")) return;
    send.setAttribute("aria-disabled", "true");
    note.replaceChildren();
    try {
      await act();
    } catch (error) {
      note.replaceChildren(alert(error));
    } finally {
      send.removeAttribute("aria-disabled");
    }
  });
  return element;
}

/**
 * A place to drop one file on, or to choose it; while it is taken, no other one is.
 * @param {string} label What to do.
 * @param {object} attributes Of the field.
 * @param {(file: File) => Promise} take Takes the file.
 */
export function dropzone(label, attributes, take) {
  const file = h("input", { type: "file", ...attributes });
  const zone = h("div.drop", h("p", label), file);
  let busy = false;
  async function taken(one) {
    if (!one || busy) return;
    busy = file.disabled = true;
    await take(one).finally(() => (busy = file.disabled = false));
  }
  file.addEventListener("change", () => taken(file.files[0]));
  zone.addEventListener("dragover", (event) => (event.preventDefault(), zone.classList.add("over")));
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => (event.preventDefault(), zone.classList.remove("over"), taken(event.dataTransfer.files[0])));
  return zone;
}

/** How far a job is. */
export function progress(job) {
  const { progress: at } = job;
  if (!at || !at.steps) return null;
  const share = Math.min(at.step / at.steps, 1);
  const words = [
    at.site ? h("bdi", at.site) : null, `${count(at.step)} / ${count(at.steps)}`, at.images_per_second ? t("{n} images/s", { n: number(at.images_per_second, 1) }) : null,
    at.eta_seconds && job.state === "running" ? t("{time} left", { time: duration(at.eta_seconds) }) : null,
  ].filter(Boolean);
  return h(
    "div.progress",
    h("progress", { max: "1", value: share, "aria-label": t("Progress: {share}", { share: percent(share) }) }),
    h("span", words.flatMap((word, i) => (i ? [" · ", word] : [word]))),
  );
}

/**
 * A list that is read page by page.
 * @param {string} path Of the list.
 * @param {object} query Its filters.
 * @param {(items: Array) => Node} draw Draws a page.
 * @param {Node} nothing What to show where the list is empty.
 */
export async function paged(path, query, draw, nothing) {
  const box = h("div");
  const more = h("div.actions");
  async function next(cursor) {
    const page = await get(path, { limit: 50, ...query, cursor });
    if (!cursor && !page.items.length) return box.append(nothing);
    const drawn = draw(page.items);
    box.append(drawn);
    if (cursor) drawn.focus();
    fill(more, page.next_cursor ? button(t("Show more"), () => next(page.next_cursor)) : null);
  }
  await next(null);
  return h("div", box, more);
}

/** Save text as a file of the browser's downloads. */
export function save(name, text, type = "text/plain") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

