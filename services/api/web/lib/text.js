// The page's words. The English text is the key; text/<language>.json holds what another language says instead.

export const LANGUAGES = { en: "English", de: "Deutsch" };
const CHOSEN = "relay-language";
let catalogue = {};
export let language = "en";

/** Load the language that was chosen, or that the browser asks for. */
export async function loadLanguage() {
  const wanted = [localStorage.getItem(CHOSEN), ...navigator.languages].map((name) => name?.slice(0, 2));
  language = wanted.find((name) => name in LANGUAGES) ?? "en";
  document.documentElement.lang = language;
  catalogue = language === "en" ? {} : await (await fetch(`/web/text/${language}.json`)).json();
}

export function chooseLanguage(name) {
  localStorage.setItem(CHOSEN, name);
  location.reload();
}

/**
 * Say a text in the page's language.
 * @param {string} text The English text; `{name}` stands for a value.
 * @param {object} [values] The values.
 */
export function t(text, values = {}) {
  return (catalogue[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

export const number = (value, digits = 3) =>
  value === null || value === undefined || Number.isNaN(value) ? "–" : new Intl.NumberFormat(language, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);
export const count = (value) => (value === null || value === undefined ? "–" : new Intl.NumberFormat(language).format(value));
export const percent = (value) => new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: value > 0.1 && value < 0.99 ? 0 : 2 }).format(value);

/** Say a moment (ISO text, or seconds since 1970) in local time with its zone. */
export function moment(value) {
  if (value === null || value === undefined) return "–";
  const date = new Date(typeof value === "number" ? value * 1000 : value);
  return new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(date) + ` ${zone(date)}`;
}

function zone(date) {
  const parts = new Intl.DateTimeFormat(language, { timeZoneName: "short" }).formatToParts(date);
  return parts.find((part) => part.type === "timeZoneName")?.value ?? "";
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
  const power = Math.min(Math.floor(Math.log10(Math.max(value, 1)) / 3), units.length - 1);
  return new Intl.NumberFormat(language, { style: "unit", unit: units[power], maximumFractionDigits: power ? 1 : 0 }).format(value / 1000 ** power);
}

/** Say a length of time in words that a person reads at a glance. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const rounded = Math.round(seconds);
  if (rounded < 90) return t("{n} s", { n: rounded });
  if (rounded < 5400) return t("{n} min", { n: Math.round(rounded / 60) });
  const minutes = Math.round(rounded / 60);
  return t("{h} h {m} min", { h: Math.floor(minutes / 60), m: minutes % 60 });
}

/** Write a fingerprint in groups of four, to be read aloud. */
export const grouped = (digest) => (String(digest).match(/.{1,4}/g) ?? []).join(" ");
