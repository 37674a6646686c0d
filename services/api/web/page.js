// The shell: who is signed in, where one is, and which page is shown there.
import { h, fill } from "./lib/dom.js";
import { get, raw, remove, signedInAs } from "./lib/api.js";
import { LANGUAGES, chooseLanguage, language, loadLanguage, t } from "./lib/text.js";
import { alert, form, field } from "./lib/widgets.js";
import { connection } from "./lib/live.js";

const PAGES = [
  [/^\/$/, "overview", "/"],
  [/^\/data$/, "datasets", "/data"],
  [/^\/data\/(dataset-\w+)$/, "dataset", "/data"],
  [/^\/runs$/, "runs", "/runs"],
  [/^\/runs\/new$/, "run-new", "/runs"],
  [/^\/runs\/(\w+)$/, "run", "/runs"],
  [/^\/jobs$/, "jobs", "/jobs"],
  [/^\/jobs\/(job-\w+)$/, "job", "/jobs"],
  [/^\/checkpoints\/(checkpoint-\w+)$/, "checkpoint", "/jobs"],
  [/^\/sites$/, "sites", "/sites"],
  [/^\/sites\/(evaluation-\w+)$/, "sites", "/sites"],
  [/^\/handoff$/, "handoff", "/handoff"],
  [/^\/(imports|exports)\/(bundle-\w+)$/, "bundle", "/handoff"],
  [/^\/models$/, "models", "/models"],
  [/^\/models\/([a-z0-9._-]+)\/(\d+)$/, "model", "/models"],
  [/^\/keys$/, "keys", "/keys"],
  [/^\/audit$/, "audit", "/audit"],
];

let me = null;
let leaving = new AbortController();
let siteName = "relay";

const SESSION = "/api/v1/session";
const WAS_HERE = "relay-signed-in"; // no secret: it saves asking for a session where there cannot be one

async function start() {
  await loadLanguage().catch(() => {}); // without its catalogue the page speaks English
  watchWork();
  const link = location.hash.startsWith("#link_") ? location.hash.slice(1) : null;
  if (link) history.replaceState(null, "", "/");
  if (!link && !localStorage.getItem(WAS_HERE)) return signInPage();
  try {
    me = link ? await signIn(link) : await get(SESSION);
  } catch (error) {
    if (error.code === "unauthenticated") return signInPage(null, link ? t("This link was used, or is too old: relay up prints a new one when it starts.") : "");
    return signInPage(error);
  }
  enter();
}

async function signIn(token) {
  const answer = await raw("POST", SESSION, { headers: { Authorization: `Bearer ${token}` } });
  return answer.json();
}

function signInPage(why = null, words = "") {
  leaving.abort();
  window.onhashchange = null;
  localStorage.removeItem(WAS_HERE);
  me = null;
  signedInAs(null);
  const token = h("input", { type: "password", autocomplete: "current-password", required: true, spellcheck: "false", id: "token" });
  const send = form(t("Sign in"), async () => {
    me = await signIn(token.value.trim());
    token.value = "";
    enter();
  }, field(t("Token"), token, t("An admin makes one with: relay token create. At its start, relay up prints a link that signs in once.")));
  document.title = `${t("Sign in")} – relay`;
  fill(document.body, h("main.alone", { id: "main" }, h("h1", h("img", { src: "/web/icon.svg", alt: "", width: 32, height: 32 }), " relay"),
    words && h("p", words), why && alert(why), send, languages()));
  token.focus();
}

function languages() {
  const select = h("select", { "aria-label": t("Language"), onchange: () => chooseLanguage(select.value) },
    Object.entries(LANGUAGES).map(([value, label]) => h("option", { value, selected: value === language, lang: value }, label)));
  return select;
}

