// What a model found in an image: its slices with what was found drawn over them, and the measurements.
import { h } from "./dom.js";
import { count, number, percent, t } from "./text.js";
import { facts, field, table } from "./widgets.js";

/**
 * Show an answer of `predict`; with `pictures`, its slices too.
 * @param {object} found The answer.
 */
export async function findings(found) {
  const swatch = (i) => found.pictures && coloured(found.pictures.colours[i]);
  return [
    found.pictures && (await viewer(found)),
    found.classes && table(t("What was found"), [t("Class"), [t("Pixels"), "number"], [t("Area or volume"), "number"], [t("Confidence"), "number"]],
      found.classes.map((one, i) => [[swatch(i), one.name], count(one.pixels), one.area_mm2 ? `${number(one.area_mm2, 1)} mm²` : one.volume_mm3 ? `${number(one.volume_mm3, 1)} mm³` : "–", one.confidence === null ? "–" : percent(one.confidence)])),
    found.probabilities && table(t("What was found"), [t("Class"), [t("Probability"), "number"]], found.probabilities.map((one) => [one.name, percent(one.probability)])),
    found.cup_to_disc && facts([[t("Cup to disc, vertical"), number(found.cup_to_disc.vertical, 2)], [t("horizontal"), number(found.cup_to_disc.horizontal, 2)], [t("by area"), number(found.cup_to_disc.area, 2)]]),
    found.unlike && [
      h("p", t("How unlike the training images: {score} (most like {site}; above {limit} do not rely on the answer).", { score: number(found.unlike.score, 2), site: found.unlike.most_like, limit: number(found.unlike.warn_above, 1) })),
      h("p.about", t("Brightness, contrast and grain are compared with those of each site's training images; up to 1 is usual. A high score tells of another camera, exposure or kind of image. A low one does not say that the answer is right: a disease that no site had goes unnoticed.")),
    ],
  ];
}

/** An image, slice by slice, whatever format it came in: both layers are the service's. */
async function viewer({ pictures, slices }) {
  const { width, height, columns } = pictures;
  const [image, drawn] = await Promise.all([pictures.image, pictures.found].map((png) => png && createImageBitmap(new Blob([decoded(png)]))));
  const canvas = h("canvas.wide", { width, height, role: "img", "aria-label": drawn ? t("The image with what the model found drawn over it") : t("The image") });
  const paper = canvas.getContext("2d");
  const place = h("span");
  const slice = h("input", { type: "range", min: 1, max: slices, value: pictures.fullest, oninput: draw });
  const opacity = h("input", { type: "range", min: 0, max: 100, value: 70, id: "opacity", oninput: draw });
  function draw() {
    const i = slice.value - 1;
    const cell = [(i % columns) * width, Math.floor(i / columns) * height, width, height, 0, 0, width, height];
    place.textContent = t("Slice {n} of {m}", { n: count(i + 1), m: count(slices) });
    paper.globalAlpha = 1;
    paper.drawImage(image, ...cell);
    paper.globalAlpha = opacity.value / 100;
    if (drawn) paper.drawImage(drawn, ...cell);
  }
  draw();
  return h("div.viewer", { "aria-live": "off" }, canvas, slices > 1 && field(place, slice), drawn && field(t("Opacity of what was found"), opacity)); // a slider says itself where it is
}

function decoded(base64) {
  const letters = atob(base64);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i); // Uint8Array.from takes seconds for a large volume
  return bytes;
}

function coloured(colour) {
  const swatch = h("span.swatch", { "aria-hidden": "true" });
  swatch.style.borderTopColor = colour;
  return swatch;
}
