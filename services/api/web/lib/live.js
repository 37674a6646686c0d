// Keep what is on the screen true: read again while somebody looks, and follow a job's events through broken connections.

/** Say whether the site answers; the shell shows it. */
export const connection = new EventTarget();
const connected = (yes) => connection.dispatchEvent(new CustomEvent("change", { detail: yes }));

/**
 * Call `read` now and every `seconds`, while the page is looked at and until it is left, or `read` returns false.
 * @returns {Promise} Ends after the first call, so that a page that cannot be read says so; a later failure is tried again.
 */
export async function every(seconds, read, signal) {
  if ((await read()) === false) return;
  const again = async () => {
    if (signal.aborted) return;
    if (!document.hidden) {
      try {
        if ((await read()) === false) return;
        connected(true);
      } catch (error) {
        if (signal.aborted) return;
        connected(false);
      }
    }
    setTimeout(again, seconds * 1000);
  };
  setTimeout(again, seconds * 1000);
}

/**
 * Follow a job's events from `after` on, in order and each once; a broken stream goes on where it was.
 * @param {(event: object) => void} seen Is called with each event.
 * @param {() => Promise<boolean>} ended Is asked, when the service has ended the stream, whether the job has ended.
 */
export function follow(jobId, after, seen, ended, signal) {
  let last = after;
  let source;
  const open = () => {
    if (signal.aborted) return;
    source = new EventSource(`/api/v1/jobs/${jobId}/events?after=${last}`);
    source.onopen = () => connected(true);
    const take = (message) => {
      const event = JSON.parse(message.data);
      if (event.seq <= last) return;
      last = event.seq;
      seen(event);
    };
    for (const kind of KINDS) source.addEventListener(kind, take);
    source.onmessage = take;
    source.onerror = async () => {
      source.close();
      const over = await ended().catch(() => null); // null: nobody answered
      if (over === null && !signal.aborted) connected(false);
      if (!over) setTimeout(open, 2000);
    };
  };
  signal.addEventListener("abort", () => source?.close());
  open();
}

// A stream names each event by its kind, and a browser hands on only the kinds that it was told of.
const KINDS = [
  "queued", "claimed", "started", "step", "scores", "checkpoint", "samples", "log", "warning", "progress", "run", "written", "finished",
  "cancelling", "requeued", "succeeded", "failed", "cancelled",
];