async function enter() {
  localStorage.setItem(WAS_HERE, "yes");
  signedInAs(me, () => signInPage(null, t("You are signed out. Sign in to go on where you were.")));
  const system = await get("/api/v1/system").catch(() => ({ site_name: "", version: "" }));
  if (!me) return; // signed out meanwhile
  const link = (href, label) => h("a", { href: `#${href}`, "data-page": href }, label);
  const nav = h("nav", { "aria-label": t("Pages"), id: "nav" },
    link("/", t("Overview")), link("/data", t("Data sets")), link("/runs", t("Runs")), link("/jobs", t("Training")), link("/sites", t("Sites")),
    link("/handoff", t("Hand-off")), link("/models", t("Models")), link("/keys", t("Keys")), me.role === "admin" && link("/audit", t("Audit log")), languages());
  const menu = h("button.menu", { type: "button", "aria-expanded": "false", "aria-controls": "nav", onclick: () => {
    menu.setAttribute("aria-expanded", String(document.body.classList.toggle("open")));
  } }, t("Menu"));
  const offline = h("div.offline", { role: "status", hidden: true }, t("The site does not answer. What you see may be old; the page tries again."));
  connection.addEventListener("change", (event) => (offline.hidden = event.detail));
  const main = h("main", { id: "main" });
  const roles = { viewer: t("viewer"), operator: t("operator"), admin: t("admin") };
  fill(document.body,
    h("a.skip", { href: "#main", onclick: (event) => { event.preventDefault(); main.querySelector("h1")?.focus(); } }, t("To the content")),
    h("header", menu, h("a.brand", { href: "#/" }, h("img", { src: "/web/icon.svg", alt: "", width: 24, height: 24 }), " ", h("bdi", system.site_name || "relay")),
      h("div.who", h("span", h("bdi", me.name), ` (${roles[me.role]})`), languages(), h("button", { type: "button", onclick: signOut }, t("Sign out")))),
    offline, h("div.columns", nav, main));
  siteName = system.site_name || "relay";
  window.onhashchange = route;
  route();
}

async function route() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  document.body.classList.remove("open");
  const path = location.hash.slice(1) || "/";
  const main = document.getElementById("main");
  const [pattern, page, at] = PAGES.find(([known]) => known.test(path.split("?")[0])) ?? [null, null, null];
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === at) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!page) return fill(main, h("h1", t("There is no such page")), h("p", h("a", { href: "#/" }, t("To the overview"))));
  main.setAttribute("aria-busy", "true");
  try {
    const { show } = await import(`./pages/${page}.js`);
    const [route, query = ""] = path.split("?");
    const content = await show({ parts: route.match(pattern).slice(1).map(decodeURIComponent), query: new URLSearchParams(query), me, signal });
    if (signal.aborted) return;
    fill(main, content);
    main.dataset.path = path;
    document.title = `${main.querySelector("h1")?.textContent ?? ""} – ${siteName}`;
    main.querySelector("h1")?.focus({ preventScroll: true });
    scrollTo(0, 0);
  } catch (error) {
    if (signal.aborted) return;
    fill(main, h("h1", { tabindex: "-1" }, t("This cannot be shown")), alert(error));
    main.dataset.path = path;
  } finally {
    if (!signal.aborted) main.removeAttribute("aria-busy");
  }
}

async function signOut() {
  await remove(SESSION).catch(() => {});
  signInPage(null, t("You are signed out."));
}

// Work keeps the session; what the page reads by itself does not. The service knows of work in every window.
function watchWork() {
  let last = Date.now();
  let told = 0;
  const worked = () => {
    last = Date.now();
    if (!me || last - told < 60_000) return;
    told = last;
    raw("POST", `${SESSION}/worked`).catch(() => {});
  };
  for (const kind of ["pointerdown", "keydown", "wheel"]) addEventListener(kind, worked, { passive: true });
  setInterval(async () => {
    if (!me || Date.now() - last < me.idle_seconds * 1000) return;
    const idle = Math.round(me.idle_seconds / 60);
    const over = await get(SESSION).then(() => false, (error) => error.status === 401);
    if (over) signInPage(null, t("You were signed out, as nobody worked here for {n} minutes.", { n: idle }));
  }, 30_000);
}

start();
