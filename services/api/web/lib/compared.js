// The images of this site against those of the sites before: what a job compare_sites found, as small multiples.
import { h } from "./dom.js";
import { all, get } from "./api.js";
import { count, number, t } from "./text.js";
import { table, warning } from "./widgets.js";
import { chart } from "./chart.js";

const CHANCE = 0.001; // p value below which a difference is named: with a dozen statistics of a few sites, luck is rare so
const NAMED = 3;
const isolated = (name) => `\u2068${name}\u2069`; // a name that is written from right to left turns nothing beside it around

/**
 * Draw what a job compare_sites found.
 * @param {string} job The job's id.
 * @param {string} [site] The site whose images are set against the others; by default all whose images are here.
 */
export async function comparison(job, site = null) {
  const found = await get(`/api/v1/jobs/${job}/files/statistics.json`);
  const here = found.groups.map((_, i) => i).filter((i) => found.groups[i].kind === "images");
  const named = here.filter((i) => found.groups[i].site === site);
  const own = named.length ? named : here;
  const order = [...own, ...found.groups.map((_, i) => i).filter((i) => !own.includes(i))];
  const label = (i) => (found.groups[i].kind === "images" ? t("{site}, images", { site: isolated(found.groups[i].site) }) : t("{site}, replay", { site: isolated(found.groups[i].site) }));
  const few = here.filter((i) => found.statistics.every((one) => "withheld" in one.groups[i]));
  const pairs = own.flatMap((i) => order.filter((j) => !own.includes(j) || j > i).map((j) => [i, j]));
  return [
    few.map((i) => warning(t("{site} has too few images: what fewer than five say is withheld.", { site: isolated(found.groups[i].site) }))),
    h("p", sentence(found, pairs, label)),
    h("div.charts.small", found.statistics.map((one) => panel(one, order, own, label))),
    h("h3", t("In numbers")),
    table(t("Median of each statistic, with its quartiles"), [t("Statistic"), ...order.map((i) => [`${label(i)} (${count(found.groups[i].images)})`, "number"])],
      found.statistics.map((one) => [title(one), ...order.map((i) => middle(one, i))])),
    pairs.length > 0 && table(t("How far apart two groups are"), [t("How far apart"), ...pairs.map(([i, j]) => [t("{one} and {other}", { one: label(i), other: label(j) }), "number"])],
      found.statistics.map((one) => [title(one), ...pairs.map((pair) => number(apart(one, pair)?.ks, 2))])),
    h("p.about", t("Of single images at {n} x {n} pixels. How far apart: Kolmogorov-Smirnov statistic, 0 where two distributions are the same, 1 where they do not overlap.", { n: count(found.resolution) })),
  ];
}

/** Find the newest job that compared a data set's images. */
export async function newestComparison(dataset) {
  const { items } = await get("/api/v1/jobs", { kind: "compare_sites", state: "succeeded", limit: 100 });
  return items.find((job) => Object.values(job.params.datasets).includes(dataset.id)) ?? null;
}

/** Find the newest finished checkpoint of a site before this one, in the runs that have a site of this name; null: it is the first in all. */
export async function checkpointBefore(name) {
  const runs = (await all("/api/v1/runs")).filter((run) => run.sites.some((site) => site.name === name));
  const found = await Promise.all(runs.map(async (run) => {
    const order = run.sites.filter((site) => site.trained);
    const position = order.findIndex((site) => site.name === name);
    const before = (position < 0 ? order : order.slice(0, position)).map((site) => site.task_id);
    if (!before.length) return null;
    return (await all("/api/v1/checkpoints", { run_id: run.id })).filter((row) => row.finished && before.includes(row.task_id));
  }));
  if (found.length && found.every((rows) => rows === null)) return null;
  return found.flat().filter(Boolean).sort((a, b) => b.created_at.localeCompare(a.created_at))[0];
}

/** Say which statistics are furthest apart, of those that luck does not explain. */
function sentence(found, pairs, label) {
  if (!found.statistics.some((one) => pairs.some((pair) => apart(one, pair)))) return t("There is nothing that they could be compared with.");
  const clear = found.statistics.flatMap((one) => pairs.map((pair) => ({ one, pair, ...apart(one, pair) }))).filter(({ p }) => p < CHANCE);
  if (!clear.length) return t("No statistic differs by more than luck explains.");
  const most = clear.sort((a, b) => b.ks - a.ks).slice(0, NAMED);
  return t("Furthest apart: {list}.", { list: most.map(({ one, pair: [i, j], ks }) => t("{statistic} of {one} and {other} ({n})", { statistic: title(one), one: label(i), other: label(j), n: number(ks, 2) })).join("; ") });
}

const apart = (one, [i, j]) => one.pairs.find(({ groups }) => groups.includes(i) && groups.includes(j));

function panel(one, order, own, label) {
  const width = one.edges[1] - one.edges[0];
  const whole = width === 1 && one.edges[0] % 1 !== 0; // a bin of a whole number begins half a step before it
  const place = (value) => (whole ? count(value) : number(value, digits(width)));
  const drawn = chart(title(one), { x: whole ? t("number") : t("from"), digits: 2, bins: width, place });
  drawn.draw(order.filter((i) => !("withheld" in one.groups[i])).map((i) => ({
    label: label(i), steps: one.edges.slice(0, -1).map((edge) => edge + (whole ? 0.5 : 0)), values: one.groups[i].shares, width: own.includes(i) ? 4 : 2, rest: t("median {n}", { n: number(one.groups[i].median, whole ? 1 : digits(width)) }),
  })));
  return drawn.element;
}

/** Digits that tell two neighbouring bins apart. */
const digits = (width) => Math.min(8, Math.max(0, Math.ceil(1 - Math.log10(width))));

function middle(one, i) {
  const group = one.groups[i];
  if ("withheld" in group) return t("withheld");
  const say = (value) => number(value, digits(one.edges[1] - one.edges[0]));
  return t("{median} ({low} to {high})", { median: say(group.median), low: say(group.quartiles[0]), high: say(group.quartiles[1]) });
}

function title(one) {
  const words = {
    brightness: t("Brightness"), contrast: t("Contrast"), red: t("Red"), green: t("Green"), blue: t("Blue"), sharpness: t("Sharpness"),
    unlike: t("Unlike the training images (above 1.5: warned of)"), network_distance: t("Distance in the network's features"),
    area: t("Share of the image that {name} covers", { name: isolated(one.class) }), pieces: t("Pieces of {name}", { name: isolated(one.class) }),
  };
  return words[one.name] ?? one.name;
}
