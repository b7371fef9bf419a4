// Server-sent events, read so that the status of an answer is seen and a lost connection is taken up again.
// Where a server has no stream, the list of events is asked for every second.

import { access, ask, studyPath } from "./api.js";

const POLL_MS = 1000;
const FIRST_WAIT_MS = 300;
const LONGEST_WAIT_MS = 5000;

/** Follow a study until it ends or `stop` is called.
 * @param {string} id of the study
 * @param {number} after number of the last event that is known
 * @param {(events: any[]) => void} onEvents
 * @param {(state: "live" | "waiting") => void} onState */
export function followStudy(id, after, onEvents, onState) {
  const path = `${studyPath(id)}/events`;
  const seen = { last: after };
  return follow(
    () => `${path}/stream?after=${seen.last}`,
    (event) => {
      if (event.seq <= seen.last) return;
      seen.last = event.seq;
      onEvents([event]);
    },
    onState,
    async () => {
      const page = await ask(`${path}?after=${seen.last}`);
      if (page.events.length) {
        seen.last = page.last_seq;
        onEvents(page.events);
      }
      return page.events.some((/** @type {any} */ event) => event.kind === "study.finished");
    },
  );
}

/** Follow all studies. @param {(change: any) => void} onChange
 * @param {(state: "live" | "waiting") => void} onState @param {() => void} onPoll */
export function followStudies(onChange, onState, onPoll) {
  return follow(() => "/v1/events/stream", onChange, onState, async () => {
    onPoll();
    return false;
  });
}

/** @param {() => string} address @param {(data: any) => void} onData
 * @param {(state: "live" | "waiting") => void} onState @param {() => Promise<boolean>} poll */
function follow(address, onData, onState, poll) {
  const stopping = new AbortController();
  const { signal } = stopping;
  const pause = (/** @type {number} */ ms) => new Promise((done) => setTimeout(done, ms));
  (async () => {
    let wait = FIRST_WAIT_MS;
    let hasStream = true;
    while (!signal.aborted) {
      try {
        if (!hasStream) {
          if (await poll()) return;
          onState("live");
          wait = FIRST_WAIT_MS;
          await pause(POLL_MS);
          continue;
        }
        const answer = await fetch(address(), { headers: { Accept: "text/event-stream" }, signal });
        if (answer.status === 401) {
          access.ask();
          return;
        }
        if (answer.status === 404 || answer.status === 406) {
          hasStream = false;
          continue;
        }
        if (!answer.ok || !answer.body) throw new Error(String(answer.status));
        onState("live");
        wait = FIRST_WAIT_MS;
        const ended = await read(answer.body, onData);
        if (ended) return;
        throw new Error("cut off");
      } catch {
        if (signal.aborted) return;
        onState("waiting");
        await pause(wait);
        wait = Math.min(wait * 2, LONGEST_WAIT_MS);
      }
    }
  })();
  return () => stopping.abort();
}

/** Messages of a stream to its end. Says whether that was the study's.
 * @param {ReadableStream<Uint8Array>} body @param {(data: any) => void} onData */
async function read(body, onData) {
  const reader = body.pipeThrough(/** @type {any} */ (new TextDecoderStream())).getReader();
  let rest = "";
  let isOver = false;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return isOver;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop() || "";
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data:"));
      if (!lines.length) continue;
      const data = JSON.parse(lines.map((line) => line.slice(5)).join("\n"));
      isOver ||= data.kind === "study.finished";
      onData(data);
    }
  }
}
