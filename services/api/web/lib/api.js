// Talk to the REST API, as any other client does; the browser sends the session's cookie by itself.
import { t } from "./text.js";

/** What the service refused: a problem document (RFC 9457), or that it does not answer. */
export class Problem extends Error {
  constructor(status, content) {
    super(content.detail ?? content.title ?? String(status));
    this.status = status;
    this.code = content.code ?? "";
    this.title = content.title ?? "";
    this.content = content;
  }
}

let csrfToken = "";
let lost = () => {};

/** Tell how changes are sent, and what to do when nobody is signed in any more. */
export function signedInAs(session, whenLost) {
  csrfToken = session?.csrf_token ?? "";
  lost = whenLost ?? (() => {});
}

async function send(method, path, { body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (method !== "GET" && csrfToken && !sent.Authorization) sent["X-CSRF-Token"] = csrfToken;
  if (body !== undefined && !(body instanceof Blob) && typeof body !== "string") {
    sent["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, { method, headers: sent, body, signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { title: t("No connection"), detail: t("The site does not answer. Is it running? The page tries again."), code: "offline" });
  }
  if (!answer.ok) {
    const content = await answer.json().catch(() => ({ title: answer.statusText }));
    if (answer.status === 401 && !headers.Authorization) lost();
    throw new Problem(answer.status, content);
  }
  return answer;
}

const json = async (answer) => (answer.status === 204 ? null : answer.json());

/** Read JSON. `query` adds parameters; those that are null are left out. */
export async function get(path, query = {}, options = {}) {
  return json(await send("GET", address(path, query), options));
}

/** Read JSON together with its ETag, for a later change. */
export async function getWithTag(path) {
  const answer = await send("GET", path);
  return [await answer.json(), answer.headers.get("etag")];
}

export async function getText(path, query = {}) {
  return (await send("GET", address(path, query))).text();
}

export const post = async (path, body, headers = {}) => json(await send("POST", path, { body, headers }));
export const patch = async (path, body, tag) => json(await send("PATCH", path, { body, headers: { "If-Match": tag } }));
export const remove = async (path) => json(await send("DELETE", path));
/** Send anything, and get the answer itself. */
export const raw = (method, path, options) => send(method, path, options);

/** A new Idempotency-Key; a request that is sent again with its own key makes nothing twice. */
export const newKey = () => crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`; // randomUUID needs TLS or this machine

/** Submit a job. Where the answer was lost on its way, pressing again within the page sends the same key. */
export async function submit(body, path = "/api/v1/jobs") {
  const request = JSON.stringify([path, body]);
  const key = unanswered.get(request) ?? newKey();
  unanswered.set(request, key);
  try {
    const job = await post(path, body, { "Idempotency-Key": key });
    unanswered.delete(request);
    return job;
  } catch (error) {
    if (error.status) unanswered.delete(request);
    throw error;
  }
}
const unanswered = new Map();

function address(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

/** Read all pages of a list, up to `most` items. */
export async function all(path, query = {}, most = 1000) {
  const items = [];
  let cursor = null;
  do {
    const page = await get(path, { limit: 200, ...query, cursor });
    items.push(...page.items);
    cursor = page.next_cursor;
  } while (cursor && items.length < most);
  return items;
}

/**
 * Upload a file in pieces, through connections that break; chosen again, the same file goes on where it was.
 * @param {File} file The file.
 * @param {(share: number) => void} shown Is called with 0 to 1.
 * @returns {Promise<string>} The upload's name, for `POST /api/v1/imports?upload=`.
 */
export async function upload(file, shown, signal) {
  const letters = [...file.name].reduce((sum, letter) => (Math.imul(sum, 31) + letter.codePointAt(0)) >>> 0, 7);
  const path = `/api/v1/uploads/${letters}-${file.size}-${file.lastModified}`;
  let { received, piece_limit: most } = await get(path, {}, { signal });
  while (received < file.size) {
    shown(received / file.size);
    try {
      ({ received } = await json(await send("PUT", address(path, { offset: received }), { body: file.slice(received, received + most), headers: { "Content-Type": "application/octet-stream" }, signal })));
    } catch (error) {
      if (error.code === "conflict") received = error.content.received;
      else if (error.status === 0) await new Promise((resolve) => setTimeout(resolve, 2000));
      else throw error;
    }
  }
  shown(1);
  return path.split("/").at(-1);
}
